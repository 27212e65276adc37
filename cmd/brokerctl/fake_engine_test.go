package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gortium/hermes-broker/api/brokerv1"
)

func (*fakeBroker) Info(context.Context, *brokerv1.InfoRequest) (*brokerv1.InfoResponse, error) {
	return &brokerv1.InfoResponse{
		ServerVersion: "28.5.2", ApiVersion: "1.51", OperatingSystem: hostile, OsType: "linux", Architecture: "x86_64", KernelVersion: "6.12.1",
		Cpus: 4, MemoryBytes: 16 << 30, StorageDriver: "overlay2", CgroupDriver: "systemd", CgroupVersion: "2", DefaultRuntime: "runc",
		SecurityOptions: []string{"apparmor", hostile}, LiveRestore: true, SystemTime: created, DataFreeBytes: 120_000_000_000, DataTotalBytes: 500_000_000_000,
	}, nil
}

func (*fakeBroker) Version(context.Context, *brokerv1.VersionRequest) (*brokerv1.VersionResponse, error) {
	return &brokerv1.VersionResponse{
		Version: "28.5.2", ApiVersion: "1.51", MinApiVersion: "1.24", GitCommit: "c0ffee", GoVersion: "go1.26.8",
		Components: []*brokerv1.EngineComponent{{Name: "containerd", Version: "2.1.4"}, {Name: hostile, Version: hostile}},
	}, nil
}

func (*fakeBroker) DiskUsage(context.Context, *brokerv1.DiskUsageRequest) (*brokerv1.DiskUsageResponse, error) {
	return &brokerv1.DiskUsageResponse{
		Containers: &brokerv1.DiskUsage{Count: 5, Active: 3, SizeBytes: 1_000_000, ReclaimableBytes: 400_000},
		Images:     &brokerv1.DiskUsage{Count: 12, Active: 4, SizeBytes: 9_000_000_000, ReclaimableBytes: 2_500_000_000},
		Volumes:    &brokerv1.DiskUsage{Count: 2, Active: 2, SizeBytes: 77_000_000},
		BuildCache: &brokerv1.DiskUsage{}, LayersBytes: 6_400_000_000,
	}, nil
}

// prunes counts the batches that were removed, by what was asked for.
type prunes struct {
	sync.Mutex
	done map[string]int
}

// prunedItems are what there is to remove for each kind.
func prunedItems(r *brokerv1.PruneRequest) [][]*brokerv1.PrunedItem {
	item := func(kind brokerv1.PrunedKind, id string, size int64, names ...string) *brokerv1.PrunedItem {
		return &brokerv1.PrunedItem{Kind: kind, Id: id, Names: names, SizeBytes: size, CreateTime: created}
	}
	problem := func(i *brokerv1.PrunedItem, text string) *brokerv1.PrunedItem {
		i.Problem = text
		return i
	}
	const container, image, cache = brokerv1.PrunedKind_PRUNED_KIND_CONTAINER, brokerv1.PrunedKind_PRUNED_KIND_IMAGE, brokerv1.PrunedKind_PRUNED_KIND_BUILD_CACHE
	switch {
	case r.GetMinAge() != nil: // nothing is that old
		return nil
	case r.GetContainers() && r.GetBuildCache(): // what is there changes all the time
		return [][]*brokerv1.PrunedItem{{item(cache, "cachecachecache1", 1)}}
	case r.GetContainers() && r.GetImages(): // two batches, with problems that are none
		return [][]*brokerv1.PrunedItem{
			{item(container, strings.Repeat("12", 32), 2_000_000, "media-old"), problem(item(container, strings.Repeat("34", 32), 0, "web"), "in use now")},
			{problem(item(image, digest("a2"), 5_000_000, library+"alpine:3.20"), "some of its references are gone, changed since"), item(image, digest("a3"), 3_000_000)},
		}
	case r.GetContainers(): // nothing can be removed, and there is more
		stuck := problem(item(container, strings.Repeat("56", 32), 0, "stuck"), "in use now")
		return [][]*brokerv1.PrunedItem{{stuck}, {stuck}, {stuck}}
	case r.GetUnusedImages(): // one of three, and there is more
		return [][]*brokerv1.PrunedItem{{
			item(image, digest("a4"), 4_000_000, library+"busybox:1"), problem(item(image, digest("a5"), 0, library+"broken:1"), "failed: ENGINE_ERROR"),
			item(image, digest("a6"), 0, library+"after:1"),
		}, {item(image, digest("a7"), 0, library+"next:1")}}
	case r.GetImages():
		return [][]*brokerv1.PrunedItem{{problem(item(image, hostile, 1, hostile), hostile)}}
	default:
		return [][]*brokerv1.PrunedItem{{item(cache, "cachecachecache1", 700_000_000)}}
	}
}

