package strictyaml

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

type level string

type grant struct {
	Pos   `yaml:"-,pos"`
	Allow []At[string] `yaml:"allow"`
	On    []string     `yaml:"on"`
}

type config struct {
	Where   Pos                    `yaml:"-,pos"`
	Name    string                 `yaml:"name"`
	Level   level                  `yaml:"level"`
	Enabled bool                   `yaml:"enabled"`
	Small   int8                   `yaml:"small"`
	Port    uint16                 `yaml:"port"`
	Big     int64                  `yaml:"big"`
	Ratio   float64                `yaml:"ratio"`
	Every   time.Duration          `yaml:"every"`
	Size    Bytes                  `yaml:"size"`
	From    netip.Prefix           `yaml:"from"`
	Placed  At[int]                `yaml:"placed"`
	Maybe   *grant                 `yaml:"maybe"`
	Grants  []grant                `yaml:"grants"`
	Table   map[string]At[float64] `yaml:"table"`
	Named   map[level]string       `yaml:"named"`
	Broken  chan int               `yaml:"broken"`
	Ignored string                 `yaml:"-"`
	NoTag   string
}

func TestDecodeValues(t *testing.T) {
	const text = `# a comment
name: "12"
level: info
enabled: true
small: -0x80
port: 0o17
big: +9223372036854775807
ratio: 1e3
every: 1m30s
size: 64MiB
from: 10.0.0.0/8
placed: 3
maybe: {on: [x]}
grants:
- allow:
    - containers.list
    - 'containers.*'
  on: [é, "é", b]
-   on:
    - |
      two
      lines
    - folded
      plain
table:
  a: 1
  "b c":   2.5
named: {x: "y"}
`
	at := func(v string, line, column int) At[string] { return At[string]{v, Pos{line, column}} }
	want := config{
		Where: Pos{2, 1}, Name: "12", Level: "info", Enabled: true, Small: -128, Port: 15, Big: 1<<63 - 1, Ratio: 1000,
		Every: 90 * time.Second, Size: 64 << 20, From: netip.MustParsePrefix("10.0.0.0/8"),
		Placed: At[int]{3, Pos{12, 9}},
		Maybe:  &grant{Pos: Pos{13, 8}, On: []string{"x"}},
		Grants: []grant{
			{
				Pos:   Pos{15, 3},
				Allow: []At[string]{at("containers.list", 16, 7), at("containers.*", 17, 7)},
				On:    []string{"é", "é", "b"},
			},
			{Pos: Pos{19, 5}, On: []string{"two\nlines\n", "folded plain"}},
		},
		Table: map[string]At[float64]{"a": {1, Pos{26, 6}}, "b c": {2.5, Pos{27, 12}}},
		Named: map[level]string{"x": "y"},
	}
	var got config
	if problems := Decode("f.yaml", []byte(text), &got); problems.Err() != nil {
		t.Fatal(problems)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("decoded (-want +got):\n%s", diff)
	}
}

func TestDecodeKeepsDefaultsOfAbsentKeys(t *testing.T) {
	got := config{Name: "default", Every: time.Second, Ignored: "kept", Placed: At[int]{Value: 5}}
	if problems := Decode("f.yaml", []byte("level: info"), &got); problems.Err() != nil {
		t.Fatal(problems)
	}
	want := config{
		Where: Pos{1, 1}, Name: "default", Level: "info", Every: time.Second, Ignored: "kept", Placed: At[int]{Value: 5},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("decoded (-want +got):\n%s", diff)
	}
}

