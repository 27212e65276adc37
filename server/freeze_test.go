package server

import (
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/audit"
)

func TestFreeze(t *testing.T) {
	r := newRig(t, everything, nil)
	r.container("web")
	agent, admin := r.dial(hermes), r.dial(operator)
	containers, ops := brokerv1.NewContainerServiceClient(agent), brokerv1.NewBrokerServiceClient(admin)
	ctx := t.Context()
	_, err := brokerv1.NewBrokerServiceClient(agent).Freeze(ctx, &brokerv1.FreezeRequest{Reason: "x", RequestId: uuid.NewString()})
	wantReason(t, err, "PERMISSION_DENIED")
	_, err = ops.Freeze(ctx, &brokerv1.FreezeRequest{Caller: "spiffe://home.example/agent/hermse", Reason: "typo", RequestId: uuid.NewString()})
	wantReason(t, err, "INVALID_ARGUMENT")
	_, err = ops.Freeze(ctx, &brokerv1.FreezeRequest{RequestId: uuid.NewString()})
	wantReason(t, err, "INVALID_ARGUMENT")

	// A follower of logs is cut, and may not come back.
	gone := make(chan struct{})
	r.engine.Script("GET /containers/"+r.container("web")+"/logs", func(w http.ResponseWriter, q *http.Request) {
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		select {
		case <-q.Context().Done():
		case <-gone:
		}
	})
	defer close(gone)
	follow := func() (brokerv1.ContainerService_ContainerLogsClient, error) {
		return containers.ContainerLogs(ctx, &brokerv1.ContainerLogsRequest{Container: "web", Follow: true})
	}
	stream, err := follow()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stream is open", func() bool { return len(calls(r.records())) > 0 && hasEvent(r.records(), audit.EventStream) })
	for _, whom := range []string{hermes, ""} {
		if _, err := ops.Freeze(ctx, &brokerv1.FreezeRequest{Caller: whom, Reason: "drill", RequestId: uuid.NewString()}); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		_, err = stream.Recv()
		wantReason(t, err, "FROZEN")
		if cut := time.Since(begun); cut > time.Second {
			t.Errorf("cut after %s", cut)
		}
		wantReason(t, restart(ctx, containers, "web"), "FROZEN")
		if stream, err = follow(); err == nil {
			_, err = stream.Recv()
		}
		wantReason(t, err, "FROZEN")
		if _, err := containers.InspectContainer(ctx, &brokerv1.InspectContainerRequest{Container: "web"}); err != nil {
			t.Errorf("a read: %v", err)
		}
		can, err := brokerv1.NewBrokerServiceClient(agent).Can(ctx, &brokerv1.CanRequest{Permission: "containers.restart", Resource: "containers/web"})
		if err != nil || !can.GetAllowed() || !can.GetFrozen() {
			t.Errorf("can: %v, %v", can, err)
		}
		if whom == "" {
			// The operator's own changes stop too.
			wantReason(t, restart(ctx, brokerv1.NewContainerServiceClient(admin), "web"), "FROZEN")
			break
		}
		if err := restart(ctx, brokerv1.NewContainerServiceClient(admin), "web"); err != nil {
			t.Errorf("who is not frozen: %v", err)
		}
		// Over a restart of brokerd it holds.
		r.stop()
		r.start(nil)
		agent, admin = r.dial(hermes), r.dial(operator)
		containers, ops = brokerv1.NewContainerServiceClient(agent), brokerv1.NewBrokerServiceClient(admin)
		wantReason(t, restart(ctx, containers, "web"), "FROZEN")
		if _, err := ops.Unfreeze(ctx, &brokerv1.UnfreezeRequest{Caller: hermes, RequestId: uuid.NewString()}); err != nil {
			t.Fatal(err)
		}
		if stream, err = follow(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	left, err := ops.Unfreeze(ctx, &brokerv1.UnfreezeRequest{RequestId: uuid.NewString()})
	if err != nil || len(left.GetRemaining()) != 0 {
		t.Fatalf("unfreeze: %v, %v", left, err)
	}
	if err := restart(ctx, containers, "web"); err != nil {
		t.Errorf("after the freeze: %v", err)
	}
}

func hasEvent(all []audit.Record, e audit.Event) bool {
	for _, rec := range all {
		if rec.Event == e {
			return true
		}
	}
	return false
}

func TestBrokenFreezeFileMeansFrozen(t *testing.T) {
	for name, text := range map[string]string{"no JSON": "{", "unknown key": `{"frozen":false}`, "two documents": "{}{}", "empty": ""} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, everything, nil)
			r.container("web")
			r.stop()
			if err := os.WriteFile(r.path("state/freeze.json"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			r.start(nil)
			client := brokerv1.NewContainerServiceClient(r.dial(hermes))
			wantReason(t, restart(t.Context(), client, "web"), "FROZEN")
			ops := brokerv1.NewBrokerServiceClient(r.dial(operator))
			if _, err := ops.Unfreeze(t.Context(), &brokerv1.UnfreezeRequest{RequestId: uuid.NewString()}); err != nil {
				t.Fatal(err)
			}
			if err := restart(t.Context(), client, "web"); err != nil {
				t.Errorf("after unfreeze: %v", err)
			}
		})
	}
}
