package strictyaml

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		"", "name: x", "name: 1\nlevel: ~\n", "grants:\n- allow: [a, b]\n  on:\n  - c\n", "size: 64MiB\nevery: 30s",
		"&a name: *a\n<<: !!str x\n? y\n: z", "a: |\n  x\nb: >-\n  y\n", "%YAML 1.2\n---\na: b\n...\n---\n", "{a: [b, {c: d}], e}",
		"name: \"\\x41\\u00e9\"\n", "name: 'it''s'\r\n", "table: {1: 2, \"a\": .nan}", "a: b: c", "\ta: b", "\ufeffa: b", "a: \x00",
		"- - - a\n", "{", "a: [1,,2]", "a: \"x\" y", "a: \"b\nc: d", "? [a]\n: b", "placed: 0o17\nsmall: 010", "maybe:\nbroken: 1",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var c config
		problems := Decode("f", data, &c)
		if len(problems) > MaxProblems {
			t.Errorf("%d problems", len(problems))
		}
		lines := strings.Count(string(data), "\n") + 1
		for i, p := range problems {
			if p.Message == "" || !utf8.ValidString(p.Message) || strings.ContainsAny(p.Message, "\n\r\t\x1b") {
				t.Errorf("message %q is not a line of text", p.Message)
			}
			if !p.Pos.IsZero() && (p.Pos.Line < 1 || p.Pos.Column < 1 || p.Pos.Line > lines) {
				t.Errorf("%v is not in the file", p)
			}
			if i > 0 && problems[i-1].Pos.Line > p.Pos.Line {
				t.Errorf("%v comes after %v", p, problems[i-1])
			}
		}
		if len(problems) == 0 && c.Where.IsZero() {
			t.Error("no problem, and nothing decoded")
		}
	})
}
