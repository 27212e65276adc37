package e2e

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/certs"
	"github.com/gortium/hermes-broker/client"
	"github.com/gortium/hermes-broker/e2e/testhost"
)

// imagesConfig is for brokers that pull. Nothing listens at the second registry.
const imagesConfig = `registries:
  - host: 127.0.0.1:5000
  - host: 127.0.0.1:5999
images:
  min_free: 16MiB
`

const eveID = "spiffe://home.example/agent/eve"

// imagesPolicy is the policy of the tests of images, operations and the engine.
const imagesPolicy = `trust_domain: home.example
callers:
  - id: spiffe://home.example/agent/hermes
    grants:
      - allow: [broker.whoami, broker.can, engine.info, engine.version, engine.disk_usage, engine.prune, engine.events]
      - allow: [containers.list]
        on: ["containers/*"]
      - allow: [containers.remove]
        on: ["containers/web*"]
      - allow: [images.list, images.pull, images.remove]
        on: ["images/127.0.0.1:5000/team/*", "images/127.0.0.1:5001/team/*", "images/127.0.0.1:5999/team/*", "images/*"]
      - allow: [operations.list, operations.get, operations.watch, operations.cancel]
        on: ["operations/*"]
      - allow: [networks.list]
        on: ["networks/*"]
      - allow: [volumes.list]
        on: ["volumes/*"]
    deny:
      - on: ["containers/hidden", "networks/hidden", "volumes/hidden"]
  - id: spiffe://home.example/operator/ada
    grants:
      - allow: [broker.whoami, broker.freeze, broker.unfreeze, engine.prune, engine.prune_build_cache]
      - allow: [containers.list]
        on: ["containers/*"]
      - allow: [images.list, images.pull, images.remove, images.remove_force]
        on: ["images/127.0.0.1:5000/team/*"]
      - allow: [operations.list, operations.list_others, operations.get, operations.get_others, operations.watch, operations.watch_others, operations.cancel, operations.cancel_others]
        on: ["operations/*"]
  - id: spiffe://home.example/agent/eve
    grants:
      - allow: [images.pull]
        on: ["images/127.0.0.1:5000/team/*"]
      - allow: [operations.list, operations.get, operations.watch, operations.cancel]
        on: ["operations/*"]
`

// imagesBroker is a broker under imagesPolicy, with callers hermes, ada and eve.
// extra is appended to its configuration.
func imagesBroker(t testing.TB, extra string) *broker {
	t.Helper()
	b := makeBroker(t, "brokerd-race", host.Socket, extra)
	b.issue(eveID, certs.Agent, "eve")
	b.policy(imagesPolicy)
	b.run()
	return b
}

// repolicy starts brokerd anew under another policy.
func (b *broker) repolicy(text string) {
	b.t.Helper()
	b.stop(os.Interrupt)
	b.policy(text)
	b.start()
}

// registry runs a registry for the length of the test. What was pulled from it
// leaves the engine with it.
func registry(t testing.TB) *testhost.Registry {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := host.StartRegistry(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		for _, i := range present(t, r.Addr) {
			if err := host.RemoveImage(ctx, i.ID); err != nil {
				t.Error(err)
			}
		}
	})
	return r
}

