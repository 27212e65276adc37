package policy

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var vocabulary = map[string]string{
	"broker.whoami": "broker", "broker.freeze": "broker",
	"containers.list": "containers", "containers.inspect": "containers", "containers.restart": "containers", "containers.remove": "containers",
	"images.pull": "images", "engine.prune": "engine",
}

var single = map[string]bool{"broker": true, "engine": true}

const example = `
trust_domain: home.example
callers:
  - id: spiffe://home.example/agent/hermes
    grants:
      - allow: [broker.whoami]
      - allow: [containers.list, containers.inspect]
        on: ["containers/*"]
      - allow: [containers.restart]
        on: ["containers/ollama", "containers/media-*"]
        budget: 6/minute
    deny:
      - on: ["containers/media-vault"]
      - permissions: [containers.inspect]
        on: ["containers/secret-*"]
  - id: spiffe://home.example/operator/ada
    grants:
      - allow: [broker.freeze]
revoked_serials: ["0abc"]
`

func load(t testing.TB, text string) *Policy {
	t.Helper()
	p, problems := Parse("policy.yaml", []byte(text), vocabulary, single)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return p
}

const hermes = "spiffe://home.example/agent/hermes"

func TestDecide(t *testing.T) {
	p := load(t, example)
	for _, c := range []struct {
		caller, permission, resource string
		want                         bool
		rule                         string
	}{
		{hermes, "broker.whoami", "broker", true, "policy.yaml:6"},
		{hermes, "broker.freeze", "broker", false, ""},
		{hermes, "containers.list", "containers", true, "policy.yaml:7"},
		{hermes, "containers.remove", "containers", false, ""},
		{hermes, "containers.restart", "containers", true, "policy.yaml:9"},
		{hermes, "containers.inspect", "containers/db", true, "policy.yaml:7"},
		{hermes, "containers.restart", "containers/ollama", true, "policy.yaml:9"},
		{hermes, "containers.restart", "containers/ollama2", false, ""},
		{hermes, "containers.restart", "containers/xollama", false, ""},
		{hermes, "containers.restart", "containers/Ollama", false, ""},
		{hermes, "containers.restart", "containers/media-a", true, "policy.yaml:9"},
		{hermes, "containers.restart", "containers/media-a/b", false, ""},
		{hermes, "containers.restart", "containers/media-vault", false, "policy.yaml:13"},
		{hermes, "containers.list", "containers/media-vault", false, "policy.yaml:13"},
		{hermes, "containers.inspect", "containers/secret-1", false, "policy.yaml:14"},
		{hermes, "containers.list", "containers/secret-1", true, "policy.yaml:7"},
		{hermes, "", "containers/db", false, ""},
		{hermes, "containers.list", "", false, ""},
		{hermes + "/x", "containers.list", "containers/db", false, ""},
		{"spiffe://home.example/agent", "containers.list", "containers/db", false, ""},
		{"spiffe://home.example/operator/ada", "broker.freeze", "broker", true, "policy.yaml:18"},
		{"spiffe://home.example/operator/ada", "containers.list", "containers", false, ""},
		{"", "containers.list", "containers/db", false, ""},
	} {
		d := p.Decide(c.caller, c.permission, c.resource)
		if d.Allowed != c.want || d.Place() != c.rule {
			t.Errorf("%s %s %s: %v by %q, want %v by %q", c.caller, c.permission, c.resource, d.Allowed, d.Place(), c.want, c.rule)
		}
	}
	if !p.Revoked("abc") || p.Revoked("abcd") {
		t.Error("revoked serials")
	}
	var none *Policy
	if none.Decide(hermes, "containers.list", "containers").Allowed || none.Caller(hermes) != nil || !none.Revoked("1") {
		t.Error("no policy lets something through")
	}
}

