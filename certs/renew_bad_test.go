package certs_test

import (
	"crypto/x509"
	"net"
	"os"
	"testing"

	"github.com/gortium/hermes-broker/certs/certstest"
)

// TestRenewOnlyWhatIssueMakes: a certificate that is wrong is not made right, or
// wrong for longer, by a renewal. Time alone makes no certificate wrong here.
func TestRenewOnlyWhatIssueMakes(t *testing.T) {
	ca := certstest.NewCA(t, domain)
	renewable := map[string]bool{"good": true, "expired": true, "not yet valid": true, "server usage": true}
	cases := append(certstest.Bad(), []certstest.Mutation{
		{Name: "good"},
		{Name: "two usages", Apply: func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) }},
		{Name: "any usage", Apply: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }},
		{Name: "signing leaf", Apply: func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }},
		{Name: "client with DNS", Apply: func(c *x509.Certificate) { c.DNSNames = []string{"broker"} }},
		{Name: "client with IP", Apply: func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv6loopback} }},
		{Name: "e-mail", Apply: func(c *x509.Certificate) { c.EmailAddresses = []string{"a@home.example"} }},
		{Name: "no life", Apply: func(c *x509.Certificate) { c.NotAfter = c.NotBefore }},
		{Name: "longer than the CA", Apply: func(c *x509.Certificate) { c.NotAfter = c.NotAfter.AddDate(20, 0, 0) }},
	}...)
	for _, tc := range cases {
		p := certstest.Mint(t, ca, agent, tc.Apply)
		before := contents(t, p)
		_, err := ca.Renew(p.CertFile, p.KeyFile)
		if (err == nil) != renewable[tc.Name] {
			t.Errorf("%s: %v", tc.Name, err)
		}
		if changed := contents(t, p) != before; changed != renewable[tc.Name] {
			t.Errorf("%s: files changed: %v", tc.Name, changed)
		}
	}
}

func contents(t *testing.T, p *certstest.Pair) (both string) {
	t.Helper()
	for _, path := range []string{p.CertFile, p.KeyFile} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		both += string(data)
	}
	return both
}
