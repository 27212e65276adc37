package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/gortium/hermes-broker/server/strictyaml"
)

// file is the policy file's form.
type file struct {
	TrustDomain strictyaml.At[string]   `yaml:"trust_domain"`
	Callers     []callerEntry           `yaml:"callers"`
	Revoked     []strictyaml.At[string] `yaml:"revoked_serials"`
}

type callerEntry struct {
	ID     strictyaml.At[string] `yaml:"id"`
	Grants []grantEntry          `yaml:"grants"`
	Deny   []denyEntry           `yaml:"deny"`
	Pos    strictyaml.Pos        `yaml:"-,pos"`
}

type grantEntry struct {
	Allow  []strictyaml.At[string] `yaml:"allow"`
	On     []strictyaml.At[string] `yaml:"on"`
	Budget Budget                  `yaml:"budget"`
	Digest strictyaml.At[bool]     `yaml:"require_digest"`
	Pos    strictyaml.Pos          `yaml:"-,pos"`
}

type denyEntry struct {
	Permissions []strictyaml.At[string] `yaml:"permissions"`
	On          []strictyaml.At[string] `yaml:"on"`
	Pos         strictyaml.Pos          `yaml:"-,pos"`
}

// loader gathers problems while it turns the file's form into a Policy.
type loader struct {
	path        string
	permissions map[string]string
	single      map[string]bool
	problems    strictyaml.Problems
}

func (l *loader) fail(pos strictyaml.Pos, format string, args ...any) {
	l.problems.Add(l.path, pos, format, args...)
}

var (
	trustDomainSyntax = regexp.MustCompile(`^[a-z0-9._-]{1,255}$`)
	idPathSyntax      = regexp.MustCompile(`^(/[a-zA-Z0-9._-]+)+$`)
	serialSyntax      = regexp.MustCompile(`^[0-9a-f]{1,40}$`)
)

// Parse reads a policy. permissions is the vocabulary: every permission that a
// method declares, with the noun of its kind of resource; single are the nouns
// of which there is one thing only. All problems are reported, each with its
// place; a policy with a problem is not used.
func Parse(path string, data []byte, permissions map[string]string, single map[string]bool) (*Policy, strictyaml.Problems) {
	l := &loader{path: path, permissions: permissions, single: single}
	var f file
	l.problems = strictyaml.Decode(path, data, &f)
	if len(l.problems) > 0 {
		return nil, l.problems
	}
	sum := sha256.Sum256(data)
	p := &Policy{
		TrustDomain: f.TrustDomain.Value,
		Hash:        hex.EncodeToString(sum[:]),
		callers:     map[string]*Caller{},
		revoked:     map[string]bool{},
	}
	if !trustDomainSyntax.MatchString(p.TrustDomain) {
		l.fail(f.TrustDomain.Pos, `trust_domain: %q is no trust domain; write one such as "home.example"`, p.TrustDomain)
	}
	for _, s := range f.Revoked {
		serial := strings.TrimLeft(s.Value, "0")
		if !serialSyntax.MatchString(serial) {
			l.fail(s.Pos, "revoked_serials: %q is no serial number; write it as `brokerctl certs show` prints it, lower-case hexadecimal in quotes", s.Value)
		}
		p.revoked[serial] = true
	}
	for i := range f.Callers {
		l.caller(p, &f.Callers[i])
	}
	if len(l.problems) > 0 {
		return nil, l.problems
	}
	return p, nil
}

func (l *loader) caller(p *Policy, e *callerEntry) {
	id := e.ID.Value
	path, ok := strings.CutPrefix(id, "spiffe://"+p.TrustDomain)
	if !ok || len(id) > 2048 || !idPathSyntax.MatchString(path) || strings.Contains(path+"/", "/./") || strings.Contains(path+"/", "/../") {
		pos := e.ID.Pos
		if pos == (strictyaml.Pos{}) {
			pos = e.Pos
		}
		l.fail(pos, `id: %q is no SPIFFE ID of this trust domain; write one such as "spiffe://%s/agent/hermes"`, id, p.TrustDomain)
		return
	}
	if p.callers[id] != nil {
		l.fail(e.ID.Pos, "id: %s is named twice; put all its rules in one place", id)
		return
	}
	c := &Caller{ID: id, grants: map[string][]*Rule{}, denials: map[string][]*Rule{}}
	for i := range e.Grants {
		g := &e.Grants[i]
		if len(g.Allow) == 0 {
			l.fail(g.Pos, "a grant needs allow: [permission, ...]")
		}
		r := l.rule(g.Pos, g.Allow, g.On)
		r.Budget, r.RequireDigest = g.Budget, g.Digest.Value
		if r.RequireDigest && !slices.ContainsFunc(r.On, func(p Pattern) bool { return p.Noun() == imageNoun }) {
			l.fail(g.Digest.Pos, "require_digest is about images, and the rule is about none")
		}
		c.Grants = append(c.Grants, r)
		for _, perm := range r.Permissions {
			c.grants[perm] = append(c.grants[perm], r)
		}
	}
	for i := range e.Deny {
		d := &e.Deny[i]
		if len(d.On) == 0 && len(d.Permissions) == 0 {
			l.fail(d.Pos, "a deny rule needs on: [resource, ...] or permissions: [...]")
		}
		r := l.rule(d.Pos, d.Permissions, d.On)
		c.Denials = append(c.Denials, r)
		keys := r.Permissions
		if len(keys) == 0 {
			keys = []string{""}
		}
		for _, perm := range keys {
			c.denials[perm] = append(c.denials[perm], r)
		}
	}
	p.callers[id] = c
}

