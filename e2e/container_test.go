package e2e

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/certs"
	"github.com/gortium/hermes-broker/client"
	"github.com/gortium/hermes-broker/e2e/testhost"
)

func TestListAndInspect(t *testing.T) {
	b := newBroker(t, "brokerd-race", host.Socket, "")
	c := b.dial("hermes").Containers()
	ctx := t.Context()
	run(t, testhost.ContainerSpec{
		Name: "web", Cmd: []string{"serve", "canary-argument"}, Env: []string{"TOKEN=canary-value", "PLAIN=canary-other"},
		Labels: map[string]string{"shown": "yes", "hidden": "canary-label"}, Memory: 64 << 20, RestartPolicy: "unless-stopped",
		Binds:  []string{b.dir + "/certs:/canary-inside:ro"},
		Health: &testhost.Health{Cmd: []string{"/guest", "health"}, Interval: 200 * time.Millisecond, Timeout: 10 * time.Second},
	})
	run(t, testhost.ContainerSpec{Name: "hidden", Cmd: []string{"serve"}})
	run(t, testhost.ContainerSpec{Name: "done", Cmd: []string{"exit", "3"}})
	var names []string
	token := ""
	for {
		page, err := c.ListContainers(ctx, &brokerv1.ListContainersRequest{PageSize: 1, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range page.GetContainers() {
			names = append(names, item.GetName())
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	if !slices.Equal(names, []string{"done", "web"}) && !slices.Equal(names, []string{"web", "done"}) {
		t.Errorf("names %v", names)
	}
	filtered, err := c.ListContainers(ctx, &brokerv1.ListContainersRequest{NamePattern: "w*b", States: []brokerv1.ContainerState{brokerv1.ContainerState_CONTAINER_STATE_RUNNING}})
	if err != nil || len(filtered.GetContainers()) != 1 {
		t.Fatalf("filtered: %v, %v", filtered, err)
	}
	eventually(t, "web is healthy", func() bool {
		l, err := c.ListContainers(ctx, &brokerv1.ListContainersRequest{Healths: []brokerv1.ContainerHealth{brokerv1.ContainerHealth_CONTAINER_HEALTH_HEALTHY}})
		return err == nil && len(l.GetContainers()) == 1 && l.GetContainers()[0].GetName() == "web"
	})
	got, err := c.InspectContainer(ctx, &brokerv1.InspectContainerRequest{Container: "web"})
	if err != nil {
		t.Fatal(err)
	}
	text := protojson.Format(got)
	if strings.Contains(strings.ReplaceAll(text, "/canary-inside", ""), "canary") {
		t.Errorf("something came out:\n%s", text)
	}
	if !slices.Contains(got.GetEnvironmentKeys(), "TOKEN") || got.GetLimits().GetMemoryBytes() != 64<<20 || got.GetRestartPolicy().GetName() != "unless-stopped" ||
		got.GetContainer().GetLabels()["shown"] != "yes" || len(got.GetContainer().GetLabels()) != 1 || got.GetContainer().GetHealth() != brokerv1.ContainerHealth_CONTAINER_HEALTH_HEALTHY ||
		len(got.GetNetworks()) != 1 || got.GetNetworks()[0].GetIpv4Address() == "" || got.GetStartTime() == nil || len(got.GetMounts()) != 1 ||
		got.GetMounts()[0].GetSource() != "" || !got.GetMounts()[0].GetReadOnly() {
		t.Errorf("projection:\n%s", text)
	}
	_, err = c.InspectContainer(ctx, &brokerv1.InspectContainerRequest{Container: "web", IncludeMountSources: true})
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED)
	more, err := b.dial("ada").Containers().InspectContainer(ctx, &brokerv1.InspectContainerRequest{Container: "web", IncludeMountSources: true})
	if err != nil || more.GetMounts()[0].GetSource() != b.dir+"/certs" {
		t.Errorf("with the permission: %v, %v", more.GetMounts(), err)
	}
	// What is denied and what is not there: the same words, but for the name.
	_, denied := c.InspectContainer(ctx, &brokerv1.InspectContainerRequest{Container: "hidden"})
	want(t, denied, brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED)
	_, absent := c.Restart(ctx, &brokerv1.RestartRequest{Container: "nobody"})
	_, there := c.Restart(ctx, &brokerv1.RestartRequest{Container: "done"})
	if a, b := status.Convert(absent).Message(), status.Convert(there).Message(); strings.ReplaceAll(a, "nobody", "done") != b || status.Code(absent) != codes.PermissionDenied {
		t.Errorf("%q and %q tell what exists", a, b)
	}
	// By ID it cannot be asked for.
	_, err = c.InspectContainer(ctx, &brokerv1.InspectContainerRequest{Container: got.GetContainer().GetId()[:12]})
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_CONTAINER_NOT_FOUND)
}

func want(t testing.TB, err error, reason brokerv1.ErrorReason) {
	t.Helper()
	if client.Reason(err) != reason {
		t.Errorf("got %v, want %v", err, reason)
	}
}

func TestLifecycle(t *testing.T) {
	b := newBroker(t, "brokerd-race", host.Socket, "")
	c := b.dial("hermes").Containers()
	ctx := t.Context()
	id := run(t, testhost.ContainerSpec{Name: "web", Cmd: []string{"serve"}})
	stopped, err := c.Stop(ctx, &brokerv1.StopRequest{Container: "web", Grace: durationpb.New(5 * time.Second)})
	if err != nil || stopped.GetContainer().GetState() != brokerv1.ContainerState_CONTAINER_STATE_EXITED || stopped.GetContainer().GetId() != id {
		t.Fatalf("stop: %v, %v", stopped, err)
	}
	waited, err := c.Wait(ctx, &brokerv1.WaitRequest{Container: "web"})
	if err != nil || !waited.GetMet() || waited.GetExitCode() != 0 {
		t.Errorf("wait for what has stopped: %v, %v", waited, err)
	}
	started, err := c.Start(ctx, &brokerv1.StartRequest{Container: "web"})
	if err != nil || started.GetContainer().GetState() != brokerv1.ContainerState_CONTAINER_STATE_RUNNING {
		t.Fatalf("start: %v, %v", started, err)
	}
	if _, err := c.Start(ctx, &brokerv1.StartRequest{Container: "web"}); err != nil {
		t.Errorf("start again: %v", err)
	}
	begun := time.Now()
	waited, err = c.Wait(ctx, &brokerv1.WaitRequest{Container: "web", Timeout: durationpb.New(time.Second)})
	if err != nil || waited.GetMet() || time.Since(begun) > 3*time.Second {
		t.Errorf("wait for what runs: %v, %v after %s", waited, err, time.Since(begun))
	}
	_, err = c.Remove(ctx, &brokerv1.RemoveRequest{Container: "web"})
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_CONTAINER_STATE)
	_, err = c.Remove(ctx, &brokerv1.RemoveRequest{Container: "web", Force: true})
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED)
	admin := b.dial("ada").Containers()
	_, err = admin.Remove(ctx, &brokerv1.RemoveRequest{Container: "web", Force: true, ExpectedId: strings.Repeat("0", 64)})
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_CONTAINER_STATE)
	gone := make(chan error, 1)
	go func() {
		w, err := c.Wait(ctx, &brokerv1.WaitRequest{Container: "web", Condition: brokerv1.WaitCondition_WAIT_CONDITION_REMOVED})
		if err == nil && !w.GetMet() {
			err = errors.New("not met")
		}
		gone <- err
	}()
	time.Sleep(200 * time.Millisecond)
	removed, err := admin.Remove(ctx, &brokerv1.RemoveRequest{Container: "web", Force: true, ExpectedId: id})
	if err != nil || removed.GetContainer().GetState() != brokerv1.ContainerState_CONTAINER_STATE_RUNNING {
		t.Errorf("remove: %v, %v", removed, err)
	}
	if err := <-gone; err != nil {
		t.Errorf("wait until removed: %v", err)
	}
	_, err = c.Restart(ctx, &brokerv1.RestartRequest{Container: "web"})
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_CONTAINER_NOT_FOUND)

	run(t, testhost.ContainerSpec{Name: "web-stubborn", Cmd: []string{"ignore-term"}})
	begun = time.Now()
	if _, err := c.Restart(ctx, &brokerv1.RestartRequest{Container: "web-stubborn", Grace: durationpb.New(2 * time.Second)}); err != nil {
		t.Error(err)
	}
	if d := time.Since(begun); d < 2*time.Second || d > 8*time.Second {
		t.Errorf("a grace of 2 s took %s", d)
	}
}

