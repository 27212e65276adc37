package docker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/durationpb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
)

// world of images and containers that can be removed.
func pruned(u *usage) (s *Engine, gone *[]string) {
	s, gone = measured(u), &[]string{}
	note := func(what string) error { *gone = append(*gone, what); return nil }
	s.engine.remove = func(_ context.Context, id string, force bool) error {
		return note(fmt.Sprint("container ", id[:1], force))
	}
	s.engine.removeImage = func(_ context.Context, ref string, force bool) ([]string, error) {
		return nil, note(fmt.Sprint("image ", ref, force))
	}
	s.engine.removeCache = func(_ context.Context, id string) (bool, error) { return true, note("cache " + id) }
	s.engine.image = func(_ context.Context, ref string) (*localImage, error) {
		for _, i := range u.images {
			// The ID is gone with the last reference, the references are the engine's own.
			if i.id == ref && !slices.ContainsFunc(*gone, func(g string) bool {
				return slices.Contains(i.references(), strings.TrimSuffix(strings.TrimPrefix(g, "image "), "false"))
			}) ||
				slices.Contains(i.references(), ref) {
				return i, nil
			}
		}
		return nil, errdefs.ErrNotFound
	}
	s.engine.inspect = func(_ context.Context, id string) (*inspected, error) {
		for _, c := range u.containers {
			if c.id == id {
				return &inspected{id: c.id, name: c.name, state: c.state}, nil
			}
		}
		return nil, errdefs.ErrNotFound
	}
	return s, gone
}

func itemNames(resp *brokerv1.PruneResponse) string {
	var all []string
	for _, i := range resp.GetItems() {
		name := i.GetId()
		if len(i.GetNames()) > 0 {
			name = i.GetNames()[0]
		}
		all = append(all, strings.ReplaceAll(strings.TrimPrefix(name, "docker.io/library/"), digest, "digest"))
	}
	return strings.Join(all, " ")
}

