package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/certs"
	"github.com/gortium/hermes-broker/certs/certstest"
	"github.com/gortium/hermes-broker/server/audit"
)

// knock makes one connection and reports whether the broker let it in: with
// TLS 1.3 a client hears of a refusal only when it reads.
func (r *rig) knock(cfg *tls.Config) error {
	raw, err := net.Dial("unix", r.socket)
	if err != nil {
		return err
	}
	defer raw.Close()
	c := tls.Client(raw, cfg)
	if err := c.Handshake(); err != nil {
		return err
	}
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	// The broker's HTTP/2 settings come first and by themselves.
	if _, err := c.Read(make([]byte, 9)); err != nil {
		return err
	}
	return nil
}

func (r *rig) handshakes() (out []audit.Record) {
	for _, rec := range r.records() {
		if rec.Event == audit.EventHandshake {
			out = append(out, rec)
		}
	}
	return out
}

func TestBadCertificatesAreRefusedAndRecorded(t *testing.T) {
	r := newRig(t, everything, nil)
	if err := r.knock(r.tlsOf(r.pair(hermes).TLS)); err != nil {
		t.Fatalf("a good certificate is refused: %v", err)
	}
	request := certs.Request{ID: spiffeid.RequireFromString(hermes), Role: certs.Agent}
	bad := map[string]tls.Certificate{
		"other authority":  certstest.Mint(t, certstest.NewCA(t, "home.example"), request, nil).TLS,
		"broker's own EKU": certstest.Mint(t, r.ca, certs.Request{ID: request.ID, Role: certs.Server}, nil).TLS,
		"too long-lived":   certstest.Mint(t, r.ca, certs.Request{ID: request.ID, Role: certs.Operator, TTL: 60 * 24 * time.Hour}, nil).TLS,
		"no path": certstest.Mint(t, r.ca, request, func(c *x509.Certificate) {
			c.URIs[0].Path = ""
		}).TLS,
	}
	for _, m := range certstest.Bad() {
		bad[m.Name] = certstest.Mint(t, r.ca, request, m.Apply).TLS
	}
	for name, pair := range bad {
		t.Run(name, func(t *testing.T) {
			before := len(r.handshakes())
			// One record a second for each address is kept.
			time.Sleep(1010 * time.Millisecond)
			if err := r.knock(r.tlsOf(pair)); err == nil {
				t.Fatal("let in")
			}
			eventually(t, "a record", func() bool { return len(r.handshakes()) > before })
			if rec := r.handshakes()[before]; rec.Detail == "" || rec.Peer != "unix" {
				t.Errorf("record %+v", rec)
			}
		})
	}
	t.Run("no certificate", func(t *testing.T) {
		cfg := r.tlsOf(tls.Certificate{})
		cfg.Certificates = nil
		if r.knock(cfg) == nil {
			t.Fatal("let in")
		}
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		cfg := r.tlsOf(r.pair(hermes).TLS)
		cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		if r.knock(cfg) == nil {
			t.Fatal("let in")
		}
	})
	t.Run("wrong protocol", func(t *testing.T) {
		cfg := r.tlsOf(r.pair(hermes).TLS)
		cfg.NextProtos = nil
		if r.knock(cfg) == nil {
			t.Fatal("let in")
		}
	})
}

