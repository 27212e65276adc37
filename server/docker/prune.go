package docker

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
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
	s.mu.Lock()
	slices.SortStableFunc(items, func(a, b *brokerv1.PrunedItem) int {
		return cmp.Compare(b2i(s.stubborn[a.GetId()]), b2i(s.stubborn[b.GetId()]))
	})
	s.mu.Unlock()
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
	s.removeAll(ctx, resp.Items)
	var removed []*brokerv1.PrunedItem
	for _, i := range resp.Items {
		if i.GetRemoved() {
			removed = append(removed, i)
			resp.ReclaimedBytes += i.GetSizeBytes()
		}
	}
	call.Note(ctx, "removed "+target(removed))
	return resp, nil
}

// removeAll removes items and writes into each what became of it. One that fails
// keeps the others from nothing, unless they would fail as well.
func (s *Engine) removeAll(ctx context.Context, items []*brokerv1.PrunedItem) {
	for n, i := range items {
		err := call.Still(ctx)
		if err == nil {
			err = s.removeItem(ctx, i)
			i.Removed = err == nil
			s.remember(i)
		}
		switch {
		case err == nil:
			continue
		case errdefs.IsNotFound(err):
			i.Problem += "gone already"
			continue
		case errdefs.IsConflict(err):
			i.Problem += "in use now"
			continue
		case errors.Is(err, errChanged):
			i.Problem += "changed since"
			continue
		}
		failed := fault.Reason(wholeFault(ctx, err))
		switch failed {
		case "ENGINE_ERROR", "INTERNAL":
			i.Problem += "failed: " + failed
			continue
		}
		// The engine is away, the time is over, or the caller may do no more.
		for _, left := range items[n:] {
			left.Problem += "not tried: " + failed
		}
		return
	}
}

// errChanged ends the removal of what is not what was decided on.
var errChanged = errors.New("it is not what it was")

const maxStubborn = 1000

// remember keeps in mind what could not be removed, so that it comes last the next
// time: so many of them would leave no place for others.
func (s *Engine) remember(i *brokerv1.PrunedItem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stubborn == nil || len(s.stubborn) >= maxStubborn {
		s.stubborn = map[string]bool{}
	}
	if i.GetRemoved() {
		delete(s.stubborn, i.GetId())
	} else {
		s.stubborn[i.GetId()] = true
	}
}

// candidates are what the request is about, the caller may remove, and nothing
// uses, in the order in which they are removed.
func candidates(ctx context.Context, req *brokerv1.PruneRequest, u *usage, now time.Time) []*brokerv1.PrunedItem {
	old := func(created time.Time) bool { // What says that it is of the future is of now.
		return max(0, now.Sub(created)) >= req.GetMinAge().AsDuration()
	}
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

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// removeItem removes one thing, if it still is what was decided on, and the caller
// may still remove it. Nothing is forced.
func (s *Engine) removeItem(ctx context.Context, i *brokerv1.PrunedItem) error {
	switch i.GetKind() {
	case brokerv1.PrunedKind_PRUNED_KIND_CONTAINER:
		c, err := s.engine.inspect(ctx, i.GetId())
		if err != nil {
			return err
		}
		if c.id != i.GetId() || c.name != i.GetNames()[0] || !stopped(c.state) || !call.Permits(ctx, "containers.remove", "containers/"+c.name) {
			return errChanged
		}
		return s.engine.remove(ctx, c.id, false)
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
// would take new ones along with the ID, so there may be none; and it removes one
// of several repositories by its ID only with force, so its references go first.
func (s *Engine) removeWhole(ctx context.Context, i *brokerv1.PrunedItem) error {
	img, err := s.engine.image(ctx, i.GetId())
	if err != nil {
		return err
	}
	if img.id != i.GetId() || img.odd || !slices.Equal(img.references(), i.GetNames()) ||
		slices.ContainsFunc(img.resources(), func(r string) bool { return !call.Permits(ctx, "images.remove", r) }) {
		return errChanged
	}
	for _, name := range i.GetNames() {
		ref, err := imageref.Parse(name)
		if err != nil {
			return err
		}
		if img, err := s.engine.local(ctx, ref); err != nil {
			return err
		} else if img == nil || img.id != i.GetId() {
			continue // Gone with the tag before, or another image's by now.
		}
		if _, err := s.engine.removeImage(ctx, name, false); err != nil {
			return err
		}
		i.Problem = "some of its references are gone, "
	}
	if len(i.GetNames()) == 0 {
		_, err = s.engine.removeImage(ctx, i.GetId(), false)
	} else if _, err = s.engine.image(ctx, i.GetId()); errdefs.IsNotFound(err) {
		err = nil // It went with its last reference.
	} else if err == nil {
		err = errChanged // It has a new one.
	}
	if err == nil {
		i.Problem = ""
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
