package policy

import (
	"errors"
	"fmt"
	"strings"
)

// Pattern is an anchored glob over a resource: "containers/media-*". "*" is any
// run of characters other than "/"; everything else is itself, case and all.
type Pattern struct {
	text  string
	parts []string // The text between the stars.
}

const maxPattern = 256

// ParsePattern checks and compiles a pattern.
func ParsePattern(text string) (Pattern, error) {
	switch {
	case text == "":
		return Pattern{}, errors.New(`empty pattern; "containers/*" is every container`)
	case len(text) > maxPattern:
		return Pattern{}, fmt.Errorf("pattern of %d characters; at most %d", len(text), maxPattern)
	case strings.Contains(text, "**"):
		return Pattern{}, errors.New(`"**" has no meaning; "*" is any run of characters other than "/"`)
	}
	for _, r := range text {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("*/_.-:@+", r)) {
			return Pattern{}, fmt.Errorf(`%q cannot stand in a resource; "*" is the only wildcard`, r)
		}
	}
	noun, name, named := strings.Cut(text, "/")
	if strings.Contains(noun, "*") {
		return Pattern{}, errors.New(`the kind before the first "/" must be written out`)
	}
	if named && (name == "" || strings.Contains(name, "//") || strings.HasPrefix(name, "/") || strings.HasSuffix(name, "/")) {
		return Pattern{}, errors.New("empty part in the resource's name")
	}
	return Pattern{text: text, parts: strings.Split(text, "*")}, nil
}

// String is the pattern as written.
func (p Pattern) String() string { return p.text }

// Noun is the kind of resource the pattern is about.
func (p Pattern) Noun() string {
	noun, _, _ := strings.Cut(p.text, "/")
	return noun
}

// Match reports whether the whole resource matches. It takes time in proportion
// to len(resource) times the number of stars, whatever the input.
func (p Pattern) Match(resource string) bool {
	if len(p.parts) == 0 {
		return false
	}
	rest, ok := strings.CutPrefix(resource, p.parts[0])
	if !ok || len(p.parts) == 1 {
		return ok && rest == ""
	}
	last := p.parts[len(p.parts)-1]
	for _, part := range p.parts[1 : len(p.parts)-1] {
		// The leftmost match is best: what is left over is longest.
		i := strings.Index(rest, part)
		if i < 0 || strings.Contains(rest[:i], "/") {
			return false
		}
		rest = rest[i+len(part):]
	}
	skipped, ok := strings.CutSuffix(rest, last)
	return ok && !strings.Contains(skipped, "/")
}
