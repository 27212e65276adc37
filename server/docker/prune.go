package docker

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/imageref"
)

// maxPruned is how many things one call removes: so many that the record of the
// intent still names each.
const maxPruned = 64

// Prune implements brokerv1.EngineServiceServer. The engine's own prune decides by
// itself and host-wide what goes; this decides here, thing by thing.
func (s *Engine) Prune(ctx context.Context, req *brokerv1.PruneRequest) (*brokerv1.PruneResponse, error) {
	if !req.GetContainers() && !req.GetImages() && !req.GetUnusedImages() && !req.GetBuildCache() {
		return nil, fault.Invalid("containers", "say what to remove: containers, images, unused_images, build_cache")
	}
	if req.GetMinAge() != nil && (req.GetMinAge().CheckValid() != nil || req.GetMinAge().AsDuration() < 0) {
		return nil, fault.Invalid("min_age", "give a duration that is not negative")
	}
	if req.GetUnusedImages() && !req.GetImages() {
		return nil, fault.Invalid("unused_images", "give images as well")
	}
	u, err := s.measure(ctx)
	if err != nil {
		return nil, err
	}
	items := candidates(ctx, req, u, time.Now())
	resp := &brokerv1.PruneResponse{Items: items[:min(len(items), maxPruned)], More: int32(max(0, len(items)-maxPruned))}
	resp.Plan = plan(resp.Items)
	if want := req.GetExpectedPlan(); want != "" && want != resp.Plan {
		return nil, fault.New(brokerv1.ErrorReason_ERROR_REASON_PLAN_CHANGED,
			"what would be removed is not what it was; nothing was removed; ask again with validate_only and look at it")
	}
	if req.GetValidateOnly() || len(resp.Items) == 0 {
		return resp, nil
	}
	if ctx, err = call.Intend(ctx, target(resp.Items)); err != nil {
		return nil, err
	}
	for _, i := range resp.Items {
		err := s.removeItem(ctx, i)
		switch {
		case err == nil:
			i.Removed = true
			resp.ReclaimedBytes += i.GetSizeBytes()
		case errdefs.IsNotFound(err):
			i.Problem = "gone already"
		case errdefs.IsConflict(err):
			i.Problem = "in use now"
		default:
			// What went before stays gone, and is told. The rest would fail too.
			failed := wholeFault(ctx, err)
			i.Problem = "failed: " + fault.Reason(failed)
			return resp, nil
		}
	}
	return resp, nil
}

// candidates are what the request is about, the caller may remove, and nothing
// uses, in the order in which they are removed.
func candidates(ctx context.Context, req *brokerv1.PruneRequest, u *usage, now time.Time) []*brokerv1.PrunedItem {
	old := func(created time.Time) bool { return now.Sub(created) >= req.GetMinAge().AsDuration() }
	var all []*brokerv1.PrunedItem
	used := map[string]bool{}
	for _, c := range u.containers {
		used[c.image] = true
		if req.GetContainers() && c.name != "" && stopped(c.state) && old(c.created) && call.Permits(ctx, "containers.remove", "containers/"+c.name) {
			all = append(all, &brokerv1.PrunedItem{
				Kind: brokerv1.PrunedKind_PRUNED_KIND_CONTAINER, Id: c.id, Names: []string{c.name}, SizeBytes: c.size, CreateTime: timestamppb.New(c.created),
			})
		}
	}
	for _, i := range u.images {
		named := len(i.tags) > 0 || i.odd
		mine := !slices.ContainsFunc(i.resources(), func(r string) bool { return !call.Permits(ctx, "images.remove", r) })
		if req.GetImages() && !used[i.id] && !i.odd && (!named || req.GetUnusedImages()) && old(i.created) && mine {
			all = append(all, &brokerv1.PrunedItem{
				Kind: brokerv1.PrunedKind_PRUNED_KIND_IMAGE, Id: i.id, Names: i.references(), SizeBytes: i.size - i.shared, CreateTime: timestamppb.New(i.created),
			})
		}
	}
	for _, r := range u.cache {
		if req.GetBuildCache() && !r.inUse && old(r.created) {
			all = append(all, &brokerv1.PrunedItem{
				Kind: brokerv1.PrunedKind_PRUNED_KIND_BUILD_CACHE, Id: r.id, SizeBytes: r.size, CreateTime: timestamppb.New(r.created),
			})
		}
	}
	slices.SortFunc(all, func(a, b *brokerv1.PrunedItem) int {
		byAge := a.GetCreateTime().AsTime().Compare(b.GetCreateTime().AsTime())
		if a.Kind == brokerv1.PrunedKind_PRUNED_KIND_BUILD_CACHE {
			byAge = -byAge // Older records hold newer ones up: those go first.
		}
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), byAge, cmp.Compare(a.Id, b.Id))
	})
	return all
}

// removeItem removes one thing, and what became of it since it was looked at
// makes the engine refuse: nothing is forced.
func (s *Engine) removeItem(ctx context.Context, i *brokerv1.PrunedItem) error {
	switch i.GetKind() {
	case brokerv1.PrunedKind_PRUNED_KIND_CONTAINER:
		return s.engine.remove(ctx, i.GetId(), false)
	case brokerv1.PrunedKind_PRUNED_KIND_IMAGE:
		return s.removeWhole(ctx, i)
	}
	removed, err := s.engine.removeCache(ctx, i.GetId())
	if err == nil && !removed {
		err = errdefs.ErrConflict
	}
	return err
}

// removeWhole removes an image with all references it had in the plan. The engine
// removes one of several repositories by its ID only with force; so its tags go
// first, each only while it still names this image.
func (s *Engine) removeWhole(ctx context.Context, i *brokerv1.PrunedItem) error {
	images := &Images{engine: s.engine}
	for _, name := range i.GetNames() {
		ref, err := imageref.Parse(name)
		if err != nil {
			return err
		}
		if img, err := images.local(ctx, ref); err != nil {
			return err
		} else if img == nil || img.id != i.GetId() {
			continue // Gone with the tag before, or another image's by now.
		}
		if _, err := s.engine.removeImage(ctx, name, false); err != nil {
			return err
		}
	}
	_, err := s.engine.removeImage(ctx, i.GetId(), false)
	if errdefs.IsNotFound(err) && len(i.GetNames()) > 0 {
		return nil // It went with its last reference.
	}
	return err
}

// plan is a fingerprint of what would be removed.
func plan(items []*brokerv1.PrunedItem) string {
	h := sha256.New()
	for _, i := range items {
		fmt.Fprintf(h, "%d %s %q\n", i.GetKind(), i.GetId(), i.GetNames())
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// target names the items for the record of the intent: by the first 12 digits of
// their IDs, since a record has so much room.
func target(items []*brokerv1.PrunedItem) string {
	words := map[brokerv1.PrunedKind]string{
		brokerv1.PrunedKind_PRUNED_KIND_CONTAINER: "containers", brokerv1.PrunedKind_PRUNED_KIND_IMAGE: "images", brokerv1.PrunedKind_PRUNED_KIND_BUILD_CACHE: "build cache",
	}
	var b strings.Builder
	last := brokerv1.PrunedKind_PRUNED_KIND_UNSPECIFIED
	for _, i := range items {
		if i.GetKind() != last {
			last = i.GetKind()
			b.WriteString(words[last] + ": ")
		}
		id := strings.TrimPrefix(i.GetId(), "sha256:")
		b.WriteString(id[:min(len(id), 12)] + " ")
	}
	return strings.TrimSpace(b.String())
}
