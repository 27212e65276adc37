package certs

import (
	"bytes"
	crand "crypto/rand"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestInitCertificate(t *testing.T) {
	ca, _ := newCA(t)
	c := ca.Certificate()
	if !c.BasicConstraintsValid || !c.IsCA || c.MaxPathLen != 0 || !c.MaxPathLenZero {
		t.Errorf("basic constraints: CA %v, path length %d", c.IsCA, c.MaxPathLen)
	}
	if want := x509.KeyUsageCertSign | x509.KeyUsageCRLSign; c.KeyUsage != want {
		t.Errorf("key usage %b, want %b", c.KeyUsage, want)
	}
	if len(c.URIs) != 1 || c.URIs[0].String() != "spiffe://home.example" {
		t.Errorf("URI SANs %v", c.URIs)
	}
	if n := c.SerialNumber.BitLen(); n < 64 || n > 128 {
		t.Errorf("serial of %d bits", n)
	}
	if len(c.SubjectKeyId) != 20 || !bytes.Equal(c.SubjectKeyId, c.AuthorityKeyId) {
		t.Errorf("key identifiers %x and %x", c.SubjectKeyId, c.AuthorityKeyId)
	}
	if life := c.NotAfter.Sub(c.NotBefore); life != 10*365*day+backdate {
		t.Errorf("lives %v", life)
	}
	loaded := must[*CA](t)(Load(ca.Dir()))
	if !loaded.Certificate().Equal(c) || loaded.TrustDomain() != home {
		t.Error("Load gives another CA than Init")
	}
}

func TestInitOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"no trust domain":  {},
		"negative TTL":     {TrustDomain: home, TTL: -time.Hour},
		"TTL below second": {TrustDomain: home, TTL: time.Millisecond},
		"long name":        {TrustDomain: home, CommonName: strings.Repeat("x", 65)},
		"control in name":  {TrustDomain: home, CommonName: "a\x1b[2J"},
		"bidi in name":     {TrustDomain: home, CommonName: "a\u202eb"},
		"name not UTF-8":   {TrustDomain: home, CommonName: "\xff"},
	} {
		path := filepath.Join(t.TempDir(), "ca")
		if _, err := Init(path, o); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: left %s behind", name, path)
		}
	}
}

func TestInitNeverOverwrites(t *testing.T) {
	for name, prepare := range map[string]func(dir string) error{
		"key":  func(dir string) error { return os.WriteFile(filepath.Join(dir, KeyFile), []byte("old"), 0o600) },
		"cert": func(dir string) error { return os.WriteFile(filepath.Join(dir, CertFile), []byte("old"), 0o600) },
		"dangling link": func(dir string) error {
			return os.Symlink(filepath.Join(dir, "elsewhere"), filepath.Join(dir, CertFile))
		},
		"directory": func(dir string) error { return os.Mkdir(filepath.Join(dir, KeyFile), 0o700) },
	} {
		dir := t.TempDir()
		if err := prepare(dir); err != nil {
			t.Fatal(err)
		}
		before := listing(t, dir)
		_, err := Init(dir, Options{TrustDomain: home})
		if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "move") {
			t.Errorf("%s: %v, want fs.ErrExist and what to do", name, err)
		}
		if after := listing(t, dir); after != before {
			t.Errorf("%s: %s became %s", name, before, after)
		}
	}
}

// listing is every entry of a directory with its mode and content.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	for _, e := range must[[]os.DirEntry](t)(os.ReadDir(dir)) {
		b.WriteString(e.Name() + " " + e.Type().String() + " ")
		if e.Type().IsRegular() {
			b.WriteString(readFile(t, filepath.Join(dir, e.Name())))
		}
		b.WriteString("; ")
	}
	return b.String()
}

