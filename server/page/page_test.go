package page

import (
	"strings"
	"testing"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

// glob is what matchName must be, in the simplest words.
func glob(pattern, name string) bool {
	switch {
	case pattern == "":
		return name == ""
	case pattern[0] == '*':
		return glob(pattern[1:], name) || (name != "" && glob(pattern, name[1:]))
	}
	return name != "" && pattern[0] == name[0] && glob(pattern[1:], name[1:])
}

// words are all texts of at most n letters.
func words(letters string, n int) []string {
	all := []string{""}
	for begin := 0; n > 0; n-- {
		end := len(all)
		for _, w := range all[begin:end] {
			for _, l := range letters {
				all = append(all, w+string(l))
			}
		}
		begin = end
	}
	return all
}

func TestMatchName(t *testing.T) {
	for _, pattern := range words("ab*", 5) {
		for _, name := range words("ab", 6) {
			if got, want := Match(pattern, name), glob(pattern, name); got != want {
				t.Fatalf("%q on %q: %v, want %v", pattern, name, got, want)
			}
		}
	}
}

// TestAfter: a pager tells behind which item its page begins.
func TestAfter(t *testing.T) {
	p, err := New(&brokerv1.FirewallStatusRequest{PageSize: 1})
	if err != nil || p.After() != "" {
		t.Errorf("%q, %v", p.After(), err)
	}
	_, token := Cut(p, []Item[*brokerv1.FirewallRule]{{Key: "a"}, {Key: "b"}}, func(*brokerv1.FirewallRule) bool { return true })
	if p, err = New(&brokerv1.FirewallStatusRequest{PageToken: token}); err != nil || p.After() != "a" {
		t.Errorf("%q, %v", p.After(), err)
	}
}

func BenchmarkMatchNameWorst(b *testing.B) {
	pattern, name := strings.Repeat("a*", 64), strings.Repeat("a", 127)+"b"
	for b.Loop() {
		Match(pattern, name)
	}
}
