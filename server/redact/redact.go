// Package redact replaces what looks like a secret in the lines of container
// logs by "[redacted]" before they leave the host.
//
// It is a safety net, not a promise. It knows the shape of common credentials
// and the names they are given; a secret that has neither passes, and so does
// one that is encoded, compressed or written over several lines (private keys
// excepted). Who must not see a container's secrets must not be granted its logs.
//
// Replaced are:
//
//   - values of keys whose name ends in password, passwd, passphrase, secret,
//     token, api key, access key, private key, authorization or credential(s),
//     or in the word auth, pass or pwd, in the forms key=value, key: value,
//     key => value and "key": "value", also inside a quoted string. A value
//     without quotes ends at white space or a quote. Words such as true and null
//     stay, and so does a whole number after "token", which language models count;
//   - what follows Bearer and Basic;
//   - the password in scheme://user:password@host;
//   - key ids of AWS, and tokens of GitHub, GitLab, Slack, Google, Hugging Face,
//     Stripe, and those that begin with "sk-" (OpenAI and others);
//   - JSON Web Tokens;
//   - private keys in PEM, over the lines that they take;
//   - what matches the operator's own patterns.
//
// A line can arrive in pieces. A secret that lies across two of them is found
// with the end of the piece before; of that piece, a beginning too short to be
// told from other text may have been passed on already.
//
// The cost is a scan for literal parts, some 200 ns for a line of 100 bytes, and
// nothing is allocated. Only rules of which a literal is in the line run their
// regular expression; an operator's pattern runs on every line. Time is linear
// in the length of the line. The output is never longer than 6 times the line
// plus 16 bytes.
package redact

import (
	"bytes"
	"fmt"
	"math/bits"
	"regexp"
	"slices"
)

// Limits of an operator's own patterns.
const (
	MaxPatterns     = 64
	MaxPatternBytes = 1024
)

// tailSize is how many bytes of a piece are kept to find what lies across its
// end: enough for a key, its separator and the beginning of a value.
const tailSize = 128

var mark = []byte("[redacted]")

// Rules are what is looked for. They do not change and are safe for concurrent
// use.
type Rules struct {
	builtin   []rule
	prefilter *prefilter
	extra     []*regexp.Regexp
}

// New returns the built-in rules together with the operator's own patterns, in
// RE2 syntax. Of a match the capture groups are replaced, or all of it when the
// pattern has none. A pattern that is invalid, too long or matches the empty
// text is an error, and so are more than MaxPatterns.
func New(extra []string) (*Rules, error) {
	if len(extra) > MaxPatterns {
		return nil, fmt.Errorf("%d patterns, at most %d are allowed", len(extra), MaxPatterns)
	}
	r := &Rules{builtin: builtinRules()}
	r.prefilter = newPrefilter(keyLiterals, r.builtin)
	for i, pattern := range extra {
		if len(pattern) > MaxPatternBytes {
			return nil, fmt.Errorf("pattern %d is longer than %d bytes", i+1, MaxPatternBytes)
		}
		re, err := regexp.Compile(pattern)
		if err != nil {
			return nil, fmt.Errorf("pattern %d: %w", i+1, err)
		}
		if re.MatchString("") {
			return nil, fmt.Errorf("pattern %d (%q) matches the empty text: make it match at least one character", i+1, pattern)
		}
		r.extra = append(r.extra, re)
	}
	return r, nil
}

// Stream returns the state for one output of one container: keys in PEM and
// lines in pieces span calls.
func (r *Rules) Stream() *Stream { return &Stream{rules: r} }

// Stream redacts one output, in order. It is not safe for concurrent use.
type Stream struct {
	rules *Rules
	pem   pemState
	tail  []byte // end of the piece before, when the line goes on
	carry byte   // what ends the secret that reached the end of the piece before; 0 for none
	spans []span // reused
	keys  []int  // reused
}

