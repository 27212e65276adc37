package e2e

import (
	"context"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/status"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/e2e/testhost"
)

func TestPull(t *testing.T) {
	r := registry(t)
	b := imagesBroker(t, imagesConfig)
	c := b.dial("hermes")
	image := push(t, r, "team/app:1", guest(t), testhost.RandomLayer(3<<20), testhost.RandomLayer(300<<10))
	name := r.Addr + "/team/app"
	r.Intercept(throttled(image, 4<<20))
	preview, events, err := pullValidateOnly(t, c, name+":1")
	if err != nil || len(events) != 1 || preview.GetDigest() != image.Digest || preview.GetImageId() != "" || preview.GetImage() != name+":1" || fetched(r, image) != 0 {
		t.Errorf("validate_only: %v, %v", events, err)
	}
	result, events, err := pull(t, c, name+":1")
	if err != nil {
		t.Fatal(err)
	}
	if result.GetImage() != name+":1" || result.GetDigest() != image.Digest || result.GetImageId() != image.ID || result.GetSizeBytes() < 3<<20 ||
		result.GetAlreadyPresent() || result.GetTag() != brokerv1.PulledTag_PULLED_TAG_SET {
		t.Errorf("result %v of %+v", result, image)
	}
	o := events[0].GetOperation()
	if o.GetMethod() != "ImageService/Pull" || o.GetResource() != "images/"+name+":1" || o.GetTarget() != name+"@"+image.Digest+" for "+name+":1" || o.GetCaller() != hermesID || o.GetRequestId() == "" {
		t.Errorf("operation %v", o)
	}
	progressOf(t, events, image)
	got := present(t, name)
	if len(got) != 1 || got[0].ID != image.ID || !slices.Equal(got[0].RepoTags, []string{name + ":1"}) || !slices.Equal(got[0].RepoDigests, []string{name + "@" + image.Digest}) {
		t.Errorf("the engine has %+v", got)
	}
	if n := fetched(r, image); n != 3 {
		t.Errorf("3 layers were fetched %d times", n)
	}
	again, _, err := pull(t, c, name+":1")
	if err != nil || !again.GetAlreadyPresent() || again.GetImageId() != image.ID || again.GetTag() != brokerv1.PulledTag_PULLED_TAG_SET || fetched(r, image) != 3 {
		t.Errorf("again: %v, %v, %d layers fetched", again, err, fetched(r, image))
	}
	byDigest, _, err := pull(t, c, name+"@"+image.Digest)
	if err != nil || !byDigest.GetAlreadyPresent() || byDigest.GetTag() != brokerv1.PulledTag_PULLED_TAG_UNSPECIFIED {
		t.Errorf("by digest: %v, %v", byDigest, err)
	}

	// What was pulled runs, and the list says who runs it.
	run(t, testhost.ContainerSpec{Name: "web", Image: name + ":1", Cmd: []string{"serve"}})
	run(t, testhost.ContainerSpec{Name: "hidden", Image: name + ":1", Cmd: []string{"serve"}})
	list, err := c.Images().ListImages(t.Context(), &brokerv1.ListImagesRequest{ReferencePattern: "*/team/app:*"})
	if err != nil || len(list.GetImages()) != 1 {
		t.Fatalf("list: %v, %v", list, err)
	}
	i := list.GetImages()[0]
	if i.GetId() != image.ID || !slices.Equal(i.GetReferences(), []string{name + ":1"}) || !slices.Equal(i.GetDigests(), []string{name + "@" + image.Digest}) ||
		i.GetSizeBytes() != result.GetSizeBytes() || !slices.Equal(i.GetInUseBy(), []string{"web"}) || time.Since(i.GetCreateTime().AsTime()) > time.Minute {
		t.Errorf("listed %v", i)
	}
}

// TestPullOfAList: an image for several platforms goes by the digest of their
// list, as nearly every public image does.
func TestPullOfAList(t *testing.T) {
	r := registry(t)
	b := imagesBroker(t, imagesConfig)
	c := b.dial("hermes")
	image := push(t, r, "team/app:1", testhost.RandomLayer(1<<10))
	list, err := r.PushIndex(t.Context(), "team/app:many", image.Digest)
	b.must(err)
	name := r.Addr + "/team/app"
	for _, reference := range []string{name + ":many", name + "@" + list} {
		for _, already := range []bool{false, true} {
			result, _, err := pull(t, c, reference)
			if err != nil || result.GetDigest() != list || result.GetImageId() != image.ID || result.GetAlreadyPresent() != already ||
				(result.GetTag() == brokerv1.PulledTag_PULLED_TAG_SET) != strings.HasSuffix(reference, ":many") {
				t.Errorf("%s: %v, %v; want %s, which is %+v", reference, result, err, list, image)
			}
		}
		if removed, err := c.Images().RemoveImage(t.Context(), &brokerv1.RemoveImageRequest{Image: reference}); err != nil || !removed.GetDeleted() {
			t.Errorf("remove %s: %v, %v", reference, removed, err)
		}
	}
}

