package docker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/image"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/page"
)

// store is an engine's images.
type store struct {
	images     []*localImage
	containers []*brokerv1.Container
	removed    []string
}

func (s *store) service(registries ...Registry) *Images {
	e := &engine{}
	e.imageCalls = imageCalls{
		images: func(context.Context) ([]*localImage, error) { return s.images, nil },
		image: func(_ context.Context, ref string) (*localImage, error) {
			for _, i := range s.images {
				// As the engine: by reference, or by the beginning of an ID.
				if slices.Contains(i.references(), ref) || strings.HasPrefix(i.id, "sha256:"+ref) || i.id == ref {
					return i, nil
				}
			}
			return nil, errdefs.ErrNotFound
		},
		removeImage: func(_ context.Context, ref string, force bool) ([]string, error) {
			s.removed = append(s.removed, fmt.Sprint(ref, " ", force))
			return []string{"sha256:" + someID}, nil
		},
	}
	e.list = func(context.Context) ([]page.Item[*brokerv1.Container], error) {
		var all []page.Item[*brokerv1.Container]
		for _, c := range s.containers {
			all = append(all, page.Item[*brokerv1.Container]{Key: c.GetName(), Value: c})
		}
		return all, nil
	}
	return newImages(e, &disk{engine: e, free: func(string) (int64, int64, error) { return 1 << 40, 1 << 41, nil }, root: "/data"}, registries, 1<<30)
}

func someStore() *store {
	return &store{
		images: []*localImage{
			{id: digest, tags: []string{"docker.io/library/alpine:3", "ghcr.io/secret/alpine:1"}, digests: []string{"docker.io/library/alpine@" + digest}, size: 5, created: then.Add(3)},
			{id: "sha256:b", tags: []string{"docker.io/ollama/ollama:latest"}, created: then.Add(2)},
			{id: "sha256:c", created: then.Add(1)},
			{id: "sha256:d", odd: true, created: then},
		},
		containers: []*brokerv1.Container{
			{Name: "web", ImageId: digest, State: brokerv1.ContainerState_CONTAINER_STATE_EXITED}, {Name: "hidden", ImageId: digest, State: brokerv1.ContainerState_CONTAINER_STATE_EXITED},
			{Name: "ollama", ImageId: "sha256:b", State: brokerv1.ContainerState_CONTAINER_STATE_RUNNING},
		},
	}
}

func TestListImages(t *testing.T) {
	s := someStore().service()
	list := func(req *brokerv1.ListImagesRequest, pairs ...string) string {
		t.Helper()
		resp, err := s.ListImages(call.With(t.Context(), may{pairs: pairs}), req)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, i := range resp.GetImages() {
			got = append(got, fmt.Sprintf("%s%v%d%v", strings.TrimPrefix(i.GetId(), "sha256:")[:1], i.GetReferences(), len(i.GetDigests()), i.GetInUseBy()))
		}
		return strings.Join(got, " ")
	}
	for _, c := range []struct {
		req   *brokerv1.ListImagesRequest
		pairs string
		want  string
	}{
		{&brokerv1.ListImagesRequest{}, "", ""},
		{&brokerv1.ListImagesRequest{}, "*", "0[docker.io/library/alpine:3 ghcr.io/secret/alpine:1]1[hidden web] b[docker.io/ollama/ollama:latest]0[ollama] c[]0[]"},
		// Neither the hidden reference nor the hidden container.
		{&brokerv1.ListImagesRequest{}, "visible images/docker.io/library/*,containers.list containers/w*", "0[docker.io/library/alpine:3]1[web]"},
		{&brokerv1.ListImagesRequest{}, "visible images/ghcr.io/*", "0[ghcr.io/secret/alpine:1]0[]"},
		{&brokerv1.ListImagesRequest{}, "visible images/sha256:*", "c[]0[]"},
		{&brokerv1.ListImagesRequest{Untagged: true}, "*", "c[]0[]"},
		{&brokerv1.ListImagesRequest{ReferencePattern: "*/ollama:*"}, "*", "b[docker.io/ollama/ollama:latest]0[ollama]"},
		{&brokerv1.ListImagesRequest{ReferencePattern: "*@sha256:*"}, "*", "0[docker.io/library/alpine:3 ghcr.io/secret/alpine:1]1[hidden web]"},
		// A filter on what is hidden finds nothing.
		{&brokerv1.ListImagesRequest{ReferencePattern: "*secret*"}, "visible images/docker.io/*", ""},
	} {
		if got := list(c.req, strings.Split(c.pairs, ",")...); got != c.want {
			t.Errorf("%v with %q:\ngot  %s\nwant %s", c.req, c.pairs, got, c.want)
		}
	}
	for _, req := range []*brokerv1.ListImagesRequest{{ReferencePattern: "a?b"}, {PageSize: -1}, {PageToken: "x"}, {ReferencePattern: strings.Repeat("a", 600)}} {
		if _, err := s.ListImages(call.With(t.Context(), leave{}), req); fault.Reason(err) != "INVALID_ARGUMENT" {
			t.Errorf("%v: %v", req, err)
		}
	}
}

