package docker

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/imageref"
)

const (
	// resolveTimeout bounds what comes before a pull has a name and can be
	// cancelled by it.
	resolveTimeout = 30 * time.Second
	// minPause is between two messages of progress. Later it is a share of the time
	// gone by, so that a long pull makes few thousand messages and not more.
	minPause   = 200 * time.Millisecond
	pauseShare = 500
)

// Pull implements brokerv1.ImageServiceServer. What it sends are the events of an
// operation: see package chain.
func (s *Images) Pull(req *brokerv1.PullRequest, stream brokerv1.ImageService_PullServer) error {
	ctx := stream.Context()
	ref, err := readReference(req.GetImage())
	if err != nil {
		return err
	}
	if _, known := s.registries[ref.Registry]; ref.Private() && !known {
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_REGISTRY_NOT_REGISTERED,
			"the registry "+ref.Registry+" is an address, this host, or a name of the local network; the operator has to list it under registries first",
			fault.With("registry", ref.Registry))
	}
	result, err := s.decide(ctx, ref, req.GetValidateOnly())
	if err != nil {
		return err
	}
	if req.GetValidateOnly() {
		return stream.Send(&brokerv1.PullResponse{Event: &brokerv1.PullResponse_Result{Result: result}})
	}
	at := ref.At(result.GetDigest())
	if ctx, err = call.Intend(ctx, pullTarget(ref, at)); err != nil {
		return err
	}
	f := s.board(ctx, ref, at)
	defer s.leave(f)
	err = report(ctx, f, stream)
	for _, n := range f.noted() {
		call.Note(ctx, n)
	}
	if err != nil {
		return registryFault(ctx, err, ref)
	}
	img, err := s.engine.local(ctx, at)
	if err != nil {
		return err
	}
	if img == nil {
		call.Note(ctx, "the engine pulled "+at.String()+" and has no such image")
		return fault.Internal(call.ID(ctx))
	}
	result.ImageId, result.SizeBytes, result.Tag = img.id, img.size, f.tag
	return stream.Send(&brokerv1.PullResponse{Event: &brokerv1.PullResponse_Result{Result: result}})
}

// pullTarget is what a pull is about to change, in words that Aftermath reads.
func pullTarget(ref, at imageref.Ref) string {
	if ref == at {
		return at.String()
	}
	return at.String() + " for " + ref.String()
}

// Aftermath is what an interrupted operation of a method has left on the engine.
func (s *Services) Aftermath(ctx context.Context, method, target string) (brokerv1.Aftermath, error) {
	if !strings.HasSuffix(brokerv1.ImageService_Pull_FullMethodName, "."+method) {
		return brokerv1.Aftermath_AFTERMATH_UNSPECIFIED, nil
	}
	digest, tag, tagged := strings.Cut(target, " for ")
	find := func(text string) (*localImage, error) {
		ref, err := imageref.Parse(text)
		if err != nil {
			return nil, err
		}
		return s.Images.engine.local(ctx, ref)
	}
	pulled, err := find(digest)
	named := pulled
	if err == nil && tagged {
		named, err = find(tag)
	}
	switch {
	case err != nil:
		return 0, err
	case pulled == nil:
		return brokerv1.Aftermath_AFTERMATH_NONE, nil
	case named == nil || named.id != pulled.id:
		return brokerv1.Aftermath_AFTERMATH_PARTIAL, nil
	}
	return brokerv1.Aftermath_AFTERMATH_COMPLETE, nil
}

// decide resolves the reference, and asks about what it turned out to be.
func (s *Images) decide(ctx context.Context, ref imageref.Ref, validateOnly bool) (*brokerv1.PullResult, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	digest := cmp.Or(ref.Digest, s.fetching(ref))
	if digest == "" || validateOnly {
		var err error
		if digest, err = s.ask(ctx, ref); err != nil {
			return nil, registryFault(ctx, err, ref)
		}
	}
	at := ref.At(digest)
	if call.Denied(ctx, "images/"+at.String()) {
		return nil, fault.Denied("images.pull", "images/"+at.String(), call.From(ctx).ID)
	}
	img, err := s.engine.local(ctx, at)
	if err != nil {
		return nil, err
	}
	result := &brokerv1.PullResult{Image: ref.String(), Digest: digest, AlreadyPresent: img != nil}
	if img != nil {
		result.ImageId, result.SizeBytes = img.id, img.size
		return result, nil
	}
	return result, s.room(ctx)
}

// ask asks the registry what a reference means now.
func (s *Images) ask(ctx context.Context, ref imageref.Ref) (string, error) {
	auth, err := encodeAuth(s.registries[ref.Registry])
	if err != nil {
		return "", err
	}
	digest, err := s.engine.resolve(ctx, ref.String(), auth)
	if err != nil {
		return "", err
	}
	// What a registry says is a stranger's text until it is a digest.
	if _, err := imageref.Parse(ref.Name() + "@" + digest); err != nil {
		return "", fmt.Errorf("the registry gave %q as a digest", digest)
	}
	return digest, nil
}

// room refuses a pull where there is too little free space.
func (s *Images) room(ctx context.Context) error {
	if s.minFree == 0 {
		return nil
	}
	free, _, err := s.disk.space(ctx)
	if err != nil {
		call.Note(ctx, "free space: "+err.Error())
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_INSUFFICIENT_SPACE,
			"the broker cannot see how much is free where the engine keeps its data; the operator can set images.min_free to 0 to pull all the same")
	}
	if free < s.minFree {
		return noSpace()
	}
	return nil
}

func noSpace() error {
	return fault.New(brokerv1.ErrorReason_ERROR_REASON_INSUFFICIENT_SPACE,
		"there is too little free space where the engine keeps its data (images.min_free); remove images or prune, or tell the operator")
}

// report sends progress until the flight has ended.
func report(ctx context.Context, f *flight, stream brokerv1.ImageService_PullServer) error {
	begun := time.Now()
	seen := 0
	send := func() error {
		var p *brokerv1.PullProgress
		if p, seen = f.progress(seen); p == nil {
			return nil
		}
		return stream.Send(&brokerv1.PullResponse{Event: &brokerv1.PullResponse_Progress{Progress: p}})
	}
	for {
		if err := send(); err != nil {
			return err
		}
		pause := time.NewTimer(max(minPause, time.Since(begun)/pauseShare))
		select {
		case <-pause.C:
		case <-f.done:
			pause.Stop()
			if err := send(); err != nil {
				return err
			}
			return f.err
		case <-ctx.Done():
			pause.Stop()
			return context.Cause(ctx)
		}
	}
}
