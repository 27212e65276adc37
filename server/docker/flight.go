package docker

import (
	"context"
	"fmt"
	"sync"
	"time"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/imageref"
)

// flight is one pull that runs. Everybody who asks for the reference meanwhile is
// on it; it ends early when the last of them has left.
type flight struct {
	ref       imageref.Ref
	aboard    int           // Under Images.mu.
	resolving chan struct{} // Holds digest.
	digest    string
	begin     sync.Once
	cancel    context.CancelCauseFunc // Set by start.
	mu        sync.Mutex
	version   int // Counts changes.
	layers    []*layer
	byID      map[string]*layer

	done chan struct{} // Closed at the end; err and tag are set then.
	err  error
	tag  brokerv1.PulledTag
}

type layer struct {
	version int // When it last changed.
	state   *brokerv1.PullLayer
	fetched int64
	size    int64 // Of what is fetched; what is extracted has a count of its own.
}

// join takes a seat on the flight of a reference.
func (s *Images) join(ref imageref.Ref) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.flights[ref.String()]
	if f == nil {
		f = &flight{ref: ref, resolving: make(chan struct{}, 1), byID: map[string]*layer{}, done: make(chan struct{}), cancel: func(error) {}}
		s.flights[ref.String()] = f
	}
	f.aboard++
	return f
}

func (s *Images) leave(f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.aboard--; f.aboard == 0 {
		f.cancel(nil)
		s.forget(f)
	}
}

// forget makes the next who asks begin anew. The caller holds mu.
func (s *Images) forget(f *flight) {
	if s.flights[f.ref.String()] == f {
		delete(s.flights, f.ref.String())
	}
}

// start lets the first whose intent is on record begin the pull.
func (f *flight) start(ctx context.Context, s *Images) {
	f.begin.Do(func() {
		// Whoever began it may leave; who is left goes on.
		ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
		s.mu.Lock()
		f.cancel = cancel
		s.mu.Unlock()
		go func() {
			defer cancel(nil)
			f.err = f.run(ctx, s)
			s.mu.Lock()
			s.forget(f)
			s.mu.Unlock()
			close(f.done)
		}()
	})
}

// run fetches the digest and, if a tag was asked for, has the engine take that.
func (f *flight) run(ctx context.Context, s *Images) error {
	digest := f.ref.Digest
	if digest == "" {
		digest = f.digest
	}
	at := f.ref.At(digest)
	if err := s.fetch(ctx, at, f.note); err != nil {
		return err
	}
	if f.ref.Tag == "" {
		return nil
	}
	var err error
	f.tag, err = s.setTag(ctx, f.ref, at)
	return err
}

// fetch has the engine fetch a reference, and ends that when space runs out.
func (s *Images) fetch(ctx context.Context, ref imageref.Ref, message func(pullMessage)) error {
	auth, err := encodeAuth(s.registries[ref.Registry])
	if err != nil {
		return err
	}
	body, err := s.engine.pull(ctx, ref.String(), auth)
	if err != nil {
		return err
	}
	defer body.Close()
	looked := time.Now()
	return readPull(body, func(m pullMessage) error {
		message(m)
		if time.Since(looked) < time.Second {
			return nil
		}
		looked = time.Now()
		return s.room(ctx)
	})
}

// setTag gives an image that is there by its digest the tag that was asked for.
// The engine lets nobody name a tag but a registry: it has to fetch by the tag
// once more, which moves no data, and might then meet another image. So the
// registry is asked right before, and the engine right after.
func (s *Images) setTag(ctx context.Context, ref, at imageref.Ref) (brokerv1.PulledTag, error) {
	const moved = brokerv1.PulledTag_PULLED_TAG_MOVED
	now, err := s.ask(ctx, ref)
	if err != nil {
		call.Note(ctx, "the tag was not set: "+err.Error())
		return moved, ctx.Err()
	}
	if now != at.Digest {
		return moved, nil
	}
	if err := s.fetch(ctx, ref, func(pullMessage) {}); err != nil {
		call.Note(ctx, "the tag was not set: "+err.Error())
		return moved, ctx.Err()
	}
	tagged, err := s.local(ctx, ref)
	if err != nil {
		return 0, err
	}
	decided, err := s.local(ctx, at)
	if err != nil {
		return 0, err
	}
	if tagged != nil && decided != nil && tagged.id == decided.id {
		return brokerv1.PulledTag_PULLED_TAG_SET, nil
	}
	if tagged != nil {
		call.Note(ctx, fmt.Sprintf("the tag moved in the last moment; %s, which nobody decided on, loses it again", tagged.id))
		if _, err := s.engine.removeImage(ctx, ref.String(), false); err != nil {
			return 0, err
		}
	}
	return brokerv1.PulledTag_PULLED_TAG_DROPPED, nil
}

// note takes a message of the engine into account.
func (f *flight) note(m pullMessage) {
	state, known := layerStates[m.Status]
	if m.ID == "" || len(m.ID) > 64 || !known {
		return // "Pulling from library/alpine", "Digest: ...", a wait before a retry.
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.byID[m.ID]
	if l == nil {
		if len(f.layers) == maxLayers {
			return
		}
		l = &layer{state: &brokerv1.PullLayer{Id: m.ID}}
		f.byID[m.ID] = l
		f.layers = append(f.layers, l)
	}
	f.version++
	l.version = f.version
	current, total := m.ProgressDetail.Current, m.ProgressDetail.Total
	switch state {
	case brokerv1.PullLayerState_PULL_LAYER_STATE_DOWNLOADING:
		l.fetched, l.size = current, max(l.size, total)
	case brokerv1.PullLayerState_PULL_LAYER_STATE_DOWNLOADED, brokerv1.PullLayerState_PULL_LAYER_STATE_DONE:
		l.fetched = l.size
		current, total = l.size, l.size
	}
	l.state = &brokerv1.PullLayer{Id: m.ID, State: state, CurrentBytes: current, TotalBytes: max(total, l.size)}
}

// maxLayers is more than any engine takes.
const maxLayers = 512

// progress is what has changed since a version, and the version now; nil when
// nothing has.
func (f *flight) progress(since int) (*brokerv1.PullProgress, int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.version == since {
		return nil, since
	}
	p := &brokerv1.PullProgress{LayersTotal: int32(len(f.layers))}
	for _, l := range f.layers {
		if l.version > since {
			p.Layers = append(p.Layers, l.state)
		}
		p.DownloadedBytes += l.fetched
		p.TotalBytes += l.size
		if s := l.state.State; s == brokerv1.PullLayerState_PULL_LAYER_STATE_DONE || s == brokerv1.PullLayerState_PULL_LAYER_STATE_EXISTS {
			p.LayersDone++
		}
	}
	return p, f.version
}