func TestLoadRefuses(t *testing.T) {
	other, _ := newCA(t)
	leaf := issue(t, other, Request{ID: testID("/agent/hermes"), Role: Agent})
	leafDir := t.TempDir()
	if err := leaf.Write(leafDir, "hermes"); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		damage func(dir string)
		want   string
	}{
		"key readable by group": {func(dir string) { os.Chmod(filepath.Join(dir, KeyFile), 0o640) }, "chmod 600"},
		"key readable by all":   {func(dir string) { os.Chmod(filepath.Join(dir, KeyFile), 0o604) }, "chmod 600"},
		"directory open":        {func(dir string) { os.Chmod(dir, 0o770) }, "chmod go-w"},
		"key is a link": {func(dir string) {
			path := filepath.Join(dir, KeyFile)
			os.Rename(path, path+".real")
			os.Symlink(path+".real", path)
		}, "symbolic link"},
		"key is a directory": {func(dir string) {
			os.Remove(filepath.Join(dir, KeyFile))
			os.Mkdir(filepath.Join(dir, KeyFile), 0o700)
		}, "not a regular file"},
		"key of another CA": {func(dir string) {
			writeFile(t, filepath.Join(dir, KeyFile), readFile(t, filepath.Join(other.Dir(), KeyFile)), 0o600)
		}, "does not belong"},
		"key not PEM": {func(dir string) { writeFile(t, filepath.Join(dir, KeyFile), "secret", 0o600) }, "PKCS#8"},
		"key not DER": {func(dir string) {
			writeFile(t, filepath.Join(dir, KeyFile), "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n", 0o600)
		}, "PKCS#8"},
		"no key": {func(dir string) { os.Remove(filepath.Join(dir, KeyFile)) }, "no such file"},
		"leaf": {func(dir string) {
			writeFile(t, filepath.Join(dir, CertFile), readFile(t, filepath.Join(leafDir, "hermes.crt")), 0o644)
			writeFile(t, filepath.Join(dir, KeyFile), readFile(t, filepath.Join(leafDir, "hermes.key")), 0o600)
		}, "not the certificate of an authority"},
		"two certificates": {func(dir string) {
			path := filepath.Join(dir, CertFile)
			writeFile(t, path, readFile(t, path)+readFile(t, filepath.Join(other.Dir(), CertFile)), 0o644)
		}, "more than one"},
		"huge": {func(dir string) {
			writeFile(t, filepath.Join(dir, CertFile), strings.Repeat("x", maxFile+1), 0o644)
		}, "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			ca, _ := newCA(t)
			tc.damage(ca.Dir())
			_, err := Load(ca.Dir())
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want an error with %q", err, tc.want)
			}
			if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "c2VjcmV0") {
				t.Errorf("the error quotes the key file: %v", err)
			}
		})
	}
}

// TestLoadRefusesStrangeAuthority: authorities that are sound X.509 but not the
// self-signed X509-SVID signing certificate of one trust domain.
func TestLoadRefusesStrangeAuthority(t *testing.T) {
	parent, _ := newCA(t)
	for name, tc := range map[string]struct {
		uris   []*url.URL
		signer *CA // nil: self-signed
		want   string
	}{
		"sound":            {uriSAN(home.ID()), nil, ""},
		"ID with a path":   {uriSAN(testID("/ca")), nil, "has no path"},
		"no ID":            {nil, nil, "no URI SAN"},
		"two IDs":          {append(uriSAN(home.ID()), uriSAN(home.ID())...), nil, "more than one URI SAN"},
		"signed by others": {uriSAN(home.ID()), parent, "not self-signed"},
	} {
		ca, _ := newCA(t)
		template := *ca.cert
		template.URIs = tc.uris
		signer := ca
		if tc.signer != nil {
			signer = tc.signer
		}
		der := must[[]byte](t)(x509.CreateCertificate(crand.Reader, &template, signer.cert, ca.key.Public(), signer.key))
		cert := must[*x509.Certificate](t)(x509.ParseCertificate(der))
		writeFile(t, filepath.Join(ca.Dir(), CertFile), string(encodeCertificate(cert)), 0o644)
		_, err := Load(ca.Dir())
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

func TestLoadRefusesForeignOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give a file away")
	}
	for _, file := range []string{"", KeyFile} {
		ca, _ := newCA(t)
		if err := os.Chown(filepath.Join(ca.Dir(), file), 12345, -1); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(ca.Dir()); err == nil || !strings.Contains(err.Error(), "belongs to uid 12345") {
			t.Errorf("owner of %q changed: %v", file, err)
		}
	}
}

func TestValidityOfCA(t *testing.T) {
	c := &clock{}
	ca := must[*CA](t)(Init(filepath.Join(t.TempDir(), "ca"), Options{TrustDomain: home, TTL: time.Hour, Now: c.now}))
	request := Request{ID: testID("/agent/hermes"), Role: Agent, TTL: time.Minute}
	for _, tc := range []struct {
		offset time.Duration
		want   string
	}{
		{0, ""},
		{58 * time.Minute, ""},
		{59*time.Minute + 30*time.Second, "CA itself expires"},
		{2 * time.Hour, "CA expired"},
		{-time.Hour, "not valid before"},
	} {
		c.offset = tc.offset
		_, err := ca.Issue(request)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("Issue at %v: %v, want %q", tc.offset, err, tc.want)
		}
		if strings.Contains(tc.want, "itself") {
			continue
		}
		_, err = load(ca.Dir(), c.now)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("Load at %v: %v, want %q", tc.offset, err, tc.want)
		}
	}
}
