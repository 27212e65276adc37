package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/api/types/volume"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/page"
)

func planted[T any]() (v T) {
	plant(reflect.ValueOf(&v).Elem(), "", 0)
	return v
}

// TestOnlyTheseFieldsOfTheEngineComeOut: no paths, proxies, tokens, labels,
// options, registries or commands.
func TestOnlyTheseFieldsOfTheEngineComeOut(t *testing.T) {
	in := planted[system.Info]()
	if in.DockerRootDir == "" || in.HTTPProxy == "" || in.Swarm.NodeID == "" {
		t.Fatal("nothing was planted")
	}
	in.SecurityOptions = []string{"name=seccomp,profile=/etc/canary:secret;", "name=apparmor", "canary:odd;"}
	wantOut(t, infoOf(in), "ServerVersion", "OperatingSystem", "OSType", "Architecture", "KernelVersion", "Driver", "CgroupDriver", "CgroupVersion", "DefaultRuntime")
	if got := infoOf(in).GetSecurityOptions(); !slices.Equal(got, []string{"apparmor", "seccomp"}) {
		t.Errorf("security options %q", got)
	}
	wantOut(t, versionOf(planted[types.Version]()), "Version", "APIVersion", "MinAPIVersion", "GitCommit", "GoVersion", "Components[].Name", "Components[].Version")
	wantOut(t, networksOf([]network.Summary{planted[network.Summary]()})[0].Value, "Name", "ID", "Driver", "Scope", "IPAM.Config[].Subnet")
	wantOut(t, volumesOf([]*volume.Volume{new(planted[volume.Volume]())})[0].Value, "Name", "Driver", "Scope")
	for _, kind := range []events.Type{"container", "image", "network", "volume", "daemon", "builder"} {
		m := planted[events.Message]()
		m.Type = kind
		m.Action = "exec_create: sh -c canary:command;"
		m.Actor.Attributes = map[string]string{"name": "canary:name;", "execID": "canary:exec;", "image": "canary:image;", "com.example": "canary:label;"}
		want := map[events.Type][]string{"container": {"name", "Actor.ID"}, "image": {"Actor.ID"}, "network": {"name", "Actor.ID"}, "volume": {"Actor.ID"}, "daemon": {"Actor.ID"}, "builder": {"Actor.ID"}}
		wantOut(t, eventOf(m).view, want[kind]...)
	}
	for _, kind := range []events.Type{"config", "secret", "node", "service", "plugin", "", "canary"} {
		if e := eventOf(events.Message{Type: kind}); e != nil {
			t.Errorf("an event of %q comes out: %v", kind, e.view)
		}
	}
	s := planted[image.Summary]()
	if got := summarised(&s); got.size != 7 || len(got.tags)+len(got.digests) != 0 || !got.odd {
		t.Errorf("%+v", got) // What is no reference has no form that comes out.
	}
}

