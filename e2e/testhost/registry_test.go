package testhost_test

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gortium/hermes-broker/e2e/testhost"
)

func testRegistry(t *testing.T, h *testhost.Host) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := h.StartRegistry(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	guest, err := h.Guest()
	if err != nil {
		t.Fatal(err)
	}
	first, err := r.Push(ctx, "team/app:1", guest, testhost.RandomLayer(100<<10))
	if err != nil {
		t.Fatal(err)
	}
	name := r.Addr + "/team/app"
	present := func() (found []testhost.Image) {
		t.Helper()
		found, err := h.Images(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}

	// The engine pulls what was pushed, and it runs.
	if err := h.Pull(ctx, name+":1"); err != nil {
		t.Fatal(err)
	}
	got := present()
	if len(got) != 1 || got[0].ID != first.ID || !slices.Equal(got[0].RepoTags, []string{name + ":1"}) ||
		!slices.Equal(got[0].RepoDigests, []string{name + "@" + first.Digest}) || got[0].Size < 100<<10 {
		t.Errorf("pushed %+v, the engine has %+v", first, got)
	}
	if _, err := h.Run(ctx, testhost.ContainerSpec{Name: "pulled", Image: name + ":1", Cmd: []string{"exit", "7"}}); err != nil {
		t.Fatal(err)
	}
	if code, err := h.Wait(ctx, "pulled"); code != 7 || err != nil {
		t.Errorf("Wait = %d, %v; want 7", code, err)
	}
	if err := h.Remove(ctx, "pulled"); err != nil {
		t.Fatal(err)
	}
	for _, layer := range first.Layers {
		asked := r.Requests(func(method, path string) bool { return testhost.IsBlob(method, path) && strings.HasSuffix(path, layer) })
		if len(asked) != 1 {
			t.Errorf("layer %s was fetched %d times", layer, len(asked))
		}
	}

	// Pushing again moves the tag, a list too, and Tag moves it back.
	second, err := r.Push(ctx, "team/app:1", testhost.RandomLayer(1<<10))
	if err != nil {
		t.Fatal(err)
	}
	list, err := r.PushIndex(ctx, "team/app:many", second.Digest)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct{ tag, id, digest string }{
		{"1", second.ID, second.Digest}, {"many", second.ID, list}, {"1", first.ID, first.Digest},
	} {
		if err := h.Pull(ctx, name+":"+want.tag); err != nil {
			t.Fatal(err)
		}
		if got := present(); !slices.ContainsFunc(got, func(i testhost.Image) bool {
			return i.ID == want.id && slices.Contains(i.RepoTags, name+":"+want.tag) && slices.Contains(i.RepoDigests, name+"@"+want.digest)
		}) {
			t.Errorf("want %v, the engine has %+v", want, got)
		}
		if err := r.Tag(ctx, "team/app:1", first.Digest); err != nil {
			t.Fatal(err)
		}
	}
	for _, i := range present() {
		for range 2 {
			if err := h.RemoveImage(ctx, i.ID); err != nil {
				t.Errorf("RemoveImage: %v", err)
			}
		}
	}
	if left := present(); len(left) > 0 {
		t.Errorf("removed, the engine has %+v", left)
	}

	testRegistryFaults(t, h, r)
	testBuild(t, h)
	if err := r.Delete(ctx, "team/app", second.Digest); err != nil {
		t.Error(err)
	}
	if err := h.Pull(ctx, name+":many@"+second.Digest); err == nil {
		t.Error("what was deleted was pulled")
	}

	// What is protected wants credentials.
	if err := r.Protect(ctx); err != nil {
		t.Fatal(err)
	}
	if err := h.Pull(ctx, name+":1"); err == nil {
		t.Error("a protected registry gave an image to nobody")
	}
	login := map[string]string{"username": testhost.RegistryUser, "password": testhost.RegistryPassword, "serveraddress": r.Addr}
	if err := h.API(ctx, "POST", "/auth", login, nil); err != nil {
		t.Errorf("with credentials: %v", err)
	}
	login["password"] = "wrong"
	if err := h.API(ctx, "POST", "/auth", login, nil); err == nil {
		t.Error("wrong credentials were taken")
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
}

func testRegistryFaults(t *testing.T, h *testhost.Host, r *testhost.Registry) {
	ctx := t.Context()
	name := r.Addr + "/team/faulty:1"
	image, err := r.Push(ctx, "team/faulty:1", testhost.RandomLayer(200<<10))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.RemoveImage(ctx, image.ID); err != nil {
			t.Error(err)
		}
	}()
	ofLayer := func(method, path string) bool {
		return testhost.IsBlob(method, path) && strings.HasSuffix(path, image.Layers[0])
	}
	r.Intercept(func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		if testhost.IsManifest(req.Method, req.URL.Path) {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		next.ServeHTTP(w, req)
	})
	if err := h.Pull(ctx, name); err == nil {
		t.Error("pulled from a registry that fails")
	}

	// A cut connection: this release of the engine comes again by itself, that one
	// when asked to. The second time is slow.
	r.Reset()
	var cut atomic.Bool
	r.Intercept(func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		switch {
		case !ofLayer(req.Method, req.URL.Path):
		case cut.CompareAndSwap(false, true):
			w = testhost.Cut(w, 50<<10)
		default:
			w = testhost.Throttle(w, 400<<10)
		}
		next.ServeHTTP(w, req)
	})
	begun := time.Now()
	if err = h.Pull(ctx, name); err != nil {
		begun, err = time.Now(), h.Pull(ctx, name)
	}
	if took := time.Since(begun); err != nil || took < 300*time.Millisecond {
		t.Errorf("throttled, after %s: %v", took, err)
	}
	if asked := r.Requests(ofLayer); len(asked) != 2 {
		t.Errorf("a layer that was cut once was fetched %d times", len(asked))
	}
	r.Reset()
	if left := r.Requests(nil); len(left) > 0 {
		t.Errorf("after Reset: %v", left)
	}
}

func testBuild(t *testing.T, h *testhost.Host) {
	ctx := t.Context()
	files := map[string][]byte{"Dockerfile": []byte("FROM scratch\nCOPY a /a\n"), "a": []byte("content\n")}
	if err := h.Build(ctx, "hermes-test/built:1", files); err != nil {
		t.Fatal(err)
	}
	if built, err := h.Images(ctx, "hermes-test/built:"); err != nil || len(built) != 1 {
		t.Errorf("Images = %v, %v", built, err)
	}
	cached := func() int {
		t.Helper()
		var usage struct{ BuildCache []any }
		if err := h.API(ctx, "GET", "/system/df", nil, &usage); err != nil {
			t.Fatal(err)
		}
		return len(usage.BuildCache)
	}
	if cached() == 0 {
		t.Error("a build left no cache")
	}
	if err := h.RemoveImage(ctx, "hermes-test/built:1"); err != nil {
		t.Error(err)
	}
	if err := h.PruneBuildCache(ctx); err != nil || cached() != 0 {
		t.Errorf("%d records of cache are left, %v", cached(), err)
	}
	files["Dockerfile"] = []byte("FROM nowhere.example/none\n")
	if err := h.Build(ctx, "hermes-test/built:1", files); err == nil {
		t.Error("what has no base was built")
	}
}
