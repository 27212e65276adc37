package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
	"github.com/gortium/hermes-broker/e2e/testhost"
)

// TestEngineTellsNoPath: what is told of the engine is right, and says nothing of
// where on the host it lives.
func TestEngineTellsNoPath(t *testing.T) {
	b := imagesBroker(t, imagesConfig)
	ctx := t.Context()
	var version struct{ Version, APIVersion, KernelVersion string }
	var info struct {
		DockerRootDir, Name string
		NCPU                int32
		MemTotal            int64
		Driver              string
	}
	b.must(host.API(ctx, "GET", "/version", nil, &version))
	b.must(host.API(ctx, "GET", "/info", nil, &info))
	canary := map[string]string{"canary": "canary"}
	for _, name := range []string{"plain", "hidden"} {
		b.must(host.API(ctx, "POST", "/volumes/create", map[string]any{"Name": name, "Labels": canary}, nil))
	}
	// One with options is never counted: it need not lie on this host's disk.
	b.must(host.API(ctx, "POST", "/volumes/create", map[string]any{"Name": "remote", "DriverOpts": map[string]string{"type": "tmpfs", "device": "canary"}}, nil))
	b.must(host.API(ctx, "POST", "/networks/create", map[string]any{
		"Name": "plain", "Internal": true, "Options": canary, "Labels": canary,
	}, nil))
	b.must(host.API(ctx, "POST", "/networks/create", map[string]any{"Name": "hidden"}, nil))
	t.Cleanup(func() {
		for _, path := range []string{"/volumes/plain", "/volumes/hidden", "/volumes/remote", "/networks/plain", "/networks/hidden"} {
			b.must(host.API(context.Background(), "DELETE", path, nil, nil))
		}
	})
	run(t, testhost.ContainerSpec{Name: "web", Cmd: []string{"serve"}})
	run(t, testhost.ContainerSpec{Name: "hidden", Cmd: []string{"serve"}})

	c := b.dial("hermes").Engine()
	i, err := c.Info(ctx, &brokerv1.InfoRequest{})
	b.must(err)
	if i.GetServerVersion() != version.Version || i.GetCpus() != info.NCPU || i.GetMemoryBytes() != info.MemTotal || i.GetStorageDriver() != info.Driver ||
		i.GetOsType() != "linux" || i.GetDataFreeBytes() <= 0 || i.GetDataTotalBytes() < i.GetDataFreeBytes() || time.Since(i.GetSystemTime().AsTime()).Abs() > time.Minute {
		t.Errorf("info %v of %+v", i, info)
	}
	v, err := c.Version(ctx, &brokerv1.VersionRequest{})
	b.must(err)
	named := func(name string) bool {
		return slices.ContainsFunc(v.GetComponents(), func(c *brokerv1.EngineComponent) bool { return c.GetName() == name && c.GetVersion() != "" })
	}
	if v.GetVersion() != version.Version || v.GetMinApiVersion() == "" || v.GetGoVersion() == "" || !named("containerd") || !named("runc") {
		t.Errorf("version %v of %+v", v, version)
	}
	u, err := c.DiskUsage(ctx, &brokerv1.DiskUsageRequest{})
	b.must(err)
	// The images of the suite are out of reach, the hidden container and volume too.
	if u.GetContainers().GetCount() != 1 || u.GetContainers().GetActive() != 1 || u.GetVolumes().GetCount() != 1 || u.GetImages().GetCount() != 0 || u.GetLayersBytes() < 1<<20 {
		t.Errorf("disk usage %v", u)
	}
	networks, err := c.ListNetworks(ctx, &brokerv1.ListNetworksRequest{})
	b.must(err)
	var names []string
	for _, n := range networks.GetNetworks() {
		names = append(names, n.GetName())
		if n.GetName() == "plain" && (!n.GetInternal() || n.GetDriver() != "bridge" || len(n.GetId()) != 64 || len(n.GetSubnets()) != 1) {
			t.Errorf("network %v", n)
		}
	}
	if !slices.Equal(names, []string{"bridge", "host", "none", "plain"}) {
		t.Errorf("networks %v", names)
	}
	some, err := c.ListNetworks(ctx, &brokerv1.ListNetworksRequest{NamePattern: "p*n", PageSize: 1})
	if err != nil || len(some.GetNetworks()) != 1 {
		t.Errorf("p*n: %v, %v", some, err)
	}
	volumes, err := c.ListVolumes(ctx, &brokerv1.ListVolumesRequest{})
	if err != nil || len(volumes.GetVolumes()) != 2 || volumes.GetVolumes()[0].GetName() != "plain" || volumes.GetVolumes()[0].GetCreateTime() == nil {
		t.Errorf("volumes %v, %v", volumes, err)
	}
	if info.DockerRootDir == "" || info.Name == "" {
		t.Fatalf("the engine says %+v", info)
	}
	for _, m := range []proto.Message{i, v, u, networks, volumes} {
		// Every engine's own list of insecure registries holds 127.0.0.0/8; a port
		// alone would also be found in IDs and times.
		text := protojson.Format(m)
		for _, word := range []string{host.Dir, info.DockerRootDir, "/var/lib", "canary", "127.0.0."} {
			if strings.Contains(text, word) {
				t.Errorf("%q came out:\n%s", word, text)
			}
		}
	}
	_, err = b.dial("eve").Engine().Info(ctx, &brokerv1.InfoRequest{})
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED)
}

