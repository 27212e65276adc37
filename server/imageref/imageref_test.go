package imageref

import (
	"strings"
	"testing"
)

const sum = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"alpine":                         "docker.io/library/alpine:latest",
		"alpine:3.22":                    "docker.io/library/alpine:3.22",
		"library/alpine":                 "docker.io/library/alpine:latest",
		"docker.io/alpine":               "docker.io/library/alpine:latest",
		"docker.io/library/alpine":       "docker.io/library/alpine:latest",
		"index.docker.io/library/alpine": "docker.io/library/alpine:latest",
		"index.docker.io/alpine:latest":  "docker.io/library/alpine:latest",
		"alpine@" + sum:                  "docker.io/library/alpine@" + sum,
		"ollama/ollama:0.5":              "docker.io/ollama/ollama:0.5",
		"ghcr.io/a/b/c:v1":               "ghcr.io/a/b/c:v1",
		"localhost/a":                    "localhost/a:latest",
		"localhost:5000/a":               "localhost:5000/a:latest",
		"127.0.0.1:5000/team/app:1":      "127.0.0.1:5000/team/app:1",
		"registry:5000/app":              "registry:5000/app:latest",
		// What only looks like another registry is a path on docker.io, or a host of
		// its own.
		"docker-io/alpine":                 "docker.io/docker-io/alpine:latest",
		"docker.io.attacker.test/alpine:1": "docker.io.attacker.test/alpine:1",
		"xn--dcker-jua.io/alpine":          "xn--dcker-jua.io/alpine:latest",
		// Hexadecimal that an engine would read as the beginning of an ID.
		"deadbeefcafe":                    "docker.io/library/deadbeefcafe:latest",
		"team/" + strings.Repeat("a", 64): "docker.io/team/" + strings.Repeat("a", 64) + ":latest",
		// Case counts in a tag, and only there.
		"alpine:Latest": "docker.io/library/alpine:Latest",
	} {
		got, err := Parse(text)
		if err != nil || got.String() != want {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
			continue
		}
		if again, err := Parse(got.String()); err != nil || again != got {
			t.Errorf("%q is not its own canonical form: %v, %v", got, again, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for text, says := range map[string]string{
		"":                       "give a reference",
		strings.Repeat("a", 600): "512 characters",
		strings.Repeat("a", 64):  "an ID is no reference",
		sum:                      "an ID is no reference",
		"alpine:3.22@" + sum:     "not both",
		"alpine@sha512:" + strings.Repeat("a", 128): "",
		"alpine@" + strings.ToUpper(sum):            "",
		"alpine@sha256:abc":                         "",
		"Alpine":                                    "lower case",
		"docker.io/Library/alpine":                  "lower case",
		"DOCKER.IO/library/alpine":                  "lower case",
		"Ghcr.io/a/b":                               "lower case",
		"docker.io:443/library/alpine":              "port",
		"docker.io:5000/library/alpine":             "no port",
		"index.docker.io:5000/alpine":               "no other name",
		"ghcr.io:443/a":                             "443",
		"ghcr.io:0443/a":                            "443",
		"[::1]:5000/a":                              "IPv6",
		"[::1]/a":                                   "IPv6",
		" alpine":                                   "no reference",
		"alpine ":                                   "no reference",
		"alpine\n":                                  "no reference",
		"alpine:":                                   "no reference",
		"alpine@":                                   "no reference",
		"/alpine":                                   "no reference",
		"a//b":                                      "no reference",
		"a/../b":                                    "no reference",
		"ghcr.io/../x":                              "no reference",
		"https://ghcr.io/a":                         "no reference",
		"user@ghcr.io/a":                            "no reference",
		"ghcr.io/a?x=y":                             "no reference",
		"ghcr.io/a%2fb":                             "no reference",
		"d\u043ecker.io/library/alpine":             "no reference", // A Cyrillic o.
		"docker\u3002io/library/alpine":             "no reference", // An ideographic full stop.
		"alpine:\u202elatest":                       "no reference",
		"ghcr.io./a/b":                              "no reference",
		"alpine:" + strings.Repeat("a", 129):        "no reference",
	} {
		if got, err := Parse(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %q, %v; want an error with %q", text, got, err, says)
		}
	}
}

func TestPrivate(t *testing.T) {
	for registry, want := range map[string]bool{
		"docker.io": false, "ghcr.io": false, "registry.example:5000": false, "a.b.c": false, "1and1.example": false, "0x7f.example": false,
		"localhost": true, "localhost:5000": true, "a.localhost:5000": true, "localhost.localdomain": true, "127.0.0.1": true, "127.0.0.1:5000": true,
		"127.1:5000": true, "10.0.0.1": true, "2130706433:80": true, "0x7f000001:80": true, "0x7f.0x1:80": true, "registry:5000": true, "198.51.100.7": true,
	} {
		if got := (Ref{Registry: registry}).Private(); got != want {
			t.Errorf("%s: %v, want %v", registry, got, want)
		}
	}
}

// FuzzParse holds every reference to what the rest of the broker counts on.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"alpine", "ghcr.io/a/b:c", "alpine@" + sum, "127.0.0.1:5000/x:y", "[::1]:80/x", "DOCKER.IO/x", "a:b@" + sum} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := Parse(text)
		if err != nil {
			return
		}
		s := r.String()
		again, err := Parse(s)
		if err != nil || again != r {
			t.Fatalf("%q gives %q, which gives %v, %v", text, s, again, err)
		}
		if (r.Tag == "") == (r.Digest == "") || strings.ToLower(r.Name()) != r.Name() || strings.Contains(s, "..") || strings.ContainsAny(s, " %?#\\\n[]*") {
			t.Fatalf("%q gives %q", text, s)
		}
	})
}
