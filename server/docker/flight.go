package docker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/imageref"
)

// flight is one pull that runs. Everybody who asks for the reference meanwhile is
// on it, with an intent of its own; it ends early when the last of them has left.
type flight struct {
	ref, at imageref.Ref            // What was asked for, and what it was resolved to.
	aboard  int                     // Under Images.mu.
	cancel  context.CancelCauseFunc // Ends it.

	mu      sync.Mutex
	version int // Counts changes.
	layers  []*layer
	byID    map[string]*layer
	notes   []string // For the record of everybody aboard.

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

// fetching is the digest that a reference is being fetched at, or "".
func (s *Images) fetching(ref imageref.Ref) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flights[ref.String()]; f != nil {
		return f.at.Digest
	}
	return ""
}

// board takes a seat on the flight of a reference, or begins it. The context comes
// from an intent.
func (s *Images) board(ctx context.Context, ref, at imageref.Ref) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.flights[ref.String()]
	if f == nil || f.at != at { // Another digest: the tag moved between two looks.
		f = &flight{ref: ref, at: at, byID: map[string]*layer{}, done: make(chan struct{})}
		// Whoever began it may leave; who is left goes on.
		ctx, f.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
		s.flights[ref.String()] = f
		go func() {
			defer f.cancel(nil)
			f.err = f.run(ctx, s)
			s.mu.Lock()
			s.forget(f)
			s.mu.Unlock()
			close(f.done)
		}()
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

// run fetches the digest and, if a tag was asked for, has the engine take that.
func (f *flight) run(ctx context.Context, s *Images) error {
	if err := s.fetch(ctx, f.at, f.note); err != nil || f.ref.Tag == "" {
		return err
	}
	return f.setTag(ctx, s)
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
	err = readPull(body, func(m pullMessage) error {
		message(m)
		if time.Since(looked) < time.Second {
			return nil
		}
		looked = time.Now()
		return s.room(ctx)
	})
	if err != nil && ctx.Err() == nil {
		// What a registry says of space is a stranger's word; the disk's is not.
		if full := s.room(ctx); full != nil {
			return full
		}
	}
	return err
}

// Once a tag is being set, it is set and looked at to the end, whoever has left: an
// engine that is hung up on may still set it, behind our back.
const (
	setTimeout   = 30 * time.Second // It moves no data, unless the tag has moved.
	checkTimeout = 30 * time.Second
)

// setTag gives an image that is there by its digest the tag that was asked for.
// The engine lets nobody name a tag but a registry: it has to fetch by the tag
// once more, which moves no data, and might then meet another image. So the
// registry is asked right before, and the engine right after, however the fetch
// ended.
func (f *flight) setTag(ctx context.Context, s *Images) error {
	before, err := s.engine.local(ctx, f.ref)
	if err != nil {
		return err
	}
	now, err := s.ask(ctx, f.ref)
	if err != nil {
		return err
	}
	if now != f.at.Digest {
		f.tag = brokerv1.PulledTag_PULLED_TAG_MOVED
		return nil
	}
	setting, cancel := context.WithTimeout(context.WithoutCancel(ctx), setTimeout)
	fetched := s.fetch(setting, f.ref, func(pullMessage) {})
	cancel()
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
	defer cancel()
	tagged, err := s.engine.local(ctx, f.ref)
	if err != nil {
		return errors.Join(fetched, err)
	}
	decided, err := s.engine.local(ctx, f.at)
	if err != nil {
		return errors.Join(fetched, err)
	}
	switch {
	case tagged != nil && decided != nil && tagged.id == decided.id:
		f.tag = brokerv1.PulledTag_PULLED_TAG_SET
		return nil
	case tagged == nil, before != nil && before.id == tagged.id:
		f.tag = brokerv1.PulledTag_PULLED_TAG_MOVED
		return fetched
	}
	f.remark(fmt.Sprintf("the tag moved in the last moment; %s, which nobody decided on, loses it again", tagged.id))
	f.tag = brokerv1.PulledTag_PULLED_TAG_DROPPED
	_, err = s.engine.removeImage(ctx, f.ref.String(), false)
	return err
}

func (f *flight) remark(text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.notes = append(f.notes, text)
}

func (f *flight) noted() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.notes
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