// TestEvents: everybody hears of what they may list, and never of a command.
func TestEvents(t *testing.T) {
	r := registry(t)
	b := imagesBroker(t, imagesConfig)
	c := b.dial("hermes")
	push(t, r, "team/app:1", testhost.RandomLayer(1<<10))
	begun := time.Now()
	stream, err := c.Engine().Events(within(t), &brokerv1.EventsRequest{Since: timestamppb.New(begun)})
	if err != nil {
		t.Fatal(err)
	}
	run(t, testhost.ContainerSpec{Name: "web", Cmd: []string{"serve"}})
	run(t, testhost.ContainerSpec{Name: "hidden", Cmd: []string{"serve"}})
	for _, name := range []string{"hidden", "web"} {
		execIn(t, name, "/guest", "env", "canary-argument")
	}
	if _, _, err := pull(t, c, r.Addr+"/team/app:1"); err != nil {
		t.Fatal(err)
	}
	b.must(host.API(t.Context(), "POST", "/images/"+testhost.GuestImage+"/tag?repo=elsewhere/canary&tag=1", nil, nil))
	defer host.RemoveImage(context.Background(), "elsewhere/canary:1")
	b.must(host.API(t.Context(), "POST", "/containers/web/restart?t=5", nil, nil))

	type happened struct {
		kind   brokerv1.EventKind
		action brokerv1.EventAction
		name   string
	}
	of := func(e *brokerv1.EventsResponse) happened { return happened{e.GetKind(), e.GetAction(), e.GetName()} }
	last := happened{brokerv1.EventKind_EVENT_KIND_CONTAINER, brokerv1.EventAction_EVENT_ACTION_RESTART, "web"}
	until := func(s brokerv1.EngineService_EventsClient) (all []*brokerv1.EventsResponse) {
		t.Helper()
		for len(all) == 0 || of(all[len(all)-1]) != last {
			e, err := s.Recv()
			if err != nil {
				t.Fatalf("after %v: %v", all, err)
			}
			all = append(all, e)
		}
		return all
	}
	all := until(stream)
	heard := map[happened]bool{}
	at := begun.Add(-time.Second)
	for _, e := range all {
		heard[of(e)] = true
		text := protojson.Format(e)
		if strings.Contains(text, "canary") || strings.Contains(text, "hidden") || strings.Contains(text, host.Dir) {
			t.Errorf("heard %s", text)
		}
		if e.GetEventTime().AsTime().Before(at) || e.GetId() == "" || e.GetActionText() == "" {
			t.Errorf("after %s came %s", at, text)
		}
		at = e.GetEventTime().AsTime()
	}
	for _, h := range []happened{
		{brokerv1.EventKind_EVENT_KIND_CONTAINER, brokerv1.EventAction_EVENT_ACTION_CREATE, "web"},
		{brokerv1.EventKind_EVENT_KIND_CONTAINER, brokerv1.EventAction_EVENT_ACTION_START, "web"},
		{brokerv1.EventKind_EVENT_KIND_CONTAINER, brokerv1.EventAction_EVENT_ACTION_EXEC, "web"},
		{brokerv1.EventKind_EVENT_KIND_CONTAINER, brokerv1.EventAction_EVENT_ACTION_DIE, "web"},
		{brokerv1.EventKind_EVENT_KIND_NETWORK, brokerv1.EventAction_EVENT_ACTION_CONNECT, "bridge"},
		{brokerv1.EventKind_EVENT_KIND_IMAGE, brokerv1.EventAction_EVENT_ACTION_PULL, r.Addr + "/team/app:1"},
	} {
		if !heard[h] {
			t.Errorf("%v was not heard in %v", h, all)
		}
	}

	// To go on: from the last that was had, and of some kinds.
	middle := all[len(all)/2]
	resumed, err := c.Engine().Events(within(t), &brokerv1.EventsRequest{Since: middle.GetEventTime()})
	if err != nil {
		t.Fatal(err)
	}
	rest := until(resumed)
	from := slices.IndexFunc(all, func(e *brokerv1.EventsResponse) bool {
		return !e.GetEventTime().AsTime().Before(middle.GetEventTime().AsTime())
	})
	if !slices.EqualFunc(rest, all[from:], func(a, b *brokerv1.EventsResponse) bool { return proto.Equal(a, b) }) {
		t.Errorf("since %v: %v, and before %v", middle, rest, all[from:])
	}
	images, err := c.Engine().Events(within(t), &brokerv1.EventsRequest{
		Since: timestamppb.New(begun), Until: timestamppb.Now(), Kinds: []brokerv1.EventKind{brokerv1.EventKind_EVENT_KIND_IMAGE},
	})
	if err != nil {
		t.Fatal(err)
	}
	before, err := receive(images)
	if err != nil || len(before) == 0 || slices.ContainsFunc(before, func(e *brokerv1.EventsResponse) bool {
		return e.GetKind() != brokerv1.EventKind_EVENT_KIND_IMAGE
	}) {
		t.Errorf("of images, in the past: %v, %v", before, err)
	}
}