func TestParseNamesEveryProblemWithItsPlace(t *testing.T) {
	_, problems := Parse("/etc/p.yaml", []byte(`trust_domain: Home
callers:
  - id: spiffe://other/agent
  - id: spiffe://Home/a
    grants:
      - allow: [containers.exec]
        on: ["containers/*"]
      - allow: [containers.list]
      - allow: [containers.list, broker.whoami]
        on: ["containers", "volumes/*", "contain*/x", "containers/**", "containers/a b", "broker/x"]
      - on: ["containers/*"]
      - allow: [broker.whoami]
        on: ["containers/*"]
    deny:
      - {}
  - id: spiffe://Home/a
revoked_serials: ["XYZ"]
`), vocabulary, single)
	got := problems.Error()
	for _, want := range []string{
		"/etc/p.yaml:1:15: trust_domain", "/etc/p.yaml:3:9: id:", `/etc/p.yaml:6:17: unknown permission "containers.exec"; there are containers.inspect`,
		`/etc/p.yaml:8:9: the rule has permissions about containers and says on none`,
		`/etc/p.yaml:10:14: "containers" names no resource`, `unknown kind of resource "volumes"`, `the kind before the first "/"`, `"**" has no meaning`,
		`' ' cannot stand`, `write "broker": there is only one`, "/etc/p.yaml:11:9: a grant needs allow", `/etc/p.yaml:13:14: "containers/*" matches nothing`,
		"/etc/p.yaml:15:9: a deny rule needs", "named twice", `revoked_serials: "XYZ"`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	for _, bad := range []string{"budget: 0/minute", "budget: 6/week", "budget: 6", "budget: six/minute", "budget: 6/minute x", "budget: 06/minute", "budgets: 1/minute"} {
		text := strings.Replace(example, "budget: 6/minute", bad, 1)
		if _, problems := Parse("p", []byte(text), vocabulary, single); len(problems) == 0 {
			t.Errorf("%q is accepted", bad)
		}
	}
}

const digest = "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestImages(t *testing.T) {
	p := load(t, `
trust_domain: home.example
callers:
  - id: spiffe://home.example/agent/hermes
    grants:
      - allow: [images.pull]
        on: ["images/docker.io/ollama/ollama:*", "images/docker.io/library/*"]
      - allow: [images.pull]
        on: ["images/ghcr.io/team/*"]
        require_digest: true
      - allow: [engine.prune]
    deny:
      - on: ["images/docker.io/ollama/ollama@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"]
`)
	for resource, want := range map[string]bool{
		"images":                                              true,
		"images/docker.io/ollama/ollama:latest":               true,
		"images/docker.io/ollama/ollama" + digest:             false, // ":" is no "@".
		"images/docker.io/ollama/ollama2:latest":              false,
		"images/docker.io/library/alpine:3":                   true,
		"images/docker.io/library/alpine" + digest:            true,
		"images/docker.io.attacker.test/ollama/ollama:latest": false,
		"images/ghcr.io/team/app:1":                           false,
		"images/ghcr.io/team/app" + digest:                    true,
		"images/ghcr.io/team/app/sub" + digest:                false,
		"images/sha256:0123":                                  false,
	} {
		if got := p.Decide(hermes, "images.pull", resource).Allowed; got != want {
			t.Errorf("%s: %v", resource, got)
		}
	}
	if r := p.Denied(hermes, "images.pull", "images/docker.io/ollama/ollama"+digest); r == nil || r.Place != "policy.yaml:13" {
		t.Errorf("the denied digest: %v", r)
	}
	if p.Denied(hermes, "images.pull", "images/docker.io/ollama/ollama@sha256:1") != nil || p.Denied("spiffe://x/y", "images.pull", "images/x") != nil {
		t.Error("another digest is denied")
	}
	if !p.Decide(hermes, "engine.prune", "engine").Allowed {
		t.Error("the engine has to be named")
	}
	for pattern, says := range map[string]string{
		"images/alpine:*":                  "begins with the registry",
		"images/ollama/ollama:*":           "begins with the registry",
		"images/docker.io/alpine:*":        "two parts",
		"images/docker.io/ollama/ollama":   "ends with a tag",
		"images/ghcr.io/a/b":               "ends with a tag",
		"images/registry.test:5000/a/b":    "ends with a tag",
		"engine/x":                         "there is only one",
		"images/docker.io/ollama/ollama:*": "", "images/docker.io/ollama/*": "", "images/docker.io/*": "two parts", "images/docker.io/*/*": "", "images/*": "", "images/*/*/*": "",
		"images/localhost/a:1": "", "images/registry.test:5000/a/b:*": "", "images/ghcr.io/a/b@*": "", "images/sha256:*": "", "images/127.0.0.1:5000/a:1": "",
	} {
		text := "trust_domain: t\ncallers:\n  - id: spiffe://t/a\n    grants:\n      - {allow: [images.pull, engine.prune], on: [\"" + pattern + "\", \"images/*\"]}\n"
		_, problems := Parse("p", []byte(text), vocabulary, single)
		if (says == "") != (len(problems) == 0) || !strings.Contains(problems.Error(), says) {
			t.Errorf("%s: %v, want %q", pattern, problems, says)
		}
	}
	if _, problems := Parse("p", []byte(strings.Replace(example, "budget: 6/minute", "require_digest: true", 1)), vocabulary, single); len(problems) != 1 || !strings.Contains(problems.Error(), "11:25: require_digest is about images") {
		t.Errorf("require_digest on containers: %v", problems)
	}
}