func TestPruneCandidates(t *testing.T) {
	c := "sha256:" + strings.Repeat("c", 64)
	for _, x := range []struct {
		req         *brokerv1.PruneRequest
		pairs, want string
	}{
		{&brokerv1.PruneRequest{Containers: true}, "*", "vault old"},
		{&brokerv1.PruneRequest{Containers: true}, "containers.remove containers/old", "old"},
		{&brokerv1.PruneRequest{Containers: true}, "", ""},
		{&brokerv1.PruneRequest{Containers: true, MinAge: durationpb.New(time.Since(then.Add(30 * time.Minute)))}, "*", "vault"},
		// b is used by a container that stopped, d has tags, f cannot be named.
		{&brokerv1.PruneRequest{Images: true}, "*", "e@digest " + c},
		{&brokerv1.PruneRequest{Images: true}, "images.remove images/sha256:*", c},
		{&brokerv1.PruneRequest{Images: true, UnusedImages: true}, "*", "d:1 e@digest " + c},
		// Each reference has to be granted, not one of them.
		{&brokerv1.PruneRequest{Images: true, UnusedImages: true}, "images.remove images/docker.io/*", "e@digest"},
		{&brokerv1.PruneRequest{BuildCache: true}, "", "newer older"},
		{&brokerv1.PruneRequest{Containers: true, Images: true, BuildCache: true}, "*", "vault old e@digest " + c + " newer older"},
	} {
		s, gone := pruned(someUsage())
		ctx := call.With(t.Context(), may{pairs: []string{x.pairs}})
		x.req.ValidateOnly = true
		dry, err := s.Prune(ctx, x.req)
		if err != nil || itemNames(dry) != x.want || len(*gone) != 0 || dry.GetReclaimedBytes() != 0 {
			t.Errorf("%v with %q: %s, %v, removed %v; want %s", x.req, x.pairs, itemNames(dry), err, *gone, x.want)
		}
		x.req.ValidateOnly = false
		x.req.ExpectedPlan = dry.GetPlan()
		done, err := s.Prune(ctx, x.req)
		if err != nil || itemNames(done) != x.want || done.GetPlan() != dry.GetPlan() {
			t.Errorf("%v for real: %s, %v", x.req, itemNames(done), err)
		}
		for _, i := range done.GetItems() {
			if !i.GetRemoved() || i.GetProblem() != "" {
				t.Errorf("%v", i)
			}
		}
		if slices.ContainsFunc(*gone, func(g string) bool { return strings.HasSuffix(g, "true") }) {
			t.Errorf("something was forced: %v", *gone)
		}
	}
	for field, req := range map[string]*brokerv1.PruneRequest{
		"containers": {}, "min_age": {Containers: true, MinAge: durationpb.New(-1)}, "unused_images": {UnusedImages: true},
	} {
		s, _ := pruned(someUsage())
		if _, err := s.Prune(call.With(t.Context(), leave{}), req); fault.Reason(err) != "INVALID_ARGUMENT" || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestPruneRemovesAnImageByEachReference(t *testing.T) {
	s, gone := pruned(someUsage())
	if _, err := s.Prune(call.With(t.Context(), leave{}), &brokerv1.PruneRequest{Images: true, UnusedImages: true}); err != nil {
		t.Fatal(err)
	}
	c := "sha256:" + strings.Repeat("c", 64)
	want := "[image docker.io/library/d:1false image ghcr.io/x/d:1false image docker.io/library/d@" + digest + "false image docker.io/library/e@" + digest + "false image " + c + "false]"
	if got := fmt.Sprint(*gone); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

// TestPruneLooksAgain: what is not what was decided on any more stays, and so does
// what the caller may not remove by now.
func TestPruneLooksAgain(t *testing.T) {
	other := func(c rune) string { return strings.Repeat(string(c), 64) }
	for name, c := range map[string]struct {
		change func(u *usage)
		pairs  []string
	}{
		"a new tag":                {func(u *usage) { u.images[2].tags = []string{"docker.io/library/prod:1"} }, nil},
		"a reference less":         {func(u *usage) { u.images[3].tags = u.images[3].tags[:1] }, nil},
		"a reference nobody has":   {func(u *usage) { u.images[2].odd = true }, nil},
		"renamed":                  {func(u *usage) { u.containers[2].name = "protected" }, nil},
		"started":                  {func(u *usage) { u.containers[2].state = brokerv1.ContainerState_CONTAINER_STATE_RUNNING }, nil},
		"another of the same name": {func(u *usage) { u.containers[2].id = other('9') }, nil},
	} {
		u := someUsage()
		s, gone := pruned(u)
		before := someUsage()
		s.engine.diskUsage = func(context.Context) (*usage, error) { return before, nil }
		c.change(u)
		resp, err := s.Prune(call.With(t.Context(), leave{}), &brokerv1.PruneRequest{Containers: true, Images: true, UnusedImages: true})
		if err != nil {
			t.Fatal(err)
		}
		kept := 0
		for _, i := range resp.GetItems() {
			if !i.GetRemoved() {
				kept++
				if i.GetProblem() != "changed since" && i.GetProblem() != "gone already" {
					t.Errorf("%s: %v", name, i)
				}
			}
		}
		if kept != 1 || strings.Contains(fmt.Sprint(*gone), "prod") {
			t.Errorf("%s: %d were kept, removed %v", name, kept, *gone)
		}
	}
}

// halts is a scope that says no after so many.
type halts struct {
	leave
	left *int
}

func (h halts) Still() error {
	if *h.left--; *h.left < 0 {
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_FROZEN, "frozen")
	}
	return nil
}

// TestFreezeStopsPrune between two things, and the answer says what was left.
func TestFreezeStopsPrune(t *testing.T) {
	s, gone := pruned(someUsage())
	left := 2
	resp, err := s.Prune(call.With(t.Context(), halts{left: &left}), &brokerv1.PruneRequest{Containers: true, Images: true})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range resp.GetItems() {
		got = append(got, fmt.Sprint(i.GetRemoved(), " ", i.GetProblem()))
	}
	if g := strings.Join(got, ", "); g != "true , true , false not tried: FROZEN, false not tried: FROZEN" || len(*gone) != 2 || resp.GetReclaimedBytes() != 6 {
		t.Errorf("%s, removed %v, %d bytes", g, *gone, resp.GetReclaimedBytes())
	}
}

// TestWhatDoesNotGoComesLast, so that so many of them leave a place for others.
func TestWhatDoesNotGoComesLast(t *testing.T) {
	u := &usage{}
	for n := range maxPruned {
		u.containers = append(u.containers, usedContainer{id: fmt.Sprintf("%064x", n+1), name: fmt.Sprint("stuck", n), state: brokerv1.ContainerState_CONTAINER_STATE_DEAD, created: then})
	}
	u.containers = append(u.containers, usedContainer{id: strings.Repeat("f", 64), name: "young", state: brokerv1.ContainerState_CONTAINER_STATE_EXITED, created: then.Add(time.Hour)})
	s, gone := pruned(u)
	remove := s.engine.remove
	s.engine.remove = func(ctx context.Context, id string, force bool) error {
		if id[0] != 'f' {
			return fmt.Errorf("the file system is busy")
		}
		return remove(ctx, id, force)
	}
	for round := range 2 {
		resp, err := s.Prune(call.With(t.Context(), leave{}), &brokerv1.PruneRequest{Containers: true})
		if err != nil {
			t.Fatal(err)
		}
		if first := resp.GetItems()[0]; (len(*gone) == 1) != (round == 1) || round == 1 && !first.GetRemoved() || round == 0 && first.GetProblem() != "failed: ENGINE_ERROR" {
			t.Errorf("round %d: %v, removed %v", round, first, *gone)
		}
	}
}

// TestImageOfTheFuture: its age is its author's word, and must not keep it.
func TestImageOfTheFuture(t *testing.T) {
	u := &usage{images: []*localImage{{id: digest, created: time.Now().Add(100 * 365 * 24 * time.Hour)}}}
	for age, want := range map[time.Duration]int{0: 1, time.Hour: 0} {
		s, _ := pruned(u)
		req := &brokerv1.PruneRequest{Images: true, ValidateOnly: true}
		if age > 0 {
			req.MinAge = durationpb.New(age)
		}
		if resp, err := s.Prune(call.With(t.Context(), leave{}), req); err != nil || len(resp.GetItems()) != want {
			t.Errorf("min_age %v: %v, %v", age, resp, err)
		}
	}
}

// TestPruneSaysWhatDidNotGo: what is in use or gone by now is no failure; an
// engine that is away ends it, and what went before is told.
func TestPruneSaysWhatDidNotGo(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"in use": {errdefs.ErrConflict, "false in use now, true "},
		"gone":   {errdefs.ErrNotFound, "false gone already, true "},
		"failed": {fmt.Errorf("disk /var/lib/docker canary"), "false failed: ENGINE_ERROR, true "},
		"away":   {fmt.Errorf("%w: canary", errEngineGone), "false not tried: OUTCOME_UNKNOWN, false not tried: OUTCOME_UNKNOWN"},
	} {
		s, _ := pruned(someUsage())
		s.engine.remove = func(_ context.Context, id string, _ bool) error {
			if id[0] == '3' {
				return c.err
			}
			return nil
		}
		resp, err := s.Prune(call.With(t.Context(), leave{}), &brokerv1.PruneRequest{Containers: true})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, i := range resp.GetItems() {
			got = append(got, fmt.Sprint(i.GetRemoved(), " ", i.GetProblem()))
		}
		if g := strings.Join(got, ", "); g != c.want || strings.Contains(resp.String(), "canary") {
			t.Errorf("%s: %s, want %s", name, g, c.want)
		}
	}
}

func TestPruneOfWhatHasChanged(t *testing.T) {
	u := someUsage()
	s, gone := pruned(u)
	ctx := call.With(t.Context(), leave{})
	dry, err := s.Prune(ctx, &brokerv1.PruneRequest{Containers: true, ValidateOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	u.containers = append(u.containers, usedContainer{id: strings.Repeat("9", 64), name: "new", state: brokerv1.ContainerState_CONTAINER_STATE_EXITED, created: then})
	if _, err := s.Prune(ctx, &brokerv1.PruneRequest{Containers: true, ExpectedPlan: dry.GetPlan()}); fault.Reason(err) != "PLAN_CHANGED" || len(*gone) != 0 {
		t.Errorf("%v, removed %v", err, *gone)
	}
}

// intents takes down what is meant.
type intents struct {
	leave
	targets *[]string
}

func (i intents) Intend(_ context.Context, target string) error {
	*i.targets = append(*i.targets, target)
	return nil
}

// TestPruneIsBounded, and the intent names each thing in what a record has room
// for.
func TestPruneIsBounded(t *testing.T) {
	u := &usage{}
	for n := range 150 {
		u.containers = append(u.containers, usedContainer{id: fmt.Sprintf("%012x%052x", n+1, 0), name: fmt.Sprint("c", n), state: brokerv1.ContainerState_CONTAINER_STATE_EXITED, created: then})
		u.cache = append(u.cache, cacheRecord{id: fmt.Sprintf("%012d%013d", n, 0), created: then})
	}
	s, gone := pruned(u)
	var targets []string
	ctx := call.With(t.Context(), intents{targets: &targets})
	resp, err := s.Prune(ctx, &brokerv1.PruneRequest{Containers: true, BuildCache: true})
	if err != nil || len(resp.GetItems()) != maxPruned || resp.GetMore() != 300-maxPruned || len(*gone) != maxPruned {
		t.Fatalf("%d items, %d more, %d gone, %v", len(resp.GetItems()), resp.GetMore(), len(*gone), err)
	}
	if len(targets) != 1 || len(targets[0]) > 2000 {
		t.Fatalf("%d intents, of %d bytes", len(targets), len(targets[0]))
	}
	for _, i := range resp.GetItems() {
		if !strings.Contains(targets[0], i.GetId()[:12]) {
			t.Errorf("the intent does not name %s", i.GetId())
		}
	}
	// Nothing to do is no intent.
	targets = nil
	s, _ = pruned(&usage{})
	if resp, err := s.Prune(ctx, &brokerv1.PruneRequest{Containers: true}); err != nil || len(resp.GetItems()) != 0 || len(targets) != 0 {
		t.Errorf("%v, %v, %v", resp, err, targets)
	}
}
