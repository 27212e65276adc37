package certs_test

import (
	"crypto/x509"
	"encoding/asn1"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/gortium/hermes-broker/certs"
	"github.com/gortium/hermes-broker/certs/certstest"
)

const domain = "home.example"

func id(path string) spiffeid.ID {
	return spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString(domain), path)
}

var agent = certs.Request{ID: id("/agent/hermes"), Role: certs.Agent}

func TestShow(t *testing.T) {
	ca := certstest.NewCA(t, domain)
	server := certs.Request{ID: id("/server/broker"), Role: certs.Server, DNS: []string{"broker"}, IPs: []net.IP{net.IPv6loopback}}
	p := certstest.Mint(t, ca, server, nil)
	info, err := certs.Show(p.CertFile)
	if err != nil {
		t.Fatal(err)
	}
	if info.ID != server.ID.String() || info.CA || !slices.Equal(info.Usage, []string{"serverAuth"}) ||
		info.Serial != p.Certificate.SerialNumber.Text(16) || !info.NotAfter.Equal(p.Certificate.NotAfter) ||
		info.Remaining <= 0 || info.Remaining > 90*24*time.Hour || info.Issuer != "CN=hermes-broker local CA" ||
		!slices.Equal(info.DNS, []string{"broker"}) || !slices.Equal(info.IPs, []string{"::1"}) ||
		info.KeyType != "ECDSA P-256" || len(info.SHA256) != 64 || len(info.Problems) != 0 {
		t.Errorf("%+v", info)
	}
	info, err = certs.Show(filepath.Join(ca.Dir(), certs.CertFile))
	if err != nil || !info.CA || info.ID != "spiffe://home.example" || len(info.Problems) != 0 {
		t.Errorf("the CA: %+v, %v", info, err)
	}
}

func TestShowErrors(t *testing.T) {
	p := certstest.Mint(t, certstest.NewCA(t, domain), agent, nil)
	for path, want := range map[string]string{
		p.KeyFile:                "no PEM certificate",
		p.CertFile + ".missing":  "no such file",
		filepath.Dir(p.CertFile): "not a regular file",
		"/dev/zero":              "not a regular file",
	} {
		if _, err := certs.Show(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", path, err, want)
		}
	}
}

func TestDescribeProblems(t *testing.T) {
	ca := certstest.NewCA(t, domain)
	want := map[string]string{ // of certstest.Bad
		"expired":            "expired at",
		"not yet valid":      "not valid before",
		"two URI SANs":       "has 2 URI SANs",
		"no URI SAN":         "has 0 URI SANs",
		"not a SPIFFE ID":    "not a SPIFFE ID",
		"no path":            "no path",
		"no usage":           "no extended key usage",
		"an authority":       "must have no path",
		"other trust domain": "", // of no fault by itself
		"server usage":       "",
	}
	cases := certstest.Bad()
	add := func(name, problem string, apply func(*x509.Certificate)) {
		want[name] = problem
		cases = append(cases, certstest.Mutation{Name: name, Apply: apply})
	}
	add("good", "", nil)
	add("two usages", "has 2 extended key usages", func(c *x509.Certificate) {
		c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	})
	add("any usage", "neither clientAuth nor serverAuth", func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	})
	add("strange usage", "neither clientAuth nor serverAuth", func(c *x509.Certificate) {
		c.ExtKeyUsage, c.UnknownExtKeyUsage = nil, []asn1.ObjectIdentifier{{1, 2, 3, 4}}
	})
	add("client with DNS", "is for clients but", func(c *x509.Certificate) { c.DNSNames = []string{"a"} })
	add("signing leaf", "leaf with the key usage", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign })
	add("no digital signature", "lacks the key usage", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement })
	add("last third", "less than a third", func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-7*time.Hour), time.Now().Add(3*time.Hour)
	})
	add("not the last third", "", func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-6*time.Hour), time.Now().Add(4*time.Hour)
	})
	for _, tc := range cases {
		problem, known := want[tc.Name]
		if !known {
			t.Errorf("%s: no expectation", tc.Name)
		}
		p := certstest.Mint(t, ca, agent, tc.Apply)
		info, err := certs.Show(p.CertFile)
		if err != nil {
			t.Errorf("%s: %v", tc.Name, err)
		}
		if problem == "" && len(info.Problems) != 0 || problem != "" && !strings.Contains(strings.Join(info.Problems, "\n"), problem) {
			t.Errorf("%s: problems %q, want %q", tc.Name, info.Problems, problem)
		}
	}
}

func TestShowKeyProblems(t *testing.T) {
	ca := certstest.NewCA(t, domain)
	other := certstest.Mint(t, ca, agent, nil)
	for want, damage := range map[string]func(p *certstest.Pair) error{
		"open to other users":            func(p *certstest.Pair) error { return os.Chmod(p.KeyFile, 0o640) },
		"belongs to another certificate": func(p *certstest.Pair) error { return os.Rename(other.KeyFile, p.KeyFile) },
		"holds no PEM block":             func(p *certstest.Pair) error { return os.WriteFile(p.KeyFile, nil, 0o600) },
		"also holds a private key": func(p *certstest.Pair) error {
			key, err := os.ReadFile(p.KeyFile)
			if err != nil {
				return err
			}
			f, err := os.OpenFile(p.CertFile, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.Write(key)
			return err
		},
	} {
		p := certstest.Mint(t, ca, agent, nil)
		if err := damage(p); err != nil {
			t.Fatal(err)
		}
		info, err := certs.Show(p.CertFile)
		if err != nil || len(info.Problems) != 1 || !strings.Contains(info.Problems[0], want) {
			t.Errorf("%q, %v, want %q", info.Problems, err, want)
		}
	}
}

// TestDescribeEscapes: a certificate cannot repaint the terminal it is shown on.
func TestDescribeEscapes(t *testing.T) {
	p := certstest.Mint(t, certstest.NewCA(t, domain), agent, func(c *x509.Certificate) {
		c.DNSNames = []string{"a\x1b[2Jb", "c\nd"}
	})
	info, err := certs.Show(p.CertFile)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{`a\x1b[2Jb`, `c\nd`}; !slices.Equal(info.DNS, want) {
		t.Errorf("DNS %q, want %q", info.DNS, want)
	}
	checkPrintable(t, info)
}

func checkPrintable(t *testing.T, info certs.Info) {
	t.Helper()
	all := slices.Concat([]string{info.ID, info.Serial, info.Issuer, info.KeyType, info.SHA256}, info.Usage, info.DNS, info.IPs, info.Problems)
	for _, s := range all {
		if i := strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("%q is not safe to print", s)
		}
	}
}

func FuzzDescribe(f *testing.F) {
	ca := certstest.NewCA(f, domain)
	for _, m := range append(certstest.Bad(), certstest.Mutation{}) {
		data, err := os.ReadFile(certstest.Mint(f, ca, agent, m.Apply).CertFile)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if info, err := certs.Describe(data, time.Now()); err == nil {
			checkPrintable(t, info)
		}
	})
}
