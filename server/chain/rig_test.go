package chain

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/access"
	"github.com/gortium/hermes-broker/server/audit"
	"github.com/gortium/hermes-broker/server/freeze"
	"github.com/gortium/hermes-broker/server/idempotency"
	"github.com/gortium/hermes-broker/server/identity"
	"github.com/gortium/hermes-broker/server/limits"
	"github.com/gortium/hermes-broker/server/operation"
	"github.com/gortium/hermes-broker/server/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const hermes = "spiffe://home.example/agent/hermes"

const everything = `trust_domain: home.example
callers:
  - id: ` + hermes + `
    grants:
      - allow: [containers.list, containers.inspect, containers.logs, containers.wait, containers.restart]
        on: ["containers/*"]
        budget: 100000/second
      - allow: [images.pull]
        on: ["images/docker.io/*/*"]
        budget: 100000/second
`

// clock is a time that tests move.
type clock struct{ nanos atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(0, c.nanos.Load()) }
func (c *clock) advance(d time.Duration) { c.nanos.Add(int64(d)) }

// service does what a test says.
type service struct {
	brokerv1.UnimplementedContainerServiceServer
	restart func(context.Context, *brokerv1.RestartRequest) (*brokerv1.RestartResponse, error)
	inspect func(context.Context) error
	wait    func(context.Context) error
	logs    func(brokerv1.ContainerService_ContainerLogsServer) error
}

// images does what a test says.
type images struct {
	brokerv1.UnimplementedImageServiceServer
	pull func(*brokerv1.PullRequest, brokerv1.ImageService_PullServer) error
}

func (s *images) Pull(r *brokerv1.PullRequest, stream brokerv1.ImageService_PullServer) error {
	return s.pull(r, stream)
}

func (s *service) Restart(ctx context.Context, r *brokerv1.RestartRequest) (*brokerv1.RestartResponse, error) {
	return s.restart(ctx, r)
}

func (s *service) InspectContainer(ctx context.Context, _ *brokerv1.InspectContainerRequest) (*brokerv1.InspectContainerResponse, error) {
	return &brokerv1.InspectContainerResponse{}, s.inspect(ctx)
}

func (s *service) Wait(ctx context.Context, _ *brokerv1.WaitRequest) (*brokerv1.WaitResponse, error) {
	return &brokerv1.WaitResponse{}, s.wait(ctx)
}

func (s *service) ContainerLogs(_ *brokerv1.ContainerLogsRequest, stream brokerv1.ContainerService_ContainerLogsServer) error {
	return s.logs(stream)
}

// trusting are credentials that take everybody for hermes.
type trusting struct {
	credentials.TransportCredentials
	peer identity.Peer
}

func (c trusting) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	info := identity.Info{Peer: c.peer}
	info.SecurityLevel = credentials.PrivacyAndIntegrity
	return raw, info, nil
}

func (c trusting) Clone() credentials.TransportCredentials { return c }

// rig is a chain around a service that the test writes, with a clock that the
// test moves. Nothing rechecks but the test.
type rig struct {
	t       *testing.T
	chain   *Chain
	clock   *clock
	service *service
	images  *images
	policy  atomic.Pointer[policy.Policy]
	methods *access.Registry
	dir     string
	client  brokerv1.ContainerServiceClient
	conn    *grpc.ClientConn
}

