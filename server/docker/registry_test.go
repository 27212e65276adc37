package docker

import (
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/gortium/hermes-broker/server/call"
)

// fakeRegistry is a registry and an engine that fetches from it.
type fakeRegistry struct {
	*store
	mu     sync.Mutex
	tags   map[string]string // By reference.
	asked  int
	pulled []string
	moveAt int                                 // The tag moves to second when it is asked for the n-th time.
	pull   func(ref string, w io.Writer) error // nil: at once.
	failAt int                                 // It does not answer for the n-th time.
	free   int64

	movesTo string // To this, in place of second.
}

func newRegistry() *fakeRegistry {
	return &fakeRegistry{store: &store{}, tags: map[string]string{"docker.io/library/alpine:latest": first}, free: 1 << 40}
}

func (r *fakeRegistry) service() *Images {
	s := r.store.service(Registry{Host: "127.0.0.1:5000", Username: "u", Password: "p"})
	s.disk.free = func(string) (int64, int64, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.free, r.free, nil
	}
	inner := s.engine.image
	s.engine.image = func(ctx context.Context, ref string) (*localImage, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return inner(ctx, ref)
	}
	s.engine.resolve = func(_ context.Context, ref, auth string) (string, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.look(ref)
	}
	s.engine.pull = func(ctx context.Context, ref, auth string) (io.ReadCloser, error) {
		if !call.Intended(ctx) {
			return nil, errNoIntent
		}
		out, in := io.Pipe()
		stop := context.AfterFunc(ctx, func() { in.CloseWithError(ctx.Err()) })
		go func() {
			defer stop()
			if r.pull != nil {
				if err := r.pull(ref, in); err != nil {
					in.CloseWithError(err)
					return
				}
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.pulled = append(r.pulled, ref)
			r.take(ref)
			in.Close()
		}()
		return out, nil
	}
	return s
}

// look is what a reference means. The caller holds mu.
func (r *fakeRegistry) look(ref string) (string, error) {
	if _, digest, ok := strings.Cut(ref, "@"); ok {
		return digest, nil
	}
	r.asked++
	if r.asked == r.moveAt {
		r.tags[ref] = cmp.Or(r.movesTo, second)
	}
	if r.asked == r.failAt {
		return "", errors.New("too many requests")
	}
	d, ok := r.tags[ref]
	if !ok {
		return "", errdefs.ErrNotFound
	}
	return d, nil
}

// take puts an image onto the engine, as a fetch of the reference does.
func (r *fakeRegistry) take(ref string) {
	digest, _ := r.look(ref)
	name, _, _ := strings.Cut(ref, "@")
	if digest != "" && !strings.Contains(ref, "@") {
		name = ref[:strings.LastIndex(ref, ":")]
	}
	id := "sha256:id-of-" + digest[7:20]
	i := slices.IndexFunc(r.images, func(i *localImage) bool { return i.id == id })
	if i < 0 {
		r.images = append(r.images, &localImage{id: id, size: 42, digests: []string{name + "@" + digest}})
		i = len(r.images) - 1
	}
	if !strings.Contains(ref, "@") {
		for _, other := range r.images {
			other.tags = slices.DeleteFunc(other.tags, func(t string) bool { return t == ref })
		}
		r.images[i].tags = append(r.images[i].tags, ref)
	}
}

// tagged is the ID of the image that a tag names.
func (r *fakeRegistry) tagged(ref string) string {
	for _, i := range r.images {
		if slices.Contains(i.tags, ref) && !slices.Contains(r.removed, ref+" false") {
			return i.id
		}
	}
	return ""
}