func TestRemoveImage(t *testing.T) {
	for name, c := range map[string]struct {
		req  *brokerv1.RemoveImageRequest
		edit func(*store)
		want string // The reason, or what was asked of the engine.
	}{
		"in use":              {&brokerv1.RemoveImageRequest{Image: "alpine:3"}, nil, "IMAGE_IN_USE"},
		"in use by what runs": {&brokerv1.RemoveImageRequest{Image: "ollama/ollama", Force: true}, nil, "IMAGE_IN_USE"},
		"force":               {&brokerv1.RemoveImageRequest{Image: "alpine:3", Force: true}, nil, "docker.io/library/alpine:3 true"},
		"unused":              {&brokerv1.RemoveImageRequest{Image: "index.docker.io/alpine:3"}, func(s *store) { s.containers = nil }, "docker.io/library/alpine:3 false"},
		"by digest": {&brokerv1.RemoveImageRequest{Image: "alpine@" + digest}, func(s *store) {
			s.containers, s.images[0].tags = nil, []string{"ghcr.io/secret/alpine:1"}
		}, "docker.io/library/alpine@" + digest + " false"},
		// The engine with the other store of images would take the tags along.
		"by digest, with tags": {&brokerv1.RemoveImageRequest{Image: "alpine@" + digest}, func(s *store) { s.containers = nil }, "IMAGE_IN_USE"},
		"expected":             {&brokerv1.RemoveImageRequest{Image: "alpine:3", ExpectedId: digest}, func(s *store) { s.containers = nil }, "docker.io/library/alpine:3 false"},
		"another":              {&brokerv1.RemoveImageRequest{Image: "alpine:3", ExpectedId: "sha256:x"}, nil, "PLAN_CHANGED"},
		"dry run":              {&brokerv1.RemoveImageRequest{Image: "alpine:3", ValidateOnly: true}, func(s *store) { s.containers = nil }, ""},
		"absent":               {&brokerv1.RemoveImageRequest{Image: "debian"}, nil, "IMAGE_NOT_FOUND"},
		"an ID":                {&brokerv1.RemoveImageRequest{Image: someID}, nil, "INVALID_ARGUMENT"},
		"an ID with its name":  {&brokerv1.RemoveImageRequest{Image: digest}, nil, "INVALID_ARGUMENT"},
		// The engine would find the image whose ID begins so.
		"hex that reads as an ID": {&brokerv1.RemoveImageRequest{Image: someID[:12]}, func(s *store) {
			s.images[0].tags, s.containers = []string{"docker.io/library/x:1"}, nil
		}, "IMAGE_NOT_FOUND"},
		"a state nobody knows": {&brokerv1.RemoveImageRequest{Image: "alpine:3", Force: true}, func(s *store) { s.containers[0].State = 0 }, "IMAGE_IN_USE"},
	} {
		s := someStore()
		if c.edit != nil {
			c.edit(s)
		}
		_, err := s.service().RemoveImage(call.With(t.Context(), leave{}), c.req)
		if got := fault.Reason(err) + strings.Join(s.removed, ","); got != c.want {
			t.Errorf("%s: %s (%v), want %s", name, got, err, c.want)
		}
	}
}

