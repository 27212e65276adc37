package e2e

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
	"github.com/gortium/hermes-broker/e2e/testhost"
)

// leftover makes a container that has ended.
func leftover(t testing.TB, spec testhost.ContainerSpec) string {
	t.Helper()
	spec.Cmd = []string{"exit", "0"}
	id := run(t, spec)
	if _, err := host.Wait(t.Context(), spec.Name); err != nil {
		t.Fatal(err)
	}
	return id
}

// untagged makes an image that has lost its only reference.
func untagged(t testing.TB) string {
	t.Helper()
	const tag = "hermes-test/again:1"
	var id string
	for n := range 2 {
		if err := host.BuildImage(t.Context(), tag, map[string][]byte{"file": fmt.Appendf(nil, "%d %s", n, time.Now())}); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			id = present(t, tag)[0].ID
		}
	}
	t.Cleanup(func() {
		for _, name := range []string{tag, id} {
			if err := host.RemoveImage(context.Background(), name); err != nil {
				t.Error(err)
			}
		}
	})
	return id
}

// things are the names of all there is on the engine.
func things(t testing.TB) (all []string) {
	t.Helper()
	for kind, path := range map[string]string{"container": "/containers/json?all=1", "image": "/images/json", "network": "/networks"} {
		var found []struct {
			ID string `json:"Id"`
		}
		if err := host.API(t.Context(), "GET", path, nil, &found); err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			all = append(all, kind+" "+f.ID)
		}
	}
	var volumes struct{ Volumes []struct{ Name string } }
	if err := host.API(t.Context(), "GET", "/volumes", nil, &volumes); err != nil {
		t.Fatal(err)
	}
	for _, v := range volumes.Volumes {
		all = append(all, "volume "+v.Name)
	}
	slices.Sort(all)
	return all
}

func TestPrune(t *testing.T) {
	r := registry(t)
	b := imagesBroker(t, imagesConfig)
	c := b.dial("hermes")
	ctx := t.Context()
	unused := push(t, r, "team/unused:1", testhost.RandomLayer(1<<10))
	used := push(t, r, "team/used:1", guest(t))
	mixed := push(t, r, "team/mixed:1", testhost.RandomLayer(1<<10))
	for _, name := range []string{"/team/unused:1", "/team/used:1", "/team/mixed:1"} {
		if err := host.Pull(ctx, r.Addr+name); err != nil {
			t.Fatal(err)
		}
	}
	// A reference that hermes may not remove keeps the image.
	b.must(host.API(ctx, "POST", "/images/"+r.Addr+"/team/mixed:1/tag?repo=other/mixed&tag=1", nil, nil))
	dangling := untagged(t)
	b.must(host.API(ctx, "POST", "/volumes/create", map[string]any{"Name": "idle"}, nil))
	b.must(host.API(ctx, "POST", "/networks/create", map[string]any{"Name": "idle"}, nil))
	t.Cleanup(func() {
		b.must(host.API(context.Background(), "DELETE", "/volumes/idle", nil, nil))
		b.must(host.API(context.Background(), "DELETE", "/networks/idle", nil, nil))
	})
	web := leftover(t, testhost.ContainerSpec{Name: "web-old"})
	kept := leftover(t, testhost.ContainerSpec{Name: "other-old"})
	run(t, testhost.ContainerSpec{Name: "web", Image: r.Addr + "/team/used:1", Cmd: []string{"serve"}})
	before := things(t)

	prune := func(req *brokerv1.PruneRequest) *brokerv1.PruneResponse {
		t.Helper()
		got, err := c.Engine().Prune(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	ids := func(p *brokerv1.PruneResponse) (all []string) {
		for _, i := range p.GetItems() {
			all = append(all, i.GetId())
		}
		return all
	}
	_, err := c.Engine().Prune(ctx, &brokerv1.PruneRequest{})
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT)
	_, err = c.Engine().Prune(ctx, &brokerv1.PruneRequest{Images: true, BuildCache: true})
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED)
	if got := ids(prune(&brokerv1.PruneRequest{Containers: true, ValidateOnly: true})); !slices.Equal(got, []string{web}) {
		t.Errorf("containers: %v, want %s and not %s", got, web, kept)
	}
	if got := ids(prune(&brokerv1.PruneRequest{Images: true, ValidateOnly: true})); !slices.Equal(got, []string{dangling}) {
		t.Errorf("images: %v, want %s", got, dangling)
	}
	if got := prune(&brokerv1.PruneRequest{Containers: true, Images: true, UnusedImages: true, MinAge: durationpb.New(time.Hour)}); len(got.GetItems()) > 0 {
		t.Errorf("older than an hour: %v", got)
	}
	all := &brokerv1.PruneRequest{Containers: true, Images: true, UnusedImages: true, ValidateOnly: true}
	preview := prune(all)
	wanted := []string{web, dangling, unused.ID}
	if got := ids(preview); len(got) != 3 || got[0] != web || !sameSet(got, wanted) || preview.GetPlan() == "" {
		t.Errorf("all: %v, want %v, and neither %s nor %s", preview, wanted, used.ID, mixed.ID)
	}
	if again := prune(all); !proto.Equal(again, preview) {
		t.Errorf("asked twice: %v and %v", preview, again)
	}
	if got := things(t); !slices.Equal(got, before) {
		t.Errorf("validate_only left %v of %v", got, before)
	}

	// Something comes in between.
	later := leftover(t, testhost.ContainerSpec{Name: "web-later"})
	real := &brokerv1.PruneRequest{Containers: true, Images: true, UnusedImages: true, ExpectedPlan: preview.GetPlan()}
	before = things(t)
	_, err = c.Engine().Prune(ctx, real)
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_PLAN_CHANGED)
	if got := things(t); !slices.Equal(got, before) {
		t.Errorf("PLAN_CHANGED, and of %v is left %v", before, got)
	}
	preview = prune(all)
	real.ExpectedPlan, real.RequestId = preview.GetPlan(), client.NewRequestID()
	done := prune(real)
	if !slices.Equal(ids(done), ids(preview)) || done.GetPlan() != preview.GetPlan() || !slices.Contains(ids(done), later) || done.GetReclaimedBytes() == 0 {
		t.Errorf("done %v, and said before %v", done, preview)
	}
	for _, i := range done.GetItems() {
		if !i.GetRemoved() || i.GetProblem() != "" {
			t.Errorf("item %v", i)
		}
	}
	if again := prune(real); !proto.Equal(again, done) {
		t.Errorf("the same request: %v, then %v", done, again)
	}
	gone := slices.DeleteFunc(slices.Clone(before), func(s string) bool { return slices.Contains(things(t), s) })
	if !sameSet(gone, []string{"container " + web, "container " + later, "image " + dangling, "image " + unused.ID}) {
		t.Errorf("gone is %v", gone)
	}
	if nothing := prune(&brokerv1.PruneRequest{Containers: true, Images: true, UnusedImages: true}); len(nothing.GetItems()) > 0 {
		t.Errorf("then %v", nothing)
	}
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