// progressOf checks what is told of an image's layers on the way.
func progressOf(t *testing.T, events []*brokerv1.PullResponse, image testhost.PushedImage) {
	t.Helper()
	var last *brokerv1.PullProgress
	fetching := map[string]int64{}
	states := map[string]brokerv1.PullLayerState{}
	messages := 0
	for _, e := range events {
		p := e.GetProgress()
		if p == nil {
			continue
		}
		messages++
		if p.GetDownloadedBytes() < last.GetDownloadedBytes() || p.GetLayersDone() < last.GetLayersDone() || p.GetLayersTotal() < last.GetLayersTotal() || p.GetDownloadedBytes() > p.GetTotalBytes() {
			t.Errorf("%v after %v", p, last)
		}
		last = p
		for _, l := range p.GetLayers() {
			if l.GetState() == brokerv1.PullLayerState_PULL_LAYER_STATE_DOWNLOADING {
				if l.GetCurrentBytes() < fetching[l.GetId()] || l.GetCurrentBytes() > l.GetTotalBytes() {
					t.Errorf("layer %v after %d", l, fetching[l.GetId()])
				}
				fetching[l.GetId()] = l.GetCurrentBytes()
			}
			if l.GetState() >= brokerv1.PullLayerState_PULL_LAYER_STATE_DOWNLOADING && l.GetTotalBytes() == 0 && l.GetCurrentBytes() > 0 {
				t.Errorf("a layer without a total: %v", l)
			}
			states[l.GetId()] = l.GetState()
		}
	}
	// 3 MiB at 4 MiB/s, five times a second.
	if messages < 3 {
		t.Errorf("%d messages of progress", messages)
	}
	if last.GetLayersDone() != 3 || last.GetLayersTotal() != 3 || last.GetDownloadedBytes() != last.GetTotalBytes() || last.GetTotalBytes() < 3<<20 {
		t.Errorf("the last progress is %v", last)
	}
	for _, digest := range image.Layers {
		id := strings.TrimPrefix(digest, "sha256:")[:12]
		if states[id] != brokerv1.PullLayerState_PULL_LAYER_STATE_DONE {
			t.Errorf("layer %s is %v at the end", id, states[id])
		}
	}
	if len(states) != 3 {
		t.Errorf("layers %v", states)
	}
}

func TestPullThatCannotBe(t *testing.T) {
	r := registry(t)
	b := imagesBroker(t, imagesConfig)
	c := b.dial("hermes")
	image := push(t, r, "team/app:1", testhost.RandomLayer(1<<10))
	for _, tc := range []struct {
		image  string
		answer int // Of the registry to each question about a manifest; 0 is its own.
		reason brokerv1.ErrorReason
	}{
		{"127.0.0.1:5000/team/app:missing", 0, brokerv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND},
		{"127.0.0.1:5000/team/none:1", 0, brokerv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND},
		{"127.0.0.1:5000/team/app@sha256:" + strings.Repeat("0", 64), 0, brokerv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND},
		{"127.0.0.1:5999/team/app:1", 0, brokerv1.ErrorReason_ERROR_REASON_REGISTRY_UNAVAILABLE},
		{"127.0.0.1:5000/team/app:1", http.StatusInternalServerError, brokerv1.ErrorReason_ERROR_REASON_REGISTRY_UNAVAILABLE},
		{"127.0.0.1:5000/team/app:1", http.StatusServiceUnavailable, brokerv1.ErrorReason_ERROR_REASON_REGISTRY_UNAVAILABLE},
		{"127.0.0.1:5000/team/app:1", http.StatusUnauthorized, brokerv1.ErrorReason_ERROR_REASON_REGISTRY_DENIED},
		// The registry itself, behind the proxy: it is there and is not registered.
		{"127.0.0.1:5001/team/app:1", 0, brokerv1.ErrorReason_ERROR_REASON_REGISTRY_NOT_REGISTERED},
	} {
		r.Reset()
		if tc.answer != 0 {
			r.Intercept(func(w http.ResponseWriter, req *http.Request, next http.Handler) {
				if !testhost.IsManifest(req.Method, req.URL.Path) {
					next.ServeHTTP(w, req)
					return
				}
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(tc.answer)
				w.Write([]byte(`{"errors": [{"code": "UNAUTHORIZED", "message": "canary"}]}`))
			})
		}
		result, _, err := pull(t, c, tc.image)
		want(t, err, tc.reason)
		if text := status.Convert(err).String(); result != nil || strings.Contains(text, "canary") || strings.Contains(text, "dial tcp") {
			t.Errorf("%s: %v, %s", tc.image, result, text)
		}
		if tc.reason == brokerv1.ErrorReason_ERROR_REASON_REGISTRY_NOT_REGISTERED && len(r.Requests(nil)) > 0 {
			t.Errorf("asked %v", r.Requests(nil))
		}
	}
	if n := fetched(r, image); n > 0 {
		t.Errorf("%d layers were fetched", n)
	}
	absent(t, r.Addr)
}

