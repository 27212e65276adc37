package identity

import (
	"context"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/gortium/hermes-broker/certs"
	"github.com/gortium/hermes-broker/certs/certstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var brokerID = spiffeid.RequireFromString("spiffe://home.example/broker")

func mintServer(t testing.TB, ca *certs.CA, mutate func(*x509.Certificate)) *certstest.Pair {
	t.Helper()
	return certstest.Mint(t, ca, certs.Request{ID: brokerID, Role: certs.Server, DNS: []string{"localhost"}}, mutate)
}

// disk is a folder with the broker's files.
type disk struct {
	t     *testing.T
	ca    *certs.CA
	paths Paths
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	dir := t.TempDir()
	d := &disk{t: t, ca: certstest.NewCA(t, "home.example"), paths: Paths{
		Certificate: filepath.Join(dir, "broker.crt"), Key: filepath.Join(dir, "broker.key"), Bundle: filepath.Join(dir, "bundle.crt"),
	}}
	d.put(mintServer(t, d.ca, nil))
	return d
}

// replace puts a copy of a file in the place of another, by renaming.
func (d *disk) replace(from, to string, mode os.FileMode) {
	d.t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to+".new", data, mode)
	}
	if err == nil {
		err = os.Rename(to+".new", to)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *disk) put(p *certstest.Pair) {
	d.t.Helper()
	d.replace(p.KeyFile, d.paths.Key, 0o600)
	d.replace(p.CertFile, d.paths.Certificate, 0o644)
	d.replace(p.BundleFile, d.paths.Bundle, 0o644)
}

func (d *disk) write(path, text string) {
	d.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func serial(t testing.TB, s Source) string {
	t.Helper()
	svid, err := s.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	return svid.Certificates[0].SerialNumber.Text(16)
}

// faults are the ways in which a set of files is not to be used. Each defends
// the broker's key, or callers against a broker that nobody vouches for.
var faults = []struct {
	name string
	do   func(*disk)
	want string
}{
	{"key that others may read", func(d *disk) {
		if err := os.Chmod(d.paths.Key, 0o644); err != nil {
			d.t.Fatal(err)
		}
	}, "open to group or others"},
	{"key of another certificate", func(d *disk) { d.replace(mintServer(d.t, d.ca, nil).KeyFile, d.paths.Key, 0o600) }, "broker.key"},
	{"certificate of another key", func(d *disk) { d.replace(mintServer(d.t, d.ca, nil).CertFile, d.paths.Certificate, 0o644) }, "broker.crt"},
	{"expired", func(d *disk) {
		d.put(mintServer(d.t, d.ca, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}))
	}, "expired on"},
	{"not yet valid", func(d *disk) {
		d.put(mintServer(d.t, d.ca, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }))
	}, "does not verify"},
	{"for clients", func(d *disk) {
		d.put(mintServer(d.t, d.ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }))
	}, "server authentication"},
	{"for nothing", func(d *disk) {
		d.put(mintServer(d.t, d.ca, func(c *x509.Certificate) { c.ExtKeyUsage = nil }))
	}, "server authentication"},
	{"no SPIFFE ID", func(d *disk) { d.put(mintServer(d.t, d.ca, func(c *x509.Certificate) { c.URIs = nil })) }, "broker.crt"},
	{"another authority's", func(d *disk) {
		p := mintServer(d.t, certstest.NewCA(d.t, "home.example"), nil)
		d.replace(p.KeyFile, d.paths.Key, 0o600)
		d.replace(p.CertFile, d.paths.Certificate, 0o644)
	}, "does not verify"},
	{"empty bundle", func(d *disk) { d.write(d.paths.Bundle, "") }, "bundle.crt"},
	{"bundle of a key", func(d *disk) { d.replace(d.paths.Key, d.paths.Bundle, 0o600) }, "bundle.crt"},
	{"half a certificate", func(d *disk) {
		data, err := os.ReadFile(d.paths.Certificate)
		if err != nil {
			d.t.Fatal(err)
		}
		d.write(d.paths.Certificate, string(data[:len(data)/2]))
	}, "broker.crt"},
	{"half a key", func(d *disk) { d.write(d.paths.Key, "-----BEGIN PRIVATE KEY-----\nMIG") }, "broker.key"},
	{"no key", func(d *disk) {
		if err := os.Remove(d.paths.Key); err != nil {
			d.t.Fatal(err)
		}
	}, "broker.key"},
	{"symbolic link", func(d *disk) {
		if err := os.Rename(d.paths.Bundle, d.paths.Bundle+".real"); err != nil {
			d.t.Fatal(err)
		}
		if err := os.Symlink(d.paths.Bundle+".real", d.paths.Bundle); err != nil {
			d.t.Fatal(err)
		}
	}, "bundle.crt"},
	{"bundle that others may write", func(d *disk) {
		if err := os.Chmod(d.paths.Bundle, 0o666); err != nil {
			d.t.Fatal(err)
		}
	}, "bundle.crt"},
}

