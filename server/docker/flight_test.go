package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
)

// TestTagThatMoves: what was decided on is what is there, and what nobody decided
// on does not go by the tag.
func TestTagThatMoves(t *testing.T) {
	const ref = "docker.io/library/alpine:latest"
	for moveAt, want := range map[int]brokerv1.PulledTag{
		2: brokerv1.PulledTag_PULLED_TAG_MOVED,   // While it is fetched.
		3: brokerv1.PulledTag_PULLED_TAG_DROPPED, // Between the last look and the engine's.
	} {
		r := newRegistry()
		r.moveAt = moveAt
		p, err := pullAs(t, r.service(), leave{}, &brokerv1.PullRequest{Image: ref})
		if err != nil || p.result().GetDigest() != first || p.result().GetImageId() != "sha256:id-of-1111111111111" || p.result().GetTag() != want {
			t.Errorf("moved at %d: %v, %v", moveAt, p.result(), err)
		}
		if got := r.tagged(ref); got != "" {
			t.Errorf("moved at %d: the tag names %s", moveAt, got)
		}
	}
	// A tag that was there keeps what it named.
	r := newRegistry()
	r.moveAt = 5
	s := r.service()
	for range 2 {
		if _, err := pullAs(t, s, leave{}, &brokerv1.PullRequest{Image: ref}); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.tagged(ref); got != "sha256:id-of-1111111111111" {
		t.Errorf("the tag names %q", got)
	}
}

// TestTagIsCheckedHoweverItsFetchEnds: who hangs up at the right moment, an engine
// that breaks off, a registry that stops answering leave no undecided image under
// the tag.
func TestTagIsCheckedHoweverItsFetchEnds(t *testing.T) {
	const ref = "docker.io/library/alpine:latest"
	const old = "sha256:9999999999999999999999999999999999999999999999999999999999999999"
	for name, c := range map[string]struct {
		edit   func(r *fakeRegistry, hangUp func()) // hangUp returns when nobody is aboard.
		reason string
		tag    brokerv1.PulledTag
		left   string
	}{
		"the caller hangs up": {func(r *fakeRegistry, hangUp func()) {
			r.pull = func(pulled string, _ io.Writer) error {
				if pulled == ref {
					hangUp()
				}
				return nil
			}
		}, "OUTCOME_UNKNOWN", 0, ""},
		"the engine breaks off": {func(r *fakeRegistry, _ func()) {
			r.pull = func(pulled string, _ io.Writer) error {
				if pulled == ref {
					r.mu.Lock()
					defer r.mu.Unlock()
					r.take(ref)
					return errors.New("broken")
				}
				return nil
			}
		}, "", brokerv1.PulledTag_PULLED_TAG_DROPPED, ""},
		"the engine breaks off before": {func(r *fakeRegistry, _ func()) {
			r.moveAt = 0
			r.pull = func(pulled string, _ io.Writer) error {
				if pulled == ref {
					return errors.New("broken")
				}
				return nil
			}
		}, "OUTCOME_UNKNOWN", 0, ""},
		"the tag goes back to what it was": {func(r *fakeRegistry, _ func()) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.images = append(r.images, &localImage{id: "sha256:id-of-9999999999999", tags: []string{ref}, digests: []string{"docker.io/library/alpine@" + old}})
			r.movesTo = old
		}, "", brokerv1.PulledTag_PULLED_TAG_MOVED, "sha256:id-of-9999999999999"},
		"the registry stops answering": {func(r *fakeRegistry, _ func()) { r.failAt = 2 }, "REGISTRY_UNAVAILABLE", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry()
			r.moveAt = 3
			s := r.service()
			ctx, cancel := context.WithCancel(call.With(t.Context(), leave{}))
			defer cancel()
			c.edit(r, func() {
				cancel()
				for up := 1; up > 0; time.Sleep(time.Millisecond) {
					s.mu.Lock()
					up = len(s.flights)
					s.mu.Unlock()
				}
			})
			p := &pulls{ctx: ctx}
			err := s.Pull(&brokerv1.PullRequest{Image: ref}, p)
			if fault.Reason(err) != c.reason || err == nil && p.result().GetTag() != c.tag {
				t.Errorf("%v, %v", p.events, err)
			}
			for range 500 { // The flight may outlive who was aboard.
				s.mu.Lock()
				r.mu.Lock()
				done := r.tagged(ref) == c.left && (err == nil || ctx.Err() == nil || slices.Contains(r.pulled, ref))
				r.mu.Unlock()
				s.mu.Unlock()
				if done {
					return
				}
				time.Sleep(2 * time.Millisecond)
			}
			t.Errorf("the tag names %q, want %q; removed %v", r.tagged(ref), c.left, r.removed)
		})
	}
}

