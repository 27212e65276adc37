package termclean_test

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/gortium/hermes-broker/internal/termclean"
)

func TestString(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"empty", "", ""},
		{"plain", "media-server_1.0", "media-server_1.0"},
		{"umlaut, CJK, emoji", "größe 容器 ✔️", "größe 容器 ✔️"},
		{"CSI clears the screen", "a\x1b[2Jb", `a\x1b[2Jb`},
		{"OSC sets the title", "\x1b]0;root@host\x07", `\x1b]0;root@host\x07`},
		{"OSC 52 fills the clipboard", "\x1b]52;c;cm0gLXJm\x1b\\", `\x1b]52;c;cm0gLXJm\x1b\`},
		{"OSC 8 hides a link", "\x1b]8;;http://evil\x1b\\x", `\x1b]8;;http://evil\x1b\x`},
		{"DCS", "\x1bP$q\x1b\\", `\x1bP$q\x1b\`},
		{"carriage return overwrites", "denied\rallowed", `denied\rallowed`},
		{"backspace", "no\b\byes", `no\x08\x08yes`},
		{"newline forges a row", "a\nroot  running", `a\nroot  running`},
		{"tab shifts a column", "a\tb", `a\tb`},
		{"NUL and DEL", "\x00\x7f", `\x00\x7f`},
		{"C1 as a rune", "\u009b2J\u009d0;x\u009c", `\u009b2J\u009d0;x\u009c`},
		{"C1 as a byte", "\x9b2J", `\x9b2J`},
		{"NEL", "a\u0085b", `a\u0085b`},
		{"bidi override", "a\u202egpj.exe\u202c", `a\u202egpj.exe\u202c`},
		{"bidi isolate", "\u2066a\u2069", `\u2066a\u2069`},
		{"bidi mark", "\u200e\u200f\u061c", `\u200e\u200f\u061c`},
		{"zero width", "ol\u200blama\u200c\u200d\u2060\ufeff", `ol\u200blama\u200c\u200d\u2060\ufeff`},
		{"soft hyphen", "a\u00adb", `a\u00adb`},
		{"line and paragraph separator", "a\u2028b\u2029c", `a\u2028b\u2029c`},
		{"tag characters", "a\U000e0041\U000e007f", `a\U000e0041\U000e007f`},
		{"variation selector 17", "a\U000e0100", `a\U000e0100`},
		{"Hangul fillers, braille blank", "\u3164\u115f\uffa0\u2800", `\u3164\u115f\uffa0\u2800`},
		{"private use", "\ue000", `\ue000`},
		{"noncharacter", "\uffff", `\uffff`},
		{"replacement character", "\ufffd", `\ufffd`},
		{"invalid UTF-8", "a\xff\xc3(", `a\xff\xc3(`},
		{"overlong ESC", "\xc0\x9b", `\xc0\x9b`},
		{"surrogate", "\xed\xa0\x80", `\xed\xa0\x80`},
		{"cut in a rune", "a\xe2\x80", `a\xe2\x80`},
		{"backslash stays", `C:\x1b`, `C:\x1b`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := termclean.String(tt.in); got != tt.want {
				t.Errorf("String(%q) = %q, want %q", tt.in, got, tt.want)
			}
		})
	}
}

func TestLineKeepsTabsOnly(t *testing.T) {
	if got, want := termclean.Line([]byte("a\tb\x1b[A\r\v")), "a\tb"+`\x1b[A\r\x0b`; got != want {
		t.Errorf("Line = %q, want %q", got, want)
	}
}

// TestEveryRune walks all of Unicode: nothing of the classes that act on a
// terminal or hide passes.
func TestEveryRune(t *testing.T) {
	for r := rune(0); r <= unicode.MaxRune; r++ {
		hostile := unicode.In(r, unicode.Cc, unicode.Cf, unicode.Cs, unicode.Co, unicode.Zl, unicode.Zp,
			unicode.Bidi_Control, unicode.Noncharacter_Code_Point)
		if hostile && termclean.Safe(r) {
			t.Fatalf("%U is safe", r)
		}
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"plain", "\x1b[2J", "\u202e", "\xff\x9b", "a\tb\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		for name, got := range map[string]string{
			"String": termclean.String(string(in)),
			"Line":   strings.ReplaceAll(termclean.Line(in), "\t", " "),
		} {
			if !utf8.ValidString(got) {
				t.Fatalf("%s(%q) = %q is not UTF-8", name, in, got)
			}
			if i := strings.IndexFunc(got, func(r rune) bool { return !termclean.Safe(r) }); i >= 0 {
				t.Fatalf("%s(%q) = %q is unsafe at %d", name, in, got, i)
			}
			if name == "String" && termclean.String(got) != got {
				t.Fatalf("cleaning %q twice changes it", in)
			}
		}
	})
}

func BenchmarkLine(b *testing.B) {
	line := []byte(`2026-01-02T03:04:05Z level=info msg="request served" path=/api/tags status=200 duration=1.2ms`)
	b.ReportAllocs()
	for b.Loop() {
		termclean.Line(line)
	}
}
