// Package identity says who is calling.
//
// A caller is the SPIFFE ID of a certificate that verifies, over TLS 1.3 and in
// this very handshake, against the trust domain's bundle: exactly one URI SAN,
// the right trust domain, the client's extended key usage, not revoked, not
// longer-lived than allowed. Session tickets are off and verification stands in
// VerifyConnection, because Go skips VerifyPeerCertificate for a resumed
// session, by which a revoked caller with a ticket would get in.
package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Source is where the broker's own certificate and the trust bundle come from.
type Source interface {
	x509svid.Source
	x509bundle.Source
}

// Peer is a verified caller.
type Peer struct {
	// ID is the SPIFFE ID.
	ID string
	// Serial is the certificate's serial number, lower-case hexadecimal.
	Serial string
	// NotAfter is when the certificate expires.
	NotAfter time.Time
}

// Rules are what a caller's certificate must satisfy besides verifying.
type Rules struct {
	// TrustDomain is the only trust domain that is let in.
	TrustDomain func() string
	// Revoked reports whether a serial number is revoked.
	Revoked func(serial string) bool
	// MaxLifetime bounds NotAfter - NotBefore; 0 is without bound.
	MaxLifetime time.Duration
	// Now is the clock.
	Now func() time.Time
}

// Verify verifies the chain that a peer presented.
func Verify(chain []*x509.Certificate, bundles x509bundle.Source, rules Rules) (Peer, error) {
	if len(chain) == 0 {
		return Peer{}, errors.New("no client certificate")
	}
	leaf := chain[0]
	// The library checks the URI SAN's number and form, the signature chain and
	// that the leaf is no CA; it looks at no extended key usage.
	id, _, err := x509svid.Verify(chain, bundles, x509svid.WithTime(rules.Now()))
	if err != nil {
		return Peer{}, err
	}
	if len(leaf.URIs) != 1 {
		return Peer{}, fmt.Errorf("%d URI SANs; exactly one is allowed", len(leaf.URIs))
	}
	td, err := spiffeid.TrustDomainFromString(rules.TrustDomain())
	if err != nil {
		return Peer{}, err
	}
	if !id.MemberOf(td) {
		return Peer{}, fmt.Errorf("%s is not of the trust domain %s", id, td)
	}
	if id.Path() == "" {
		return Peer{}, fmt.Errorf("%s is the trust domain itself, not a caller", id)
	}
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return Peer{}, errors.New("the certificate is not for client authentication")
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore); rules.MaxLifetime > 0 && life > rules.MaxLifetime {
		return Peer{}, fmt.Errorf("the certificate lives for %s; at most %s is allowed", life, rules.MaxLifetime)
	}
	p := Peer{ID: id.String(), Serial: leaf.SerialNumber.Text(16), NotAfter: leaf.NotAfter}
	if rules.Revoked(p.Serial) {
		return Peer{}, fmt.Errorf("certificate %s is revoked", p.Serial)
	}
	return p, nil
}

// tlsConfig is the server's side of the handshake. What verify learns of the
// peer is its own affair; an error ends the handshake.
func tlsConfig(source Source, now func() time.Time, verify func([]*x509.Certificate) error) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2"},
		ClientAuth:             tls.RequireAnyClientCert,
		Time:                   now,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			svid, err := source.GetX509SVID()
			if err != nil {
				return nil, err
			}
			cert := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
			for _, c := range svid.Certificates {
				cert.Certificate = append(cert.Certificate, c.Raw)
			}
			return cert, nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			if state.DidResume {
				return errors.New("resumed sessions are not accepted")
			}
			return verify(state.PeerCertificates)
		},
	}
}