// TestDenyNeverAllowsMore is the property that makes a policy safe to tighten.
func TestDenyNeverAllowsMore(t *testing.T) {
	part := rapid.StringMatching(`[ab*]{1,4}`)
	permission := rapid.SampledFrom([]string{"containers.list", "containers.restart", "containers.remove"})
	rapid.Check(t, func(t *rapid.T) {
		rules := func(kind, key string, n int) string {
			var b strings.Builder
			for range n {
				p := strings.ReplaceAll(part.Draw(t, key), "**", "*")
				fmt.Fprintf(&b, "      - {%s: [%s], on: [\"containers/%s\"]}\n", kind, permission.Draw(t, "permission"), p)
			}
			return b.String()
		}
		grants := rules("allow", "grant", rapid.IntRange(1, 4).Draw(t, "grants"))
		base := "trust_domain: t\ncallers:\n  - id: spiffe://t/a\n    grants:\n" + grants
		denied := base + "    deny:\n" + rules("permissions", "deny", rapid.IntRange(1, 3).Draw(t, "denies"))
		p, problems := Parse("p", []byte(base), vocabulary, single)
		q, more := Parse("p", []byte(denied), vocabulary, single)
		if len(problems)+len(more) > 0 {
			t.Skip("a pattern with two stars in a row")
		}
		resource := "containers/" + rapid.StringMatching(`[ab]{1,6}`).Draw(t, "name")
		perm := permission.Draw(t, "asked")
		if q.Decide("spiffe://t/a", perm, resource).Allowed && !p.Decide("spiffe://t/a", perm, resource).Allowed {
			t.Fatalf("%s on %s is allowed by adding\n%s", perm, resource, denied)
		}
	})
}

func FuzzPattern(f *testing.F) {
	for _, s := range []string{"containers/*", "containers/media-*", "containers/*a*b*", "images/docker.io/*/x:*", "broker"} {
		f.Add(s, "containers/media-a")
	}
	f.Fuzz(func(t *testing.T, text, resource string) {
		p, err := ParsePattern(text)
		if err != nil {
			return
		}
		if got, want := p.Match(resource), simple(text, resource); got != want {
			t.Fatalf("%q on %q: %v, the obvious matcher says %v", text, resource, got, want)
		}
	})
}

// simple is the matcher as one would define it.
func simple(pattern, s string) bool {
	// Rows of a table, so that the fuzzer cannot make it slow.
	row := make([]bool, len(s)+1)
	row[0] = true
	for i := range len(pattern) {
		next := make([]bool, len(s)+1)
		if pattern[i] == '*' {
			for j := range row {
				next[j] = row[j] || (j > 0 && next[j-1] && s[j-1] != '/')
			}
		} else {
			for j := 1; j < len(row); j++ {
				next[j] = row[j-1] && s[j-1] == pattern[i]
			}
		}
		row = next
	}
	return row[len(s)]
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte("trust_domain: t\ncallers: []"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, problems := Parse("p", data, vocabulary, single)
		if (p == nil) == (len(problems) == 0) {
			t.Fatal("neither a policy nor a problem, or both")
		}
		if p == nil {
			return
		}
		// A policy grants nothing to whom it does not name.
		if p.Decide("spiffe://nobody/x", "containers.remove", "containers/x").Allowed && p.Caller("spiffe://nobody/x") == nil {
			t.Fatal("a stranger is allowed something")
		}
		for _, c := range p.Callers() {
			for _, r := range c.Denials {
				for _, on := range r.On {
					if !strings.Contains(on.String(), "*") && len(r.Permissions) == 0 && p.Decide(c.ID, "containers.remove", on.String()).Allowed {
						t.Fatal("a denied resource is allowed")
					}
				}
			}
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	var text strings.Builder
	text.WriteString("trust_domain: t\ncallers:\n  - id: spiffe://t/a\n    grants:\n")
	for i := range 99 {
		fmt.Fprintf(&text, "      - {allow: [containers.inspect, containers.restart], on: [\"containers/app-%d-*\"]}\n", i)
	}
	text.WriteString("      - {allow: [containers.restart], on: [\"containers/last\"]}\n    deny:\n      - {on: [\"containers/vault\"]}\n")
	p := load(b, text.String())
	b.ReportAllocs()
	for b.Loop() {
		if !p.Decide("spiffe://t/a", "containers.restart", "containers/last").Allowed {
			b.Fatal("denied")
		}
	}
}

// TestUnnamedResourcesHaveAnOrder: who looks at the grants twice sees the same.
func TestUnnamedResourcesHaveAnOrder(t *testing.T) {
	single := map[string]bool{"broker": true, "engine": true, "firewall": true, "ssh": true, "sockets": true}
	vocabulary := map[string]string{"sockets.list": "sockets", "ssh.config": "ssh", "firewall.status": "firewall", "engine.info": "engine"}
	const text = "trust_domain: home.example\ncallers:\n  - id: " + hermes + "\n    grants:\n      - allow: [sockets.list, ssh.config, firewall.status, engine.info]\n"
	for range 20 {
		p, problems := Parse("p", []byte(text), vocabulary, single)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		if on := p.Caller(hermes).Grants[0].On; len(on) != 4 || on[0].Noun() != "engine" || on[1].Noun() != "firewall" || on[2].Noun() != "sockets" || on[3].Noun() != "ssh" {
			t.Fatalf("%v", on)
		}
	}
}
