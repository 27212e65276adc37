package docker

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

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
	engine *engine
	disk   *disk

	mu        sync.Mutex
	measuring *measurement    // The one that runs.
	stubborn  map[string]bool // What could not be removed, by ID: see Prune.
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

// measurement is one measuring of what takes how much.
type measurement struct {
	done chan struct{}
	u    *usage
	err  error
}

// measureTimeout is the engine's for one measurement.
const measureTimeout = 110 * time.Second

// measure asks the engine for its use of the disk. The engine does one measurement
// at a time, and it takes long: all who ask meanwhile share it, and it goes on
// when who began it has left.
func (s *Engine) measure(ctx context.Context) (*usage, error) {
	s.mu.Lock()
	m := s.measuring
	if m == nil {
		m = &measurement{done: make(chan struct{})}
		s.measuring = m
		go func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), measureTimeout)
			defer cancel()
			m.u, m.err = s.engine.diskUsage(ctx)
			s.mu.Lock()
			s.measuring = nil
			s.mu.Unlock()
			close(m.done)
		}()
	}
	s.mu.Unlock()
	select {
	case <-m.done:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if m.err != nil {
		return nil, wholeFault(ctx, m.err)
	}
	return m.u, nil
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
	shown, next := page.Cut(p, items, func(t T) bool {
		return call.Visible(ctx, noun+t.GetName()) && (req.GetNamePattern() == "" || page.Match(req.GetNamePattern(), t.GetName()))
	})
	return shown, next, nil
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
	ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	switch {
	case err == nil, ended && req.GetUntil() != nil && !time.Now().Before(req.GetUntil().AsTime()):
		return nil
	case ended && ctx.Err() == nil:
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
	const most = 99_999_999_999 // The year 5138: eleven digits are enough for anybody.
	if t.CheckValid() != nil || t.GetSeconds() < 0 || t.GetSeconds() > most {
		return "", fault.Invalid(field, "give a valid timestamp from 1970 to 5138")
	}
	return unixTime(t.AsTime()), nil
}