// span is a part of a line to replace.
type span struct{ start, end int }

// Line returns line with what looks like a secret replaced, or line itself when
// there is nothing. It never changes line and keeps no reference to it. Partial
// says that line is a piece, and that the next call has what follows it.
func (s *Stream) Line(line []byte, partial bool) []byte {
	text, before := line, len(s.tail)
	if before > 0 {
		text = append(s.tail, line...)
	}
	s.spans = s.pem.find(text, before, s.spans[:0])
	s.find(text, partial)
	if s.carry != 0 {
		s.spans = append(s.spans, span{before, before + runLength(line, s.carry)})
	}
	spans := merge(s.spans, before)

	s.carry = s.nextCarry(text, before, partial, spans)
	out := line
	if len(spans) > 0 {
		out = replace(text, before, spans)
	}
	s.tail = s.tail[:0]
	if partial {
		s.tail = append(s.tail, text[max(0, len(text)-tailSize):]...)
	}
	return out
}

// find adds the spans in text that the rules match. Open says that text breaks
// off, so that what is at its end may be the beginning of a secret.
func (s *Stream) find(text []byte, open bool) {
	var hits uint64
	hits, s.keys = s.rules.prefilter.scan(text, s.keys[:0])
	s.spans = findValues(text, s.keys, s.spans)
	for ; hits != 0; hits &= hits - 1 {
		rule := &s.rules.builtin[bits.TrailingZeros64(hits)]
		s.spans = rule.find(text, open, s.spans)
	}
	for _, re := range s.rules.extra {
		for _, match := range re.FindAllSubmatchIndex(text, -1) {
			s.spans = appendGroups(s.spans, match)
		}
	}
}

// appendGroups appends the groups of a match, or the whole match when none of
// them took part in it.
func appendGroups(spans []span, match []int) []span {
	found := len(spans)
	for i := 2; i < len(match); i += 2 {
		if match[i] >= 0 && match[i] < match[i+1] {
			spans = append(spans, span{match[i], match[i+1]})
		}
	}
	if len(spans) == found {
		spans = append(spans, span{match[0], match[1]})
	}
	return spans
}

// merge sorts spans, joins those that touch, and drops what lies before from.
func merge(spans []span, from int) []span {
	slices.SortFunc(spans, func(a, b span) int { return a.start - b.start })
	merged := spans[:0]
	for _, sp := range spans {
		sp.start = max(sp.start, from)
		if sp.start >= sp.end {
			continue
		}
		if n := len(merged); n > 0 && sp.start <= merged[n-1].end {
			merged[n-1].end = max(merged[n-1].end, sp.end)
			continue
		}
		merged = append(merged, sp)
	}
	return merged
}

// replace returns text from from on, with the spans replaced.
func replace(text []byte, from int, spans []span) []byte {
	out := make([]byte, 0, len(text)-from+len(spans)*len(mark))
	for _, sp := range spans {
		out = append(out, text[from:sp.start]...)
		out = append(out, mark...)
		from = sp.end
	}
	return append(out, text[from:]...)
}

// nextCarry returns what ends the secret that text breaks off in, or 0.
func (s *Stream) nextCarry(text []byte, before int, partial bool, spans []span) byte {
	if !partial || len(spans) == 0 || spans[len(spans)-1].end != len(text) {
		return 0
	}
	start := spans[len(spans)-1].start
	switch {
	case start == before && s.carry != 0: // the same secret still
		return s.carry
	case start > 0 && (text[start-1] == '"' || text[start-1] == '\''):
		return text[start-1]
	}
	return ' '
}

// runLength returns how much of text belongs to a secret that end terminates.
func runLength(text []byte, end byte) int {
	stop := -1
	if end == ' ' {
		stop = bytes.IndexAny(text, " \t\r\n\"'")
	} else {
		stop = bytes.IndexByte(text, end)
	}
	if stop < 0 {
		return len(text)
	}
	return stop
}