func TestActions(t *testing.T) {
	for text, want := range map[string]string{
		"start": "START start", "exec_create: sh -c 'rm -rf /'": "EXEC exec_create", "exec_start:x": "EXEC exec_start", "exec_die": "UNSPECIFIED exec_die",
		"health_status: healthy": "HEALTHY health_status", "health_status: unhealthy": "UNHEALTHY health_status", "health_status: password=hunter2": "UNSPECIFIED health_status",
		"health_status:healthy": "UNSPECIFIED health_status", "top": "UNSPECIFIED top", "archive-path": "UNSPECIFIED archive-path",
		"\x1b[31mEvil SECRET": "UNSPECIFIED mvil", "": "UNSPECIFIED ", strings.Repeat("x", 100): "UNSPECIFIED " + strings.Repeat("x", 64), "destroy": "DESTROY destroy", "remove": "DESTROY remove",
	} {
		action, word := actionOf(text)
		if got := strings.TrimPrefix(action.String(), "EVENT_ACTION_") + " " + word; got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// eventsStream takes what is sent.
type eventsStream struct {
	grpc.ServerStream
	ctx  context.Context
	sent []*brokerv1.EventsResponse
}

func (s *eventsStream) Context() context.Context { return s.ctx }
func (s *eventsStream) Send(e *brokerv1.EventsResponse) error {
	s.sent = append(s.sent, e)
	return nil
}

// may is a scope that grants the listed pairs "permission resource", a star at
// the end for any rest.
type may struct {
	leave
	pairs []string
}

func (m may) Permits(permission, resource string) bool {
	return slices.ContainsFunc(m.pairs, func(p string) bool { return page.Match(p, permission+" "+resource) })
}

func (m may) Visible(resource string) bool { return m.Permits("visible", resource) }

const digest = "sha256:" + someID

func TestEventsShowWhatMayBeListed(t *testing.T) {
	at := func(n int64, kind events.Type, id, name, action string) events.Message {
		return events.Message{Type: kind, Action: events.Action(action), Actor: events.Actor{ID: id, Attributes: map[string]string{"name": name}}, TimeNano: n}
	}
	all := []events.Message{
		at(1, "container", someID, "web", "start"), at(2, "container", someID, "vault", "die"),
		at(3, "image", "alpine:latest", "alpine", "pull"), at(4, "image", digest, digest, "delete"), at(5, "image", "ghcr.io/x/y:1", "ghcr.io/x/y", "pull"),
		at(6, "network", someID, "home", "connect"), at(7, "volume", "data", "", "mount"), at(8, "daemon", "x", "hostname", "reload"), at(9, "secret", "x", "x", "create"),
		at(10, "image", digest, "alpine:3", "tag"),
	}
	run := func(req *brokerv1.EventsRequest, pairs ...string) string {
		s := &Engine{engine: &engine{engineCalls: engineCalls{events: func(_ context.Context, _, _ string, yield func(*event) error) error {
			for _, m := range all {
				if e := eventOf(m); e != nil {
					if err := yield(e); err != nil {
						return err
					}
				}
			}
			return io.EOF
		}}}}
		req.Until = timestamppb.Now()
		stream := &eventsStream{ctx: call.With(t.Context(), may{pairs: pairs})}
		if err := s.Events(req, stream); err != nil {
			t.Error(err)
		}
		var got []string
		for _, e := range stream.sent {
			got = append(got, fmt.Sprint(e.GetEventTime().GetNanos(), " ", e.GetName()))
		}
		return strings.Join(got, ", ")
	}
	for _, c := range []struct{ pairs, want string }{
		{"", ""},
		{"engine.events engine", "8 "},
		{"containers.list containers/web", "1 web"},
		{"containers.list *", "1 web, 2 vault"},
		{"images.list images/docker.io/*", "3 docker.io/library/alpine:latest, 10 docker.io/library/alpine:3"},
		{"images.list images/sha256:*", "4 "},
		{"networks.list *", "6 home"},
		{"volumes.list volumes/data", "7 data"},
		{"*", "1 web, 2 vault, 3 docker.io/library/alpine:latest, 4 , 5 ghcr.io/x/y:1, 6 home, 7 data, 8 , 10 docker.io/library/alpine:3"},
	} {
		if got := run(&brokerv1.EventsRequest{}, c.pairs); got != c.want {
			t.Errorf("with %q: %s\nwant %s", c.pairs, got, c.want)
		}
	}
	if got := run(&brokerv1.EventsRequest{Kinds: []brokerv1.EventKind{brokerv1.EventKind_EVENT_KIND_VOLUME}}, "*"); got != "7 data" {
		t.Errorf("volumes alone: %s", got)
	}
	for field, req := range map[string]*brokerv1.EventsRequest{
		"since": {Since: &timestamppb.Timestamp{Seconds: -1}}, "until": {Until: &timestamppb.Timestamp{Nanos: -1}}, "until ": {Until: &timestamppb.Timestamp{Seconds: 253402300799}},
		"kinds": {Kinds: []brokerv1.EventKind{0}}, "kinds ": {Kinds: []brokerv1.EventKind{99}},
	} {
		err := (&Engine{}).Events(req, &eventsStream{ctx: t.Context()})
		if fault.Reason(err) != "INVALID_ARGUMENT" || !strings.Contains(err.Error(), strings.TrimSpace(field)) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// TestEventsEnd: an engine that ends the stream is away, unless an end was asked
// for.
func TestEventsEnd(t *testing.T) {
	s := &Engine{engine: &engine{engineCalls: engineCalls{events: func(context.Context, string, string, func(*event) error) error { return io.EOF }}}}
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF} { // Each engine's own way.
		s.engine.events = func(context.Context, string, string, func(*event) error) error { return end }
		for until, want := range map[time.Duration]string{0: "ENGINE_UNAVAILABLE", time.Hour: "ENGINE_UNAVAILABLE", -time.Hour: ""} {
			req := &brokerv1.EventsRequest{}
			if until != 0 {
				req.Until = timestamppb.New(time.Now().Add(until))
			}
			if err := s.Events(req, &eventsStream{ctx: call.With(t.Context(), leave{})}); fault.Reason(err) != want {
				t.Errorf("%v, until %v: %v, want %q", end, until, err, want)
			}
		}
	}
}

// measured is an engine whose use of the disk is what u says.
func measured(u *usage) *Engine {
	return &Engine{
		engine: &engine{engineCalls: engineCalls{diskUsage: func(context.Context) (*usage, error) { return u, nil }}},
	}
}

var then = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func someUsage() *usage {
	id := func(c string) string { return strings.Repeat(c, 64) }
	return &usage{
		layers: 1000,
		containers: []usedContainer{
			{id: id("1"), name: "web", image: "sha256:" + id("a"), state: brokerv1.ContainerState_CONTAINER_STATE_RUNNING, size: 1, created: then},
			{id: id("2"), name: "old", image: "sha256:" + id("b"), state: brokerv1.ContainerState_CONTAINER_STATE_EXITED, size: 2, created: then.Add(time.Hour)},
			{id: id("3"), name: "vault", image: "sha256:" + id("a"), state: brokerv1.ContainerState_CONTAINER_STATE_EXITED, size: 4, created: then},
			{id: id("4"), name: "paused", image: "sha256:" + id("a"), state: brokerv1.ContainerState_CONTAINER_STATE_PAUSED, size: 8, created: then},
			{id: id("5"), name: "", image: "sha256:" + id("a"), state: brokerv1.ContainerState_CONTAINER_STATE_EXITED, size: 16, created: then},
			{id: id("6"), name: "odd", image: "sha256:" + id("a"), size: 32, created: then}, // A state nobody knows.
		},
		images: []*localImage{
			{id: "sha256:" + id("a"), tags: []string{"docker.io/library/a:1"}, size: 100, created: then},
			{id: "sha256:" + id("b"), tags: []string{"docker.io/library/b:1"}, size: 200, created: then},
			{id: "sha256:" + id("c"), size: 400, shared: 150, created: then.Add(time.Minute)},
			{id: "sha256:" + id("d"), tags: []string{"docker.io/library/d:1", "ghcr.io/x/d:1"}, digests: []string{"docker.io/library/d@" + digest}, size: 800, created: then},
			{id: "sha256:" + id("e"), digests: []string{"docker.io/library/e@" + digest}, size: 1600, created: then},
			{id: "sha256:" + id("f"), odd: true, size: 3200, created: then},
		},
		volumes: []usedVolume{{name: "data", size: 10, inUse: true}, {name: "junk", size: 20}},
		cache: []cacheRecord{
			{id: "older", size: 5, created: then}, {id: "newer", size: 6, created: then.Add(time.Hour)}, {id: "busy", size: 7, inUse: true, created: then},
		},
	}
}

func TestDiskUsageCountsWhatMayBeListed(t *testing.T) {
	for pairs, want := range map[string]string{
		"":  "0/0/0/0 0/0/0/0 0/0/0/0 3/1/18/11",
		"*": "6/3/63/22 5/2/3100/2800 2/1/30/20 3/1/18/11", // Not the image that nothing can name.
		"containers.list containers/old,images.list images/ghcr.io/*,volumes.list volumes/junk": "1/0/2/2 1/0/800/800 1/0/20/20 3/1/18/11",
		"images.list images/sha256:*": "0/0/0/0 1/0/400/400 0/0/0/0 3/1/18/11",
	} {
		resp, err := measured(someUsage()).DiskUsage(call.With(t.Context(), may{pairs: strings.Split(pairs, ",")}), &brokerv1.DiskUsageRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, d := range []*brokerv1.DiskUsage{resp.GetContainers(), resp.GetImages(), resp.GetVolumes(), resp.GetBuildCache()} {
			got = append(got, fmt.Sprintf("%d/%d/%d/%d", d.GetCount(), d.GetActive(), d.GetSizeBytes(), d.GetReclaimableBytes()))
		}
		if g := strings.Join(got, " "); g != want {
			t.Errorf("with %q: %s, want %s", pairs, g, want)
		}
	}
}

// TestMeasuringIsShared: the engine does one at a time, so that who asks often must
// not keep others waiting; who hangs up ends it for nobody.
func TestMeasuringIsShared(t *testing.T) {
	release, running := make(chan struct{}), make(chan struct{}, 10)
	s := measured(nil)
	s.engine.diskUsage = func(ctx context.Context) (*usage, error) {
		running <- struct{}{}
		select {
		case <-release:
			return &usage{layers: 7}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	ask := func(ctx context.Context) error {
		resp, err := s.DiskUsage(ctx, &brokerv1.DiskUsageRequest{})
		if err == nil && resp.GetLayersBytes() != 7 {
			err = fmt.Errorf("%v", resp)
		}
		return err
	}
	ctx, hangUp := context.WithCancel(call.With(t.Context(), leave{}))
	first, rest := make(chan error, 1), make(chan error, 5)
	go func() { first <- ask(ctx) }()
	<-running
	for range cap(rest) {
		go func() { rest <- ask(call.With(t.Context(), leave{})) }()
	}
	hangUp()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("who hung up: %v", err)
	}
	time.Sleep(20 * time.Millisecond)
	close(release)
	for range cap(rest) {
		if err := <-rest; err != nil {
			t.Error(err)
		}
	}
	if len(running) != 0 {
		t.Errorf("it was measured %d times more", len(running))
	}
	if err := ask(call.With(t.Context(), leave{})); err != nil || len(running) != 1 {
		t.Errorf("the next: %v, measured %d times more", err, len(running))
	}
}

func TestNetworksAndVolumes(t *testing.T) {
	s := &Engine{engine: &engine{engineCalls: engineCalls{
		networks: func(context.Context) ([]page.Item[*brokerv1.Network], error) {
			return networksOf([]network.Summary{{Name: "home", ID: "2"}, {Name: "home", ID: "1"}, {Name: "back", ID: "3"}, {Name: "secret", ID: "4"}}), nil
		},
		volumes: func(context.Context) ([]page.Item[*brokerv1.Volume], error) {
			return volumesOf([]*volume.Volume{{Name: "b"}, {Name: "a"}, {Name: "c"}}), nil
		},
	}}}
	ctx := call.With(t.Context(), sight{hidden: func(r string) bool { return r == "networks/secret" || r == "volumes/b" }})
	var ids []string
	token := ""
	for {
		p, err := s.ListNetworks(ctx, &brokerv1.ListNetworksRequest{PageSize: 1, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range p.GetNetworks() {
			ids = append(ids, n.GetName()+n.GetId())
		}
		if token = p.GetNextPageToken(); token == "" {
			break
		}
	}
	if fmt.Sprint(ids) != "[back3 home1 home2]" {
		t.Errorf("%v", ids)
	}
	v, err := s.ListVolumes(ctx, &brokerv1.ListVolumesRequest{NamePattern: "*"})
	if err != nil || len(v.GetVolumes()) != 2 || v.GetVolumes()[0].GetName() != "a" {
		t.Errorf("%v, %v", v, err)
	}
	if _, err := s.ListVolumes(ctx, &brokerv1.ListVolumesRequest{NamePattern: "a/b"}); fault.Reason(err) != "INVALID_ARGUMENT" {
		t.Errorf("%v", err)
	}
}
