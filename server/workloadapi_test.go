package server

import (
	"context"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/certs"
	"github.com/gortium/hermes-broker/certs/certstest"
)

// TestWorkloadAPI: a broker without certificate files gets its certificate from
// a Workload API, serves with it, and takes the next.
func TestWorkloadAPI(t *testing.T) {
	api := certstest.NewWorkloadAPI(t)
	r := newRig(t, everything, nil)
	r.stop()
	rotate := func() string {
		p := certstest.Mint(t, r.ca, certs.Request{ID: spiffeid.RequireFromString("spiffe://home.example/broker"), Role: certs.Server, DNS: []string{"localhost"}}, nil)
		api.Serve(t, r.ca, p)
		return p.Certificate.SerialNumber.Text(16)
	}
	first := rotate()
	r.start(func(c *Config) { c.Identity = Identity{WorkloadAPI: at(api.Address)} })
	conn := r.dial(hermes)
	call := func() error {
		_, err := brokerv1.NewBrokerServiceClient(conn).WhoAmI(t.Context(), &brokerv1.WhoAmIRequest{})
		return err
	}
	if err := call(); err != nil {
		t.Fatal(err)
	}
	shown := func() (serial string) {
		raw, err := net.Dial("unix", r.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		c := tls.Client(raw, r.tlsOf(r.pair(hermes).TLS))
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		return c.ConnectionState().PeerCertificates[0].SerialNumber.Text(16)
	}
	if got := shown(); got != first {
		t.Errorf("serial %s, want %s", got, first)
	}
	second := rotate()
	eventually(t, "the rotated certificate is shown", func() bool { return shown() == second })
	if err := call(); err != nil {
		t.Errorf("on the open connection: %v", err)
	}
	if err := r.knock(r.tlsOf(r.pair(hermes).TLS)); err != nil {
		t.Errorf("a new connection: %v", err)
	}
}

// TestStopWhileWaitingForTheWorkloadAPI: brokerd that is told to stop before it
// has a certificate ends with an error.
func TestStopWhileWaitingForTheWorkloadAPI(t *testing.T) {
	r := newRig(t, everything, nil)
	r.stop()
	cfg := Defaults()
	cfg.Policy.Value, cfg.State.Value, cfg.Engine.Socket.Value = r.path("policy.yaml"), r.path("state"), r.engine.Socket
	cfg.Listen = []Listener{{Unix: at(r.socket)}}
	cfg.Identity = Identity{WorkloadAPI: at("unix://" + r.path("nobody.sock"))}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := New(ctx, cfg); err == nil {
		t.Error("no error")
	}
}