// TestDecodeProblems gives, for each input, all the problems there are.
func TestDecodeProblems(t *testing.T) {
	const knownKeys = "the known keys are big, broken, enabled, every, from, grants, level, maybe, name, named, placed, port, ratio, size, small, table"
	tests := []struct {
		name, text string
		want       []string
	}{
		// Keys.
		{"unknown key, near", "nmae: x", []string{`f:1:1: unknown key "nmae": did you mean "name"?`}},
		{"unknown key, two as near", "namee: x", []string{`f:1:1: unknown key "namee": ` + knownKeys}},
		{"unknown key, far", "grants:\n- on: [a]\n  deny: [b]", []string{`f:3:3: unknown key "deny": the known keys are allow, on`}},
		{"ignored fields have no key", "NoTag: x\nIgnored: y\n\"-\": z", []string{
			`f:1:1: unknown key "NoTag": ` + knownKeys,
			`f:2:1: unknown key "Ignored": ` + knownKeys,
			`f:3:1: unknown key "-": ` + knownKeys,
		}},
		{"case matters", "Name: x", []string{`f:1:1: unknown key "Name": did you mean "name"?`}},
		{"duplicate key", "name: x\nlevel: y\n\"name\": z\nname: u", []string{
			`f:3:1: duplicate key "name": already given on line 1`,
			`f:4:1: duplicate key "name": already given on line 1`,
		}},
		{"duplicate key in a map", "table: {a: 1, a: 2}", []string{`f:1:15: duplicate key "a": already given on line 1`}},
		{"keys that are not strings", "table:\n  1: 2\n  true: 3\n  1e3: 4", []string{
			`f:2:3: the key "1" is an integer: put it in quotes`,
			`f:3:3: the key "true" is a boolean: put it in quotes`,
			`f:4:3: the key "1e3" is a number: put it in quotes`,
		}},
		{"quoted merge key is a key", "\"<<\": {name: x}", []string{`f:1:1: unknown key "<<": ` + knownKeys}},

		// Null.
		{"key without value", "name:\nlevel: ~\nport: null\nmaybe:", []string{
			"f:1:1: name: has no value: remove the key or give it a value",
			"f:2:1: level: has no value: remove the key or give it a value",
			"f:3:1: port: has no value: remove the key or give it a value",
			"f:4:1: maybe: has no value: remove the key or give it a value",
		}},
		{"item without value", "grants:\n- on:\n  - ~\n  - x", []string{
			"f:3:5: on[0]: has no value: remove it or give it a value",
		}},
		{"flow key without value", "grants: [{on}]", []string{
			"f:1:11: on: has no value: remove the key or give it a value",
		}},

		// Types.
		{"string wanted", "name: 12\nlevel: true\ngrants:\n- on: [1.5, [a], {a: b}, 0x1F, 1e3, 99999999999999999999]", []string{
			`f:1:7: name: want a string, got an integer (12): put it in quotes: "12"`,
			`f:2:8: level: want a string, got a boolean (true): put it in quotes: "true"`,
			`f:4:8: on[0]: want a string, got a number (1.5): put it in quotes: "1.5"`,
			`f:4:13: on[1]: want a string, got a list`,
			`f:4:18: on[2]: want a string, got a mapping`,
			`f:4:26: on[3]: want a string, got an integer (0x1F): put it in quotes: "0x1F"`,
			`f:4:32: on[4]: want a string, got a number (1e3): put it in quotes: "1e3"`,
			`f:4:37: on[5]: want a string, got an integer (99999999999999999999): put it in quotes: "99999999999999999999"`,
		}},
		{"string values are not shown", "port: s3cret\nenabled: s3cret\ngrants: s3cret\nmaybe: s3cret\nratio: s3cret\nevery: s3cret\nsize: s3cret", []string{
			"f:1:7: port: want an integer, got a string",
			"f:2:10: enabled: want true or false, got a string",
			`f:3:9: grants: want a list, got a string: write "[a, b]", or a line "- a" for each item`,
			`f:4:8: maybe: want a mapping ("key: value"), got a string`,
			"f:5:8: ratio: want a decimal number, got a string",
			"f:6:8: every: want a duration with a unit, such as 30s, 5m or 1h30m",
			"f:7:7: size: want a size such as 64KiB, 64MiB or 1GiB, or an integer (bytes)",
		}},
		{"bool wanted", "enabled: yes", []string{"f:1:10: enabled: want true or false, got a string"}},
		{"integer wanted", "port: \"80\"\nsmall: 1.0\nbig: [1]\nplaced: no", []string{
			"f:1:7: port: want an integer, got a string",
			"f:2:8: small: want an integer, got a number (1.0)",
			"f:3:6: big: want an integer, got a list",
			"f:4:9: placed: want an integer, got a string",
		}},
		{"integer out of range", "port: 65536\nsmall: -129\nbig: 9223372036854775808\nplaced: 99999999999999999999", []string{
			"f:1:7: port: want an integer from 0 to 65535",
			"f:2:8: small: want an integer from -128 to 127",
			"f:3:6: big: want an integer from -9223372036854775808 to 9223372036854775807",
			"f:4:9: placed: want an integer from -9223372036854775808 to 9223372036854775807",
		}},
		{"negative where unsigned", "port: -1", []string{"f:1:7: port: want an integer from 0 to 65535"}},
		{"ambiguous integer", "port: 010\nbig: 1_000", []string{
			"f:1:7: port: write the integer in decimal digits without leading zeros, or with 0x or 0o",
			"f:2:6: big: write the integer in decimal digits without leading zeros, or with 0x or 0o",
		}},
		{"float wanted", "ratio: .inf\ntable: {a: .nan, b: 1e999, c: 0x10}", []string{
			"f:1:8: ratio: want a decimal number, got a number (.inf)",
			"f:2:12: a: want a decimal number, got a number (.nan)",
			"f:2:21: b: the number is out of range",
			"f:2:31: c: want a decimal number, got an integer (0x10)",
		}},
		{"duration wanted", "every: 30", []string{
			"f:1:8: every: want a duration with a unit, such as 30s, 5m or 1h30m, got an integer (30)",
		}},
		{"text wanted", "from: 10.0.0.0", []string{`f:1:7: from: netip.ParsePrefix("10.0.0.0"): no '/'`}},
		{"text wanted, number given", "from: 10", []string{
			`f:1:7: from: want a string, got an integer (10): put it in quotes: "10"`,
		}},
		{"list wanted", "grants:\n- on: a\n  allow: {b: c}", []string{
			`f:2:7: on: want a list, got a string: write "[a, b]", or a line "- a" for each item`,
			`f:3:10: allow: want a list, got a mapping: write "[a, b]", or a line "- a" for each item`,
		}},
		{"mapping wanted", "maybe: [a]\ntable: 1", []string{
			`f:1:8: maybe: want a mapping ("key: value"), got a list`,
			`f:2:8: table: want a mapping ("key: value"), got an integer (1)`,
		}},
		{"root is a list", "[a]", []string{`f:1:1: the document: want a mapping ("key: value"), got a list`}},
		{"root is a string", "name:x", []string{`f:1:1: the document: want a mapping ("key: value"), got a string`}},
		{"unsupported Go type", "broken: 1", []string{"f:1:9: broken: cannot be read into the Go type chan int (a bug in this program)"}},

		// What is refused of YAML.
		{"anchor, alias, tag, merge key, and an unknown key", "maybe: &a {on: [x]}\ngrants: [*a]\nname: !!str x\n<<: *a\nelsewhere: 1", []string{
			"f:1:8: anchors (&) are not supported: write the value out",
			"f:2:10: aliases (*) are not supported: write the value out, or quote a string that begins with *",
			"f:3:7: tags (!) are not supported: remove it, or quote a string that begins with !",
			"f:4:1: merge keys (<<) are not supported: write the keys out",
			"f:4:5: aliases (*) are not supported: write the value out, or quote a string that begins with *",
			`f:5:1: unknown key "elsewhere": ` + knownKeys,
		}},
		{"anchored key", "&a name: x", []string{"f:1:1: anchors (&) are not supported: write the value out"}},
		{"complex key", "? name\n: x", []string{`f:1:1: complex keys (?) are not supported: write "key: value"`}},
		{"directive", "%YAML 1.2\n---\nname: x", []string{"f:1:1: directives (%) are not supported: remove the line"}},
		{"second document", "name: 1\n---\nname: y\n---\nname: z", []string{
			`f:1:7: name: want a string, got an integer (1): put it in quotes: "1"`,
			"f:2:1: a second document: only one is allowed in a file",
		}},
		{"second document, empty", "name: x\n---", []string{"f:2:1: a second document: only one is allowed in a file"}},
		{"second document, after an end", "name: x\n...\nname: y", []string{"f:3:1: a second document: only one is allowed in a file"}},
		{"empty", "", []string{"f: empty: there is no configuration in it"}},
		{"only a comment", "# x\n", []string{"f: empty: there is no configuration in it"}},
		{"only a header", "---\n", []string{"f: empty: there is no configuration in it"}},
		{"only null", "null", []string{"f: empty: there is no configuration in it"}},

		// Text.
		{"not UTF-8", "name: x\nlevel: é\xff", []string{"f:2:9: not UTF-8"}},
		{"byte order mark", "\ufeffname: x", []string{"f:1:1: contains a byte order mark: save the file as UTF-8 without it"}},
		{"control character", "name: \"\x1b[2J\"", []string{"f:1:8: contains the control character U+001B"}},
		{"lone carriage return", "name: x\rlevel: y", []string{"f:1:8: contains a carriage return without a line feed"}},
		{"CRLF", "name: 1\r\nlevel: 2\r\n", []string{
			`f:1:7: name: want a string, got an integer (1): put it in quotes: "1"`,
			`f:2:8: level: want a string, got an integer (2): put it in quotes: "2"`,
		}},
		{"too many lines", strings.Repeat("\n", MaxLines+1), []string{"f: more than 20000 lines"}},
		{"too large", "name: " + strings.Repeat("x", MaxSize), []string{"f: larger than 1048576 bytes"}},

		// The parser's own.
		{"tab", "maybe:\n\ton: [a]", []string{"f:2:1: not valid YAML: a tab cannot be used here: indent with spaces"}},
		{"open list", "grants: [a", []string{"f:1:9: not valid YAML: sequence end token ']' not found"}},
		{"two values", "name: a: b", []string{"f:1:7: not valid YAML: mapping value is not allowed in this context"}},
		{"bad indentation", "maybe:\n  on: [a]\n allow: [b]", []string{"f:3:2: not valid YAML: value is not allowed in this context"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var c config
			problems := Decode("f", []byte(tt.text), &c)
			if diff := cmp.Diff(strings.Join(tt.want, "\n"), problems.Error()); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecodeBytes(t *testing.T) {
	const form = "want a size such as 64KiB, 64MiB or 1GiB, or an integer (bytes)"
	tests := []struct {
		text string
		want Bytes
		err  string
	}{
		{"0", 0, ""},
		{"4096", 4096, ""},
		{"1KiB", 1 << 10, ""},
		{"2GiB", 2 << 30, ""},
		{"3TiB", 3 << 40, ""},
		{"8388607TiB", 8388607 << 40, ""},
		{"8388608TiB", 0, "the size is out of range"},
		{"99999999999999999999", 0, "the size is out of range"},
		{"-1", 0, "the size is out of range"},
		{"1MB", 0, form},
		{"1M", 0, form},
		{"1 MiB", 0, form},
		{"1.5MiB", 0, form},
		{"01MiB", 0, form},
		{"MiB", 0, form},
		{"1MiBMiB", 0, form},
		{"'4096'", 0, form},
		{"1.5", 0, form + ", got a number (1.5)"},
		{"[1]", 0, form + ", got a list"},
	}
	for _, tt := range tests {
		var c config
		problems := Decode("f", []byte("size: "+tt.text), &c)
		message := ""
		if len(problems) == 1 {
			message = problems[0].Message
		}
		if tt.err != "" {
			tt.err = "size: " + tt.err
		}
		if c.Size != tt.want || message != tt.err || len(problems) > 1 {
			t.Errorf("%s: got %d, %q; want %d, %q", tt.text, c.Size, message, tt.want, tt.err)
		}
	}
}

func TestDecodeIntoWhatIsNoPointer(t *testing.T) {
	for _, into := range []any{nil, config{}, (*config)(nil)} {
		if len(Decode("f", []byte("name: x"), into)) != 1 {
			t.Errorf("no problem for %T", into)
		}
	}
}

func TestErrIsNilWithoutProblems(t *testing.T) {
	var ps Problems
	if ps.Err() != nil {
		t.Error("Err of no problems is not nil")
	}
	ps.Add("a", Pos{}, "x")
	ps.Add("b", Pos{1, 2}, "y %d", 3)
	if got, want := ps.Err().Error(), "a: x\nb:1:2: y 3"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

type panicking struct{}

func (*panicking) UnmarshalText([]byte) error { panic("oops") }

// The parser's panics differ from version to version; this one stays.
func TestDecodeRecovers(t *testing.T) {
	var m map[string]panicking
	problems := Decode("f", []byte("a: x"), &m)
	if got, want := problems.Error(), "f: not readable as YAML (oops)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
