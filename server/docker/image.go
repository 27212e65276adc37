package docker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/imageref"
	"github.com/gortium/hermes-broker/server/page"
)

// Images is ImageService over the engine.
type Images struct {
	brokerv1.UnimplementedImageServiceServer
	engine     *engine
	disk       *disk
	minFree    int64
	registries map[string]Registry // By host.

	mu      sync.Mutex
	flights map[string]*flight // Pulls that run, by canonical reference.
}

func newImages(e *engine, d *disk, registries []Registry, minFree int64) *Images {
	s := &Images{engine: e, disk: d, minFree: minFree, registries: map[string]Registry{}, flights: map[string]*flight{}}
	for _, r := range registries {
		s.registries[r.Host] = r
	}
	return s
}

func readReference(text string) (imageref.Ref, error) {
	ref, err := imageref.Parse(text)
	if err != nil {
		return ref, fault.Invalid("image", err.Error())
	}
	return ref, nil
}

// local is the image that goes by this very reference, or nil.
func (e *engine) local(ctx context.Context, ref imageref.Ref) (*localImage, error) {
	img, err := e.image(ctx, ref.String())
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, imageFault(ctx, err, ref)
	}
	// The engine takes the beginning of an ID for a reference too.
	if !slices.Contains(img.references(), ref.String()) {
		return nil, nil
	}
	return img, nil
}

// ListImages implements brokerv1.ImageServiceServer.
func (s *Images) ListImages(ctx context.Context, req *brokerv1.ListImagesRequest) (*brokerv1.ListImagesResponse, error) {
	p, err := page.New(req)
	if err == nil {
		err = page.CheckGlob("reference_pattern", req.GetReferencePattern(), page.NotInReferences, 512)
	}
	if err != nil {
		return nil, err
	}
	images, err := s.engine.images(ctx)
	if err != nil {
		return nil, wholeFault(ctx, err)
	}
	containers, err := s.engine.list(ctx)
	if err != nil {
		return nil, wholeFault(ctx, err)
	}
	users := map[string][]string{}
	for _, c := range containers {
		users[c.Value.GetImageId()] = append(users[c.Value.GetImageId()], c.Value.GetName())
	}
	all := make([]page.Item[*brokerv1.Image], 0, len(images))
	for _, img := range images {
		if view := visibleImage(ctx, img); view != nil {
			all = append(all, page.Item[*brokerv1.Image]{Key: page.Newest(img.created, img.id), Value: view})
		}
	}
	resp := &brokerv1.ListImagesResponse{}
	resp.Images, resp.NextPageToken = page.Cut(p, page.Sort(all), func(i *brokerv1.Image) bool {
		if !wantedImage(req, i) {
			return false
		}
		i.InUseBy = usersOf(ctx, users[i.GetId()])
		return true
	})
	return resp, nil
}

// visibleImage is the image as far as the grants show it, or nil.
func visibleImage(ctx context.Context, img *localImage) *brokerv1.Image {
	seen := func(references []string) (out []string) {
		for _, r := range references {
			if call.Visible(ctx, "images/"+r) {
				out = append(out, r)
			}
		}
		return out
	}
	view := &brokerv1.Image{
		Id: img.id, References: seen(img.tags), Digests: seen(img.digests), SizeBytes: img.size, CreateTime: timestamppb.New(img.created),
	}
	if len(view.References)+len(view.Digests) > 0 || len(img.references()) == 0 && !img.odd && call.Visible(ctx, "images/"+img.id) {
		return view
	}
	return nil
}

func wantedImage(req *brokerv1.ListImagesRequest, i *brokerv1.Image) bool {
	if req.GetUntagged() && len(i.GetReferences()) > 0 {
		return false
	}
	matches := func(r string) bool { return page.Match(req.GetReferencePattern(), r) }
	return req.GetReferencePattern() == "" || slices.ContainsFunc(i.GetReferences(), matches) || slices.ContainsFunc(i.GetDigests(), matches)
}

const maxUsers = 100