func logs(t *testing.T, c brokerv1.ContainerServiceClient, req *brokerv1.ContainerLogsRequest) (out []*brokerv1.LogEntry) {
	t.Helper()
	s, err := c.ContainerLogs(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m.GetEntries()...)
	}
}

func TestLogs(t *testing.T) {
	b := newBroker(t, "brokerd-race", host.Socket, "")
	c := b.dial("hermes").Containers()
	run(t, testhost.ContainerSpec{Name: "hostile", Cmd: []string{"hostile"}, LogDriver: "local"})
	if _, err := host.Wait(t.Context(), "hostile"); err != nil {
		t.Fatal(err)
	}
	all := logs(t, c, &brokerv1.ContainerLogsRequest{Container: "hostile", Timestamps: true})
	var text strings.Builder
	var kinds [2]int
	long := 0
	for _, e := range all {
		line := append(e.GetStdout(), e.GetStderr()...)
		text.Write(line)
		if !e.GetPartial() {
			text.WriteByte('\n')
		} else {
			long += len(line)
		}
		if e.GetStderr() != nil {
			kinds[1]++
		} else {
			kinds[0]++
		}
		if e.GetLogTime() == nil || time.Since(e.GetLogTime().AsTime()) > time.Minute {
			t.Errorf("time %v", e.GetLogTime())
		}
	}
	if kinds[0] == 0 || long < 80<<10 {
		t.Errorf("%v entries, %d bytes of the long line", kinds, long)
	}
	for _, secret := range []string{"hunter2", "PRIVATE KEY-----\nM"} {
		if strings.Contains(text.String(), secret) {
			t.Errorf("%q came out", secret)
		}
	}
	if !strings.Contains(text.String(), "\x1b") {
		t.Error("bytes were changed on the way; cleaning is for whoever shows them")
	}
	out, code := b.ctl("hermes", "containers", "logs", "hostile")
	if code != 0 || strings.ContainsAny(out, "\x1b\x07\u202e") {
		t.Errorf("brokerctl let control characters through (exit %d)", code)
	}

	run(t, testhost.ContainerSpec{Name: "web", Cmd: []string{"serve"}})
	eventually(t, "a tail of one line, without a time", func() bool {
		got := logs(t, c, &brokerv1.ContainerLogsRequest{Container: "web", Tail: 1})
		return len(got) == 1 && got[0].GetLogTime() == nil
	})
	if got := logs(t, c, &brokerv1.ContainerLogsRequest{Container: "web", Since: timestamppb.New(time.Now().Add(time.Hour))}); len(got) != 0 {
		t.Errorf("since the future: %v", got)
	}
	if got := logs(t, c, &brokerv1.ContainerLogsRequest{Container: "web", Until: timestamppb.New(time.Now().Add(-time.Hour))}); len(got) != 0 {
		t.Errorf("until the past: %v", got)
	}
	if got := logs(t, c, &brokerv1.ContainerLogsRequest{Container: "web", Streams: []brokerv1.LogStream{brokerv1.LogStream_LOG_STREAM_STDERR}}); len(got) != 0 && got[0].GetStdout() != nil {
		t.Errorf("only stderr: %v", got)
	}
	run(t, testhost.ContainerSpec{Name: "terminal", Cmd: []string{"serve"}, TTY: true})
	eventually(t, "a terminal's line", func() bool {
		got := logs(t, c, &brokerv1.ContainerLogsRequest{Container: "terminal", Timestamps: true})
		return len(got) > 0 && got[0].GetLogTime() != nil && !strings.HasSuffix(string(got[0].GetStdout()), "\r")
	})
}