// TestDeniedDigestKeepsItsTag: the engine would drop it with the last tag.
func TestDeniedDigestKeepsItsTag(t *testing.T) {
	s := someStore()
	s.containers = nil
	s.images[0].digests = []string{"docker.io/library/alpine@" + first}
	_, err := s.service().RemoveImage(call.With(t.Context(), denies{}), &brokerv1.RemoveImageRequest{Image: "alpine:3"})
	if fault.Reason(err) != "PERMISSION_DENIED" || len(s.removed) != 0 {
		t.Errorf("%v, removed %v", err, s.removed)
	}
	var targets []string
	if _, err := s.service().RemoveImage(call.With(t.Context(), intents{targets: &targets}), &brokerv1.RemoveImageRequest{Image: "alpine:3"}); err != nil ||
		fmt.Sprint(targets) != "[docker.io/library/alpine:3 and docker.io/library/alpine@"+first+" of "+digest+"]" {
		t.Errorf("intended %v, %v", targets, err)
	}
}

// TestAnotherImageThanWasNamed: an engine that answers with an image of another
// name is not believed.
func TestAnotherImageThanWasNamed(t *testing.T) {
	s := someStore()
	s.containers = nil
	images := s.service()
	images.engine.image = func(context.Context, string) (*localImage, error) { return s.images[0], nil }
	_, err := images.RemoveImage(call.With(t.Context(), leave{}), &brokerv1.RemoveImageRequest{Image: "debian:1"})
	if fault.Reason(err) != "IMAGE_NOT_FOUND" || len(s.removed) != 0 {
		t.Errorf("%v, removed %v", err, s.removed)
	}
}

// TestRemaining: what the engine does with the other references of an image.
func TestRemaining(t *testing.T) {
	s := someStore()
	s.containers = nil
	for _, c := range []struct {
		image   string
		left    string
		deleted bool
	}{
		{"alpine:3", "[ghcr.io/secret/alpine:1]", false}, // With the tag goes the digest there.
		{"ghcr.io/secret/alpine:1", "[docker.io/library/alpine:3 docker.io/library/alpine@" + digest + "]", false},
		{"ollama/ollama", "[]", true},
	} {
		resp, err := s.service().RemoveImage(call.With(t.Context(), leave{}), &brokerv1.RemoveImageRequest{Image: c.image, ValidateOnly: true})
		if err != nil || fmt.Sprint(resp.GetRemainingReferences()) != c.left || resp.GetDeleted() != c.deleted {
			t.Errorf("%s: %v, %v", c.image, resp, err)
		}
	}
	// What the caller may not remove is not named.
	resp, err := s.service().RemoveImage(call.With(t.Context(), may{pairs: []string{"visible images/docker.io/*"}}), &brokerv1.RemoveImageRequest{Image: "alpine:3", ValidateOnly: true})
	if err != nil || len(resp.GetRemainingReferences()) != 0 || resp.GetDeleted() {
		t.Errorf("%v, %v", resp, err)
	}
}

// TestReferencesAreCanonical: as the engine spells them, they become what
// policies name; what has no such form makes the image nobody's.
func TestReferencesAreCanonical(t *testing.T) {
	s := summarised(&image.Summary{RepoTags: []string{"alpine:3", "<none>:<none>", "team/app:1", "ghcr.io/a/b:c"}, RepoDigests: []string{"alpine@" + digest, "<none>@<none>"}, SharedSize: -1, Created: -62135596800})
	if fmt.Sprint(s.tags) != "[docker.io/library/alpine:3 docker.io/team/app:1 ghcr.io/a/b:c]" || fmt.Sprint(s.digests) != "[docker.io/library/alpine@"+digest+"]" || s.odd || s.shared != 0 {
		t.Errorf("%+v", s)
	}
	odd := summarised(&image.Summary{ID: digest, RepoTags: []string{"registry.example:443/a:1"}})
	if !odd.odd || len(odd.resources()) != 0 {
		t.Errorf("%+v is %v", odd, odd.resources())
	}
	none := inspectedImage(image.InspectResponse{ID: digest, Created: "2026-01-02T03:04:05Z"})
	if fmt.Sprint(none.resources()) != "[images/"+digest+"]" || none.created.Year() != 2026 {
		t.Errorf("%+v", none)
	}
}

func TestFreeSpace(t *testing.T) {
	free, total, err := freeSpace(t.TempDir())
	if err != nil || free <= 0 || total < free {
		t.Errorf("%d of %d, %v", free, total, err)
	}
	for _, bad := range []string{"", "relative", "/does/not/exist"} {
		if _, _, err := freeSpace(bad); err == nil {
			t.Errorf("%q has space", bad)
		}
	}
}
