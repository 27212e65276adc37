package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/imageref"
)

const (
	first  = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	second = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
)

// pulls takes the events of a pull.
type pulls struct {
	grpc.ServerStream
	ctx    context.Context
	mu     sync.Mutex
	events []*brokerv1.PullResponse
}

func (p *pulls) Context() context.Context { return p.ctx }
func (p *pulls) Send(e *brokerv1.PullResponse) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, e)
	return nil
}

func (p *pulls) result() *brokerv1.PullResult { return p.events[len(p.events)-1].GetResult() }

func pullAs(t *testing.T, s *Images, scope call.Scope, req *brokerv1.PullRequest) (*pulls, error) {
	t.Helper()
	p := &pulls{ctx: call.With(t.Context(), scope)}
	return p, s.Pull(req, p)
}

func TestPullByTag(t *testing.T) {
	r := newRegistry()
	s := r.service()
	var targets []string
	p, err := pullAs(t, s, intents{targets: &targets}, &brokerv1.PullRequest{Image: "alpine"})
	if err != nil {
		t.Fatal(err)
	}
	res := p.result()
	if res.GetImage() != "docker.io/library/alpine:latest" || res.GetDigest() != first || res.GetAlreadyPresent() || res.GetTag() != brokerv1.PulledTag_PULLED_TAG_SET ||
		res.GetImageId() != "sha256:id-of-1111111111111" || res.GetSizeBytes() != 42 {
		t.Errorf("%v", res)
	}
	// The digest first, and the tag when all is there.
	if fmt.Sprint(r.pulled) != "[docker.io/library/alpine@"+first+" docker.io/library/alpine:latest]" {
		t.Errorf("fetched %v", r.pulled)
	}
	if fmt.Sprint(targets) != "[docker.io/library/alpine@"+first+" for docker.io/library/alpine:latest]" {
		t.Errorf("intended %v", targets)
	}
	if p, err = pullAs(t, s, leave{}, &brokerv1.PullRequest{Image: "alpine"}); err != nil || !p.result().GetAlreadyPresent() {
		t.Errorf("again: %v, %v", p.result(), err)
	}
	if len(s.flights) != 0 {
		t.Errorf("%d flights are still up", len(s.flights))
	}
}

func TestPullByDigestTouchesNoTag(t *testing.T) {
	r := newRegistry()
	p, err := pullAs(t, r.service(), leave{}, &brokerv1.PullRequest{Image: "alpine@" + second})
	if err != nil || p.result().GetDigest() != second || p.result().GetTag() != 0 || fmt.Sprint(r.pulled) != "[docker.io/library/alpine@"+second+"]" || r.asked != 0 {
		t.Errorf("%v, %v, fetched %v", p.result(), err, r.pulled)
	}
}

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

// TestReferencesReachTheEngine: what is a reference to the broker is one to the
// list of what may leave it.
func TestReferencesReachTheEngine(t *testing.T) {
	for _, text := range []string{"alpine", "xn--dcker-jua.io/a:1", "a--b.example/x", "a.b-c.d:65535/x/y__z.w-v:T_-.1", "127.0.0.1:5000/a@" + first, "localhost/a"} {
		ref, err := imageref.Parse(text)
		if err != nil || !only("{reference}").MatchString(ref.String()) || !only("{repository}").MatchString(ref.Name()) {
			t.Errorf("%s: %s, %v", text, ref, err)
		}
	}
}

// denies forbids one digest.
type denies struct{ leave }

func (denies) Denied(resource string) bool {
	return resource == "images/docker.io/library/alpine@"+first
}

func TestPullIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		req   *brokerv1.PullRequest
		scope call.Scope
		edit  func(*fakeRegistry, *Images)
		want  string
	}{
		"no reference":        {&brokerv1.PullRequest{Image: "A"}, leave{}, nil, "INVALID_ARGUMENT"},
		"no such tag":         {&brokerv1.PullRequest{Image: "alpine:9"}, leave{}, nil, "IMAGE_NOT_FOUND"},
		"loopback":            {&brokerv1.PullRequest{Image: "localhost:5000/a"}, leave{}, nil, "REGISTRY_NOT_REGISTERED"},
		"another port":        {&brokerv1.PullRequest{Image: "127.0.0.1:5001/a"}, leave{}, nil, "REGISTRY_NOT_REGISTERED"},
		"an address":          {&brokerv1.PullRequest{Image: "198.51.100.7/a"}, leave{}, nil, "REGISTRY_NOT_REGISTERED"},
		"registered":          {&brokerv1.PullRequest{Image: "127.0.0.1:5000/a"}, leave{}, nil, "IMAGE_NOT_FOUND"},
		"a denied digest":     {&brokerv1.PullRequest{Image: "alpine"}, denies{}, nil, "PERMISSION_DENIED"},
		"full":                {&brokerv1.PullRequest{Image: "alpine"}, leave{}, func(r *fakeRegistry, _ *Images) { r.free = 1<<30 - 1 }, "INSUFFICIENT_SPACE"},
		"full, validate_only": {&brokerv1.PullRequest{Image: "alpine", ValidateOnly: true}, leave{}, func(r *fakeRegistry, _ *Images) { r.free = 0 }, "INSUFFICIENT_SPACE"},
		"space nobody can see": {&brokerv1.PullRequest{Image: "alpine"}, leave{}, func(_ *fakeRegistry, s *Images) {
			s.disk.free = func(string) (int64, int64, error) { return 0, 0, errors.New("canary /srv/secret") }
		}, "INSUFFICIENT_SPACE"},
		"a registry that lies": {&brokerv1.PullRequest{Image: "alpine"}, leave{}, func(r *fakeRegistry, _ *Images) { r.tags["docker.io/library/alpine:latest"] = "../canary" }, "REGISTRY_UNAVAILABLE"},
		"no intent":            {&brokerv1.PullRequest{Image: "alpine"}, refuses{}, nil, "AUDIT_UNAVAILABLE"},
	} {
		r := newRegistry()
		s := r.service()
		if c.edit != nil {
			c.edit(r, s)
		}
		p, err := pullAs(t, s, c.scope, c.req)
		if fault.Reason(err) != c.want || len(r.pulled) != 0 || len(p.events) != 0 {
			t.Errorf("%s: %v, fetched %v, want %s", name, err, r.pulled, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: came out: %v", name, err)
		}
		if len(s.flights) != 0 {
			t.Errorf("%s: a flight is up", name)
		}
	}
	r := newRegistry()
	p, err := pullAs(t, r.service(), leave{}, &brokerv1.PullRequest{Image: "alpine", ValidateOnly: true})
	if err != nil || len(p.events) != 1 || p.result().GetDigest() != first || len(r.pulled) != 0 {
		t.Errorf("validate_only: %v, %v, fetched %v", p.events, err, r.pulled)
	}
}

// refuses lets nothing begin.
type refuses struct{ leave }

func (refuses) Intend(context.Context, string) error {
	return fault.New(brokerv1.ErrorReason_ERROR_REASON_AUDIT_UNAVAILABLE, "no")
}

func say(w io.Writer, lines ...string) {
	for _, l := range lines {
		_, _ = io.WriteString(w, l+"\n")
	}
}

// TestPullThatFailsInTheMiddle maps what the engine says in its stream.
func TestPullThatFailsInTheMiddle(t *testing.T) {
	for text, want := range map[string]string{
		`unexpected EOF canary`: "REGISTRY_UNAVAILABLE",
		`write /var/lib/docker/tmp/canary: no space left on device`:                              "REGISTRY_UNAVAILABLE", // The disk has room: a stranger's word.
		`unauthorized: authentication required canary`:                                           "REGISTRY_DENIED",
		`manifest for canary not found: manifest unknown`:                                        "IMAGE_NOT_FOUND",
		`pull access denied for canary, repository does not exist or may require 'docker login'`: "REGISTRY_DENIED",
		`filesystem layer verification failed for digest sha256:canary`:                          "REGISTRY_UNAVAILABLE",
	} {
		r := newRegistry()
		r.pull = func(_ string, w io.Writer) error {
			b, _ := json.Marshal(map[string]any{"error": text, "errorDetail": map[string]any{"message": text}})
			say(w, `{"status":"Pulling fs layer","id":"aaaaaaaaaaaa"}`, string(b))
			return nil
		}
		_, err := pullAs(t, r.service(), leave{}, &brokerv1.PullRequest{Image: "alpine"})
		if fault.Reason(err) != want || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
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

// TestCredentialsGoToTheirRegistryAlone.
func TestCredentialsGoToTheirRegistryAlone(t *testing.T) {
	r := newRegistry()
	r.tags["127.0.0.1:5000/a:latest"] = first
	s := r.service()
	seen := map[string]string{}
	resolve := s.engine.resolve
	s.engine.resolve = func(ctx context.Context, ref, auth string) (string, error) {
		seen[ref] = auth
		return resolve(ctx, ref, auth)
	}
	for _, image := range []string{"alpine", "127.0.0.1:5000/a"} {
		if _, err := pullAs(t, s, leave{}, &brokerv1.PullRequest{Image: image, ValidateOnly: true}); err != nil {
			t.Fatal(err)
		}
	}
	if seen["docker.io/library/alpine:latest"] != "" || seen["127.0.0.1:5000/a:latest"] == "" {
		t.Errorf("%v", seen)
	}
}
