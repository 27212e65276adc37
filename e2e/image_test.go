package e2e

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/status"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
	"github.com/gortium/hermes-broker/e2e/testhost"
)

// edited is imagesPolicy with one of its texts replaced.
func edited(t testing.TB, old, new string) string {
	t.Helper()
	if !strings.Contains(imagesPolicy, old) {
		t.Fatalf("the policy has no %q", old)
	}
	return strings.Replace(imagesPolicy, old, new, 1)
}

// hermesImages is what hermes may do with images, and denials what it may not.
const (
	hermesImages = `      - allow: [images.list, images.pull, images.remove]
        on: ["images/127.0.0.1:5000/team/*", "images/127.0.0.1:5001/team/*", "images/127.0.0.1:5999/team/*", "images/*"]
`
	denials = `      - on: ["containers/hidden", "networks/hidden", "volumes/hidden"]
`
)

// TestDigestRules: a rule about a digest holds for the tag that means it, and a
// grant can ask for digests alone.
func TestDigestRules(t *testing.T) {
	r := registry(t)
	b := imagesBroker(t, imagesConfig)
	bad := push(t, r, "team/app:1", testhost.RandomLayer(1<<10))
	good := push(t, r, "team/app:2", testhost.RandomLayer(1<<10))
	name := r.Addr + "/team/app"

	b.repolicy(edited(t, denials, denials+`      - permissions: [images.pull]
        on: ["images/`+name+"@"+bad.Digest+"\"]\n"))
	c := b.dial("hermes")
	for _, image := range []string{name + ":1", name + "@" + bad.Digest} {
		_, events, err := pull(t, c, image)
		want(t, err, brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED)
		if len(events) > 0 || !strings.Contains(status.Convert(err).Message(), "images/"+name) {
			t.Errorf("%s: %v, %v", image, events, err)
		}
		_, _, err = pullValidateOnly(t, c, image)
		want(t, err, brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED)
	}
	if n := fetched(r, bad); n > 0 {
		t.Errorf("%d layers were fetched", n)
	}
	absent(t, r.Addr)
	if result, _, err := pull(t, c, name+":2"); err != nil || result.GetDigest() != good.Digest {
		t.Errorf("what is not denied: %v, %v", result, err)
	}
	// A tag that comes to mean what is denied.
	b.must(r.Tag(t.Context(), "team/app:2", bad.Digest))
	_, _, err := pull(t, c, name+":2")
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED)

	b.repolicy(edited(t, hermesImages, hermesImages+"        require_digest: true\n"))
	c = b.dial("hermes")
	_, _, err = pull(t, c, name+":1")
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED)
	if result, _, err := pull(t, c, name+"@"+bad.Digest); err != nil || result.GetImageId() != bad.ID {
		t.Errorf("by digest: %v, %v", result, err)
	}
}

