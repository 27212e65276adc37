package certs_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/gortium/hermes-broker/certs"
	"github.com/gortium/hermes-broker/certs/certstest"
)

// TestHandshake sends what was written to disk through a real TLS 1.3 handshake
// on loopback, where both sides verify as SPIFFE peers and the client checks the
// host name and the usage too.
func TestHandshake(t *testing.T) {
	ca, foreign := certstest.NewCA(t, domain), certstest.NewCA(t, domain)
	server := certs.Request{
		ID: id("/server/broker"), Role: certs.Server,
		DNS: []string{"broker.home"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	operator := certs.Request{ID: id("/operator/ann"), Role: certs.Operator}
	for _, tc := range []struct {
		name           string
		client, server tls.Certificate
		host           string
		refusedBy      string
	}{
		{"agent", onDisk(t, ca, agent), onDisk(t, ca, server), "broker.home", ""},
		{"operator by address", onDisk(t, ca, operator), onDisk(t, ca, server), "127.0.0.1", ""},
		{"other host name", onDisk(t, ca, agent), onDisk(t, ca, server), "other.home", "client"},
		{"client of another CA", onDisk(t, foreign, agent), onDisk(t, ca, server), "broker.home", "server"},
		{"server of another CA", onDisk(t, ca, agent), onDisk(t, foreign, server), "broker.home", "client"},
		{"agent as server", onDisk(t, ca, agent), onDisk(t, ca, agent), "broker.home", "client"},
		{"server as client", onDisk(t, ca, server), onDisk(t, ca, server), "broker.home", "server"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			roots := x509.NewCertPool()
			roots.AddCert(ca.Certificate())
			r := handshake(t,
				&tls.Config{
					MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{tc.client},
					RootCAs: roots, ServerName: tc.host,
					VerifyConnection: func(s tls.ConnectionState) error { _, err := verify(ca, s); return err },
				},
				&tls.Config{
					MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{tc.server},
					ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert, SessionTicketsDisabled: true,
				}, ca)
			if got := r.refusedBy(); got != tc.refusedBy {
				t.Fatalf("refused by %q, want %q; client: %v; server: %v", got, tc.refusedBy, r.clientErr, r.serverErr)
			}
			if tc.refusedBy != "" {
				return
			}
			if want := tc.client.Leaf.URIs[0].String(); r.seen.String() != want {
				t.Errorf("the server saw %s, want %s", r.seen, want)
			}
			if r.version != tls.VersionTLS13 {
				t.Errorf("negotiated TLS version %x", r.version)
			}
		})
	}
}

// onDisk issues r, writes it, and reads it back as a program would.
func onDisk(t *testing.T, ca *certs.CA, r certs.Request) tls.Certificate {
	t.Helper()
	leaf, err := ca.Issue(r)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := leaf.Write(dir, "leaf"); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "leaf.crt"), filepath.Join(dir, "leaf.key"))
	if err != nil {
		t.Fatal(err)
	}
	if !pair.Leaf.Equal(leaf.TLS().Leaf) {
		t.Error("Leaf.TLS is not what was written")
	}
	return pair
}

func verify(ca *certs.CA, s tls.ConnectionState) (spiffeid.ID, error) {
	bundle := x509bundle.FromX509Authorities(ca.TrustDomain(), []*x509.Certificate{ca.Certificate()})
	id, _, err := x509svid.Verify(s.PeerCertificates, bundle)
	return id, err
}

type result struct {
	seen                 spiffeid.ID // of the client, by the server
	version              uint16
	clientErr, serverErr error
}

// refusedBy looks at the client first: if it refuses, the server fails too.
func (r result) refusedBy() string {
	switch {
	case r.clientErr != nil:
		return "client"
	case r.serverErr != nil:
		return "server"
	}
	return ""
}

func handshake(t *testing.T, client, server *tls.Config, ca *certs.CA) (r result) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	done := make(chan error, 1)
	go func() {
		raw, err := listener.Accept()
		if err != nil {
			done <- err
			return
		}
		conn := tls.Server(raw, server)
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		if err = conn.Handshake(); err == nil {
			r.seen, err = verify(ca, conn.ConnectionState())
		}
		done <- err
	}()
	raw, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, client)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	r.clientErr = conn.Handshake()
	r.version = conn.ConnectionState().Version
	r.serverErr = <-done
	return r
}
