package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/e2e/testhost"
	"github.com/gortium/hermes-broker/server/fault"
)

const pullers = `trust_domain: home.example
callers:
  - id: spiffe://home.example/agent/hermes
    grants:
      - allow: [broker.can, broker.whoami]
      - allow: [images.pull, images.list, images.remove]
        on: ["images/docker.io/*/*"]
        budget: 100000/second
      - allow: [images.pull]
        on: ["images/ghcr.io/team/*"]
        require_digest: true
      - allow: [operations.list, operations.get, operations.watch, operations.cancel]
        on: ["operations/*"]
    deny:
      - on: ["images/docker.io/evil/*"]
  - id: spiffe://home.example/agent/stranger
    grants:
      - allow: [operations.list, operations.get, operations.watch, operations.cancel]
        on: ["operations/*"]
  - id: spiffe://home.example/operator/ada
    grants:
      - allow: [operations.list, operations.list_others, operations.get, operations.get_others, operations.watch, operations.watch_others, operations.cancel, operations.cancel_others]
        on: ["operations/*"]
`

// pulls is an engine that fetches images step by step.
type pulls struct {
	rig     *rig
	step    chan string // A line of the engine's; closed at the end of the fetch.
	mu      sync.Mutex
	present map[string]bool // By canonical reference.
	fetched []string
}

const pulledDigest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

