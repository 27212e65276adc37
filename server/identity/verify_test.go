package identity

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/gortium/hermes-broker/certs"
	"github.com/gortium/hermes-broker/certs/certstest"
)

// TestFederatedTrustDomain defends against a Workload API that hands out the
// bundles of other trust domains too: who they vouch for is still a stranger.
func TestFederatedTrustDomain(t *testing.T) {
	bundles := x509bundle.NewSet()
	rules := Rules{TrustDomain: func() string { return "home.example" }, Revoked: func(string) bool { return false }, Now: time.Now}
	for domain, want := range map[string]string{"home.example": "", "other.example": "not of the trust domain"} {
		ca := certstest.NewCA(t, domain)
		bundles.Add(x509bundle.FromX509Authorities(ca.TrustDomain(), []*x509.Certificate{ca.Certificate()}))
		pair := certstest.Mint(t, ca, certs.Request{ID: spiffeid.RequireFromString("spiffe://" + domain + "/agent/hermes"), Role: certs.Agent}, nil)
		_, err := Verify([]*x509.Certificate{pair.Certificate}, bundles, rules)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", domain, err)
		}
	}
}