func TestPruneBuildCache(t *testing.T) {
	b := imagesBroker(t, imagesConfig)
	ctx := t.Context()
	b.must(host.PruneBuildCache(ctx))
	files := map[string][]byte{"Dockerfile": []byte("FROM scratch\nCOPY a /a\nCOPY a /b\n"), "a": testhost.RandomLayer(100 << 10)}
	b.must(host.Build(ctx, "hermes-test/built:1", files))
	defer host.RemoveImage(ctx, "hermes-test/built:1")
	cache := func() (ids []string) {
		t.Helper()
		var usage struct {
			BuildCache []struct{ ID string }
		}
		b.must(host.API(ctx, "GET", "/system/df", nil, &usage))
		for _, r := range usage.BuildCache {
			ids = append(ids, r.ID)
		}
		return ids
	}
	all := cache()
	if len(all) < 2 {
		t.Fatalf("a build left %v", all)
	}
	c := b.dial("ada")
	preview, err := c.Engine().Prune(ctx, &brokerv1.PruneRequest{BuildCache: true, ValidateOnly: true})
	if err != nil || len(preview.GetItems()) != len(all) {
		t.Fatalf("preview: %v, %v; the engine has %v", preview, err, all)
	}
	done, err := c.Engine().Prune(ctx, &brokerv1.PruneRequest{BuildCache: true, ExpectedPlan: preview.GetPlan()})
	if err != nil || len(done.GetItems()) != len(all) || done.GetReclaimedBytes() < 100<<10 {
		t.Errorf("done: %v, %v", done, err)
	}
	for n, i := range done.GetItems() {
		if i.GetKind() != brokerv1.PrunedKind_PRUNED_KIND_BUILD_CACHE || !i.GetRemoved() || i.GetId() != preview.GetItems()[n].GetId() {
			t.Errorf("item %v, and said before %v", i, preview.GetItems()[n])
		}
	}
	if left := cache(); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	if found := present(t, "hermes-test/built:1"); len(found) != 1 {
		t.Errorf("what was built is %v", found)
	}
}