// TestSpellings: a decision is about an image, however it is spelled, and what
// only looks like it is another.
func TestSpellings(t *testing.T) {
	r := registry(t)
	b := imagesBroker(t, imagesConfig)
	c := b.dial("hermes")
	ask := func(image string) error {
		t.Helper()
		_, _, err := pullValidateOnly(t, c, image)
		return err
	}
	alpine := []string{"alpine", "library/alpine", "alpine:latest", "docker.io/alpine", "index.docker.io/library/alpine", "docker.io/library/alpine:latest"}
	for _, image := range alpine {
		err := ask(image)
		want(t, err, brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED)
		if text, first := status.Convert(err).Message(), status.Convert(ask(alpine[0])).Message(); text != first || !strings.Contains(text, "images/docker.io/library/alpine:latest") {
			t.Errorf("%s: %q, and for %s %q", image, text, alpine[0], first)
		}
	}
	image := push(t, r, "team/app:latest", testhost.RandomLayer(1<<10))
	for _, spelled := range []string{r.Addr + "/team/app", r.Addr + "/team/app:latest", r.Addr + "/team/app@" + image.Digest} {
		if err := ask(spelled); err != nil {
			t.Errorf("%s: %v", spelled, err)
		}
	}
	r.Reset()
	for _, image := range []string{
		// Other hosts.
		"127.0.0.1.example:5000/team/app", "127.0.0.1:5000.example/team/app", "127.0.0.1:50000/team/app", "127.0.0.1/team/app", "registry.example/127.0.0.1:5000/team/app",
		// Other names of the same host.
		"localhost:5000/team/app", "LOCALHOST:5000/team/app", "127.1:5000/team/app", "0x7f000001:5000/team/app", "2130706433:5000/team/app", "127.0.0.1:05000/team/app", "[::1]:5000/team/app", "0.0.0.0:5000/team/app",
		// Upper case, and what is not quite a path.
		"127.0.0.1:5000/Team/app", "127.0.0.1:5000/team/../team/app", "127.0.0.1:5000//team/app", "127.0.0.1:5000/team/app/", "http://127.0.0.1:5000/team/app", "user@127.0.0.1:5000/team/app",
		"127.0.0.1:5000/team/app:1/../../other", "127.0.0.1:5000/team/app:latest ", "127.0.0.1:5000/team/app:latest\x00", "127.0.0.1:5000/team/\u0430pp",
		// Two things at once, and nothing.
		r.Addr + "/team/app:latest@" + image.Digest, r.Addr + "/team/app@sha512:" + strings.Repeat("0", 128), r.Addr + "/team/app@sha256:" + strings.Repeat("A", 64), "", "*",
		// IDs.
		image.ID, strings.TrimPrefix(image.ID, "sha256:"),
	} {
		_, _, err := pull(t, c, image)
		if reason := client.Reason(err); reason != brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED && reason != brokerv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT {
			t.Errorf("%q: %v", image, err)
		}
	}
	if asked := r.Requests(nil); len(asked) > 0 {
		t.Errorf("the registry was asked: %v", asked)
	}
	absent(t, r.Addr)

	// What is granted but means this host is refused by the broker itself.
	b.repolicy(edited(t, hermesImages, `      - allow: [images.pull]
        on: ["images/localhost:5000/team/*", "images/127.1:5000/team/*", "images/box:5000/team/*"]
`))
	c = b.dial("hermes")
	for _, image := range []string{"localhost:5000/team/app", "127.1:5000/team/app", "box:5000/team/app"} {
		want(t, ask(image), brokerv1.ErrorReason_ERROR_REASON_REGISTRY_NOT_REGISTERED)
	}
}

// TestHexIsNoID: a repository can be named like the beginning of an image's ID,
// and the engine would take one for the other.
func TestHexIsNoID(t *testing.T) {
	r := registry(t)
	b := imagesBroker(t, imagesConfig)
	c := b.dial("hermes").Images()
	ctx := t.Context()
	secret := push(t, r, "secret/app:1", testhost.RandomLayer(1<<10))
	if err := host.Pull(ctx, r.Addr+"/secret/app:1"); err != nil {
		t.Fatal(err)
	}
	id := strings.TrimPrefix(secret.ID, "sha256:")
	short := id[:12]
	b.repolicy(edited(t, hermesImages, `      - allow: [images.list, images.pull, images.remove]
        on: ["images/docker.io/library/*", "images/*"]
`))
	there := func(id string) bool {
		return slices.ContainsFunc(present(t, ""), func(i testhost.Image) bool { return i.ID == id })
	}
	for image, reason := range map[string]brokerv1.ErrorReason{
		short:                          brokerv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND,
		"docker.io/library/" + short:   brokerv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND,
		"docker.io/library/" + id[:40]: brokerv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND,
		short + "@" + secret.Digest:    brokerv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND,
		short + ":1":                   brokerv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND,
		"sha256:" + short:              brokerv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT,
		id:                             brokerv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT,
		"docker.io/library/" + short + "@" + secret.ID: brokerv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND,
	} {
		for _, validate := range []bool{true, false} {
			_, err := c.RemoveImage(ctx, &brokerv1.RemoveImageRequest{Image: image, ValidateOnly: validate})
			if client.Reason(err) != reason {
				t.Errorf("%s: %v, want %v", image, err, reason)
			}
		}
	}
	if !there(secret.ID) {
		t.Fatal("the image went by its ID")
	}
	// An image that has the other's ID for its name is what the name means.
	if err := host.BuildImage(ctx, short+":latest", map[string][]byte{"file": []byte("other")}); err != nil {
		t.Fatal(err)
	}
	named := present(t, short+":latest")[0].ID
	removed, err := c.RemoveImage(ctx, &brokerv1.RemoveImageRequest{Image: short})
	if err != nil || removed.GetImageId() != named || removed.GetImage() != "docker.io/library/"+short+":latest" || !removed.GetDeleted() {
		t.Errorf("removed %v, %v; want %s", removed, err, named)
	}
	if there(named) || !there(secret.ID) {
		t.Errorf("named: %t, secret: %t", there(named), there(secret.ID))
	}
}

