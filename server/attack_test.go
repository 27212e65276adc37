package server

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/certs"
	"github.com/gortium/hermes-broker/certs/certstest"
	"github.com/gortium/hermes-broker/e2e/testhost"
)

// TestAgentCannotUseUpTheOperatorsFreeze: request IDs are counted by caller.
func TestAgentCannotUseUpTheOperatorsFreeze(t *testing.T) {
	r := newRig(t, everything, func(c *Config) { c.Limits.RequestIDs.Value = 20 })
	r.container("web")
	agent := brokerv1.NewContainerServiceClient(r.dial(hermes))
	for range 20 {
		if err := restart(t.Context(), agent, "web"); err != nil {
			t.Fatal(err)
		}
	}
	wantReason(t, restart(t.Context(), agent, "web"), "STATE_UNAVAILABLE")
	ops := brokerv1.NewBrokerServiceClient(r.dial(operator))
	if _, err := ops.Freeze(t.Context(), &brokerv1.FreezeRequest{Reason: "enough", RequestId: uuid.NewString()}); err != nil {
		t.Errorf("the operator: %v", err)
	}
}

// TestSilentConnectionsKeepNobodyOut: connections that say nothing fill every
// place for a handshake, and come back when they are closed.
func TestSilentConnectionsKeepNobodyOut(t *testing.T) {
	r := newRig(t, everything, func(c *Config) { c.Limits.Handshakes.Value, c.Limits.Connections.Value = 16, 64 })
	for range 100 {
		c, err := net.Dial("unix", r.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for range 10 {
		if err := r.knock(r.tlsOf(r.pair(operator).TLS)); err != nil {
			t.Fatalf("the operator is kept out: %v", err)
		}
	}
}

// TestForcedRemovalHasItsOwnBudget: every permission's budget counts.
func TestForcedRemovalHasItsOwnBudget(t *testing.T) {
	text := strings.Replace(everything, "    deny:\n      - on: [\"containers/vault\"]",
		"      - allow: [containers.remove_force]\n        on: [\"containers/*\"]\n        budget: 1/day\n    deny:\n      - on: [\"containers/vault\"]", 1)
	r := newRig(t, text, nil)
	r.container("web")
	c := brokerv1.NewContainerServiceClient(r.dial(hermes))
	remove := func() error {
		_, err := c.Remove(t.Context(), &brokerv1.RemoveRequest{Container: "web", Force: true, RequestId: uuid.NewString()})
		return err
	}
	if err := remove(); err != nil {
		t.Fatal(err)
	}
	wantReason(t, remove(), "CHANGE_BUDGET_EXHAUSTED")
}

// TestChangeSlowerThanTheBroker: nobody knows how it ends, and it is said so.
func TestChangeSlowerThanTheBroker(t *testing.T) {
	r := newRig(t, everything, func(c *Config) { c.Limits.CallTimeout.Value = 300 * time.Millisecond })
	id := r.container("web")
	r.engine.Script("POST /containers/"+id+"/start", r.engine.Delay(2*time.Second))
	c := brokerv1.NewContainerServiceClient(r.dial(hermes))
	req := &brokerv1.StartRequest{Container: "web", RequestId: uuid.NewString()}
	for range 2 {
		_, err := c.Start(t.Context(), req)
		wantReason(t, err, "OUTCOME_UNKNOWN")
	}
	if n := r.changes(); n != 1 {
		t.Errorf("%d changes", n)
	}
}

// TestEngineNeverReached: the ID is good for another try.
func TestEngineNeverReached(t *testing.T) {
	r := newRig(t, everything, nil)
	id := r.container("web")
	c := brokerv1.NewContainerServiceClient(r.dial(hermes))
	socket := r.engine.Socket
	// The socket goes away between the look and the act.
	r.engine.Script("GET /containers/web/json", func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Connection", "close")
		testhost.Answer(map[string]any{"Id": id, "Name": "/web", "State": map[string]any{"Running": true}, "HostConfig": map[string]any{},
			"Config": map[string]any{}, "NetworkSettings": map[string]any{}})(w, q)
		if _, err := os.Stat(socket); err == nil {
			_ = os.Rename(socket, socket+".away")
		}
	})
	time.Sleep(100 * time.Millisecond)
	req := &brokerv1.StartRequest{Container: "web", RequestId: uuid.NewString()}
	_, err := c.Start(t.Context(), req)
	if err == nil {
		t.Fatal("the engine was reached although its socket was gone")
	}
	wantReason(t, err, "ENGINE_UNAVAILABLE")
	if err := os.Rename(socket+".away", socket); err != nil {
		t.Fatal(err)
	}
	r.container("web")
	if _, err := c.Start(t.Context(), req); err != nil {
		t.Errorf("with the engine back: %v", err)
	}
}

// TestStopIsBounded: a handler that does not end does not keep brokerd.
func TestStopIsBounded(t *testing.T) {
	r := newRig(t, everything, func(c *Config) { c.Limits.StopTimeout.Value = 200 * time.Millisecond })
	id := r.container("web")
	held, release := make(chan struct{}), make(chan struct{})
	r.engine.Script("POST /containers/"+id+"/restart", func(w http.ResponseWriter, q *http.Request) {
		close(held)
		<-release
		noContent(w, q)
	})
	c := brokerv1.NewContainerServiceClient(r.dial(hermes))
	go func() { _ = restart(t.Context(), c, "web") }()
	<-held
	begun := time.Now()
	r.stop()
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("stopping took %s", took)
	}
	close(release)
	// The change was under way: the next start says that its outcome is unknown.
	r.start(nil)
	if n := len(r.server.audit.Orphans()); n != 1 {
		t.Errorf("%d orphans", n)
	}
}

