package redact

import (
	"bytes"
	"regexp"
)

// maxPEMLines is how many lines or pieces after its BEGIN a private key may
// take: an RSA key of 16384 bits has 200. Whoever can have a BEGIN logged must
// not be able to hide what follows for ever.
const maxPEMLines = 256

var (
	pemDashes = []byte("-----")
	pemBegin  = regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----`)
	pemEnd    = regexp.MustCompile(`-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----`)
	// pemBody is a line of nothing but base64, or a run of it in a line that the
	// program put something before. Other lines inside a key are left as they
	// are: a hostile BEGIN hides little.
	pemBody = regexp.MustCompile(`^\s*[A-Za-z0-9+/=]+\s*$|[A-Za-z0-9+/=]{16,}`)
)

// pemState says whether a private key is going on.
type pemState struct {
	linesLeft int // 0 outside of a key
}

// find appends the spans of private keys in text, of which the first before
// bytes were seen in the call before.
func (p *pemState) find(text []byte, before int, spans []span) []span {
	if p.linesLeft == 0 && !bytes.Contains(text, pemDashes) {
		return spans
	}
	at := before
	if p.linesLeft > 0 {
		p.linesLeft--
		body := text[before:]
		if closing := nextMarker(pemEnd, text, before, at); closing != nil {
			p.linesLeft = 0
			at = closing[1]
			spans = append(spans, span{closing[0], at})
			body = text[before:max(before, closing[0])]
		}
		for _, m := range pemBody.FindAllIndex(body, -1) {
			spans = append(spans, span{before + m[0], before + m[1]})
		}
	}
	for {
		opening := nextMarker(pemBegin, text, before, at)
		if opening == nil {
			return spans
		}
		closing := nextMarker(pemEnd, text, before, opening[1])
		if closing == nil {
			p.linesLeft = maxPEMLines
			return append(spans, span{opening[0], len(text)})
		}
		spans = append(spans, span{opening[0], closing[1]})
		at = closing[1]
	}
}

// nextMarker returns the first match of re that begins at or after at. When at
// is where new text begins, one that lies across it counts, too.
func nextMarker(re *regexp.Regexp, text []byte, before, at int) []int {
	from := at
	if at == before {
		from = 0
	}
	for from < len(text) {
		m := re.FindIndex(text[from:])
		if m == nil {
			return nil
		}
		m[0], m[1] = m[0]+from, m[1]+from
		if m[1] > at {
			return m
		}
		from = m[1]
	}
	return nil
}