// lifetime is that of the caller's certificate; streams may be older.
const lifetime = 24 * time.Hour

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, clock: &clock{}, service: &service{}, images: &images{}, dir: t.TempDir()}
	r.clock.nanos.Store(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano())
	blank := grpc.NewServer()
	brokerv1.RegisterContainerServiceServer(blank, r.service)
	brokerv1.RegisterImageServiceServer(blank, r.images)
	var err error
	if r.methods, err = access.Load(blank.GetServiceInfo()); err != nil {
		t.Fatal(err)
	}
	r.setPolicy(everything)
	log, err := audit.Open(audit.Options{Dir: filepath.Join(r.dir, "audit"), Now: r.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := log.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	frozen, err := freeze.Open(filepath.Join(r.dir, "freeze.json"))
	if err != nil {
		t.Fatal(err)
	}
	store, err := idempotency.Open(filepath.Join(r.dir, "requests.jsonl"), time.Hour, 100, r.clock.now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	if err := os.Chmod(r.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	ops, err := operation.Open(operation.Options{Dir: filepath.Join(r.dir, "operations"), Retention: time.Hour, Kept: 50, PerCaller: 3, PerKind: 5, Now: r.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	r.chain = New(Config{
		Operations: ops, OperationAge: time.Minute,
		Methods: r.methods, Policy: func() *policy.Policy { return r.policy.Load() }, Audit: log, Freeze: frozen, Requests: store,
		Limits: limits.New(limits.Config{Rate: 1e6, Burst: 1e6, Calls: 10, Streams: 10}, r.clock.now),
		Budget: policy.Budget{Count: 100, Per: time.Second}, CallTimeout: 10 * time.Second, StreamAge: time.Hour, SendTimeout: 30 * time.Second,
		AuditTimeout: 5 * time.Second, Now: r.clock.now,
	})
	peer := identity.Peer{ID: hermes, Serial: "5e", NotAfter: r.clock.now().Add(lifetime)}
	s := grpc.NewServer(append(r.chain.Options(), grpc.Creds(trusting{insecure.NewCredentials(), peer}), grpc.WaitForHandlers(true))...)
	brokerv1.RegisterContainerServiceServer(r.chain.Register(s), r.service)
	brokerv1.RegisterImageServiceServer(r.chain.Register(s), r.images)
	l := bufconn.Listen(1 << 16)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	r.conn, err = grpc.NewClient("passthrough:///broker", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.conn.Close() })
	r.client = brokerv1.NewContainerServiceClient(r.conn)
	return r
}

func (r *rig) setPolicy(text string) {
	r.t.Helper()
	p, problems := policy.Parse("policy.yaml", []byte(text), r.methods.Permissions(), access.Single)
	if problems != nil {
		r.t.Fatal(problems)
	}
	r.policy.Store(p)
}

// records are those of the audit trail of which there are to be so many: some
// take a moment to get there.
func (r *rig) records(want int) []audit.Record {
	r.t.Helper()
	var out []audit.Record
	r.eventually("the records are written", func() bool {
		out = nil
		files, _ := filepath.Glob(filepath.Join(r.dir, "audit", "*.jsonl"))
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				r.t.Fatal(err)
			}
			for line := range bytes.Lines(data) {
				var rec audit.Record
				if json.Unmarshal(line, &rec) == nil && rec.Method != "" {
					out = append(out, rec)
				}
			}
		}
		return len(out) >= want
	})
	if len(out) != want {
		r.t.Errorf("%d records, want %d: %+v", len(out), want, out)
	}
	return out
}

// wantEvents sees to it that there are these records, in this order: event,
// code, reason.
func (r *rig) wantEvents(want ...string) []audit.Record {
	r.t.Helper()
	all := r.records(len(want))
	for i, rec := range all {
		if got := strings.TrimSpace(string(rec.Event) + " " + rec.Code + " " + rec.Reason); i < len(want) && got != want[i] {
			r.t.Errorf("record %d is %q, want %q", i, got, want[i])
		}
	}
	return all
}

func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	r.t.Fatal("did not happen: " + what)
}

// active waits until so many calls can be cut, and their requests are there.
func (r *rig) active(want int) {
	r.t.Helper()
	r.eventually("calls run", func() bool {
		r.chain.mu.Lock()
		defer r.chain.mu.Unlock()
		n := 0
		for o := range r.chain.active {
			if o.sending.begun.Load() {
				n++
			}
		}
		return n == want
	})
}

// follow opens a log stream that the service holds open.
func (r *rig) follow() brokerv1.ContainerService_ContainerLogsClient {
	r.t.Helper()
	s, err := r.client.ContainerLogs(r.t.Context(), &brokerv1.ContainerLogsRequest{Container: "web", Follow: true})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}