// TestReplacedBundleCutsWhoItNoLongerVouchesFor.
func TestReplacedBundleCutsWhoItNoLongerVouchesFor(t *testing.T) {
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
	other := certstest.NewCA(t, "home.example")
	req := certs.Request{Role: certs.Server}
	if err := req.ID.UnmarshalText([]byte("spiffe://home.example/broker")); err != nil {
		t.Fatal(err)
	}
	fresh := certstest.Mint(t, other, req, nil)
	for from, to := range map[string]string{fresh.CertFile: "server.crt", fresh.KeyFile: "server.key", fresh.BundleFile: "bundle.crt"} {
		data, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(r.path(to), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// Well before the handshake's time is up, which ends a silent connection too.
	_ = open.SetReadDeadline(time.Now().Add(2 * time.Second))
	for err == nil {
		_, err = open.Read(make([]byte, 1024))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("still open")
	}
}

// TestAnnouncedMessageThatNeverComes: the connection is closed on whoever
// announces requests and does not send them.
func TestAnnouncedMessageThatNeverComes(t *testing.T) {
	r := newRig(t, everything, nil)
	conn := r.dial(hermes)
	s, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, "/hermes.broker.v1.BrokerService/WhoAmI")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.RecvMsg(&brokerv1.WhoAmIResponse{}) }()
	select {
	case <-done:
	case <-time.After(14 * time.Second):
		t.Error("still waiting after 14 s")
	}
}

// TestHealth: who has the grant sees that the engine is there; a service nobody
// knows is the caller's mistake.
func TestHealth(t *testing.T) {
	r := newRig(t, everything, nil)
	c := healthv1.NewHealthClient(r.dial(hermes))
	eventually(t, "the engine is seen", func() bool {
		got, err := c.Check(t.Context(), &healthv1.HealthCheckRequest{Service: engineService})
		return err == nil && got.GetStatus() == healthv1.HealthCheckResponse_SERVING
	})
	_, err := c.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "nobody"})
	wantReason(t, err, "INVALID_ARGUMENT")
}

// TestCanSpeaksOfOneThing: a question about a pattern has no answer.
func TestCanSpeaksOfOneThing(t *testing.T) {
	r := newRig(t, everything, nil)
	c := brokerv1.NewBrokerServiceClient(r.dial(hermes))
	for _, resource := range []string{"containers/*", "containers/v*", "containers", "", "images/x"} {
		_, err := c.Can(t.Context(), &brokerv1.CanRequest{Permission: "containers.restart", Resource: resource})
		wantReason(t, err, "INVALID_ARGUMENT")
	}
	got, err := c.Can(t.Context(), &brokerv1.CanRequest{Permission: "containers.restart", Resource: "containers/vault"})
	if err != nil || got.GetAllowed() || !strings.Contains(got.GetExplanation(), "wins over") {
		t.Errorf("%v, %v", got, err)
	}
}
