package server

import (
	"context"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/e2e/testhost"
	"github.com/gortium/hermes-broker/server/audit"
	"github.com/gortium/hermes-broker/server/fault"
)

func wantReason(t testing.TB, err error, want string) {
	t.Helper()
	if got := fault.Reason(err); got != want {
		t.Errorf("got %v (%s), want %s", err, got, want)
	}
}

func restart(ctx context.Context, c brokerv1.ContainerServiceClient, name string) error {
	_, err := c.Restart(ctx, &brokerv1.RestartRequest{Container: name, RequestId: uuid.NewString()})
	return err
}

func TestChangeIsRecordedBeforeAndAfter(t *testing.T) {
	r := newRig(t, everything, nil)
	id := r.container("web")
	client := brokerv1.NewContainerServiceClient(r.dial(hermes))
	var during []audit.Record
	r.engine.Script("POST /containers/"+id+"/restart", func(w http.ResponseWriter, q *http.Request) {
		during = calls(r.records())
		noContent(w, q)
	})
	resp, err := client.Restart(t.Context(), &brokerv1.RestartRequest{Container: "web", Grace: durationpb.New(7 * time.Second), RequestId: uuid.NewString()})
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.GetContainer(); got.GetId() != id || got.GetName() != "web" || got.GetState() != brokerv1.ContainerState_CONTAINER_STATE_RUNNING {
		t.Errorf("answer %v", got)
	}
	after := calls(r.records())
	if len(during) != 1 || during[0].Event != audit.EventIntent || during[0].Target != id {
		t.Errorf("when the effect came there were %+v", during)
	}
	if len(after) != 2 || after[1].Event != audit.EventOutcome || after[1].Code != "OK" || after[1].Call != after[0].Call {
		t.Errorf("after the answer there were %+v", after)
	}
	for _, rec := range after {
		if rec.Caller != hermes || rec.Rule != "policy.yaml:6" || rec.Resource != "containers/web" || rec.Effect != "CHANGE" || !strings.Contains(string(rec.Request), `"grace":"7s"`) {
			t.Errorf("record %+v", rec)
		}
	}
	var uris []string
	for _, q := range r.engine.Requests() {
		if q.Method == "POST" {
			uris = append(uris, q.URI)
		}
	}
	if len(uris) != 1 || !strings.HasSuffix(uris[0], "/containers/"+id+"/restart?t=7") {
		t.Errorf("the engine was asked %v", uris)
	}
}

func TestValidateOnlyDoesNothing(t *testing.T) {
	r := newRig(t, everything, nil)
	r.container("web")
	client := brokerv1.NewContainerServiceClient(r.dial(hermes))
	ctx := t.Context()
	if _, err := client.Start(ctx, &brokerv1.StartRequest{Container: "web", ValidateOnly: true}); err != nil {
		t.Error(err)
	}
	if _, err := client.Stop(ctx, &brokerv1.StopRequest{Container: "web", ValidateOnly: true}); err != nil {
		t.Error(err)
	}
	if _, err := client.Restart(ctx, &brokerv1.RestartRequest{Container: "web", ValidateOnly: true}); err != nil {
		t.Error(err)
	}
	_, err := client.Remove(ctx, &brokerv1.RemoveRequest{Container: "web", ValidateOnly: true})
	wantReason(t, err, "CONTAINER_STATE")
	_, err = client.Restart(ctx, &brokerv1.RestartRequest{Container: "vault", ValidateOnly: true})
	wantReason(t, err, "PERMISSION_DENIED")
	_, err = client.Remove(ctx, &brokerv1.RemoveRequest{Container: "web", Force: true, ValidateOnly: true})
	wantReason(t, err, "PERMISSION_DENIED")
	if r.changes() != 0 {
		t.Error("something was changed")
	}
}