func TestPullWithCredentials(t *testing.T) {
	r := registry(t)
	image := push(t, r, "team/app:1", testhost.RandomLayer(1<<10))
	if err := r.Protect(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := imagesBroker(t, imagesConfig)
	_, _, err := pull(t, b.dial("hermes"), r.Addr+"/team/app:1")
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_REGISTRY_DENIED)
	config, err := os.ReadFile(b.dir + "/brokerd.yaml")
	b.must(err)
	b.write("password", "wrong\n")
	b.write("brokerd.yaml", strings.Replace(string(config), "host: 127.0.0.1:5000\n",
		"host: 127.0.0.1:5000\n    username: "+testhost.RegistryUser+"\n    password_file: "+b.dir+"/password\n", 1))
	for password, reason := range map[string]brokerv1.ErrorReason{
		"canary-wrong":            brokerv1.ErrorReason_ERROR_REASON_REGISTRY_DENIED,
		testhost.RegistryPassword: brokerv1.ErrorReason_ERROR_REASON_UNSPECIFIED,
	} {
		b.stop(os.Interrupt)
		b.write("password", password+"\n")
		b.start()
		result, _, err := pull(t, b.dial("hermes"), r.Addr+"/team/app:1")
		want(t, err, reason)
		if err == nil && result.GetDigest() != image.Digest {
			t.Errorf("pulled %v", result)
		}
		if log := b.log.String(); strings.Contains(log, password) || err != nil && strings.Contains(err.Error(), password) {
			t.Errorf("the password came out: %v\n%s", err, log)
		}
	}
	trail, code := b.ctl("ada", "audit", "tail", "-n", "200", "--dir", b.dir+"/state/audit")
	if code != 0 || strings.Contains(trail, testhost.RegistryPassword) || strings.Contains(trail, "canary-wrong") {
		t.Errorf("audit tail: exit %d, with a password or not:\n%s", code, trail)
	}
}

// TestPullStopsInTheMiddle: a registry that cuts every connection in the middle of
// a layer, and one that gives other bytes than it promised.
func TestPullStopsInTheMiddle(t *testing.T) {
	r := registry(t)
	b := imagesBroker(t, imagesConfig)
	c := b.dial("hermes")
	image := push(t, r, "team/app:1", testhost.RandomLayer(400<<10), testhost.RandomLayer(1<<10))
	name := r.Addr + "/team/app:1"
	for fault, intercept := range map[string]testhost.Interceptor{
		"cut": func(w http.ResponseWriter, req *http.Request, next http.Handler) {
			next.ServeHTTP(testhost.Cut(w, 100<<10), req)
		},
		"other bytes": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Write(testhost.RandomLayer(400 << 10))
		},
	} {
		t.Run(fault, func(t *testing.T) {
			r.Intercept(func(w http.ResponseWriter, req *http.Request, next http.Handler) {
				if strings.HasSuffix(req.URL.Path, image.Layers[0]) {
					intercept(w, req, next)
					return
				}
				next.ServeHTTP(w, req)
			})
			begun := time.Now()
			_, events, err := pull(t, c, name)
			want(t, err, brokerv1.ErrorReason_ERROR_REASON_REGISTRY_UNAVAILABLE)
			t.Logf("told after %s", time.Since(begun))
			if len(events) == 0 {
				t.Fatal("no operation")
			}
			o := ended(t, c, events[0].GetOperation().GetName(), brokerv1.OperationState_OPERATION_STATE_FAILED)
			if o.GetErrorReason() != "REGISTRY_UNAVAILABLE" || o.GetErrorMessage() != status.Convert(err).Message() {
				t.Errorf("the operation says %q, %q; the call %v", o.GetErrorReason(), o.GetErrorMessage(), err)
			}
			absent(t, r.Addr)
		})
	}
	r.Intercept(nil)
	if result, _, err := pull(t, c, name); err != nil || result.GetImageId() != image.ID {
		t.Errorf("the next pull: %v, %v", result, err)
	}
}

