package certs

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is a leaf on disk.
type pair struct{ dir, cert, key string }

func written(t testing.TB, ca *CA, r Request) pair {
	t.Helper()
	dir := t.TempDir()
	if err := issue(t, ca, r).Write(dir, "leaf"); err != nil {
		t.Fatal(err)
	}
	return pair{dir, filepath.Join(dir, "leaf.crt"), filepath.Join(dir, "leaf.key")}
}

func (p pair) load(t testing.TB) *x509.Certificate {
	t.Helper()
	return must[tls.Certificate](t)(tls.LoadX509KeyPair(p.cert, p.key)).Leaf
}

const mismatch = "private key does not match public key" // of crypto/tls

var hermesRequest = Request{ID: testID("/agent/hermes"), Role: Agent, TTL: 3 * time.Hour}

func TestRenew(t *testing.T) {
	for _, r := range []Request{
		hermesRequest,
		{ID: testID("/operator/ann"), Role: Operator},
		{ID: testID("/server/broker"), Role: Server, DNS: []string{"broker", "broker.home"}, IPs: []net.IP{net.IPv4(10, 0, 0, 1), net.IPv6loopback}},
	} {
		for _, age := range []time.Duration{0, time.Hour, 200 * day} { // the last has expired
			ca, clock := newCA(t)
			p := written(t, ca, r)
			old, bundle := p.load(t), readFile(t, filepath.Join(p.dir, BundleFile))
			clock.offset = age
			renewed := must[*Leaf](t)(ca.Renew(p.cert, p.key)).Certificate
			c := p.load(t)
			if !c.Equal(renewed) {
				t.Fatalf("%s: the certificate on disk is not the one returned", r.Role)
			}
			if c.PublicKey.(*ecdsa.PublicKey).Equal(old.PublicKey) || c.SerialNumber.Cmp(old.SerialNumber) == 0 {
				t.Errorf("%s: same key or serial as before", r.Role)
			}
			if c.URIs[0].String() != old.URIs[0].String() || !slices.Equal(c.ExtKeyUsage, old.ExtKeyUsage) ||
				!slices.Equal(c.DNSNames, old.DNSNames) || !slices.EqualFunc(c.IPAddresses, old.IPAddresses, net.IP.Equal) {
				t.Errorf("%s: became %v %v %v %v", r.Role, c.URIs, c.ExtKeyUsage, c.DNSNames, c.IPAddresses)
			}
			if got, want := c.NotAfter.Sub(c.NotBefore), old.NotAfter.Sub(old.NotBefore); got != want {
				t.Errorf("%s: lives %v, want %v", r.Role, got, want)
			}
			if now := clock.now(); c.NotBefore.After(now) || c.NotAfter.Before(now) {
				t.Errorf("%s: is not valid at %v", r.Role, now)
			}
			if readFile(t, filepath.Join(p.dir, BundleFile)) != bundle || len(must[[]os.DirEntry](t)(os.ReadDir(p.dir))) != 3 {
				t.Errorf("%s: the directory is now %s", r.Role, listing(t, p.dir))
			}
		}
	}
}

func TestRenewRefuses(t *testing.T) {
	ca, _ := newCA(t)
	foreign, _ := newCA(t) // same trust domain, same name, another key
	operator := written(t, ca, Request{ID: testID("/operator/ann"), Role: Operator})
	for name, tc := range map[string]struct {
		signer *CA
		damage func(p pair)
		want   string
	}{
		"other CA": {foreign, func(pair) {}, "not signed by this CA"},
		"another's certificate": {ca, func(p pair) {
			writeFile(t, p.cert, readFile(t, operator.cert), 0o644)
		}, "does not belong to the certificate"},
		"another's certificate, staged": {ca, func(p pair) {
			writeFile(t, p.cert, readFile(t, operator.cert), 0o644)
			writeFile(t, filepath.Join(p.dir, ".leaf.crt.new"), readFile(t, operator.cert), 0o644)
		}, "does not belong to the certificate"},
		"foreign pair, half": {ca, func(p pair) {
			other := written(t, foreign, hermesRequest)
			writeFile(t, p.key, readFile(t, other.key), 0o600)
			writeFile(t, filepath.Join(p.dir, ".leaf.crt.new"), readFile(t, other.cert), 0o644)
		}, "does not belong to the certificate"},
		"the CA itself": {ca, func(p pair) {
			writeFile(t, p.cert, readFile(t, filepath.Join(ca.Dir(), CertFile)), 0o644)
			writeFile(t, p.key, readFile(t, filepath.Join(ca.Dir(), KeyFile)), 0o600)
		}, "not a leaf"},
		"linked certificate": {ca, func(p pair) { os.Remove(p.cert); os.Symlink(operator.cert, p.cert) }, "symbolic link"},
		"linked key":         {ca, func(p pair) { os.Rename(p.key, p.key+"2"); os.Symlink(p.key+"2", p.key) }, "symbolic link"},
		"no key":             {ca, func(p pair) { os.Remove(p.key) }, "no such file"},
		"named pipe": {ca, func(p pair) {
			os.Remove(p.key)
			if err := unix.Mkfifo(p.key, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			p := written(t, tc.signer, hermesRequest)
			tc.damage(p)
			before := listing(t, p.dir)
			_, err := ca.Renew(p.cert, p.key)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
			if after := listing(t, p.dir); after != before {
				t.Errorf("%s became %s", before, after)
			}
		})
	}
	p := written(t, ca, hermesRequest)
	q := written(t, ca, hermesRequest)
	if _, err := ca.Renew(p.cert, q.key); err == nil || !strings.Contains(err.Error(), "one directory") {
		t.Errorf("two directories: %v", err)
	}
}

func TestRenewKeepsOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give files away")
	}
	ca, _ := newCA(t)
	p := written(t, ca, hermesRequest)
	for _, path := range []string{p.cert, p.key} {
		if err := os.Chown(path, 12345, 23456); err != nil {
			t.Fatal(err)
		}
	}
	must[*Leaf](t)(ca.Renew(p.cert, p.key))
	for _, path := range []string{p.cert, p.key} {
		if uid, gid := owner(must[os.FileInfo](t)(os.Lstat(path))); uid != 12345 || gid != 23456 {
			t.Errorf("%s belongs to %d:%d after the renewal", path, uid, gid)
		}
	}
}

