package docker

import (
	"context"
	"errors"
	"io"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/page"
)

// Engine is EngineService.
type Engine struct {
	brokerv1.UnimplementedEngineServiceServer
	engine    *engine
	disk      *disk
	measuring chan struct{} // Held while the engine measures: it does one at a time.
}

// Info implements brokerv1.EngineServiceServer.
func (s *Engine) Info(ctx context.Context, _ *brokerv1.InfoRequest) (*brokerv1.InfoResponse, error) {
	view, _, err := s.engine.info(ctx)
	if err != nil {
		return nil, wholeFault(ctx, err)
	}
	if view.DataFreeBytes, view.DataTotalBytes, err = s.disk.space(ctx); err != nil {
		call.Note(ctx, "free space: "+err.Error())
	}
	return view, nil
}

// Version implements brokerv1.EngineServiceServer.
func (s *Engine) Version(ctx context.Context, _ *brokerv1.VersionRequest) (*brokerv1.VersionResponse, error) {
	v, err := s.engine.version(ctx)
	if err != nil {
		return nil, wholeFault(ctx, err)
	}
	return v, nil
}

// measure asks the engine for its use of the disk, when nobody else does.
func (s *Engine) measure(ctx context.Context) (*usage, error) {
	select {
	case s.measuring <- struct{}{}:
		defer func() { <-s.measuring }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	u, err := s.engine.diskUsage(ctx)
	if err != nil {
		return nil, wholeFault(ctx, err)
	}
	return u, nil
}

// DiskUsage implements brokerv1.EngineServiceServer.
func (s *Engine) DiskUsage(ctx context.Context, _ *brokerv1.DiskUsageRequest) (*brokerv1.DiskUsageResponse, error) {
	u, err := s.measure(ctx)
	if err != nil {
		return nil, err
	}
	resp := &brokerv1.DiskUsageResponse{
		LayersBytes: u.layers,
		Containers:  &brokerv1.DiskUsage{}, Images: &brokerv1.DiskUsage{}, Volumes: &brokerv1.DiskUsage{}, BuildCache: &brokerv1.DiskUsage{},
	}
	count := func(d *brokerv1.DiskUsage, size int64, active bool) {
		d.Count++
		d.SizeBytes += size
		if active {
			d.Active++
		} else {
			d.ReclaimableBytes += size
		}
	}
	users := map[string]bool{}
	for _, c := range u.containers {
		users[c.image] = true
		if call.Permits(ctx, "containers.list", "containers/"+c.name) {
			count(resp.Containers, c.size, !stopped(c.state))
		}
	}
	for _, i := range u.images {
		if slices.ContainsFunc(i.resources(), func(r string) bool { return call.Permits(ctx, "images.list", r) }) {
			count(resp.Images, i.size, users[i.id])
		}
	}
	for _, v := range u.volumes {
		if call.Permits(ctx, "volumes.list", "volumes/"+v.name) {
			count(resp.Volumes, v.size, v.inUse)
		}
	}
	for _, r := range u.cache {
		count(resp.BuildCache, r.size, r.inUse)
	}
	return resp, nil
}

// ListNetworks implements brokerv1.EngineServiceServer.
func (s *Engine) ListNetworks(ctx context.Context, req *brokerv1.ListNetworksRequest) (resp *brokerv1.ListNetworksResponse, err error) {
	resp = &brokerv1.ListNetworksResponse{}
	resp.Networks, resp.NextPageToken, err = listNamed(ctx, req, "networks/", s.engine.networks)
	return resp, err
}

// ListVolumes implements brokerv1.EngineServiceServer.
func (s *Engine) ListVolumes(ctx context.Context, req *brokerv1.ListVolumesRequest) (resp *brokerv1.ListVolumesResponse, err error) {
	resp = &brokerv1.ListVolumesResponse{}
	resp.Volumes, resp.NextPageToken, err = listNamed(ctx, req, "volumes/", s.engine.volumes)
	return resp, err
}

// named is a thing that goes by its name.
type named interface {
	proto.Message
	GetName() string
}

// listNamed is a page of things that have names.
func listNamed[T named](ctx context.Context, req interface {
	page.Request
	GetNamePattern() string
}, noun string, all func(context.Context) ([]page.Item[T], error)) ([]T, string, error) {
	p, err := page.New(req)
	if err == nil {
		err = page.CheckGlob("name_pattern", req.GetNamePattern(), page.NotInNames, 256)
	}
	if err != nil {
		return nil, "", err
	}
	items, err := all(ctx)
	if err != nil {
		return nil, "", wholeFault(ctx, err)
	}
	page, next := page.Cut(p, items, func(t T) bool {
		return call.Visible(ctx, noun+t.GetName()) && (req.GetNamePattern() == "" || page.Match(req.GetNamePattern(), t.GetName()))
	})
	return page, next, nil
}

// Events implements brokerv1.EngineServiceServer.
func (s *Engine) Events(req *brokerv1.EventsRequest, stream brokerv1.EngineService_EventsServer) error {
	ctx := stream.Context()
	since, err := eventTime("since", req.GetSince())
	if err != nil {
		return err
	}
	until, err := eventTime("until", req.GetUntil())
	if err != nil {
		return err
	}
	for _, k := range req.GetKinds() {
		if _, known := brokerv1.EventKind_name[int32(k)]; !known || k == brokerv1.EventKind_EVENT_KIND_UNSPECIFIED {
			return fault.Invalid("kinds", "give CONTAINER, IMAGE, NETWORK, VOLUME, ENGINE, or nothing for all")
		}
	}
	err = s.engine.events(ctx, since, until, func(e *event) error {
		if len(req.GetKinds()) > 0 && !slices.Contains(req.GetKinds(), e.view.GetKind()) || !call.Permits(ctx, e.permission, e.resource) {
			return nil
		}
		return stream.Send(e.view)
	})
	if err == nil || errors.Is(err, io.EOF) && req.GetUntil() != nil {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_ENGINE_UNAVAILABLE,
			"the engine ended the stream of events, as it does when it stops; go on with since", fault.RetryAfter(fault.RetryEngine))
	}
	return wholeFault(ctx, err)
}

// eventTime is a time in the engine's form, or "".
func eventTime(field string, t *timestamppb.Timestamp) (string, error) {
	if t == nil {
		return "", nil
	}
	if t.CheckValid() != nil || t.GetSeconds() < 0 {
		return "", fault.Invalid(field, "give a valid timestamp, not before 1970")
	}
	return unixTime(t.AsTime()), nil
}
