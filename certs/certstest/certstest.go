// Package certstest gives tests authorities and certificates, among them the
// deliberately bad ones that package certs refuses to make. It may only be
// imported by tests. Every failure ends the test, and every file is in a
// directory that the test removes.
package certstest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/gortium/hermes-broker/certs"
)

// NewCA makes an authority for trustDomain in a directory of its own.
func NewCA(t testing.TB, trustDomain string) *certs.CA {
	t.Helper()
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	check(t, err)
	ca, err := certs.Init(filepath.Join(t.TempDir(), "ca"), certs.Options{TrustDomain: td})
	check(t, err)
	return ca
}

// Pair is a certificate and its key, in memory and in files.
type Pair struct {
	Certificate *x509.Certificate
	TLS         tls.Certificate
	CertFile    string
	KeyFile     string
	BundleFile  string // the authority's certificate
}

// Mint issues what r asks for, lets mutate change it, and signs the outcome with
// the authority's key: the key and the serial number are new, and there is no
// subject key identifier. A nil mutate gives a good certificate. The files leaf.crt, leaf.key and bundle.crt are in a fresh
// directory.
func Mint(t testing.TB, ca *certs.CA, r certs.Request, mutate func(*x509.Certificate)) *Pair {
	t.Helper()
	issued, err := ca.Issue(r)
	check(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := *issued.Certificate
	template.SerialNumber = nil // CreateCertificate then makes one
	template.SubjectKeyId = nil
	template.RawSubject = nil // it would win over a Subject that mutate sets
	if mutate != nil {
		mutate(&template)
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, ca.Certificate(), key.Public(), caKey(t, ca))
	check(t, err)
	cert, err := x509.ParseCertificate(der)
	check(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)

	dir := t.TempDir()
	p := &Pair{
		Certificate: cert,
		TLS:         tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert},
		CertFile:    filepath.Join(dir, "leaf.crt"),
		KeyFile:     filepath.Join(dir, "leaf.key"),
		BundleFile:  filepath.Join(dir, certs.BundleFile),
	}
	write(t, p.CertFile, "CERTIFICATE", der, 0o644)
	write(t, p.KeyFile, "PRIVATE KEY", keyDER, 0o600)
	write(t, p.BundleFile, "CERTIFICATE", ca.Certificate().Raw, 0o644)
	return p
}

// Mutation makes a good certificate bad in one way.
type Mutation struct {
	Name  string
	Apply func(*x509.Certificate)
}

// Bad lists the mutations of a client's certificate that every verifier of
// callers must refuse. The remaining bad certificates need no mutation: one of
// another authority, and a good one of a caller nobody knows.
func Bad() []Mutation {
	return []Mutation{
		{"expired", func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}},
		{"not yet valid", func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
		}},
		{"two URI SANs", func(c *x509.Certificate) {
			c.URIs = append([]*url.URL{c.URIs[0]}, c.URIs[0].JoinPath("second"))
		}},
		{"no URI SAN", func(c *x509.Certificate) { c.URIs = nil }},
		{"not a SPIFFE ID", func(c *x509.Certificate) {
			c.URIs = []*url.URL{{Scheme: "https", Host: c.URIs[0].Host, Path: c.URIs[0].Path}}
		}},
		{"other trust domain", func(c *x509.Certificate) {
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: "other." + c.URIs[0].Host, Path: c.URIs[0].Path}}
		}},
		{"no path", func(c *x509.Certificate) {
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: c.URIs[0].Host}}
		}},
		{"server usage", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }},
		{"no usage", func(c *x509.Certificate) { c.ExtKeyUsage = nil }},
		{"an authority", func(c *x509.Certificate) {
			c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
		}},
	}
}

func caKey(t testing.TB, ca *certs.CA) crypto.PrivateKey {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(ca.Dir(), certs.KeyFile))
	check(t, err)
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatalf("no PEM block in the key of the CA %s", ca.Dir())
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	check(t, err)
	return key
}

func write(t testing.TB, path, blockType string, der []byte, perm os.FileMode) {
	t.Helper()
	check(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der}), perm))
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