// TestRenewOrder: the certificate arrives last, with its key already there.
func TestRenewOrder(t *testing.T) {
	ca, _ := newCA(t)
	p := written(t, ca, hermesRequest)
	events := watch(t, unix.IN_MOVED_TO|unix.IN_CREATE, p.dir)
	must[*Leaf](t)(ca.Renew(p.cert, p.key))
	var got []string
	for _, e := range events() {
		got = append(got, e.name)
	}
	if want := []string{".leaf.crt.new", ".leaf.key.new", "leaf.key", "leaf.crt"}; !slices.Equal(got, want) {
		t.Errorf("files arrived as %v, want %v", got, want)
	}
}

// TestRenewCrash stops a renewal after each of its steps, as a crash would.
func TestRenewCrash(t *testing.T) {
	for steps := range 4 {
		t.Run(fmt.Sprint(steps), func(t *testing.T) {
			ca, _ := newCA(t)
			p := written(t, ca, hermesRequest)
			old := p.load(t)
			crash(t, ca, p, steps)

			switch _, err := tls.LoadX509KeyPair(p.cert, p.key); {
			case steps < 3 && !p.load(t).Equal(old):
				t.Error("the old pair is gone before the new one is in place")
			case steps == 3 && (err == nil || !strings.Contains(err.Error(), mismatch)):
				t.Errorf("a watcher cannot tell that the pair is half renewed: %v", err)
			}
			if _, err := ca.Renew(p.cert, p.key); err != nil {
				t.Fatalf("the next renewal: %v", err)
			}
			c := p.load(t)
			if c.URIs[0].String() != hermesRequest.ID.String() || c.NotAfter.Sub(c.NotBefore) != hermesRequest.TTL+backdate {
				t.Errorf("recovered as %v, %v to %v", c.URIs, c.NotBefore, c.NotAfter)
			}
			if n := len(must[[]os.DirEntry](t)(os.ReadDir(p.dir))); n != 3 {
				t.Errorf("left behind: %s", listing(t, p.dir))
			}
		})
	}
}

// crash does the first steps of a renewal: stage the certificate, stage the key,
// rename the key.
func crash(t *testing.T, ca *CA, p pair, steps int) {
	t.Helper()
	d := must[*dir](t)(openLocked(p.dir))
	defer d.close()
	r := Request{ID: hermesRequest.ID, Role: hermesRequest.Role, TTL: hermesRequest.TTL}
	cert, key, err := issue(t, ca, r).files("leaf.crt", "leaf.key")
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []func() error{
		func() error { return d.stage(cert) },
		func() error { return d.stage(key) },
		func() error { return d.commit(key.name) },
	}[:steps] {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}

const renewForever = "CERTS_TEST_RENEW_FOREVER" // CA directory and pair, for the child of TestRenewKilled

func TestMain(m *testing.M) {
	if args := filepath.SplitList(os.Getenv(renewForever)); len(args) == 3 {
		ca, err := Load(args[0])
		for err == nil {
			_, err = ca.Renew(args[1], args[2])
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// TestRenewKilled kills a process that does nothing but renew, at random moments
// of its work, and wants every state it leaves to be detectable and curable.
func TestRenewKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	ca, _ := newCA(t)
	p := written(t, ca, hermesRequest)
	half := 0
	for range 30 {
		before := readFile(t, p.cert)
		child := must[*os.Process](t)(os.StartProcess("/proc/self/exe", []string{"certs.test"}, &os.ProcAttr{
			Env:   []string{renewForever + "=" + strings.Join([]string{ca.Dir(), p.cert, p.key}, ":")},
			Files: []*os.File{nil, nil, os.Stderr},
		}))
		for end := time.Now().Add(10 * time.Second); readFile(t, p.cert) == before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				child.Kill()
				t.Fatal("the child renews nothing")
			}
		}
		time.Sleep(time.Duration(rand.IntN(10_000)) * time.Microsecond)
		child.Kill()
		state := must[*os.ProcessState](t)(child.Wait())
		if state.Exited() {
			t.Fatalf("the child ended by itself: %v", state)
		}
		if _, err := tls.LoadX509KeyPair(p.cert, p.key); err != nil {
			if half++; !strings.Contains(err.Error(), mismatch) {
				t.Fatalf("left a broken file: %v", err)
			}
		}
		must[*Leaf](t)(ca.Renew(p.cert, p.key))
		p.load(t)
	}
	t.Logf("%d of 30 kills left a half renewed pair", half)
}
