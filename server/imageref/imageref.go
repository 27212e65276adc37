// Package imageref reads image references and writes them out in full.
//
// One image can be spelled in many ways, and a decision about one spelling must
// be the decision about all of them. Parse gives the canonical form, which is
// what policies name, what is decided on and what is sent to the engine; what
// could mean two things, or be told apart by an engine but not by a reader, is
// refused. The grammar is that of github.com/distribution/reference, which the
// engine itself uses.
package imageref

import (
	_ "crypto/sha256" // go-digest knows an algorithm only when it is linked.
	"errors"
	"net/netip"
	"regexp"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Ref is a reference in full.
type Ref struct {
	// Registry is the registry's host, with a port if it has one: "docker.io".
	Registry string
	// Repository is the path there: "library/alpine".
	Repository string
	// Tag or Digest is set, never both. Digest is "sha256:" and 64 hexadecimal
	// digits.
	Tag, Digest string
}

// maxText bounds what is parsed.
const maxText = 512

// Parse reads a reference; without a tag and a digest it means "latest". The
// error says how it would be right.
func Parse(text string) (Ref, error) {
	switch {
	case text == "":
		return Ref{}, errors.New("give a reference such as docker.io/library/alpine:3.22")
	case len(text) > maxText:
		return Ref{}, errors.New("it has more than 512 characters")
	case strings.HasPrefix(text, "sha256:") || idSyntax.MatchString(text):
		return Ref{}, errors.New("an ID is no reference; give the repository with a tag or a digest")
	}
	named, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		if strings.ToLower(text) != text {
			return Ref{}, errors.New("it is no reference; registry and repository are written in lower case")
		}
		return Ref{}, errors.New("it is no reference; write one such as docker.io/library/alpine:3.22")
	}
	r := Ref{Registry: reference.Domain(named), Repository: reference.Path(named)}
	if err := checkRegistry(r.Registry); err != nil {
		return Ref{}, err
	}
	tagged, hasTag := named.(reference.Tagged)
	digested, hasDigest := named.(reference.Digested)
	switch {
	case hasTag && hasDigest:
		// The engine would ignore the tag, and a rule about it would not.
		return Ref{}, errors.New("give a tag or a digest, not both")
	case hasDigest:
		if digested.Digest().Algorithm() != digest.SHA256 {
			return Ref{}, errors.New("only sha256 digests are known")
		}
		r.Digest = digested.Digest().String()
	case hasTag:
		r.Tag = tagged.Tag()
	default:
		r.Tag = "latest"
	}
	return r, nil
}

var idSyntax = regexp.MustCompile(`^[0-9a-f]{64}$`)

// checkRegistry refuses what an engine takes for another spelling of a host.
func checkRegistry(host string) error {
	if strings.ToLower(host) != host {
		return errors.New("the registry is written in lower case")
	}
	if strings.HasPrefix(host, "[") {
		return errors.New("a registry is not named by an IPv6 address; give it a name")
	}
	name, port, _ := strings.Cut(host, ":")
	if port == "443" || strings.HasPrefix(port, "0") || len(port) > 5 {
		return errors.New("leave out the registry's port where it is 443, and write others as 1 to 65535, without zeros before them")
	}
	if name == "index.docker.io" || name == "docker.io" && port != "" {
		return errors.New("the registry docker.io has no other name and no port")
	}
	return nil
}

// String is the reference in full: "docker.io/library/alpine:3.22".
func (r Ref) String() string {
	if r.Digest != "" {
		return r.Name() + "@" + r.Digest
	}
	return r.Name() + ":" + r.Tag
}

// Name is registry and repository: "docker.io/library/alpine".
func (r Ref) Name() string { return r.Registry + "/" + r.Repository }

// At is the same repository at a digest.
func (r Ref) At(digest string) Ref {
	return Ref{Registry: r.Registry, Repository: r.Repository, Digest: digest}
}

var (
	// numeric is a last label that an address parser somewhere reads as a number:
	// 127.0.0.1, 127.1, 2130706433, 0x7f000001.
	numeric  = regexp.MustCompile(`(^|\.)(0x[0-9a-f]*|[0-9]+)$`)
	loopback = regexp.MustCompile(`(^|\.)localhost$|(^|\.)localdomain$`)
)

// Private reports whether the registry is one that only root may open: named by
// an address, the host itself, or a name that only the local network knows.
func (r Ref) Private() bool {
	name, _, _ := strings.Cut(r.Registry, ":")
	_, err := netip.ParseAddr(name)
	return err == nil || numeric.MatchString(name) || loopback.MatchString(name) || !strings.Contains(name, ".")
}
