package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const day = 24 * time.Hour

// Role is what a certificate is for. It sets the extended key usage and how
// long the certificate may live; what the caller may do is the policy's matter.
type Role string

// The roles, with the default and the longest TTL of each. A stolen key works
// until its certificate expires, so what a machine renews by itself lives
// shortest.
const (
	Agent    Role = "agent"    // clientAuth; 24 hours, at most 7 days
	Operator Role = "operator" // clientAuth; 30 days, at most 90 days
	Server   Role = "server"   // serverAuth; 90 days, at most 365 days
)

type roleRule struct {
	usage        x509.ExtKeyUsage
	ttl, longest time.Duration
}

func (r Role) rule() (roleRule, error) {
	switch r {
	case Agent:
		return roleRule{x509.ExtKeyUsageClientAuth, day, 7 * day}, nil
	case Operator:
		return roleRule{x509.ExtKeyUsageClientAuth, 30 * day, 90 * day}, nil
	case Server:
		return roleRule{x509.ExtKeyUsageServerAuth, 90 * day, 365 * day}, nil
	}
	return roleRule{}, fmt.Errorf("unknown role %q: use %s, %s or %s", string(r), Agent, Operator, Server)
}

// Request asks for one certificate.
type Request struct {
	// ID is the only URI SAN. It must have a path and be in the authority's
	// trust domain. Required.
	ID spiffeid.ID
	// Role is required.
	Role Role
	// TTL counts from now, in whole seconds; the rest is cut off. Zero means
	// the role's default. Less than a second, more than the role's longest, or
	// beyond the end of the authority is an error.
	TTL time.Duration
	// DNS and IPs are the names under which clients that do not know SPIFFE
	// reach a server. A certificate of another role must have none.
	DNS []string
	IPs []net.IP
}

// Issue makes a new key and a certificate for it, valid from a minute ago. It
// writes nothing: see [Leaf.Write].
func (ca *CA) Issue(r Request) (*Leaf, error) {
	leaf, err := ca.issue(r)
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	return leaf, nil
}

func (ca *CA) issue(r Request) (*Leaf, error) {
	rule, err := r.Role.rule()
	if err != nil {
		return nil, err
	}
	if r.TTL == 0 {
		r.TTL = rule.ttl
	}
	if r.TTL > rule.longest {
		return nil, fmt.Errorf("a TTL of %v is too long: role %s has at most %v", r.TTL, r.Role, rule.longest)
	}
	return ca.sign(profile{id: r.ID, usage: rule.usage, ttl: r.TTL, dns: r.DNS, ips: r.IPs})
}

// profile is everything a leaf says. What is issued and what is renewed both
// pass through sign, so neither can say what the other may not.
type profile struct {
	id    spiffeid.ID
	usage x509.ExtKeyUsage
	ttl   time.Duration
	dns   []string
	ips   []net.IP
}

func (ca *CA) sign(p profile) (*Leaf, error) {
	now := ca.now().UTC().Truncate(time.Second)
	notAfter := now.Add(p.ttl).Truncate(time.Second)
	if err := ca.check(p, now, notAfter); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	keyID, err := keyIdentifier(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	// The subject stays empty, which makes the SAN critical: the SPIFFE ID is
	// the identity, and there is no second name to be taken for it.
	//
	// One usage, where the X509-SVID specification, section 4.4, wants both
	// clientAuth and serverAuth: with both, an agent's key could pose as the
	// broker to clients that check the authority alone.
	template := &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             now.Add(-backdate),
		NotAfter:              notAfter,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{p.usage},
		URIs:                  uriSAN(p.id),
		DNSNames:              p.dns,
		IPAddresses:           p.ips,
		SubjectKeyId:          keyID,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Leaf{Certificate: cert, key: key, issuer: ca.cert}, nil
}

func (ca *CA) check(p profile, now, notAfter time.Time) error {
	if err := ca.checkValid(now); err != nil {
		return err
	}
	if err := checkLeafID(p.id); err != nil {
		return err
	}
	if !p.id.MemberOf(ca.trustDomain) {
		return fmt.Errorf("%s is not in the trust domain of this CA, %s", p.id, ca.trustDomain)
	}
	if p.ttl < minTTL {
		return fmt.Errorf("a TTL of %v is too short: it must be at least %v", p.ttl, minTTL)
	}
	if notAfter.After(ca.cert.NotAfter) {
		return fmt.Errorf("a TTL of %v is too long: the CA itself expires at %s", p.ttl, timestamp(ca.cert.NotAfter))
	}
	if p.usage != x509.ExtKeyUsageServerAuth && len(p.dns)+len(p.ips) > 0 {
		return errors.New("only a server's certificate may have DNS names or IP addresses")
	}
	for _, name := range p.dns {
		if err := checkDNSName(name); err != nil {
			return err
		}
	}
	for _, ip := range p.ips {
		if ip.To16() == nil || ip.IsUnspecified() || ip.IsMulticast() {
			return fmt.Errorf("%s is not the IP address of a server", ip)
		}
	}
	return nil
}

// maxID is the length that every SPIFFE implementation must support and none
// may exceed (SPIFFE-ID, section 2.3).
const maxID = 2048

func checkLeafID(id spiffeid.ID) error {
	switch {
	case id.IsZero():
		return errors.New("no SPIFFE ID given")
	case id.Path() == "":
		return fmt.Errorf("%s has no path: an ID without one names the whole trust domain", id)
	case len(id.String()) > maxID:
		return fmt.Errorf("the SPIFFE ID is longer than %d bytes", maxID)
	}
	return nil
}

// checkDNSName wants a plain host name of RFC 1123. No wildcards: one broker has
// a handful of names, and a wildcard would speak for hosts that are not it.
func checkDNSName(name string) error {
	if net.ParseIP(name) != nil {
		return fmt.Errorf("%q is an IP address: give it as one", name)
	}
	if name == "" || len(name) > 253 {
		return fmt.Errorf("%q is not a DNS name: it must have 1 to 253 characters", name)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("%q is not a DNS name: bad label %q", name, label)
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
				return fmt.Errorf("%q is not a DNS name: only letters, digits, '-' and '.' are allowed", name)
			}
		}
	}
	return nil
}

func uriSAN(id spiffeid.ID) []*url.URL { return []*url.URL{id.URL()} }