func TestRemoveImage(t *testing.T) {
	r := registry(t)
	b := imagesBroker(t, imagesConfig)
	ctx := t.Context()
	c, ada := b.dial("hermes"), b.dial("ada")
	image := push(t, r, "team/app:1", guest(t))
	b.must(r.Tag(ctx, "team/app:2", image.Digest))
	name := r.Addr + "/team/app"
	get := func() {
		t.Helper()
		for _, tag := range []string{":1", ":2"} {
			if _, _, err := pull(t, c, name+tag); err != nil {
				t.Fatal(err)
			}
		}
	}
	get()
	remove := func(c *client.Client, req *brokerv1.RemoveImageRequest) (*brokerv1.RemoveImageResponse, error) {
		return c.Images().RemoveImage(ctx, req)
	}
	refused := func(c *client.Client, req *brokerv1.RemoveImageRequest, reason brokerv1.ErrorReason) {
		t.Helper()
		_, err := remove(c, req)
		want(t, err, reason)
	}
	refused(c, &brokerv1.RemoveImageRequest{Image: testhost.GuestImage}, brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED)
	refused(c, &brokerv1.RemoveImageRequest{Image: "nobody/nothing:1"}, brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED)
	refused(c, &brokerv1.RemoveImageRequest{Image: name + ":3"}, brokerv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND)
	refused(c, &brokerv1.RemoveImageRequest{Image: name + ":1", ExpectedId: testhost.GuestImage}, brokerv1.ErrorReason_ERROR_REASON_PLAN_CHANGED)
	refused(c, &brokerv1.RemoveImageRequest{Image: name + ":1", Force: true}, brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED)

	// Two references, one after the other.
	preview, err := remove(c, &brokerv1.RemoveImageRequest{Image: name + ":1", ValidateOnly: true})
	if err != nil || preview.GetDeleted() || preview.GetImageId() != image.ID || !slices.Contains(preview.GetRemainingReferences(), name+":2") {
		t.Errorf("validate_only: %v, %v", preview, err)
	}
	req := &brokerv1.RemoveImageRequest{Image: name + ":1", ExpectedId: preview.GetImageId(), RequestId: client.NewRequestID()}
	for range 2 { // The second is answered as the first.
		removed, err := remove(c, req)
		if err != nil || removed.GetDeleted() || removed.GetImageId() != image.ID || !slices.Equal(removed.GetRemainingReferences(), preview.GetRemainingReferences()) {
			t.Errorf("one of two: %v, %v", removed, err)
		}
	}
	if got := present(t, name); len(got) != 1 || !slices.Equal(got[0].RepoTags, []string{name + ":2"}) {
		t.Errorf("the engine has %+v", got)
	}
	last, err := remove(c, &brokerv1.RemoveImageRequest{Image: name + ":2"})
	if err != nil || !last.GetDeleted() || len(last.GetRemainingReferences()) > 0 {
		t.Errorf("the last: %v, %v", last, err)
	}
	absent(t, name)

	// An image that a container uses.
	if _, _, err := pull(t, c, name+":1"); err != nil {
		t.Fatal(err)
	}
	run(t, testhost.ContainerSpec{Name: "web", Image: name + ":1", Cmd: []string{"serve"}})
	refused(c, &brokerv1.RemoveImageRequest{Image: name + ":1"}, brokerv1.ErrorReason_ERROR_REASON_IMAGE_IN_USE)
	refused(ada, &brokerv1.RemoveImageRequest{Image: name + ":1", Force: true}, brokerv1.ErrorReason_ERROR_REASON_IMAGE_IN_USE)
	b.must(host.API(ctx, "POST", "/containers/web/kill", nil, nil))
	if _, err := host.Wait(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	refused(c, &brokerv1.RemoveImageRequest{Image: name + ":1"}, brokerv1.ErrorReason_ERROR_REASON_IMAGE_IN_USE)
	if got := present(t, name); len(got) != 1 {
		t.Errorf("the engine has %+v", got)
	}
	forced, err := remove(ada, &brokerv1.RemoveImageRequest{Image: name + ":1", Force: true})
	if err != nil || forced.GetImageId() != image.ID {
		t.Errorf("by force: %v, %v", forced, err)
	}
	absent(t, name)
}