func (f *fakeBroker) Prune(_ context.Context, r *brokerv1.PruneRequest) (*brokerv1.PruneResponse, error) {
	if err := checkRequestID(r.GetRequestId(), r.GetValidateOnly()); err != nil {
		return nil, err
	}
	p := &f.prunes
	p.Lock()
	defer p.Unlock()
	if p.done == nil {
		p.done = map[string]int{}
	}
	key := fmt.Sprint(r.GetContainers(), r.GetImages(), r.GetUnusedImages(), r.GetBuildCache())
	batches, n := prunedItems(r), p.done[key]
	if len(batches) == 0 {
		return &brokerv1.PruneResponse{}, nil
	}
	resp := &brokerv1.PruneResponse{Items: batches[n], More: int32(len(batches) - n - 1), Plan: fmt.Sprintf("plan %d", n)}
	if !r.GetValidateOnly() && (r.GetExpectedPlan() != resp.GetPlan() || r.GetBuildCache() && r.GetContainers()) {
		return nil, refusal(codes.Aborted, "PLAN_CHANGED", "other things would be removed than were shown", 0, nil)
	}
	for _, i := range resp.GetItems() {
		if r.GetValidateOnly() {
			i.Problem = ""
			continue
		}
		if strings.HasPrefix(i.GetProblem(), "failed: ") {
			break // The rest would fail too.
		}
		if i.Removed = i.GetProblem() == ""; i.GetRemoved() {
			resp.ReclaimedBytes += i.GetSizeBytes()
		}
	}
	if !r.GetValidateOnly() {
		p.done[key] = (n + 1) % len(batches)
	}
	return resp, nil
}

func (*fakeBroker) Events(req *brokerv1.EventsRequest, s grpc.ServerStreamingServer[brokerv1.EventsResponse]) error {
	at := func(seconds int64) *timestamppb.Timestamp {
		return timestamppb.New(created.AsTime().Add(time.Duration(seconds) * time.Second))
	}
	all := []*brokerv1.EventsResponse{
		{EventTime: at(0), Kind: brokerv1.EventKind_EVENT_KIND_CONTAINER, Action: brokerv1.EventAction_EVENT_ACTION_START, ActionText: "start", Id: strings.Repeat("ab", 32), Name: "ollama"},
		{EventTime: at(1), Kind: brokerv1.EventKind_EVENT_KIND_IMAGE, Action: brokerv1.EventAction_EVENT_ACTION_PULL, Id: digest("a1"), Name: library + "alpine:3.22"},
		{EventTime: at(1), Kind: brokerv1.EventKind_EVENT_KIND_IMAGE, ActionText: "frobnicate", Name: hostile},
		{EventTime: at(2), Kind: brokerv1.EventKind_EVENT_KIND_ENGINE, Action: brokerv1.EventAction_EVENT_ACTION_RELOAD},
	}
	for i, e := range all {
		if len(req.GetKinds()) > 0 && !slices.Contains(req.GetKinds(), e.GetKind()) {
			continue
		}
		if e.GetEventTime().AsTime().Before(req.GetSince().AsTime()) {
			continue
		}
		if err := s.Send(e); err != nil {
			return err
		}
		// The first stream ends between two events of an instant.
		if i == 1 && !req.GetSince().AsTime().Equal(e.GetEventTime().AsTime()) && req.GetUntil() == nil {
			return refusal(codes.Aborted, "STREAM_EXPIRED", "the stream is old", time.Millisecond, nil)
		}
	}
	return nil
}

func (*fakeBroker) ListNetworks(_ context.Context, req *brokerv1.ListNetworksRequest) (*brokerv1.ListNetworksResponse, error) {
	all := []*brokerv1.Network{
		{Name: "home", Id: strings.Repeat("ef", 32), Driver: "bridge", Scope: "local", Ipv6: true, Subnets: []string{"198.18.0.0/24", "2001:db8::/64"}, CreateTime: created},
		{Name: "inside", Id: strings.Repeat("fe", 32), Driver: "bridge", Scope: "local", Internal: true, CreateTime: created},
		{Name: hostile, Id: hostile, Driver: hostile, Scope: hostile, Subnets: []string{hostile}},
	}
	if p, ok := strings.CutSuffix(req.GetNamePattern(), "*"); ok {
		kept := all[:0]
		for _, n := range all {
			if strings.HasPrefix(n.GetName(), p) {
				kept = append(kept, n)
			}
		}
		all = kept
	}
	resp := &brokerv1.ListNetworksResponse{}
	resp.Networks, resp.NextPageToken = onePage(all, req.GetPageToken())
	return resp, nil
}

func (*fakeBroker) ListVolumes(_ context.Context, req *brokerv1.ListVolumesRequest) (*brokerv1.ListVolumesResponse, error) {
	all := []*brokerv1.Volume{
		{Name: "models", Driver: "local", Scope: "local", CreateTime: created},
		{Name: hostile, Driver: hostile, Scope: hostile},
	}
	if req.GetNamePattern() == "m*" {
		all = all[:1]
	}
	resp := &brokerv1.ListVolumesResponse{}
	resp.Volumes, resp.NextPageToken = onePage(all, req.GetPageToken())
	return resp, nil
}
