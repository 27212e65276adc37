package main

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gortium/hermes-broker/api/brokerv1"
)

const library = "docker.io/library/"

func digest(pair string) string { return "sha256:" + strings.Repeat(pair, 32) }

func images() []*brokerv1.Image {
	return []*brokerv1.Image{
		{
			Id: digest("a1"), References: []string{library + "alpine:3.22", library + "alpine:latest"},
			Digests:   []string{"mirror.example/alpine@" + digest("b0"), library + "alpine@" + digest("b1")},
			SizeBytes: 8_300_000, CreateTime: created, InUseBy: []string{"ollama", "web"},
		},
		{Id: digest("a2"), Digests: []string{library + "alpine@" + digest("b2")}, SizeBytes: 8_100_000, CreateTime: created},
		{Id: digest("a3"), SizeBytes: 1_500_000_000, CreateTime: created},
		{Id: hostile, References: []string{hostile}, Digests: []string{hostile + "@" + hostile}, SizeBytes: -1, InUseBy: []string{hostile}},
	}
}

func (*fakeBroker) ListImages(_ context.Context, req *brokerv1.ListImagesRequest) (*brokerv1.ListImagesResponse, error) {
	var all []*brokerv1.Image
	prefix := strings.TrimSuffix(req.GetReferencePattern(), "*")
	for _, i := range images() {
		tagged := len(i.GetReferences()) > 0
		if tagged && req.GetUntagged() || prefix != "" && (!tagged || !strings.HasPrefix(i.GetReferences()[0], prefix)) {
			continue
		}
		all = append(all, i)
	}
	resp := &brokerv1.ListImagesResponse{}
	resp.Images, resp.NextPageToken = onePage(all, req.GetPageToken())
	return resp, nil
}

func (*fakeBroker) RemoveImage(_ context.Context, r *brokerv1.RemoveImageRequest) (*brokerv1.RemoveImageResponse, error) {
	if err := checkRequestID(r.GetRequestId(), r.GetValidateOnly()); err != nil {
		return nil, err
	}
	resp := &brokerv1.RemoveImageResponse{Image: library + r.GetImage(), ImageId: digest("a1"), Deleted: true}
	switch r.GetImage() {
	case "alpine:3.21":
	case "alpine:3.22":
		resp.Deleted, resp.RemainingReferences = false, []string{library + "alpine:latest"}
	case "used":
		if !r.GetForce() {
			return nil, refusal(codes.FailedPrecondition, "IMAGE_IN_USE", "a container uses the image", 0, nil)
		}
	case "moving": // names another image each time
		resp.ImageId = digest("a2")
		if r.GetExpectedId() != "" {
			return nil, refusal(codes.Aborted, "PLAN_CHANGED", "the reference names another image now", 0, nil)
		}
	case hostile:
		resp.Image, resp.ImageId, resp.Deleted, resp.RemainingReferences = hostile, hostile, false, []string{hostile}
	default:
		return nil, refusal(codes.NotFound, "IMAGE_NOT_FOUND", "the engine has no such image", 0, map[string]string{"image": r.GetImage()})
	}
	if want := r.GetExpectedId(); !r.GetValidateOnly() && want != resp.GetImageId() {
		return nil, refusal(codes.InvalidArgument, "INVALID_ARGUMENT", "expected_id: not that of the preview", 0, nil)
	}
	return resp, nil
}

// pulls is what the fake broker knows of pulls, by request ID.
type pulls struct {
	sync.Mutex
	all map[string]*fakePull
}

// fakePull is a pull that runs until a test says so.
type fakePull struct {
	requests  []*brokerv1.PullRequest
	detached  bool
	cancelled bool
	finish    chan error
}

// cancels are the operations that were cancelled by name.
type cancels struct {
	sync.Mutex
	names []string
}

func (c *cancels) all() []string {
	c.Lock()
	defer c.Unlock()
	return slices.Clone(c.names)
}

// only returns the one pull there is, once there is one.
func (p *pulls) only() *fakePull {
	for range 1000 {
		p.Lock()
		for _, one := range p.all {
			p.Unlock()
			return one
		}
		p.Unlock()
		time.Sleep(10 * time.Millisecond)
	}
	panic("no pull came")
}

func (p *pulls) state(one *fakePull) (detached, cancelled bool, requests int) {
	p.Lock()
	defer p.Unlock()
	return one.detached, one.cancelled, len(one.requests)
}

func pullOperation(name string) *brokerv1.PullResponse {
	id := "PULL"
	switch name {
	case "expires", "away": // who watched the latter would see it succeed
		id = "DONE"
	case "expires and runs":
		id = "RUNS"
	case "expires and fails":
		id = "BROKEN"
	case "expires unseen":
		id = "DENIED"
	}
	o := &brokerv1.Operation{Name: "operations/" + id, Method: "ImageService/Pull", Resource: "images/" + library + name, State: brokerv1.OperationState_OPERATION_STATE_RUNNING}
	if name == hostile {
		o.Name, o.Resource = "operations/"+hostile, hostile
	}
	return &brokerv1.PullResponse{Sequence: 1, Event: &brokerv1.PullResponse_Operation{Operation: o}}
}

func pullProgress(n int64, done int32, downloaded int64, layers ...*brokerv1.PullLayer) *brokerv1.PullResponse {
	return &brokerv1.PullResponse{Sequence: n, Event: &brokerv1.PullResponse_Progress{Progress: &brokerv1.PullProgress{
		Layers: layers, LayersDone: done, LayersTotal: 3, DownloadedBytes: downloaded, TotalBytes: 8_000_000,
	}}}
}