func (r *rig) pulls() *pulls {
	p := &pulls{rig: r, step: make(chan string), present: map[string]bool{}}
	r.engine.Script("GET /distribution/", testhost.Answer(map[string]any{"Descriptor": map[string]any{"digest": pulledDigest}}))
	r.engine.Script("GET /info", testhost.Answer(map[string]any{"DockerRootDir": r.dir, "OSType": "linux"}))
	r.engine.Script("GET /images/", func(w http.ResponseWriter, q *http.Request) {
		ref := strings.TrimSuffix(strings.TrimPrefix(q.URL.Path, "/images/"), "/json")
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.present[ref] {
			testhost.Fail(404, "no such image")(w, q)
			return
		}
		name, _, _ := strings.Cut(strings.TrimSuffix(ref, ":latest"), "@")
		testhost.Answer(map[string]any{"Id": pulledDigest, "RepoTags": []string{name + ":latest"}, "RepoDigests": []string{name + "@" + pulledDigest}, "Size": 5})(w, q)
	})
	r.engine.Script("POST /images/create", func(w http.ResponseWriter, q *http.Request) {
		name, tag := q.URL.Query().Get("fromImage"), q.URL.Query().Get("tag")
		ref := name + ":" + tag
		if strings.HasPrefix(tag, "sha256:") {
			ref = name + "@" + tag
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
		wait:
			for {
				select {
				case line, more := <-p.step:
					if !more {
						break wait
					}
					fmt.Fprintln(w, line)
					w.(http.Flusher).Flush()
				case <-q.Context().Done():
					return
				}
			}
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.present[ref] = true
		p.fetched = append(p.fetched, ref)
	})
	return p
}

func begin(t *testing.T, conn *grpc.ClientConn, req *brokerv1.PullRequest) (name string, s brokerv1.ImageService_PullClient) {
	t.Helper()
	if req.RequestId == "" {
		req.RequestId = uuid.NewString()
	}
	s, err := brokerv1.NewImageServiceClient(conn).Pull(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return m.GetOperation().GetName(), s
}

func reasonOf(err error) string {
	if err == nil || errors.Is(err, io.EOF) {
		return "OK"
	}
	return fault.Reason(err)
}

// TestOperationsOfOthers: to who may not see it, an operation is as if it were not
// there.
func TestOperationsOfOthers(t *testing.T) {
	r := newRig(t, pullers, nil)
	r.pulls()
	name, _ := begin(t, r.dial(hermes), &brokerv1.PullRequest{Image: "alpine"})
	absent := "operations/" + strings.Repeat("A", 26)
	for id, sees := range map[string]bool{hermes: true, operator: true, stranger: false} {
		c := brokerv1.NewOperationServiceClient(r.dial(id))
		list, err := c.ListOperations(t.Context(), &brokerv1.ListOperationsRequest{})
		if err != nil || len(list.GetOperations()) == 1 != sees {
			t.Errorf("%s lists %v, %v", id, list, err)
		}
		want := "OK"
		if !sees {
			want = "OPERATION_NOT_FOUND"
		}
		_, err = c.GetOperation(t.Context(), &brokerv1.GetOperationRequest{Name: name})
		_, none := c.GetOperation(t.Context(), &brokerv1.GetOperationRequest{Name: absent})
		if reasonOf(err) != want || reasonOf(none) != "OPERATION_NOT_FOUND" || !sees && strings.ReplaceAll(err.Error(), name, absent) != none.Error() {
			t.Errorf("%s gets %v, and of one that is not there %v", id, err, none)
		}
		ctx, cancel := context.WithCancel(t.Context())
		w, err := c.WatchOperation(ctx, &brokerv1.WatchOperationRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = w.Recv(); reasonOf(err) != want {
			t.Errorf("%s watches: %v", id, err)
		}
		cancel()
		_, err = c.CancelOperation(t.Context(), &brokerv1.CancelOperationRequest{Name: name, ValidateOnly: true})
		if reasonOf(err) != want {
			t.Errorf("%s cancels: %v", id, err)
		}
	}
}

// TestListOfOperationsObeysItsRules, those about a single operation too.
func TestListOfOperationsObeysItsRules(t *testing.T) {
	r := newRig(t, pullers, nil)
	r.pulls()
	conn := r.dial(hermes)
	name, _ := begin(t, conn, &brokerv1.PullRequest{Image: "alpine", Detach: true})
	r.writePolicy(strings.Replace(pullers, `- on: ["images/docker.io/evil/*"]`, `- on: ["`+name+`"]`, 1))
	eventually(t, "the operation is hidden", func() bool {
		list, err := brokerv1.NewOperationServiceClient(conn).ListOperations(t.Context(), &brokerv1.ListOperationsRequest{})
		return err == nil && len(list.GetOperations()) == 0
	})
}

// TestWatcherLosesItsPermission while it watches another's operation.
func TestWatcherLosesItsPermission(t *testing.T) {
	r := newRig(t, pullers, nil)
	r.pulls()
	name, _ := begin(t, r.dial(hermes), &brokerv1.PullRequest{Image: "alpine"})
	w, err := brokerv1.NewOperationServiceClient(r.dial(operator)).WatchOperation(t.Context(), &brokerv1.WatchOperationRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); err != nil {
		t.Fatal(err)
	}
	r.writePolicy(strings.Replace(pullers, "operations.watch_others, ", "", 1))
	if _, err := w.Recv(); reasonOf(err) != "ACCESS_REVOKED" {
		t.Errorf("%v", err)
	}
}

func TestCancelOperation(t *testing.T) {
	r := newRig(t, pullers, nil)
	p := r.pulls()
	conn := r.dial(hermes)
	name, s := begin(t, conn, &brokerv1.PullRequest{Image: "alpine"})
	c := brokerv1.NewOperationServiceClient(r.dial(operator))
	done, err := c.CancelOperation(t.Context(), &brokerv1.CancelOperationRequest{Name: name, RequestId: uuid.NewString()})
	if err != nil || done.GetOperation().GetState() != brokerv1.OperationState_OPERATION_STATE_CANCELLED {
		t.Fatalf("%v, %v", done, err)
	}
	for {
		if _, err = s.Recv(); err != nil {
			break
		}
	}
	if reasonOf(err) != "OPERATION_CANCELLED" || !strings.Contains(err.Error(), operator) {
		t.Errorf("its caller was told %v", err)
	}
	// Again is no error, and changes nothing.
	done, err = c.CancelOperation(t.Context(), &brokerv1.CancelOperationRequest{Name: name, RequestId: uuid.NewString()})
	if err != nil || done.GetOperation().GetState() != brokerv1.OperationState_OPERATION_STATE_CANCELLED {
		t.Errorf("again: %v, %v", done, err)
	}
	if len(p.fetched) != 0 {
		t.Errorf("fetched %v", p.fetched)
	}
	for _, bad := range []string{"", "x", "operations/x", "containers/x"} {
		if _, err := c.CancelOperation(t.Context(), &brokerv1.CancelOperationRequest{Name: bad, RequestId: uuid.NewString()}); reasonOf(err) != "INVALID_ARGUMENT" {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestWatchGoesOn: from where a watcher stopped, over a restart too.
func TestWatchGoesOn(t *testing.T) {
	r := newRig(t, pullers, nil)
	p := r.pulls()
	id := uuid.NewString()
	name, _ := begin(t, r.dial(hermes), &brokerv1.PullRequest{Image: "alpine", Detach: true, RequestId: id})
	watch := func(after int64, most int) (seen []int64, err error) {
		w, err := brokerv1.NewOperationServiceClient(r.dial(hermes)).WatchOperation(t.Context(), &brokerv1.WatchOperationRequest{Name: name, After: after})
		for err == nil && len(seen) < most {
			var m *brokerv1.WatchOperationResponse
			if m, err = w.Recv(); err == nil {
				seen = append(seen, m.GetEvent().GetPull().GetSequence())
			}
		}
		return seen, err
	}
	p.step <- `{"status":"Pulling fs layer","id":"aaaaaaaaaaaa"}`
	if seen, err := watch(0, 2); fmt.Sprint(seen) != "[1 2]" || err != nil {
		t.Fatalf("%v, %v", seen, err)
	}
	close(p.step)
	seen, err := watch(2, 10)
	if fmt.Sprint(seen) != "[3]" || reasonOf(err) != "OK" {
		t.Errorf("from 2: %v, %v", seen, err)
	}
	r.stop()
	r.start(nil)
	if seen, err := watch(0, 10); fmt.Sprint(seen) != "[1 2 3]" || reasonOf(err) != "OK" {
		t.Errorf("after a restart: %v, %v", seen, err)
	}
	got, err := brokerv1.NewOperationServiceClient(r.dial(hermes)).GetOperation(t.Context(), &brokerv1.GetOperationRequest{Name: name})
	if err != nil || got.GetLatest().GetPull().GetResult().GetDigest() != pulledDigest || got.GetOperation().GetState() != brokerv1.OperationState_OPERATION_STATE_SUCCEEDED {
		t.Errorf("%v, %v", got, err)
	}
	if again, _ := begin(t, r.dial(hermes), &brokerv1.PullRequest{Image: "alpine", RequestId: id, Detach: true}); again != name {
		t.Errorf("the same request is %s, not %s", again, name)
	}
}

// TestStopInterrupts: a stop in order ends what runs, soon, and says so; the
// aftermath is what the engine has.
func TestStopInterrupts(t *testing.T) {
	const digest, tag = "docker.io/library/alpine@" + pulledDigest, "docker.io/library/alpine:latest"
	for want, left := range map[brokerv1.Aftermath][]string{
		brokerv1.Aftermath_AFTERMATH_NONE: nil, brokerv1.Aftermath_AFTERMATH_PARTIAL: {digest}, brokerv1.Aftermath_AFTERMATH_COMPLETE: {digest, tag},
	} {
		r := newRig(t, pullers, nil)
		p := r.pulls()
		id := uuid.NewString()
		name, _ := begin(t, r.dial(hermes), &brokerv1.PullRequest{Image: "alpine", Detach: true, RequestId: id})
		begun := time.Now()
		r.stop()
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("the stop took %v", took)
		}
		p.mu.Lock()
		for _, ref := range left {
			p.present[ref] = true
		}
		p.mu.Unlock()
		r.start(nil)
		c := brokerv1.NewOperationServiceClient(r.dial(hermes))
		var got *brokerv1.GetOperationResponse
		eventually(t, "the aftermath is known", func() bool {
			var err error
			got, err = c.GetOperation(t.Context(), &brokerv1.GetOperationRequest{Name: name})
			return err == nil && got.GetOperation().GetAftermath() == want
		})
		if got.GetOperation().GetState() != brokerv1.OperationState_OPERATION_STATE_INTERRUPTED || got.GetOperation().GetErrorReason() != "OPERATION_INTERRUPTED" {
			t.Errorf("%v", got)
		}
		again, s := begin(t, r.dial(hermes), &brokerv1.PullRequest{Image: "alpine", Detach: true, RequestId: id})
		if _, err := s.Recv(); again != name || reasonOf(err) != "OPERATION_INTERRUPTED" {
			t.Errorf("the same request is %s, not %s, and ends with %v", again, name, err)
		}
	}
}

// TestOneImageOneDecision, by Can and by the call itself.
func TestOneImageOneDecision(t *testing.T) {
	r := newRig(t, pullers, nil)
	conn := r.dial(hermes)
	const sum = "@" + pulledDigest
	for image, want := range map[string]string{
		"alpine": "allowed", "docker.io/alpine": "allowed", "index.docker.io/library/alpine:latest": "allowed", "library/alpine": "allowed", "alpine" + sum: "allowed",
		"evil/alpine": "denied", "docker.io/evil/alpine": "denied", "index.docker.io/evil/alpine": "denied", "evil/alpine" + sum: "denied",
		"ghcr.io/team/app": "denied", "ghcr.io/team/app:1": "denied", "ghcr.io/team/app" + sum: "allowed",
		"docker.io.attacker.test/library/alpine": "denied", "docker-io.test/library/alpine": "denied", "attacker.test/docker.io/library/alpine": "denied",
		"DOCKER.IO/evil/alpine": "invalid", "Docker.io/library/alpine": "invalid", "docker.io:443/evil/alpine": "invalid", "alpine:3" + sum: "invalid",
		"d\u043ecker.io/library/alpine": "invalid", strings.Repeat("a", 64): "invalid", "evil/../library/alpine": "invalid", "": "invalid",
		"deadbeefcafe": "allowed", // docker.io/library/deadbeefcafe, and no ID.
	} {
		can, err := brokerv1.NewBrokerServiceClient(conn).Can(t.Context(), &brokerv1.CanRequest{Permission: "images.pull", Resource: "images/" + image})
		said := map[bool]string{true: "allowed", false: "denied"}[can.GetAllowed()]
		if reasonOf(err) == "INVALID_ARGUMENT" {
			said = "invalid"
		}
		if said != want {
			t.Errorf("can %s: %v, %v, want %s", image, can, err, want)
		}
		s, err := brokerv1.NewImageServiceClient(conn).Pull(t.Context(), &brokerv1.PullRequest{Image: image, ValidateOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Recv()
		// The engine behind is away: what is allowed gets that far.
		got := map[string]string{"PERMISSION_DENIED": "denied", "INVALID_ARGUMENT": "invalid"}[reasonOf(err)]
		if got == "" {
			got = "allowed"
		}
		if got != want {
			t.Errorf("pull %s: %v, want %s", image, err, want)
		}
	}
	who, err := brokerv1.NewBrokerServiceClient(conn).WhoAmI(t.Context(), &brokerv1.WhoAmIRequest{})
	if err != nil || !who.GetGrants()[2].GetRequireDigest() || who.GetGrants()[1].GetRequireDigest() {
		t.Errorf("%v, %v", who.GetGrants(), err)
	}
	// Who has no grant at all learns nothing of what would be valid.
	s, err := brokerv1.NewImageServiceClient(r.dial(stranger)).Pull(t.Context(), &brokerv1.PullRequest{Image: "A B"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); reasonOf(err) != "PERMISSION_DENIED" {
		t.Errorf("a stranger: %v", err)
	}
}

// TestRegistryPassword is read at the start, from a file that is root's alone.
func TestRegistryPassword(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "password")
	reg := &RegistryConfig{Host: at("registry.example"), Username: at("robot"), PasswordFile: at(path)}
	for _, c := range []struct {
		text string
		mode os.FileMode
		want string
	}{{"secret\n", 0o600, "secret"}, {"secret\r\nmore\n", 0o600, "secret"}, {"\n", 0o600, ""}, {"", 0o600, ""}, {"secret", 0o644, ""}} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		got, err := reg.password()
		if got != c.want || (err == nil) != (c.want != "") || err != nil && strings.Contains(err.Error(), "secret\n") {
			t.Errorf("%q, mode %o: %q, %v", c.text, c.mode, got, err)
		}
	}
}
