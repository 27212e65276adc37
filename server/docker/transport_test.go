package docker

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/registry"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"

	"github.com/gortium/hermes-broker/e2e/testhost"
	"github.com/gortium/hermes-broker/server/call"
)

const someID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// leave is a scope that records nothing and allows every intent.
type leave struct{}

func (leave) Visible(string) bool                  { return true }
func (leave) Permits(string, string) bool          { return true }
func (leave) Denied(string) bool                   { return false }
func (leave) Others() bool                         { return false }
func (leave) Still() error                         { return nil }
func (leave) Intend(context.Context, string) error { return nil }
func (leave) Note(string)                          {}
func (leave) Caller() call.Caller                  { return call.Caller{} }
func (leave) ID() string                           { return "test" }

func intended(t *testing.T) context.Context {
	t.Helper()
	ctx, err := call.Intend(call.With(t.Context(), leave{}), someID)
	if err != nil {
		t.Fatal(err)
	}
	return ctx
}

// recorded is an engine that takes everything down, and answers 200 to all.
func recorded(t *testing.T) *testhost.Recorder {
	t.Helper()
	r, err := testhost.RecordEngine("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	r.Script("/", testhost.Answer(map[string]any{"Id": someID, "ID": someID}))
	r.Script("HEAD /_ping", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Api-Version", "1.41") })
	return r
}

// TestNothingElseLeaves drives the SDK's own dangerous calls, with a recorded
// intent even, through the client as brokerd has it: none may reach the engine,
// hijacked connections, which dial by themselves, included.
func TestNothingElseLeaves(t *testing.T) {
	engine := recorded(t)
	cli, err := client.NewClientWithOpts(client.WithHost("unix:///dev/null/nope"),
		client.WithHTTPClient(&http.Client{Transport: newTransport(engine.Socket)}), client.WithVersion("1.51"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(intended(t), 30*time.Second)
	defer cancel()
	one := func(_ any, err error) error { return err }
	for name, do := range map[string]func() error{
		"exec create": func() error {
			return one(cli.ContainerExecCreate(ctx, someID, container.ExecOptions{Cmd: []string{"sh"}}))
		},
		"exec start":   func() error { return cli.ContainerExecStart(ctx, someID, container.ExecStartOptions{}) },
		"exec attach":  func() error { return one(cli.ContainerExecAttach(ctx, someID, container.ExecAttachOptions{})) },
		"exec inspect": func() error { return one(cli.ContainerExecInspect(ctx, someID)) },
		"exec resize":  func() error { return cli.ContainerExecResize(ctx, someID, container.ResizeOptions{}) },
		"attach": func() error {
			return one(cli.ContainerAttach(ctx, someID, container.AttachOptions{Stream: true, Stdin: true}))
		},
		"copy to": func() error {
			return cli.CopyToContainer(ctx, someID, "/", strings.NewReader("x"), container.CopyToContainerOptions{})
		},
		"copy from":        func() error { _, _, err := cli.CopyFromContainer(ctx, someID, "/etc/shadow"); return err },
		"stat path":        func() error { return one(cli.ContainerStatPath(ctx, someID, "/")) },
		"commit":           func() error { return one(cli.ContainerCommit(ctx, someID, container.CommitOptions{})) },
		"diff":             func() error { return one(cli.ContainerDiff(ctx, someID)) },
		"export":           func() error { return one(cli.ContainerExport(ctx, someID)) },
		"create":           func() error { return one(cli.ContainerCreate(ctx, &container.Config{Image: "x"}, nil, nil, nil, "x")) },
		"update":           func() error { return one(cli.ContainerUpdate(ctx, someID, container.UpdateConfig{})) },
		"rename":           func() error { return cli.ContainerRename(ctx, someID, "other") },
		"kill":             func() error { return cli.ContainerKill(ctx, someID, "KILL") },
		"pause":            func() error { return cli.ContainerPause(ctx, someID) },
		"unpause":          func() error { return cli.ContainerUnpause(ctx, someID) },
		"resize":           func() error { return cli.ContainerResize(ctx, someID, container.ResizeOptions{}) },
		"top":              func() error { return one(cli.ContainerTop(ctx, someID, []string{"-ef"})) },
		"prune containers": func() error { return one(cli.ContainersPrune(ctx, filters.Args{})) },
		"start checkpoint": func() error { return cli.ContainerStart(ctx, someID, container.StartOptions{CheckpointID: "c"}) },
		"remove volumes":   func() error { return cli.ContainerRemove(ctx, someID, container.RemoveOptions{RemoveVolumes: true}) },
		"remove link":      func() error { return cli.ContainerRemove(ctx, someID, container.RemoveOptions{RemoveLinks: true}) },
		"restart by name":  func() error { return cli.ContainerRestart(ctx, "web", container.StopOptions{}) },
		"stop with signal": func() error { return cli.ContainerStop(ctx, someID, container.StopOptions{Signal: "SIGUSR1"}) },
		"list with filter": func() error {
			return one(cli.ContainerList(ctx, container.ListOptions{Filters: filters.NewArgs(filters.Arg("label", "x"))}))
		},
		"image save": func() error { return one(cli.ImageSave(ctx, []string{"x"})) },
		"image load": func() error { return one(cli.ImageLoad(ctx, strings.NewReader("x"))) },
		"image import": func() error {
			return one(cli.ImageImport(ctx, image.ImportSource{Source: strings.NewReader("x"), SourceName: "-"}, "x", image.ImportOptions{}))
		},
		"image pull of all tags":   func() error { return one(cli.ImagePull(ctx, "alpine", image.PullOptions{All: true})) },
		"image pull of a platform": func() error { return one(cli.ImagePull(ctx, "alpine", image.PullOptions{Platform: "linux/s390x"})) },
		"image create":             func() error { return one(cli.ImageCreate(ctx, "alpine", image.CreateOptions{Platform: "linux/arm64"})) },
		"image inspect by name":    func() error { return one(cli.ImageInspect(ctx, "alpine")) },
		"image list with filter":   func() error { return one(cli.ImageList(ctx, image.ListOptions{All: true})) },
		"image remove without parents": func() error {
			return one(cli.ImageRemove(ctx, "docker.io/library/alpine:latest", image.RemoveOptions{}))
		},
		"prune images":                func() error { return one(cli.ImagesPrune(ctx, filters.Args{})) },
		"prune volumes":               func() error { return one(cli.VolumesPrune(ctx, filters.Args{})) },
		"prune networks":              func() error { return one(cli.NetworksPrune(ctx, filters.Args{})) },
		"prune the whole build cache": func() error { return one(cli.BuildCachePrune(ctx, build.CachePruneOptions{All: true})) },
		"prune old build cache": func() error {
			return one(cli.BuildCachePrune(ctx, build.CachePruneOptions{Filters: filters.NewArgs(filters.Arg("until", "1h"))}))
		},
		"distribution of a short name": func() error { return one(cli.DistributionInspect(ctx, "alpine", "")) },
		"credentials elsewhere":        func() error { return one(cli.RegistryLogin(ctx, registry.AuthConfig{Username: "x"})) },
		"events with filter": func() error {
			messages, failed := cli.Events(ctx, events.ListOptions{Filters: filters.NewArgs(filters.Arg("type", "container"))})
			select {
			case <-messages:
				return nil
			case err := <-failed:
				return err
			}
		},
		"network inspect":   func() error { return one(cli.NetworkInspect(ctx, "n", network.InspectOptions{})) },
		"network remove":    func() error { return cli.NetworkRemove(ctx, "n") },
		"volume inspect":    func() error { return one(cli.VolumeInspect(ctx, "v")) },
		"image push":        func() error { return one(cli.ImagePush(ctx, "alpine", image.PushOptions{RegistryAuth: "e30="})) },
		"image tag":         func() error { return cli.ImageTag(ctx, "alpine", "other") },
		"image build":       func() error { return one(cli.ImageBuild(ctx, strings.NewReader("x"), build.ImageBuildOptions{})) },
		"image remove":      func() error { return one(cli.ImageRemove(ctx, "alpine", image.RemoveOptions{})) },
		"image history":     func() error { return one(cli.ImageHistory(ctx, "alpine")) },
		"network create":    func() error { return one(cli.NetworkCreate(ctx, "n", network.CreateOptions{})) },
		"network connect":   func() error { return cli.NetworkConnect(ctx, "n", someID, nil) },
		"volume create":     func() error { return one(cli.VolumeCreate(ctx, volume.CreateOptions{})) },
		"volume remove":     func() error { return cli.VolumeRemove(ctx, "v", true) },
		"swarm init":        func() error { return one(cli.SwarmInit(ctx, swarm.InitRequest{})) },
		"secret create":     func() error { return one(cli.SecretCreate(ctx, swarm.SecretSpec{})) },
		"session":           func() error { return one(cli.DialHijack(ctx, "/session", "h2c", nil)) },
		"native gRPC":       func() error { return one(cli.DialHijack(ctx, "/grpc", "h2c", nil)) },
		"inspect with path": func() error { return one(cli.ContainerInspect(ctx, "a/b")) },
	} {
		if err := do(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if got := engine.Requests(); len(got) != 0 {
		t.Errorf("reached the engine: %v", got)
	}
}

// TestForbiddenSpellings sends requests no SDK would make.
func TestForbiddenSpellings(t *testing.T) {
	engine := recorded(t)
	cli := &http.Client{Transport: newTransport(engine.Socket)}
	for _, line := range []string{
		"POST /containers/" + someID + "/exec", "POST /v1.41/exec/" + someID + "/start", "POST /containers/" + someID + "/attach",
		"GET /containers/" + someID + "/attach/ws", "GET /containers/" + someID + "/archive?path=/etc", "PUT /containers/" + someID + "/archive?path=/",
		"GET /containers/" + someID + "/export", "POST /commit?container=x", "GET /images/get", "GET /images/alpine/get", "POST /images/load",
		"POST /images/create?fromImage=x", "POST /build", "POST /session", "POST /containers/create",
		"POST /images/create?fromSrc=-", "POST /images/create?fromImage=docker.io/library/alpine&tag=latest&repo=x", "POST /images/create?fromImage=docker.io/library/alpine&tag=latest&fromSrc=-",
		"POST /images/create?fromImage=docker.io/library/alpine&tag=latest&changes=USER+root", "POST /images/create?fromImage=docker.io/library/alpine&fromImage=x",
		"POST /images/create?fromImage=http://198.51.100.7/x&tag=1", "POST /images/create?fromImage=docker.io/../x&tag=1", "POST /images/create?fromImage=docker.io/library/alpine&tag=a/b",
		"POST /images/create?fromImage=docker.io/library/alpine:latest&tag=1", "POST /images/docker.io/library/alpine:latest/tag?repo=x", "POST /images/docker.io/library/alpine:latest/push",
		"GET /images/docker.io/library/alpine:latest/get", "GET /images/docker.io/library/alpine:latest/history", "GET /images/docker.io/library/json", "GET /images/search?term=x",
		"DELETE /images/alpine", "DELETE /images/" + someID, "DELETE /images/docker.io/library/alpine:latest?noprune=1", "DELETE /images/docker.io/library/alpine:latest?force=true",
		"DELETE /images/docker.io/library/../alpine:latest", "DELETE /images/docker.io%2flibrary%2falpine:latest", "GET /distribution/alpine/json", "GET /distribution/docker.io/library/alpine:latest/json?x=1",
		"GET /system/df?type=volume", "GET /events?filters=x", "GET /events?since=now", "GET /events?since=1&since=2", "GET /info?x=1", "GET /networks?filters=x", "GET /networks/n", "GET /volumes/v", "DELETE /volumes/v",
		"DELETE /networks/n", "POST /build/prune?all=1&filters={}", "POST /build/prune?filters={\"until\":{\"1h\":true}}", "POST /build/prune?filters={\"id\":{\"a\":true,\"b\":true}}", "POST /build/prune?keep-storage=1", "POST /build/prune", "POST /build/prune?all=1", "POST /images/create?fromImage=docker.io/library/alpine", "POST /images/create?tag=latest",
		"POST /images/prune", "POST /volumes/prune", "POST /networks/prune", "POST /containers/prune", "GET /swarm", "GET /secrets", "GET /configs", "GET /plugins", "GET /tasks",
		"POST /v1.41/containers/" + someID + "/restart/exec", "POST /containers/" + someID + "/../" + someID + "/restart", "POST /v1.41//containers/" + someID + "/restart",
		"POST /containers/" + strings.ToUpper(someID) + "/restart", "POST /containers/" + someID[:12] + "/restart", "POST /containers/" + someID + "0/restart",
		"POST /containers/%30" + someID[1:] + "/restart", "POST /containers/" + someID + "%2Frestart", "DELETE /containers/" + someID + "?v=1",
		"DELETE /containers/" + someID + "?force=1&v=1", "POST /containers/" + someID + "/stop?signal=KILL", "GET /containers/json?size=1",
		"GET /containers/json?filters=x", "GET /containers/web/json?size=1", "GET /images/alpine/json", "PATCH /containers/json", "OPTIONS /_ping",
		"GET /v1.41/v1.41/containers/json", "GET /v2/containers/json", "GET /containers/web%2f..%2fdb/json", "GET /containers/-x/json",
		"GET /containers/" + someID + "/logs?details=1", "GET /containers/" + someID + "/stats?one-shot=1",
	} {
		method, url, _ := strings.Cut(line, " ")
		req, err := http.NewRequestWithContext(intended(t), method, "http://engine"+url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cli.Do(req); !errors.Is(err, errForbidden) {
			t.Errorf("%s: %v", line, err)
		}
	}
	upgrade, _ := http.NewRequestWithContext(intended(t), "POST", "http://engine/containers/"+someID+"/start", nil)
	upgrade.Header.Set("Connection", "Upgrade")
	upgrade.Header.Set("Upgrade", "tcp")
	body, _ := http.NewRequestWithContext(intended(t), "POST", "http://engine/containers/"+someID+"/start", strings.NewReader(`{"Binds":["/:/host"]}`))
	auth, _ := http.NewRequestWithContext(intended(t), "GET", "http://engine/info", nil)
	auth.Header.Set("X-Registry-Auth", "e30=")
	for _, req := range []*http.Request{upgrade, body, auth} {
		if _, err := cli.Do(req); !errors.Is(err, errForbidden) {
			t.Errorf("%v: %v", req.Header, err)
		}
	}
	if got := engine.Requests(); len(got) != 0 {
		t.Errorf("reached the engine: %v", got)
	}
}

// TestNoChangeWithoutIntent: the table's own changes, from a context that never
// saw Intend.
func TestNoChangeWithoutIntent(t *testing.T) {
	engine := recorded(t)
	e, err := newEngine(engine.Socket, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx := call.With(t.Context(), leave{})
	for name, do := range map[string]func(context.Context) error{
		"start":   func(ctx context.Context) error { return e.start(ctx, someID) },
		"stop":    func(ctx context.Context) error { return e.stop(ctx, someID, nil) },
		"restart": func(ctx context.Context) error { return e.restart(ctx, someID, nil) },
		"remove":  func(ctx context.Context) error { return e.remove(ctx, someID, true) },
		"pull": func(ctx context.Context) error {
			body, err := e.pull(ctx, "docker.io/library/alpine:latest", "")
			if err == nil {
				body.Close()
			}
			return err
		},
		"remove an image": func(ctx context.Context) error {
			_, err := e.removeImage(ctx, "docker.io/library/alpine:latest", true)
			return err
		},
		"remove an image by ID":  func(ctx context.Context) error { _, err := e.removeImage(ctx, "sha256:"+someID, false); return err },
		"remove the build cache": func(ctx context.Context) error { _, err := e.removeCache(ctx, "abc123"); return err },
	} {
		if err := do(ctx); !errors.Is(err, errNoIntent) {
			t.Errorf("%s: %v", name, err)
		}
		if err := do(t.Context()); !errors.Is(err, errNoIntent) {
			t.Errorf("%s without a scope: %v", name, err)
		}
	}
	for _, q := range engine.Requests() {
		if q.Method != "HEAD" && q.Method != "GET" {
			t.Errorf("reached the engine: %v", q)
		}
	}
	if err := e.restart(intended(t), someID, nil); err != nil {
		t.Errorf("with an intent: %v", err)
	}
	if _, err := e.removeCache(intended(t), "abc123"); err != nil {
		t.Errorf("with an intent: %v", err)
	}
	engine.Script("DELETE /", testhost.Answer([]any{}))
	if _, err := e.removeImage(intended(t), "docker.io/library/alpine@sha256:"+someID, true); err != nil {
		t.Errorf("with an intent: %v", err)
	}
	body, err := e.pull(intended(t), "127.0.0.1:5000/team/app:1", "e30=")
	if err != nil {
		t.Fatalf("with an intent: %v", err)
	}
	body.Close()
}
