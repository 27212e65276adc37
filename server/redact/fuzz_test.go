package redact

import (
	"bytes"
	"testing"
)

func FuzzLine(f *testing.F) {
	for _, c := range canaries {
		f.Add([]byte(c.before+c.secret+c.after), 5, true)
	}
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----"), 30, false)
	f.Add([]byte("\xff\x00 password=\xff"), 3, true)
	builtin, rules := mustNew(f), mustNew(f, `x(y)?`)
	f.Fuzz(func(t *testing.T, text []byte, cut int, inside bool) {
		cut = max(0, min(cut, len(text)))
		original := bytes.Clone(text)
		stream := rules.Stream()
		if inside {
			stream.Line([]byte("-----BEGIN PRIVATE KEY-----"), false)
		}
		for _, piece := range [][]byte{text[:cut], text[cut:], text} {
			out := stream.Line(piece, len(piece) == cut)
			if len(out) > 6*len(piece)+16 {
				t.Errorf("%d bytes became %d", len(piece), len(out))
			}
		}
		if !bytes.Equal(text, original) {
			t.Error("the input was changed")
		}
		// All that is left is from the line, in its order: redacting only removes.
		once := builtin.Stream().Line(text, false)
		rest := text
		for part := range bytes.SplitSeq(once, mark) {
			at := bytes.Index(rest, part)
			if at < 0 {
				t.Fatalf("%q is not in %q", part, text)
			}
			rest = rest[at+len(part):]
		}
		// A second time may find more, next to a mark, but never takes one back.
		if twice := builtin.Stream().Line(once, false); bytes.Contains(once, mark) && !bytes.Contains(twice, mark) {
			t.Errorf("once %q\ntwice %q", once, twice)
		}
	})
}