// rule checks permissions and patterns against the vocabulary and against each
// other: a permission without a pattern of its kind, or a pattern that none of
// the permissions is about, is a rule that does not do what it seems to.
func (l *loader) rule(pos strictyaml.Pos, permissions, on []strictyaml.At[string]) *Rule {
	r := &Rule{Place: fmt.Sprintf("%s:%d", filepath.Base(l.path), pos.Line)}
	wanted := map[string]bool{}
	for _, perm := range permissions {
		noun, ok := l.permissions[perm.Value]
		if !ok {
			l.fail(perm.Pos, "unknown permission %q%s", perm.Value, nearest(perm.Value, l.permissions))
			continue
		}
		r.Permissions = append(r.Permissions, perm.Value)
		wanted[noun] = true
	}
	seen := map[string]bool{}
	for _, text := range on {
		pattern, err := ParsePattern(text.Value)
		if err != nil {
			l.fail(text.Pos, "%v", err)
			continue
		}
		noun := pattern.Noun()
		switch {
		case !l.isNoun(noun):
			l.fail(text.Pos, "unknown kind of resource %q in %q", noun, text.Value)
		case noun == pattern.String() && !l.single[noun]:
			l.fail(text.Pos, `%q names no resource; write "%s/*" for all`, noun, noun)
		case l.single[noun] && pattern.String() != noun:
			l.fail(text.Pos, `write %q: there is only one`, noun)
		case noun == imageNoun && neverAnImage(pattern.String()) != "":
			l.fail(text.Pos, "%q matches no image; %s", text.Value, neverAnImage(pattern.String()))
		case len(permissions) > 0 && !wanted[noun]:
			l.fail(text.Pos, "%q matches nothing: no permission of this rule is about %s", text.Value, noun)
		}
		seen[noun] = true
		r.On = append(r.On, pattern)
	}
	for _, noun := range slices.Sorted(maps.Keys(wanted)) { // Always in the same order: it is shown.
		switch {
		case seen[noun]:
		case l.single[noun]:
			// There is only one, so it need not be named.
			r.On = append(r.On, Pattern{text: noun, parts: []string{noun}})
		default:
			l.fail(pos, `the rule has permissions about %s and says on none; add on: ["%s/..."]`, noun, noun)
		}
	}
	return r
}

const imageNoun = "images"

// neverAnImage says why a pattern can match no image's canonical reference, or "":
// a rule that looks as if it did something and does not is a trap.
func neverAnImage(pattern string) string {
	registry, path, found := strings.Cut(strings.TrimPrefix(pattern, imageNoun+"/"), "/")
	_, last, _ := strings.Cut(path[strings.LastIndex(path, "/")+1:], ":")
	switch {
	case !found && (registry == "*" || strings.HasPrefix(registry, "sha256:")):
		return "" // Images without a reference.
	case !found, !strings.ContainsAny(registry, ".:*") && registry != "localhost":
		return "it begins with the registry, written out: images/docker.io/library/alpine:*"
	case registry == "docker.io" && !strings.Contains(path, "/"):
		return `on docker.io a repository has two parts, "alpine" is "library/alpine", and "*" is one of them`
	case last == "" && !strings.HasSuffix(path, "*") && !strings.Contains(path, "@"):
		return `it ends with a tag or a digest: ":*" for every tag, "@*" for every digest, "*" for both`
	}
	return ""
}

func (l *loader) isNoun(noun string) bool {
	for _, n := range l.permissions {
		if n == noun {
			return true
		}
	}
	return false
}

// nearest suggests what was meant: the permissions of the same noun.
func nearest(name string, known map[string]string) string {
	noun, _, _ := strings.Cut(name, ".")
	var same []string
	for k := range known {
		if strings.HasPrefix(k, noun+".") {
			same = append(same, k)
		}
	}
	if len(same) == 0 {
		return "; permissions are of the form noun.verb, such as containers.list"
	}
	slices.Sort(same)
	return "; there are " + strings.Join(same, ", ")
}
