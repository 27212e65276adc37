package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/gortium/hermes-broker/certs"
	"github.com/gortium/hermes-broker/certs/certstest"
)

func TestWorkloadAPI(t *testing.T) {
	api, ca := certstest.NewWorkloadAPI(t), certstest.NewCA(t, "home.example")
	first := mintServer(t, ca, nil)
	api.Serve(t, ca, first)
	source, err := NewWorkloadAPI(t.Context(), api.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	if serial(t, source) != first.Certificate.SerialNumber.Text(16) {
		t.Error("another certificate")
	}
	rules := Rules{TrustDomain: func() string { return "home.example" }, Revoked: func(string) bool { return false }, Now: time.Now}
	agent := certs.Request{ID: spiffeid.RequireFromString("spiffe://home.example/agent/hermes"), Role: certs.Agent}
	chain := func(ca *certs.CA) []*x509.Certificate {
		return []*x509.Certificate{certstest.Mint(t, ca, agent, nil).Certificate}
	}
	peer, err := Verify(chain(ca), source, rules)
	if err != nil || peer.ID != agent.ID.String() {
		t.Errorf("peer %+v, %v", peer, err)
	}
	// A new authority comes with a new certificate, and the old one goes.
	other := certstest.NewCA(t, "home.example")
	second := mintServer(t, other, nil)
	api.Serve(t, other, second)
	for serial(t, source) != second.Certificate.SerialNumber.Text(16) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		err := source.WaitUntilUpdated(ctx)
		cancel()
		if err != nil {
			t.Fatal("the rotated certificate was not taken")
		}
	}
	if _, err := Verify(chain(ca), source, rules); err == nil {
		t.Error("a caller of the old authority is let in")
	}
	if _, err := Verify(chain(other), source, rules); err != nil {
		t.Errorf("a caller of the new authority: %v", err)
	}
}

// TestWorkloadAPIWithoutIdentity: it waits as long as it may, and says so.
func TestWorkloadAPIWithoutIdentity(t *testing.T) {
	for name, address := range map[string]string{"nothing issued": certstest.NewWorkloadAPI(t).Address, "nobody there": "unix:///nonexistent/agent.sock"} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := NewWorkloadAPI(ctx, address); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
}