// usersOf are the containers of these names that the caller may list.
func usersOf(ctx context.Context, names []string) []string {
	var out []string
	for _, n := range names {
		if len(out) < maxUsers && call.Permits(ctx, "containers.list", "containers/"+n) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// RemoveImage implements brokerv1.ImageServiceServer.
func (s *Images) RemoveImage(ctx context.Context, req *brokerv1.RemoveImageRequest) (*brokerv1.RemoveImageResponse, error) {
	ref, err := readReference(req.GetImage())
	if err != nil {
		return nil, err
	}
	img, err := s.engine.local(ctx, ref)
	if err != nil {
		return nil, err
	}
	if img == nil {
		return nil, imageNotFound(ref)
	}
	if want := req.GetExpectedId(); want != "" && want != img.id {
		return nil, fault.New(brokerv1.ErrorReason_ERROR_REASON_PLAN_CHANGED,
			fmt.Sprintf("%s names another image than the one with the expected ID by now; look at it and decide again", ref))
	}
	if err := s.unused(ctx, ref, img, req.GetForce()); err != nil {
		return nil, err
	}
	gone, left := goesWith(img, ref)
	for _, r := range gone {
		if r != ref.String() && call.Denied(ctx, "images/"+r) {
			return nil, fault.Denied("images.remove", "images/"+r, call.From(ctx).ID)
		}
	}
	resp := &brokerv1.RemoveImageResponse{Image: ref.String(), ImageId: img.id, Deleted: len(left) == 0 && !img.odd}
	for _, r := range left {
		if call.Visible(ctx, "images/"+r) {
			resp.RemainingReferences = append(resp.RemainingReferences, r)
		}
	}
	if req.GetValidateOnly() {
		return resp, nil
	}
	if ctx, err = call.Intend(ctx, strings.Join(gone, " and ")+" of "+img.id); err != nil {
		return nil, err
	}
	deleted, err := s.engine.removeImage(ctx, ref.String(), req.GetForce())
	if err != nil {
		return nil, imageFault(ctx, err, ref)
	}
	resp.Deleted = slices.Contains(deleted, img.id)
	return resp, nil
}

// unused refuses an image that a container uses: any container, or with force one
// that runs. It refuses a digest in whose repository are tags too: some engines
// take those along, which nobody asked for.
func (s *Images) unused(ctx context.Context, ref imageref.Ref, img *localImage, force bool) error {
	containers, err := s.engine.list(ctx)
	if err != nil {
		return wholeFault(ctx, err)
	}
	for _, c := range containers {
		if c.Value.GetImageId() == img.id && (!force || !stopped(c.Value.GetState())) {
			return imageInUse(ref)
		}
	}
	if ref.Digest != "" && slices.ContainsFunc(img.tags, func(t string) bool { return strings.HasPrefix(t, ref.Name()+":") }) {
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_IMAGE_IN_USE,
			fmt.Sprintf("the image has tags in %s; remove those first, and the digest goes with the last", ref.Name()), fault.With("image", ref.String()))
	}
	return nil
}

// stopped are the states of a container that Prune may remove, and whose image
// force may.
func stopped(s brokerv1.ContainerState) bool {
	return s == brokerv1.ContainerState_CONTAINER_STATE_CREATED || s == brokerv1.ContainerState_CONTAINER_STATE_EXITED || s == brokerv1.ContainerState_CONTAINER_STATE_DEAD
}

// goesWith are the references that go when one is removed, that one first, and
// those that stay. With the last tag of a repository the engine drops its digests
// there as well.
func goesWith(img *localImage, ref imageref.Ref) (gone, stay []string) {
	gone = []string{ref.String()}
	last := ref.Tag != ""
	for _, t := range img.tags {
		if t != ref.String() {
			stay = append(stay, t)
			last = last && !strings.HasPrefix(t, ref.Name()+":")
		}
	}
	for _, d := range img.digests {
		switch {
		case d == ref.String():
		case last && strings.HasPrefix(d, ref.Name()+"@"):
			gone = append(gone, d)
		default:
			stay = append(stay, d)
		}
	}
	return gone, stay
}