const (
	waiting     = brokerv1.PullLayerState_PULL_LAYER_STATE_WAITING
	downloading = brokerv1.PullLayerState_PULL_LAYER_STATE_DOWNLOADING
	extracting  = brokerv1.PullLayerState_PULL_LAYER_STATE_EXTRACTING
	layerDone   = brokerv1.PullLayerState_PULL_LAYER_STATE_DONE
	exists      = brokerv1.PullLayerState_PULL_LAYER_STATE_EXISTS
)

func layer(id string, state brokerv1.PullLayerState, current, total int64) *brokerv1.PullLayer {
	return &brokerv1.PullLayer{Id: id, State: state, CurrentBytes: current, TotalBytes: total}
}

// pullEvents are the events of a pull that succeeds, from the first to the last.
func pullEvents(name string) []*brokerv1.PullResponse {
	first, second, third := "0123456789ab", "aaaabbbbcccc", "ddddeeeeffff"
	result := &brokerv1.PullResult{Image: library + name, Digest: digest("b1"), ImageId: digest("a1"), SizeBytes: 8_300_000, Tag: brokerv1.PulledTag_PULLED_TAG_SET}
	switch name {
	case "present":
		result.AlreadyPresent, result.SizeBytes = true, 0
	case "moved":
		result.Tag = brokerv1.PulledTag_PULLED_TAG_MOVED
	case "dropped":
		result.Tag = brokerv1.PulledTag_PULLED_TAG_DROPPED
	case hostile:
		result.Image, result.Digest, result.Tag = hostile, hostile, brokerv1.PulledTag_PULLED_TAG_MOVED
		first, second, third = hostile, "\x1b[2J"+hostile, "\u202e"
	}
	return []*brokerv1.PullResponse{
		pullOperation(name),
		pullProgress(2, 1, 0, layer(first, exists, 0, 0), layer(second, downloading, 0, 6_000_000), layer(third, waiting, 0, 0)),
		pullProgress(3, 1, 6_000_000, layer(second, extracting, -5, 6_000_000), layer(third, downloading, 9_000_000, 2_000_000)),
		pullProgress(4, 3, 8_000_000, layer(second, layerDone, 0, 0), layer(third, layerDone, 0, 0)),
		{Sequence: 5, Event: &brokerv1.PullResponse_Result{Result: result}},
	}
}

func (f *fakeBroker) Pull(req *brokerv1.PullRequest, s grpc.ServerStreamingServer[brokerv1.PullResponse]) error {
	if err := checkRequestID(req.GetRequestId(), req.GetValidateOnly()); err != nil {
		return err
	}
	name := req.GetImage()
	events := pullEvents(name)
	switch name {
	case "secret":
		return refusal(codes.FailedPrecondition, "REGISTRY_DENIED", "the registry wants credentials "+hostile, 0, map[string]string{"registry": hostile})
	case "nothere":
		return refusal(codes.NotFound, "IMAGE_NOT_FOUND", "no such tag at the registry", 0, map[string]string{"image": library + "nothere:latest"})
	}
	if req.GetValidateOnly() {
		result := events[len(events)-1].GetResult()
		if !result.GetAlreadyPresent() {
			result.ImageId, result.SizeBytes = "", 0
		}
		result.Tag = brokerv1.PulledTag_PULLED_TAG_UNSPECIFIED
		return s.Send(&brokerv1.PullResponse{Event: &brokerv1.PullResponse_Result{Result: result}})
	}
	if strings.HasPrefix(name, "slow") || name == "stubborn" {
		return f.slowPull(req, s)
	}
	for _, e := range events {
		if err := s.Send(e); err != nil || req.GetDetach() {
			return err
		}
		switch {
		case e.GetSequence() > 1:
		case name == "away":
			return refusal(codes.Unavailable, "REGISTRY_UNAVAILABLE", "the registry stopped in the middle", 0, map[string]string{"operation": "operations/DONE", "registry": "docker.io"})
		case strings.HasPrefix(name, "expires"):
			return refusal(codes.Aborted, "STREAM_EXPIRED", "the stream is old", 0, nil)
		case name == "lost":
			return status.Error(codes.Unavailable, "connection lost")
		case name == "empty":
			return nil
		}
	}
	return nil
}

// slowPull runs until the test finishes it or the caller hangs up, as the broker's
// do. The image "stubborn" cannot be detached.
func (f *fakeBroker) slowPull(req *brokerv1.PullRequest, s grpc.ServerStreamingServer[brokerv1.PullResponse]) error {
	p := &f.pulls
	p.Lock()
	if p.all == nil {
		p.all = map[string]*fakePull{}
	}
	one := p.all[req.GetRequestId()]
	if one == nil {
		one = &fakePull{finish: make(chan error, 1)}
		p.all[req.GetRequestId()] = one
	}
	one.requests = append(one.requests, req)
	stubborn := req.GetDetach() && req.GetImage() == "stubborn"
	one.detached = one.detached || req.GetDetach() && !stubborn
	p.Unlock()
	if stubborn {
		return refusal(codes.Unavailable, "STATE_UNAVAILABLE", "the state cannot be written", 0, nil)
	}
	events := pullEvents(req.GetImage())
	for _, e := range events[:3] {
		if err := s.Send(e); err != nil || req.GetDetach() {
			return err
		}
	}
	select {
	case err := <-one.finish:
		if err != nil {
			return err
		}
		return s.Send(events[len(events)-1])
	case <-s.Context().Done():
		p.Lock()
		one.cancelled = !one.detached
		p.Unlock()
		return s.Context().Err()
	}
}