// TestNameIsWhatIsActedOn: what the engine takes for a name and is none.
func TestNameIsWhatIsActedOn(t *testing.T) {
	r := newRig(t, everything, nil)
	id := r.container("web")
	client := brokerv1.NewContainerServiceClient(r.dial(hermes))
	// The engine answers with web to an ID, a prefix of it, and an alias.
	web := func(w http.ResponseWriter, q *http.Request) {
		testhost.Answer(map[string]any{"Id": id, "Name": "/web", "State": map[string]any{"Running": true}, "HostConfig": map[string]any{},
			"Config": map[string]any{}, "NetworkSettings": map[string]any{}})(w, q)
	}
	for _, name := range []string{id, id[:12], "Web", "alias"} {
		r.engine.Script("GET /containers/"+name+"/json", web)
		wantReason(t, restart(t.Context(), client, name), "CONTAINER_NOT_FOUND")
	}
	for _, name := range []string{"", "w", "/web", "web/", "web ", " web", "a/b", "../web", "%77eb", "we%62", "web?x=1", "web\n", "web\x00", "wéb", "-web", strings.Repeat("x", 129)} {
		if name == "a/b" || strings.Contains(name, "/") {
			if got := fault.Reason(restart(t.Context(), client, name)); got != "PERMISSION_DENIED" && got != "INVALID_ARGUMENT" {
				t.Errorf("%q: %s", name, got)
			}
			continue
		}
		wantReason(t, restart(t.Context(), client, name), "INVALID_ARGUMENT")
	}
	if r.changes() != 0 {
		t.Error("something was changed")
	}
}

