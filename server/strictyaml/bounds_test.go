package strictyaml

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// tree nests as deep as its text does.
type tree struct {
	Sub  *tree   `yaml:"sub"`
	Subs []*tree `yaml:"subs"`
}

func nestedBlocks(levels int) string {
	var b strings.Builder
	for i := range levels {
		b.WriteString(strings.Repeat(" ", i) + "sub:\n")
	}
	return b.String()
}

func TestDepth(t *testing.T) {
	flow := func(levels int) string {
		return strings.Repeat("{sub: ", levels-1) + "{}" + strings.Repeat("}", levels-1)
	}
	// A list in the column of its key is one more level; a new key at the left
	// margin is level one again.
	zigzag := func(levels int) string {
		var b strings.Builder
		for i := range levels / 2 {
			indent := strings.Repeat("  ", i)
			b.WriteString(indent + "subs:\n" + indent + "- # x\n")
		}
		return "sub: {}\n" + b.String() + strings.Repeat("  ", levels/2) + "{}\n"
	}
	tests := []struct {
		name string
		text string
		deep bool
	}{
		{"blocks at the limit", nestedBlocks(MaxDepth), false},
		{"blocks over it", nestedBlocks(MaxDepth + 1), true},
		{"flow at the limit", flow(MaxDepth), false},
		{"flow over it", flow(MaxDepth + 1), true},
		{"lists in lists at the limit", strings.Repeat("- ", MaxDepth) + "x", false},
		{"lists in lists over it", strings.Repeat("- ", MaxDepth+1) + "x", true},
		{"lists in the column of the key, under the limit", zigzag(MaxDepth - 2), false},
		{"lists in the column of the key, over it", zigzag(MaxDepth), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			problems := Decode("f", []byte(tt.text), &tree{})
			if got := strings.Contains(problems.Error(), "nested deeper"); got != tt.deep {
				t.Errorf("refused for depth: %v, want %v\n%s\n%v", got, tt.deep, tt.text, problems)
			}
			if strings.Contains(problems.Error(), "not valid YAML") {
				t.Errorf("the test's input is wrong: %v", problems)
			}
		})
	}
}

func TestEntries(t *testing.T) {
	text := func(keys int) []byte {
		var b strings.Builder
		for i := range keys {
			fmt.Fprintf(&b, "k%d: 1\n", i)
		}
		return []byte(b.String())
	}
	var m map[string]int
	if problems := Decode("f", text(MaxEntries), &m); problems.Err() != nil || len(m) != MaxEntries {
		t.Errorf("at the limit: %d keys, %v", len(m), problems)
	}
	problems := Decode("f", text(MaxEntries+1), &m)
	if got, want := problems.Error(), "f:10001:7: more than 10000 keys and list items"; got != want {
		t.Errorf("over the limit: %q, want %q", got, want)
	}
}

func TestProblemsAreBounded(t *testing.T) {
	for name, text := range map[string]string{
		"keys":    strings.Repeat("nope: 1\n", MaxProblems*3),
		"items":   "subs: [" + strings.Repeat("~,", MaxProblems*3) + "~]",
		"refused": strings.Repeat("!a ", MaxProblems*3),
	} {
		if got := len(Decode("f", []byte(text), &tree{})); got != MaxProblems {
			t.Errorf("%s: %d problems, want %d", name, got, MaxProblems)
		}
	}
}

// TestHostileShapes has a large input of each shape that a recursive or
// quadratic parser minds. A stack that runs out ends the test binary.
func TestHostileShapes(t *testing.T) {
	units := []string{
		"[", "{", "]", "}", "{a: ", "[a: ", "- ", "- [", "[- ", "{- ", "? ", "[? ", "{? ", "&a ", "!a ", "*a ", "a: ", ": ", "a:\n",
		"? a\n", "- a:\n", "{a,", "a,", "---\n", "...\n", "%a\n", "|\n", "\"", "'", "\t", "#\n", "\n", " ", "[{", "{[", "-\n", "a: [\n", "x ",
		"]: [", "<<: ", "[]:", "--- - ",
	}
	for _, prefix := range []string{"", "a: [", "a: {", "a: |\n ", "- "} {
		for _, unit := range units {
			times := MaxSize / 8 / len(unit)
			if n := strings.Count(unit, "\n"); n > 0 {
				times = min(times, (MaxLines-1)/n)
			}
			text := prefix + strings.Repeat(unit, times)
			start := time.Now()
			Decode("f", []byte(text), &tree{})
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("%q times %q took %v", prefix, unit, took)
			}
		}
	}
}
