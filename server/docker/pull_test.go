package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

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