func TestRequestID(t *testing.T) {
	r := newRig(t, everything, nil)
	id := r.container("web")
	r.container("db")
	client := brokerv1.NewContainerServiceClient(r.dial(hermes))
	ctx := t.Context()
	req := &brokerv1.RestartRequest{Container: "web", RequestId: uuid.NewString()}
	first, err := client.Restart(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	again, err := client.Restart(ctx, req)
	if err != nil || again.String() != first.String() {
		t.Errorf("again: %v, %v", again, err)
	}
	_, err = client.Restart(ctx, &brokerv1.RestartRequest{Container: "db", RequestId: req.RequestId})
	wantReason(t, err, "REQUEST_ID_REUSED")
	_, err = client.Stop(ctx, &brokerv1.StopRequest{Container: "web", RequestId: req.RequestId})
	wantReason(t, err, "REQUEST_ID_REUSED")
	for _, bad := range []string{"", "1", strings.ToUpper(req.RequestId), "{" + req.RequestId + "}", "urn:uuid:" + req.RequestId, strings.ReplaceAll(req.RequestId, "-", "")} {
		_, err = client.Restart(ctx, &brokerv1.RestartRequest{Container: "web", RequestId: bad})
		wantReason(t, err, "INVALID_ARGUMENT")
	}
	// What failed before anything was done may be tried again.
	gone := &brokerv1.RestartRequest{Container: "late", RequestId: uuid.NewString()}
	r.engine.Script("GET /containers/late/json", testhost.Fail(404, "no such container"))
	_, err = client.Restart(ctx, gone)
	wantReason(t, err, "CONTAINER_NOT_FOUND")
	r.container("late")
	if _, err = client.Restart(ctx, gone); err != nil {
		t.Errorf("second try: %v", err)
	}
	// What failed in the doing is not done again.
	r.engine.Script("POST /containers/"+id+"/stop", testhost.Fail(500, "canary-engine-text"))
	failed := &brokerv1.StopRequest{Container: "web", RequestId: uuid.NewString()}
	for range 2 {
		_, err = client.Stop(ctx, failed)
		wantReason(t, err, "ENGINE_ERROR")
		if strings.Contains(err.Error(), "canary") {
			t.Errorf("the engine's words came out: %v", err)
		}
	}
	if n := r.changes(); n != 3 {
		t.Errorf("%d changes, want 3", n)
	}
	// Another caller's IDs are its own.
	other := brokerv1.NewContainerServiceClient(r.dial(operator))
	if _, err := other.Restart(ctx, req); err != nil {
		t.Errorf("another caller: %v", err)
	}
	before := r.changes()
	r.stop()
	r.start(nil)
	client = brokerv1.NewContainerServiceClient(r.dial(hermes))
	if again, err = client.Restart(ctx, req); err != nil || again.String() != first.String() || r.changes() != before {
		t.Errorf("after a restart of brokerd: %v, %v, %d changes", again, err, r.changes()-before)
	}
}

func TestRequestInProgress(t *testing.T) {
	r := newRig(t, everything, nil)
	id := r.container("web")
	client := brokerv1.NewContainerServiceClient(r.dial(hermes))
	held, release := make(chan struct{}), make(chan struct{})
	r.engine.Script("POST /containers/"+id+"/restart", func(w http.ResponseWriter, q *http.Request) {
		close(held)
		<-release
		noContent(w, q)
	})
	req := &brokerv1.RestartRequest{Container: "web", RequestId: uuid.NewString()}
	// The caller hangs up; the change goes on.
	ctx, hangUp := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	wait.Go(func() { _, _ = client.Restart(ctx, req) })
	<-held
	hangUp()
	wait.Wait()
	_, err := client.Restart(t.Context(), req)
	wantReason(t, err, "REQUEST_IN_PROGRESS")
	close(release)
	eventually(t, "the answer is there", func() bool { _, err = client.Restart(t.Context(), req); return err == nil })
	if r.changes() != 1 {
		t.Errorf("%d changes", r.changes())
	}
}

func TestBudgets(t *testing.T) {
	text := strings.Replace(everything, "100000/second", "3/minute", 1)
	r := newRig(t, text, func(c *Config) {
		c.Limits.Rate.Value, c.Limits.Burst.Value = 20, 30
	})
	r.container("web")
	r.container("db")
	client := brokerv1.NewContainerServiceClient(r.dial(hermes))
	for range 3 {
		if err := restart(t.Context(), client, "web"); err != nil {
			t.Fatal(err)
		}
	}
	err := restart(t.Context(), client, "web")
	wantReason(t, err, "CHANGE_BUDGET_EXHAUSTED")
	if d := retryDelay(err); d < 15*time.Second || d > 20*time.Second {
		t.Errorf("RetryInfo says %s", d)
	}
	if err := restart(t.Context(), client, "db"); err != nil {
		t.Errorf("another object: %v", err)
	}
	limited := 0
	for range 100 {
		if err := restart(t.Context(), client, "web"); fault.Reason(err) == "RATE_LIMITED" {
			limited++
			if retryDelay(err) <= 0 {
				t.Fatal("no RetryInfo")
			}
		}
	}
	if limited < 50 {
		t.Errorf("%d of 100 calls were limited", limited)
	}
	// The other caller has its own.
	if err := restart(t.Context(), brokerv1.NewContainerServiceClient(r.dial(operator)), "web"); err != nil {
		t.Errorf("another caller: %v", err)
	}
	n := 0
	for _, rec := range calls(r.records()) {
		if rec.Reason == "RATE_LIMITED" {
			n++
		}
	}
	if n == 0 || n > 20 {
		t.Errorf("%d records of %d refusals", n, limited)
	}
}

func retryDelay(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if r, ok := d.(interface{ GetRetryDelay() *durationpb.Duration }); ok {
			return r.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

func TestEngineDownAndBack(t *testing.T) {
	r := newRig(t, everything, nil)
	id := r.container("web")
	client := brokerv1.NewContainerServiceClient(r.dial(hermes))
	ctx := t.Context()
	read := func() error {
		_, err := client.InspectContainer(ctx, &brokerv1.InspectContainerRequest{Container: "web"})
		return err
	}
	if err := read(); err != nil {
		t.Fatal(err)
	}
	socket := r.engine.Socket
	if err := os.Rename(socket, socket+".away"); err != nil {
		t.Fatal(err)
	}
	r.engine.Script("GET /containers/web/json", testhost.Drop())
	err := read()
	wantReason(t, err, "ENGINE_UNAVAILABLE")
	if status.Code(err) != codes.Unavailable || retryDelay(err) == 0 {
		t.Errorf("%v without RetryInfo", err)
	}
	wantReason(t, restart(ctx, client, "web"), "ENGINE_UNAVAILABLE")
	if err := os.Rename(socket+".away", socket); err != nil {
		t.Fatal(err)
	}
	r.container("web")
	if err := read(); err != nil {
		t.Errorf("the engine is back: %v", err)
	}
	// It goes away in the middle of a change: nobody knows what became of it.
	r.engine.Script("POST /containers/"+id+"/restart", testhost.Drop())
	wantReason(t, restart(ctx, client, "web"), "OUTCOME_UNKNOWN")
	r.engine.Script("GET /containers/web/json", testhost.Garbage())
	wantReason(t, read(), "ENGINE_ERROR")
	r.engine.Script("GET /containers/web/json", testhost.Fail(500, "canary /var/lib/docker secret"))
	if err := read(); fault.Reason(err) != "ENGINE_ERROR" || strings.Contains(err.Error(), "canary") {
		t.Errorf("engine failure: %v", err)
	}
}