func TestBadFilesAreRefused(t *testing.T) {
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			d := newDisk(t)
			if _, err := NewFiles(d.paths); err != nil {
				t.Fatalf("good files: %v", err)
			}
			f.do(d)
			_, err := NewFiles(d.paths)
			if err == nil || !strings.Contains(err.Error(), f.want) {
				t.Errorf("got %v, want an error about %q", err, f.want)
			}
			if err != nil && strings.Contains(err.Error(), "BEGIN") {
				t.Errorf("the error shows what is in the file: %v", err)
			}
		})
	}
}

// TestBadRenewalKeepsTheLastGood: the same faults in a running broker change
// nothing, are told once, and end with the next good files.
func TestBadRenewalKeepsTheLastGood(t *testing.T) {
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			d := newDisk(t)
			files, err := NewFiles(d.paths)
			if err != nil {
				t.Fatal(err)
			}
			before := serial(t, files)
			var told []error
			report := func(err error) { told = append(told, err) }
			files.poll(report)
			if len(told) != 0 {
				t.Fatalf("told without a change: %v", told)
			}
			f.do(d)
			for range 3 {
				files.poll(report)
			}
			if len(told) != 1 || told[0] == nil {
				t.Errorf("told %v", told)
			}
			if serial(t, files) != before {
				t.Error("the bad files were taken")
			}
			if _, err := files.GetX509BundleForTrustDomain(brokerID.TrustDomain()); err != nil {
				t.Errorf("the bundle is gone: %v", err)
			}
			_ = os.Remove(d.paths.Bundle)
			next := mintServer(t, d.ca, nil)
			d.put(next)
			files.poll(report)
			if len(told) != 2 || told[1] != nil || serial(t, files) != next.Certificate.SerialNumber.Text(16) {
				t.Errorf("after good files: told %v, serial %s", told, serial(t, files))
			}
		})
	}
}

// TestRenewalInSteps: between the renames of a renewal the old set is used.
func TestRenewalInSteps(t *testing.T) {
	d := newDisk(t)
	files, err := NewFiles(d.paths)
	if err != nil {
		t.Fatal(err)
	}
	before, next := serial(t, files), mintServer(t, d.ca, nil)
	d.replace(next.KeyFile, d.paths.Key, 0o600)
	files.poll(func(error) {})
	if serial(t, files) != before {
		t.Error("half of a renewal was taken")
	}
	d.replace(next.CertFile, d.paths.Certificate, 0o644)
	var told []error
	files.poll(func(err error) { told = append(told, err) })
	if len(told) != 1 || told[0] != nil || serial(t, files) == before {
		t.Errorf("the renewal was not taken: %v", told)
	}
}

// TestWatch follows the files, and ends with its context.
func TestWatch(t *testing.T) {
	d := newDisk(t)
	files, err := NewFiles(d.paths)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	told, ended := make(chan error), make(chan struct{})
	go func() {
		files.Watch(ctx, time.Millisecond, func(err error) { told <- err })
		close(ended)
	}()
	next := mintServer(t, d.ca, nil)
	d.put(next)
	for err := range told { // The first looks may find half of it.
		if err == nil {
			break
		}
	}
	if serial(t, files) != next.Certificate.SerialNumber.Text(16) {
		t.Error("not taken")
	}
	cancel()
	for {
		select {
		case <-told:
			continue
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Error("Watch goes on")
		}
		return
	}
}
