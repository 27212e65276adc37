package certstest_test

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/gortium/hermes-broker/certs"
	"github.com/gortium/hermes-broker/certs/certstest"
)

// TestMutations: the unmutated certificate passes a strict check of callers, and
// each bad one fails it, so that no test is red or green for another reason.
func TestMutations(t *testing.T) {
	ca := certstest.NewCA(t, "home.example")
	hermes := spiffeid.RequireFromString("spiffe://home.example/agent/hermes")
	accepts := func(m certstest.Mutation) bool {
		p := certstest.Mint(t, ca, certs.Request{ID: hermes, Role: certs.Agent}, m.Apply)
		pair, err := tls.LoadX509KeyPair(p.CertFile, p.KeyFile)
		if err != nil {
			t.Fatalf("%s: %v", m.Name, err)
		}
		if !pair.Leaf.Equal(p.Certificate) || !p.TLS.Leaf.Equal(p.Certificate) {
			t.Fatalf("%s: the files hold another certificate", m.Name)
		}
		if err := p.Certificate.CheckSignatureFrom(ca.Certificate()); err != nil {
			t.Fatalf("%s: %v", m.Name, err)
		}
		bundle := x509bundle.FromX509Authorities(ca.TrustDomain(), []*x509.Certificate{ca.Certificate()})
		id, _, err := x509svid.Verify([]*x509.Certificate{p.Certificate}, bundle)
		return err == nil && id == hermes &&
			slices.Equal(p.Certificate.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth})
	}
	if !accepts(certstest.Mutation{Name: "good"}) {
		t.Fatal("the unmutated certificate is refused")
	}
	for _, m := range certstest.Bad() {
		if accepts(m) {
			t.Errorf("%s: is accepted", m.Name)
		}
	}
}