// execIn runs a command in a container, past the broker, which cannot.
func execIn(t testing.TB, name string, cmd ...string) {
	t.Helper()
	var created struct {
		ID string `json:"Id"`
	}
	err := host.API(t.Context(), "POST", "/containers/"+name+"/exec", map[string]any{"Cmd": cmd}, &created)
	if err == nil {
		err = host.API(t.Context(), "POST", "/exec/"+created.ID+"/start", map[string]any{"Detach": true}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestEventsAreCut: a stream of events whose grant goes away ends.
func TestEventsAreCut(t *testing.T) {
	b := imagesBroker(t, imagesConfig)
	stream := past(t, b.dial("hermes"))
	b.policy(strings.Replace(imagesPolicy, ", engine.events]", "]", 1))
	begun := time.Now()
	_, err := receive(stream)
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_ACCESS_REVOKED)
	if cut := time.Since(begun); cut > time.Second {
		t.Errorf("cut after %s", cut)
	}
}

// past is a stream of events from the suite's beginning on.
func past(t testing.TB, c *client.Client) brokerv1.EngineService_EventsClient {
	t.Helper()
	s, err := c.Engine().Events(within(t), &brokerv1.EventsRequest{Since: timestamppb.New(time.Now().Add(-time.Hour))})
	if err == nil {
		_, err = s.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}