// TestRevokedSerial: in force for new connections, for open ones, and for a
// session that would be resumed.
func TestRevokedSerial(t *testing.T) {
	r := newRig(t, everything, nil)
	pair := r.pair(hermes)
	cfg := r.tlsOf(pair.TLS)
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	conn := r.dialTLS(cfg)
	client := brokerv1.NewBrokerServiceClient(conn)
	who, err := client.WhoAmI(t.Context(), &brokerv1.WhoAmIRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if who.GetCertificateSerial() != pair.Certificate.SerialNumber.Text(16) {
		t.Fatalf("serial %s", who.GetCertificateSerial())
	}
	idle, err := net.Dial("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	open := tls.Client(idle, cfg)
	if err := open.Handshake(); err != nil {
		t.Fatal(err)
	}
	defer open.Close()

	r.writePolicy(everything + "revoked_serials: [\"" + who.GetCertificateSerial() + "\"]\n")
	begun := time.Now()
	_ = open.SetReadDeadline(begun.Add(5 * time.Second))
	for err == nil {
		_, err = open.Read(make([]byte, 1024))
	}
	if cut := time.Since(begun); errors.Is(err, os.ErrDeadlineExceeded) || cut > 1250*time.Millisecond {
		t.Errorf("an open connection was cut after %s: %v", cut, err)
	}
	for range 1000 {
		if r.knock(cfg) == nil {
			t.Fatal("a revoked certificate was let in")
		}
	}
	if _, err := client.WhoAmI(t.Context(), &brokerv1.WhoAmIRequest{}); err == nil {
		t.Error("a call with a revoked certificate was served")
	}
}

// TestRemovedCallerIsDisconnected: who is removed from the policy keeps no
// connection.
func TestRemovedCallerIsDisconnected(t *testing.T) {
	r := newRig(t, everything, nil)
	raw, err := net.Dial("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	open := tls.Client(raw, r.tlsOf(r.pair(hermes).TLS))
	if err := open.Handshake(); err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if _, err := open.Read(make([]byte, 9)); err != nil { // It is let in.
		t.Fatal(err)
	}
	r.writePolicy(strings.ReplaceAll(everything, hermes, "spiffe://home.example/agent/other"))
	_ = open.SetReadDeadline(time.Now().Add(2 * time.Second))
	for err == nil {
		_, err = open.Read(make([]byte, 1024))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("still open")
	}
}

// TestNoSessionIsEverResumed, with a certificate that is good: there is no
// ticket by which verification could be skipped.
func TestNoSessionIsEverResumed(t *testing.T) {
	r := newRig(t, everything, nil)
	cfg := r.tlsOf(r.pair(hermes).TLS)
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	for range 20 {
		raw, err := net.Dial("unix", r.socket)
		if err != nil {
			t.Fatal(err)
		}
		c := tls.Client(raw, cfg)
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		_, _ = c.Read(make([]byte, 9)) // A ticket would come with the first bytes.
		if c.ConnectionState().DidResume {
			t.Error("resumed")
		}
		c.Close()
	}
}

// TestRotationUnderLoad renews both sides' certificates a hundred times while
// calls run: none may fail.
func TestRotationUnderLoad(t *testing.T) {
	r := newRig(t, everything, nil)
	var pair atomic.Pointer[tls.Certificate]
	fresh := func() { p := r.pair(hermes).TLS; pair.Store(&p) }
	fresh()
	cfg := r.tlsOf(tls.Certificate{})
	cfg.Certificates = nil
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair.Load(), nil }
	ctx, cancel := context.WithCancel(t.Context())
	var calls, failed atomic.Int64
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil {
				// A connection of its own for every call: each is a handshake.
				conn := r.dialTLS(cfg)
				if _, err := brokerv1.NewBrokerServiceClient(conn).WhoAmI(ctx, &brokerv1.WhoAmIRequest{}, grpc.WaitForReady(true)); err != nil && ctx.Err() == nil {
					failed.Add(1)
					t.Errorf("call failed: %v", err)
				}
				conn.Close()
				calls.Add(1)
			}
		})
	}
	serial := func() string {
		svid, _ := r.server.files.GetX509SVID()
		return svid.Certificates[0].SerialNumber.Text(16)
	}
	for range 100 {
		before := serial()
		if _, err := r.ca.Renew(r.path("server.crt"), r.path("server.key")); err != nil {
			t.Fatal(err)
		}
		fresh()
		eventually(t, "the broker took its new certificate", func() bool { return serial() != before })
	}
	cancel()
	load.Wait()
	t.Logf("100 rotations, %d calls, %d failed", calls.Load(), failed.Load())
	if calls.Load() < 100 {
		t.Error("hardly any load")
	}
}

// TestBrokenCertificatesKeepTheLastGoodOnes: a half-written renewal changes
// nothing, and is reported.
func TestBrokenCertificatesKeepTheLastGoodOnes(t *testing.T) {
	r := newRig(t, everything, nil)
	other := r.pair(hermes)
	key, err := os.ReadFile(other.KeyFile)
	if err == nil {
		err = os.WriteFile(r.path("server.key"), key, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a refused reload is recorded", func() bool {
		for _, rec := range r.records() {
			if rec.Event == audit.EventReload && strings.Contains(rec.Detail, "certificates refused") {
				return true
			}
		}
		return false
	})
	if err := r.knock(r.tlsOf(r.pair(hermes).TLS)); err != nil {
		t.Errorf("the last good certificate is gone: %v", err)
	}
}
