package testhost_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gortium/hermes-broker/e2e/testhost"
)

// TestHost is one test, since an engine takes seconds to start.
func TestHost(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	begin := time.Now()
	h, err := testhost.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	ready := time.Since(begin)
	var engine struct{ Version string }
	if err := h.API(ctx, "GET", "/version", nil, &engine); err != nil {
		t.Error(err)
	}
	t.Logf("engine %s ready after %v", engine.Version, ready)

	t.Run("containers", func(t *testing.T) { testContainers(t, h) })
	t.Run("events", func(t *testing.T) { testEvents(t, h) })
	t.Run("health", func(t *testing.T) { testHealth(t, h) })
	t.Run("recorder", func(t *testing.T) { testRecorderUpstream(t, h) })
	t.Run("registry", func(t *testing.T) { testRegistry(t, h) })
	t.Run("engine down and back", func(t *testing.T) { testDownAndBack(t, h) })

	begin = time.Now()
	if err := h.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	t.Logf("closed after %v", time.Since(begin))
	if _, err := os.Stat(h.Dir); err == nil {
		t.Errorf("%s outlives Close", h.Dir)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), h.Dir) {
		t.Errorf("mounts outlive Close:\n%s", mounts)
	}
	if bridges, _ := filepath.Glob("/proc/sys/net/ipv4/conf/br-*"); len(bridges) > 0 {
		t.Errorf("networks outlive Close: %s", bridges)
	}
	// Everything of the engine names its folder on the command line; init and
	// this program do not. Shims end a moment after the engine.
	eventually(t, "every process of the engine ends", func() bool {
		lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		return !slices.ContainsFunc(lines, func(file string) bool {
			line, _ := os.ReadFile(file)
			return strings.Contains(string(line), h.Dir)
		})
	})
	if err := h.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func testContainers(t *testing.T, h *testhost.Host) {
	ctx := t.Context()
	if _, err := h.Run(ctx, testhost.ContainerSpec{Name: "seven", Cmd: []string{"exit", "7"}}); err != nil {
		t.Fatal(err)
	}
	if code, err := h.Wait(ctx, "seven"); code != 7 || err != nil {
		t.Errorf("Wait = %d, %v; want 7", code, err)
	}

	if _, err := h.Run(ctx, testhost.ContainerSpec{Name: "hostile", Cmd: []string{"hostile"}, LogDriver: "local"}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Wait(ctx, "hostile"); err != nil {
		t.Fatal(err)
	}
	logs, err := h.Logs(ctx, "hostile")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"password=hunter2", "\x1b]52;", "\u202e", "\xff", "PRIVATE KEY", "on stderr"} {
		if !strings.Contains(string(logs), want) {
			t.Errorf("the hostile guest's log lacks %q", want)
		}
	}
	// The engine logs a long line in pieces, between which stderr may come.
	if got := strings.Count(string(logs), "A"); got < 100<<10 {
		t.Errorf("the hostile guest's long line lost all but %d bytes", got)
	}

	if err := h.API(ctx, "POST", "/networks/create", map[string]any{"Name": "side"}, nil); err != nil {
		t.Fatal(err)
	}
	id, err := h.Run(ctx, testhost.ContainerSpec{
		Name: "web", Networks: []string{"bridge", "side"}, Labels: map[string]string{"a": "b"}, Env: []string{"K=v"},
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := h.Inspect(ctx, "web")
	if err != nil {
		t.Fatal(err)
	}
	if c.ID != id || c.Name != "/web" || !c.State.Running || c.NetworkSettings.Networks["side"].IPAddress == "" {
		t.Errorf("Inspect = %+v", c)
	}
	if cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.State.Pid)); !strings.Contains(string(cgroup), id) {
		t.Errorf("PID %d is not in the container's cgroup: %s, %v", c.State.Pid, cgroup, err)
	}

	_, err = h.Run(ctx, testhost.ContainerSpec{Name: "web"})
	var refused *testhost.EngineError
	if !errors.As(err, &refused) || refused.Status != 409 {
		t.Errorf("a second web: %v", err)
	}
	for range 2 {
		if err := h.Remove(ctx, "web"); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
	if _, err := h.Run(ctx, testhost.ContainerSpec{Name: "lost", Networks: []string{"bridge", "nowhere"}}); err == nil {
		t.Error("a container on no network started")
	}
	if _, err := h.Inspect(ctx, "lost"); !errors.As(err, &refused) || refused.Status != 404 {
		t.Errorf("a container that did not start is still there: %v", err)
	}
}

func testEvents(t *testing.T, h *testhost.Host) {
	ctx := t.Context()
	log, err := h.FollowEvents(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	since := time.Now()
	id, err := h.Run(ctx, testhost.ContainerSpec{Name: "seen"})
	if err != nil {
		t.Fatal(err)
	}
	isStart := func(e testhost.Event) bool {
		return e.Type == "container" && e.Action == "start" && e.ID == id && e.Name == "seen"
	}
	past, err := h.EngineEvents(ctx, since, time.Now())
	if err != nil || !slices.ContainsFunc(past, isStart) {
		t.Errorf("EngineEvents = %v, %v", past, err)
	}
	if before, err := h.EngineEvents(ctx, time.Unix(1, 0), since); err != nil || slices.ContainsFunc(before, isStart) {
		t.Errorf("EngineEvents before the start = %v, %v", before, err)
	}
	eventually(t, "the followed start", func() bool {
		events, err := log.Events()
		return err == nil && slices.ContainsFunc(events, isStart)
	})

	// More events than the engine remembers: the past must not come in part.
	for range 300 {
		if err := h.API(ctx, "POST", "/images/"+testhost.GuestImage+"/tag?repo=again", nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, until := range []time.Time{time.Now(), since.Add(time.Millisecond)} {
		if past, err := h.EngineEvents(ctx, since, until); err == nil {
			t.Errorf("EngineEvents of a forgotten past = %d events", len(past))
		}
	}
	eventually(t, "300 followed tags", func() bool {
		events, _ := log.Events()
		tags := 0
		for _, e := range events {
			if e.Type == "image" && e.Action == "tag" {
				tags++
			}
		}
		return tags == 300
	})
	if err := h.Remove(ctx, "seen"); err != nil {
		t.Fatal(err)
	}
}

func testHealth(t *testing.T, h *testhost.Host) {
	ctx := t.Context()
	flag := filepath.Join(h.Dir, "flag")
	if err := os.WriteFile(flag, []byte("ok\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := h.Run(ctx, testhost.ContainerSpec{
		Name: "patient", Binds: []string{flag + ":/flag:ro"}, TTY: true,
		Health: &testhost.Health{Cmd: []string{"/guest", "health", "/flag"}, Interval: 100 * time.Millisecond, Retries: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"healthy", "unhealthy"} {
		eventually(t, want, func() bool {
			c, err := h.Inspect(ctx, "patient")
			return err == nil && c.State.Health != nil && c.State.Health.Status == want
		})
		if err := os.WriteFile(flag, []byte("no\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Remove(ctx, "patient"); err != nil {
		t.Fatal(err)
	}
}

func testDownAndBack(t *testing.T, h *testhost.Host) {
	ctx := t.Context()
	for _, spec := range []testhost.ContainerSpec{
		{Name: "faithful", RestartPolicy: "always"},
		{Name: "stubborn", Cmd: []string{"ignore-term"}, StopTimeout: time.Second},
	} {
		if _, err := h.Run(ctx, spec); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.StopEngine(); err != nil {
		t.Fatal(err)
	}
	if err := h.API(ctx, "GET", "/_ping", nil, nil); err == nil {
		t.Error("a stopped engine answers")
	}
	if err := h.StartEngine(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "faithful is back", func() bool {
		c, err := h.Inspect(ctx, "faithful")
		return err == nil && c.State.Running
	})
	stubborn, err := h.Inspect(ctx, "stubborn")
	if err != nil || stubborn.State.Running || stubborn.State.ExitCode != 137 {
		raw, _ := json.Marshal(stubborn.State)
		t.Errorf("stubborn: %s, %v", raw, err)
	}
}