func TestProgress(t *testing.T) {
	r := newRegistry()
	step := make(chan string)
	r.pull = func(ref string, w io.Writer) error {
		if strings.Contains(ref, "@") {
			for l := range step {
				say(w, l)
			}
		}
		return nil
	}
	p := &pulls{ctx: call.With(t.Context(), leave{})}
	done := make(chan error)
	go func() { done <- r.service().Pull(&brokerv1.PullRequest{Image: "alpine"}, p) }()
	last := func(ok func(*brokerv1.PullProgress) bool) {
		t.Helper()
		for range 500 {
			p.mu.Lock()
			n := len(p.events)
			good := n > 0 && ok(p.events[n-1].GetProgress())
			p.mu.Unlock()
			if good {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Fatalf("the progress did not come; there is %v", p.events)
	}
	for _, l := range []string{
		`{"status":"Pulling from library/alpine","id":"latest"}`, `{"status":"Pulling fs layer","progressDetail":{},"id":"aaaaaaaaaaaa"}`,
		`{"status":"Pulling fs layer","progressDetail":{},"id":"bbbbbbbbbbbb"}`, `{"status":"Already exists","progressDetail":{},"id":"cccccccccccc"}`,
		`{"status":"Downloading","progressDetail":{"current":10,"total":100},"id":"aaaaaaaaaaaa"}`,
	} {
		step <- l
	}
	last(func(q *brokerv1.PullProgress) bool {
		return q.GetDownloadedBytes() == 10 && q.GetTotalBytes() == 100 && q.GetLayersTotal() == 3 && q.GetLayersDone() == 1
	})
	step <- `{"status":"Download complete","progressDetail":{},"id":"aaaaaaaaaaaa"}`
	step <- `{"status":"Extracting","progressDetail":{"current":40,"total":90},"id":"aaaaaaaaaaaa"}`
	step <- `{"status":"Verifying Checksum","progressDetail":{},"id":"` + strings.Repeat("x", 65) + `"}`
	step <- `{"status":"Retrying in 5 seconds","progressDetail":{},"id":"bbbbbbbbbbbb"}`
	last(func(q *brokerv1.PullProgress) bool {
		// The layer that changed alone; what is extracted is not fetched twice.
		return len(q.GetLayers()) == 1 && q.GetLayers()[0].GetState() == brokerv1.PullLayerState_PULL_LAYER_STATE_EXTRACTING && q.GetLayers()[0].GetCurrentBytes() == 40 &&
			q.GetDownloadedBytes() == 100
	})
	step <- `{"status":"Pull complete","progressDetail":{},"id":"aaaaaaaaaaaa"}`
	close(step)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	p.events = p.events[:len(p.events)-1]
	last(func(q *brokerv1.PullProgress) bool { return q.GetLayersDone() == 2 && q.GetLayersTotal() == 3 })
}

// TestSpaceThatRunsOut ends the fetch, not only the waiting for it.
func TestSpaceThatRunsOut(t *testing.T) {
	r := newRegistry()
	stopped := make(chan struct{})
	r.pull = func(_ string, w io.Writer) error {
		defer close(stopped)
		for n := 0; ; n++ {
			if _, err := fmt.Fprintf(w, `{"status":"Downloading","progressDetail":{"current":%d,"total":9},"id":"aaaaaaaaaaaa"}`, n); err != nil {
				return err
			}
			r.mu.Lock()
			r.free -= 1 << 36
			r.mu.Unlock()
			time.Sleep(20 * time.Millisecond)
		}
	}
	_, err := pullAs(t, r.service(), leave{}, &brokerv1.PullRequest{Image: "alpine"})
	if fault.Reason(err) != "INSUFFICIENT_SPACE" {
		t.Errorf("%v", err)
	}
	select {
	case <-stopped:
	case <-time.After(5 * time.Second):
		t.Error("the engine goes on")
	}
}

// TestSpaceThatRanOut: what the engine fails with says nothing; the disk does.
func TestSpaceThatRanOut(t *testing.T) {
	r := newRegistry()
	r.pull = func(_ string, w io.Writer) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.free = 0
		say(w, `{"error":"failed to register layer"}`)
		return nil
	}
	if _, err := pullAs(t, r.service(), leave{}, &brokerv1.PullRequest{Image: "alpine"}); fault.Reason(err) != "INSUFFICIENT_SPACE" {
		t.Errorf("%v", err)
	}
}

// TestSecondPullerJoins: one fetch for all who ask meanwhile; who leaves leaves
// alone; the last to leave ends it.
func TestSecondPullerJoins(t *testing.T) {
	r := newRegistry()
	release := make(chan struct{})
	fetches := make(chan string, 10)
	ended := make(chan error, 10)
	r.pull = func(ref string, w io.Writer) error {
		fetches <- ref
		say(w, `{"status":"Pulling fs layer","id":"aaaaaaaaaaaa"}`)
		for {
			select {
			case <-release:
				return nil
			case <-time.After(5 * time.Millisecond):
				if _, err := io.WriteString(w, `{"status":"Waiting","id":"aaaaaaaaaaaa"}`); err != nil {
					ended <- err
					return err
				}
			}
		}
	}
	s := r.service()
	board := func(image string) (leaves func(), done chan error, p *pulls) {
		ctx, cancel := context.WithCancel(call.With(t.Context(), leave{}))
		p, done = &pulls{ctx: ctx}, make(chan error, 1)
		go func() { done <- s.Pull(&brokerv1.PullRequest{Image: image}, p) }()
		return cancel, done, p
	}
	aboard := func(want int) {
		t.Helper()
		for range 500 {
			s.mu.Lock()
			f := s.flights["docker.io/library/alpine:latest"]
			n := 0
			if f != nil {
				n = f.aboard
			}
			s.mu.Unlock()
			if n == want {
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
		t.Fatalf("there are not %d aboard", want)
	}
	leaves, done1, _ := board("alpine")
	<-fetches
	_, done2, p2 := board("docker.io/library/alpine:latest")
	_, done3, _ := board("alpine:latest")
	aboard(3)
	leaves() // Even the one who began it.
	if err := <-done1; !errors.Is(err, context.Canceled) && fault.Reason(err) != "OUTCOME_UNKNOWN" {
		t.Errorf("who left: %v", err)
	}
	aboard(2)
	close(release)
	for _, done := range []chan error{done2, done3} {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if p2.result().GetDigest() != first || p2.result().GetTag() != brokerv1.PulledTag_PULLED_TAG_SET || len(fetches) != 1 { // The tag's.
		t.Errorf("%v, %d further fetches", p2.result(), len(fetches))
	}
	<-fetches
	if r.asked != 3 { // To decide, before the tag, and the engine for the tag.
		t.Errorf("the registry was asked %d times", r.asked)
	}

	release = make(chan struct{})
	a, doneA, _ := board("alpine")
	<-fetches
	b, doneB, _ := board("alpine")
	aboard(2)
	a()
	<-doneA
	select {
	case err := <-ended:
		t.Fatalf("ended while somebody waits: %v", err)
	case <-time.After(30 * time.Millisecond):
	}
	b()
	<-doneB
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("nobody waits, and the engine goes on")
	}
	if len(s.flights) != 0 {
		t.Error("the flight is still up")
	}
}