func TestStats(t *testing.T) {
	b := newBroker(t, "brokerd-race", host.Socket, "")
	c := b.dial("hermes").Containers()
	run(t, testhost.ContainerSpec{Name: "web", Cmd: []string{"chatter", "1000"}, Memory: 64 << 20})
	one, err := c.ContainerStats(t.Context(), &brokerv1.ContainerStatsRequest{Container: "web", OneShot: true})
	if err != nil {
		t.Fatal(err)
	}
	s, err := one.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if s.GetCpuPercent() <= 0 || s.GetCpuPercent() > 250 || s.GetMemoryBytes() == 0 || s.GetMemoryLimitBytes() != 64<<20 || s.GetPids() == 0 || s.GetOnlineCpus() == 0 {
		t.Errorf("sample %v", s)
	}
	if _, err := one.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("a second sample: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := c.ContainerStats(ctx, &brokerv1.ContainerStatsRequest{Container: "web"})
	for range 3 {
		if err == nil {
			_, err = stream.Recv()
		}
	}
	if err != nil {
		t.Error(err)
	}
	run(t, testhost.ContainerSpec{Name: "done", Cmd: []string{"exit", "0"}})
	if _, err := host.Wait(t.Context(), "done"); err != nil {
		t.Fatal(err)
	}
	stream, err = c.ContainerStats(ctx, &brokerv1.ContainerStatsRequest{Container: "done"})
	if err == nil {
		_, err = stream.Recv()
	}
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_CONTAINER_STATE)
}