// TestPullOfATagThatMoves: what was decided on is what comes, and no other image
// gets the tag, whenever the registry moves it.
func TestPullOfATagThatMoves(t *testing.T) {
	r := registry(t)
	b := imagesBroker(t, imagesConfig)
	c := b.dial("hermes")
	for _, tc := range []struct {
		name string
		nth  int32 // The question for the tag before which it moves.
		tag  brokerv1.PulledTag
	}{
		// The broker asks what the tag means, asks again when it has the image, and
		// has the engine take the tag.
		{"between decision and fetch", 2, brokerv1.PulledTag_PULLED_TAG_MOVED},
		{"in the last moment", 3, brokerv1.PulledTag_PULLED_TAG_DROPPED},
		{"after all is done", 99, brokerv1.PulledTag_PULLED_TAG_SET},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r.Reset()
			name := r.Addr + "/team/app"
			before := push(t, r, "team/app:1", testhost.RandomLayer(1<<10))
			if err := host.Pull(t.Context(), name+":1"); err != nil {
				t.Fatal(err)
			}
			other := push(t, r, "team/app:1", testhost.RandomLayer(1<<10))
			decided := push(t, r, "team/app:1", testhost.RandomLayer(1<<10))
			var asked atomic.Int32
			r.Intercept(func(w http.ResponseWriter, req *http.Request, next http.Handler) {
				if strings.HasSuffix(req.URL.Path, "/manifests/1") && asked.Add(1) == tc.nth {
					if err := r.Tag(context.WithoutCancel(req.Context()), "team/app:1", other.Digest); err != nil {
						t.Error(err)
					}
				}
				next.ServeHTTP(w, req)
			})
			result, _, err := pull(t, c, name+":1")
			if err != nil || result.GetDigest() != decided.Digest || result.GetImageId() != decided.ID || result.GetTag() != tc.tag {
				t.Fatalf("got %v, %v; want %v of %+v", result, err, tc.tag, decided)
			}
			tagged := map[brokerv1.PulledTag]string{
				brokerv1.PulledTag_PULLED_TAG_SET: decided.ID, brokerv1.PulledTag_PULLED_TAG_MOVED: before.ID, brokerv1.PulledTag_PULLED_TAG_DROPPED: "",
			}[tc.tag]
			there := false
			for _, i := range present(t, name) {
				there = there || i.ID == decided.ID && slices.Contains(i.RepoDigests, name+"@"+decided.Digest)
				if slices.Contains(i.RepoTags, name+":1") != (i.ID == tagged) {
					t.Errorf("the tag should be on %q; the engine has %+v", tagged, i)
				}
				if err := host.RemoveImage(t.Context(), i.ID); err != nil {
					t.Error(err)
				}
				if i.ID == other.ID {
					t.Error("the engine has the image that nobody decided on")
				}
			}
			if !there {
				t.Error("what was decided on is not there by its digest")
			}
		})
	}
}

func TestPullWithoutSpace(t *testing.T) {
	r := registry(t)
	b := imagesBroker(t, strings.Replace(imagesConfig, "16MiB", "1000TiB", 1))
	image := push(t, r, "team/app:1", testhost.RandomLayer(1<<10))
	c := b.dial("hermes")
	_, _, err := pull(t, c, r.Addr+"/team/app:1")
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_INSUFFICIENT_SPACE)
	_, _, err = pullValidateOnly(t, c, r.Addr+"/team/app:1")
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_INSUFFICIENT_SPACE)
	if n := fetched(r, image); n > 0 {
		t.Errorf("%d layers were fetched", n)
	}
	absent(t, r.Addr)
}