// push gives the registry an image.
func push(t testing.TB, r *testhost.Registry, name string, layers ...[]byte) testhost.PushedImage {
	t.Helper()
	image, err := r.Push(t.Context(), name, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// guest is the program of a layer that can run.
func guest(t testing.TB) []byte {
	t.Helper()
	program, err := host.Guest()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// present are the images on the engine whose names begin so, by its own account.
func present(t testing.TB, prefix string) []testhost.Image {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	found, err := host.Images(ctx, prefix)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// absent checks that the engine has nothing by names that begin so.
func absent(t testing.TB, prefix string) {
	t.Helper()
	if found := present(t, prefix); len(found) > 0 {
		t.Errorf("the engine has %+v", found)
	}
}

// fetched is how often an image's layers were fetched, in all.
func fetched(r *testhost.Registry, images ...testhost.PushedImage) int {
	return len(r.Requests(func(method, path string) bool { return ofLayer(method, path, images...) }))
}

// ofLayer matches the fetching of a layer of one of the images.
func ofLayer(method, path string, images ...testhost.PushedImage) bool {
	return testhost.IsBlob(method, path) && slices.ContainsFunc(images, func(i testhost.PushedImage) bool {
		return slices.Contains(i.Layers, path[strings.LastIndex(path, "/")+1:])
	})
}

// throttled gives an image's layers at so many bytes a second.
func throttled(image testhost.PushedImage, perSecond int) testhost.Interceptor {
	return func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		if ofLayer(req.Method, req.URL.Path, image) {
			w = testhost.Throttle(w, perSecond)
		}
		next.ServeHTTP(w, req)
	}
}

// hold keeps a registry from giving the layers of images until it is released.
type hold struct {
	reached chan struct{} // Closed when the first of them is asked for.
	release func()
}

// holdLayers holds the layers from now on, to the test's end at most.
func holdLayers(t testing.TB, r *testhost.Registry, images ...testhost.PushedImage) *hold {
	free := make(chan struct{})
	h := &hold{reached: make(chan struct{}), release: sync.OnceFunc(func() { close(free) })}
	reach := sync.OnceFunc(func() { close(h.reached) })
	r.Intercept(func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		if ofLayer(req.Method, req.URL.Path, images...) {
			reach()
			select {
			case <-free:
			case <-req.Context().Done():
			}
		}
		next.ServeHTTP(w, req)
	})
	t.Cleanup(h.release)
	return h
}

// wait waits until the engine asks for a layer.
func (h *hold) wait(t testing.TB) {
	t.Helper()
	select {
	case <-h.reached:
	case <-time.After(20 * time.Second):
		t.Fatal("the engine does not ask for the layer")
	}
}

// within is a context for what has to end by itself long before.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

type pullStream = brokerv1.ImageService_PullClient

// begin begins a pull and reads the operation's name.
func begin(t testing.TB, ctx context.Context, c *client.Client, req *brokerv1.PullRequest) (pullStream, *brokerv1.PullResponse) {
	t.Helper()
	s, err := c.Images().Pull(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	first, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if first.GetOperation().GetName() == "" {
		t.Fatalf("the first event is %v", first)
	}
	return s, first
}

// finish reads a pull to its end. The events are those read before and the rest,
// and are in order; without an error the last is the result.
func finish(t testing.TB, s pullStream, before ...*brokerv1.PullResponse) (*brokerv1.PullResult, []*brokerv1.PullResponse, error) {
	t.Helper()
	rest, err := receive(s)
	all := append(before, rest...)
	return inOrder(t, all, err), all, err
}

// pull pulls, to the end.
func pull(t testing.TB, c *client.Client, image string) (*brokerv1.PullResult, []*brokerv1.PullResponse, error) {
	t.Helper()
	return pullRequest(t, c, &brokerv1.PullRequest{Image: image})
}

func pullRequest(t testing.TB, c *client.Client, req *brokerv1.PullRequest) (*brokerv1.PullResult, []*brokerv1.PullResponse, error) {
	t.Helper()
	s, err := c.Images().Pull(within(t), req)
	if err != nil {
		t.Fatal(err)
	}
	return finish(t, s)
}

// pullValidateOnly asks what a pull would fetch. The answer is one message, of no
// operation.
func pullValidateOnly(t testing.TB, c *client.Client, image string) (*brokerv1.PullResult, []*brokerv1.PullResponse, error) {
	t.Helper()
	s, err := c.Images().Pull(within(t), &brokerv1.PullRequest{Image: image, ValidateOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	events, err := receive(s)
	if err != nil || len(events) != 1 {
		return nil, events, err
	}
	return events[0].GetResult(), events, nil
}

// receive reads a stream to its end.
func receive[T any](s interface{ Recv() (T, error) }) (all []T, err error) {
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, m)
	}
}

// inOrder checks what holds for the events of every operation that were given
// until err: rising numbers, one operation, first, and one result, last, unless
// there is an error. It returns the result.
func inOrder(t testing.TB, events []*brokerv1.PullResponse, err error) *brokerv1.PullResult {
	t.Helper()
	last := int64(0)
	for i, e := range events {
		if e.GetSequence() <= last {
			t.Errorf("event %d comes after %d", e.GetSequence(), last)
		}
		last = e.GetSequence()
		if (e.GetOperation() != nil) != (i == 0 && last == 1) {
			t.Errorf("event %d of %d is %v", i, len(events), e)
		}
		if e.GetResult() != nil && (i < len(events)-1 || err != nil) {
			t.Errorf("event %d of %d is a result; the end is %v", i, len(events), err)
		}
	}
	if len(events) == 0 {
		return nil
	}
	result := events[len(events)-1].GetResult()
	if err == nil && result == nil {
		t.Errorf("without an error the last event is %v", events[len(events)-1])
	}
	return result
}

// watch reads an operation's events to its end.
func watch(t testing.TB, c *client.Client, name string, after int64) ([]*brokerv1.PullResponse, error) {
	t.Helper()
	s, err := c.Operations().WatchOperation(within(t), &brokerv1.WatchOperationRequest{Name: name, After: after})
	if err != nil {
		t.Fatal(err)
	}
	all, err := receive(s)
	events := make([]*brokerv1.PullResponse, len(all))
	for i, m := range all {
		events[i] = m.GetEvent().GetPull()
	}
	return events, err
}

// operation describes an operation, which has to be there.
func operation(t testing.TB, c *client.Client, name string) *brokerv1.Operation {
	t.Helper()
	got, err := c.Operations().GetOperation(t.Context(), &brokerv1.GetOperationRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return got.GetOperation()
}

// ended waits until an operation does not run and checks how it ended.
func ended(t testing.TB, c *client.Client, name string, state brokerv1.OperationState) *brokerv1.Operation {
	t.Helper()
	var o *brokerv1.Operation
	eventually(t, name+" has ended", func() bool {
		o = operation(t, c, name)
		return o.GetState() != brokerv1.OperationState_OPERATION_STATE_RUNNING
	})
	if o.GetState() != state || o.GetEndTime() == nil {
		t.Errorf("want %v, got %v", state, o)
	}
	return o
}

// same checks that two lists of events are one and the same.
func same(t testing.TB, got, want []*brokerv1.PullResponse) {
	t.Helper()
	if !slices.EqualFunc(got, want, func(a, b *brokerv1.PullResponse) bool { return proto.Equal(a, b) }) {
		t.Errorf("got the events\n%v\nand before\n%v", got, want)
	}
}
