// Package policy decides whether a caller may do something.
//
// A policy is a strict YAML file that root writes. What it does not grant is
// denied, a deny rule wins over every grant, and a caller that it does not name
// may do nothing. It knows permissions and resources as words and nothing of
// how calls arrive; `brokerctl whoami` and `can` are answered by the decision
// function that the calls themselves go through.
package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Policy is one loaded policy file. It never changes.
type Policy struct {
	// TrustDomain is the SPIFFE trust domain of all callers.
	TrustDomain string
	// Hash is the SHA-256 of the file, hexadecimal.
	Hash string

	callers map[string]*Caller
	revoked map[string]bool
}

// Caller is what the policy says of one identity.
type Caller struct {
	// ID is the SPIFFE ID.
	ID string
	// Grants and Denials are the rules, in the order of the file.
	Grants, Denials []*Rule

	grants, denials map[string][]*Rule // By permission; "" is every permission.
}

// Rule is one grant or denial.
type Rule struct {
	// Place is where it stands: "policy.yaml:12".
	Place string
	// Permissions it names; empty, in a denial, is all.
	Permissions []string
	// On are the resources it is about.
	On []Pattern
	// Budget bounds changes to one object under a grant; zero means the default.
	Budget Budget
	// RequireDigest makes a grant cover images by digest alone.
	RequireDigest bool
}

// Budget is a number of changes in a time.
type Budget struct {
	Count int
	Per   time.Duration
}

var units = map[string]time.Duration{"second": time.Second, "minute": time.Minute, "hour": time.Hour, "day": 24 * time.Hour}

// UnmarshalText reads "6/minute": a count from 1 to 100000, and second, minute,
// hour or day.
func (b *Budget) UnmarshalText(text []byte) error {
	var count int
	var unit string
	if _, err := fmt.Sscanf(string(text), "%d/%s", &count, &unit); err != nil || count < 1 || count > 100_000 || units[unit] == 0 ||
		fmt.Sprintf("%d/%s", count, unit) != string(text) {
		return fmt.Errorf(`%q is no budget; write "6/minute" (a count from 1 to 100000; second, minute, hour or day)`, text)
	}
	*b = Budget{count, units[unit]}
	return nil
}

// String is the budget as it is written, or "".
func (b Budget) String() string {
	for name, d := range units {
		if d == b.Per {
			return fmt.Sprintf("%d/%s", b.Count, name)
		}
	}
	return ""
}

// Decision is the answer to one question.
type Decision struct {
	// Allowed is the answer.
	Allowed bool
	// Rule decided; nil when none matched, which denies.
	Rule *Rule
}

// Place is where the deciding rule stands, or "".
func (d Decision) Place() string {
	if d.Rule == nil {
		return ""
	}
	return d.Rule.Place
}

// Decide says whether a caller has a permission on a resource: "containers/db",
// or "containers" for the collection, which any grant of the permission opens
// (what it then shows is decided item by item). The first matching grant in the
// file decides, unless a deny rule matches. A nil policy denies.
func (p *Policy) Decide(caller, permission, resource string) Decision {
	if p == nil {
		return Decision{}
	}
	c := p.callers[caller]
	if c == nil {
		return Decision{}
	}
	if r := c.denied(permission, resource); r != nil {
		return Decision{Rule: r}
	}
	for _, r := range c.grants[permission] {
		if r.matches(resource) || r.within(resource) {
			return Decision{Allowed: true, Rule: r}
		}
	}
	return Decision{}
}

// Denied is the deny rule that forbids a caller a permission on a resource, or
// nil. It is for what a granted resource turns out to be, such as the digest
// behind a tag: no rule need grant that, and each may forbid it.
func (p *Policy) Denied(caller, permission, resource string) *Rule {
	if c := p.Caller(caller); c != nil {
		return c.denied(permission, resource)
	}
	return nil
}

func (c *Caller) denied(permission, resource string) *Rule {
	for _, key := range [...]string{permission, ""} {
		for _, r := range c.denials[key] {
			if r.matches(resource) {
				return r
			}
		}
	}
	return nil
}

func (r *Rule) matches(resource string) bool {
	if r.RequireDigest && strings.HasPrefix(resource, imageNoun+"/") && !strings.Contains(resource, "@") {
		return false
	}
	for i := range r.On {
		if r.On[i].Match(resource) {
			return true
		}
	}
	return false
}

// within reports whether the rule is about a part of the collection.
func (r *Rule) within(collection string) bool {
	for i := range r.On {
		if len(r.On[i].text) > len(collection) && r.On[i].text[len(collection)] == '/' && r.On[i].text[:len(collection)] == collection {
			return true
		}
	}
	return false
}

// Caller is what the policy says of an identity, or nil.
func (p *Policy) Caller(id string) *Caller {
	if p == nil {
		return nil
	}
	return p.callers[id]
}

// Callers are all identities the policy names, by ID.
func (p *Policy) Callers() []*Caller {
	var all []*Caller
	for _, c := range p.callers {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *Caller) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// Revoked reports whether the certificate with this serial number (lower-case
// hexadecimal) is revoked.
func (p *Policy) Revoked(serial string) bool { return p == nil || p.revoked[serial] }