// TestHermesInAContainer is the product's main job: an agent in a container,
// with a certificate, through the bridge's gateway and through the socket.
func TestHermesInAContainer(t *testing.T) {
	b := newBroker(t, "brokerd-race", host.Socket, "")
	run(t, testhost.ContainerSpec{Name: "web", Cmd: []string{"serve"}})
	run(t, testhost.ContainerSpec{Name: "vault", Cmd: []string{"serve"}})
	for name, address := range map[string]string{"gateway": b.tcp, "socket": "unix:///sock/b.sock"} {
		t.Run(name, func(t *testing.T) {
			before, err := host.Inspect(t.Context(), "web")
			if err != nil {
				t.Fatal(err)
			}
			agent := "hermes-" + name
			run(t, testhost.ContainerSpec{
				Name: agent, Image: "hermes-test/agent:latest", Cmd: []string{address, "web"},
				Binds: []string{b.dir + "/certs:/certs:ro", b.dir + "/sock:/sock"},
			})
			code, err := host.Wait(t.Context(), agent)
			if err != nil {
				t.Fatal(err)
			}
			out, _ := host.Logs(t.Context(), agent)
			text := string(out)
			for _, line := range []string{"whoami: " + hermesID, "container: web CONTAINER_STATE_RUNNING", "restarted: web", "vault: ERROR_REASON_PERMISSION_DENIED", "log: "} {
				if !strings.Contains(text, line) {
					t.Errorf("no %q in:\n%s", line, text)
				}
			}
			after, err := host.Inspect(t.Context(), "web")
			if err != nil || code != 0 || !after.State.StartedAt.After(before.State.StartedAt) {
				t.Errorf("exit %d, %v, started %s and %s", code, err, before.State.StartedAt, after.State.StartedAt)
			}
		})
	}
	// A stranger: the same request, the key of another house.
	other := newOtherHouse(t, b)
	run(t, testhost.ContainerSpec{
		Name: "stranger", Image: "hermes-test/agent:latest", Cmd: []string{b.tcp, "web"}, Binds: []string{other + ":/certs:ro"},
	})
	if code, err := host.Wait(t.Context(), "stranger"); err != nil || code == 0 {
		t.Errorf("a stranger: exit %d, %v", code, err)
	}
	out, code := b.ctl("ada", "audit", "verify", "--dir", b.dir+"/state/audit")
	if code != 0 {
		t.Errorf("audit verify: exit %d: %s", code, out)
	}
	out, _ = b.ctl("ada", "audit", "tail", "-n", "200", "--dir", b.dir+"/state/audit")
	for _, word := range []string{"intent", "outcome", "handshake", "containers/vault", "PermissionDenied"} {
		if !strings.Contains(out, word) {
			t.Errorf("the audit trail does not show %q:\n%s", word, out)
		}
	}
}

// newOtherHouse makes certificates with the right names by another authority.
func newOtherHouse(t *testing.T, b *broker) string {
	t.Helper()
	dir := b.dir + "/other"
	b.must(os.Mkdir(dir, 0o755))
	options := certs.Options{}
	b.must(options.TrustDomain.UnmarshalText([]byte("home.example")))
	ca, err := certs.Init(b.dir+"/otherca", options)
	b.must(err)
	req := certs.Request{Role: certs.Agent}
	b.must(req.ID.UnmarshalText([]byte(hermesID)))
	leaf, err := ca.Issue(req)
	b.must(err)
	b.must(leaf.Write(dir, "hermes"))
	// It trusts the real broker, so that only the broker can refuse.
	bundle, err := os.ReadFile(b.dir + "/certs/bundle.crt")
	b.must(err)
	b.must(os.WriteFile(dir+"/bundle.crt", bundle, 0o644))
	return dir
}

func TestEngineDownAndBack(t *testing.T) {
	b := newBroker(t, "brokerd-race", host.Socket, "")
	c := b.dial("hermes").Containers()
	run(t, testhost.ContainerSpec{Name: "web", Cmd: []string{"serve"}, RestartPolicy: "always"})
	list := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := c.ListContainers(ctx, &brokerv1.ListContainersRequest{})
		return err
	}
	if err := list(); err != nil {
		t.Fatal(err)
	}
	events := past(t, b.dial("hermes"))
	if err := host.StopEngine(); err != nil {
		t.Fatal(err)
	}
	_, err := receive(events)
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_ENGINE_UNAVAILABLE)
	err = list()
	if _, ok := client.RetryAfter(err); !ok || client.Reason(err) != brokerv1.ErrorReason_ERROR_REASON_ENGINE_UNAVAILABLE {
		t.Errorf("with the engine down: %v", err)
	}
	if out, code := b.ctl("hermes", "containers", "ls"); code != 5 {
		t.Errorf("brokerctl: exit %d: %s", code, out)
	}
	pid := b.process.Process.Pid
	if err := host.StartEngine(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := list(); err != nil {
		t.Errorf("with the engine back: %v", err)
	}
	select {
	case <-b.done:
		t.Errorf("brokerd %d ended", pid)
	default:
	}
}
