package client_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

type watchStream = grpc.ServerStreamingServer[brokerv1.WatchOperationResponse]

// lastEvent is the number of an operation's result on the broker's side.
const lastEvent = 6

func operationEvent(n int64) *brokerv1.OperationEvent {
	pull := &brokerv1.PullResponse{Sequence: n}
	switch n {
	case 1:
		pull.Event = &brokerv1.PullResponse_Operation{Operation: &brokerv1.Operation{Name: "operations/A"}}
	case lastEvent:
		pull.Event = &brokerv1.PullResponse_Result{Result: &brokerv1.PullResult{Digest: "sha256:d"}}
	default:
		pull.Event = &brokerv1.PullResponse_Progress{Progress: &brokerv1.PullProgress{LayersTotal: int32(n)}}
	}
	return &brokerv1.OperationEvent{Event: &brokerv1.OperationEvent_Pull{Pull: pull}}
}

// sendEvents sends the events after the one that was asked for, up to number to.
func sendEvents(req *brokerv1.WatchOperationRequest, s watchStream, to int64) error {
	if req.GetName() != "operations/A" {
		return status.Error(codes.InvalidArgument, "another operation")
	}
	for n := req.GetAfter() + 1; n <= to; n++ {
		if err := s.Send(&brokerv1.WatchOperationResponse{Event: operationEvent(n)}); err != nil {
			return err
		}
	}
	return nil
}

func watch(ctx context.Context, c *client.Client, after int64) (seen []int64, err error) {
	for e, err := range c.WatchOperation(ctx, "operations/A", after) {
		if err != nil {
			return seen, err
		}
		seen = append(seen, client.Sequence(e))
	}
	return seen, nil
}

func eventsAfter(n int64) (all []int64) {
	for n++; n <= lastEvent; n++ {
		all = append(all, n)
	}
	return all
}

// TestWatchOperationResumes drops the stream after every possible number of
// events, and once more right after it was opened again.
func TestWatchOperationResumes(t *testing.T) {
	for name, drop := range map[string]error{
		"expired":  refusal(codes.Aborted, "STREAM_EXPIRED", 0),
		"stopping": refusal(codes.Unavailable, "SHUTTING_DOWN", 0),
		"lost":     status.Error(codes.Unavailable, "connection lost"),
	} {
		t.Run(name, func(t *testing.T) {
			b := &broker{}
			c := pairUp(t, b)
			for _, after := range []int64{0, 2} {
				for cut := after; cut <= lastEvent; cut++ {
					if name == "lost" && cut != 3 {
						continue // Without a word of the broker it takes its time.
					}
					drops := 0
					b.watch = func(_ int, req *brokerv1.WatchOperationRequest, s watchStream) error {
						if drops++; drops > 1 && req.GetAfter() != cut {
							return status.Errorf(codes.InvalidArgument, "asked for what came after %d", req.GetAfter())
						}
						if drops <= 2 {
							if err := sendEvents(req, s, cut); err != nil {
								return err
							}
							return drop
						}
						return sendEvents(req, s, lastEvent)
					}
					seen, err := watch(within(t, 10*time.Second), c, after)
					if err != nil || !slices.Equal(seen, eventsAfter(after)) {
						t.Errorf("after %d, cut after %d: %v, %v", after, cut, seen, err)
					}
				}
			}
		})
	}
}

// TestWatchOperationYieldsNothingTwice: a broker that does not keep to `after`.
func TestWatchOperationYieldsNothingTwice(t *testing.T) {
	b := &broker{watch: func(n int, req *brokerv1.WatchOperationRequest, s watchStream) error {
		req.After = 0
		if n == 1 {
			if err := sendEvents(req, s, 3); err != nil {
				return err
			}
			return refusal(codes.Aborted, "STREAM_EXPIRED", 0)
		}
		return sendEvents(req, s, lastEvent)
	}}
	seen, err := watch(within(t, 5*time.Second), pairUp(t, b), 1)
	if err != nil || !slices.Equal(seen, eventsAfter(1)) {
		t.Errorf("%v, %v", seen, err)
	}
}

// TestWatchOperationEnds: what is the operation's own end is not asked for again,
// whatever its code says of asking again.
func TestWatchOperationEnds(t *testing.T) {
	for name, drop := range map[string]error{
		"registry away":  refusal(codes.Unavailable, "REGISTRY_UNAVAILABLE", 0, "operation", "operations/A"),
		"engine away":    refusal(codes.Unavailable, "ENGINE_UNAVAILABLE", -1, "operation", "operations/A"),
		"interrupted":    refusal(codes.Aborted, "OPERATION_INTERRUPTED", -1, "operation", "operations/A"),
		"cancelled":      refusal(codes.Canceled, "OPERATION_CANCELLED", -1, "operation", "operations/A"),
		"right was lost": refusal(codes.PermissionDenied, "ACCESS_REVOKED", -1),
		"not found":      refusal(codes.NotFound, "OPERATION_NOT_FOUND", -1, "operation", "operations/A"),
		"slow":           refusal(codes.ResourceExhausted, "SLOW_READER", -1),
	} {
		t.Run(name, func(t *testing.T) {
			b := &broker{watch: func(_ int, req *brokerv1.WatchOperationRequest, s watchStream) error {
				if err := sendEvents(req, s, 3); err != nil {
					return err
				}
				return drop
			}}
			seen, err := watch(within(t, 5*time.Second), pairUp(t, b), 0)
			if calls, _ := b.count(); len(seen) != 3 || client.Reason(err) != client.Reason(drop) || calls != 1 {
				t.Errorf("%v, %v, %d calls", seen, err, calls)
			}
		})
	}
}

func TestWatchOperationGivesUp(t *testing.T) {
	b := &broker{watch: func(int, *brokerv1.WatchOperationRequest, watchStream) error {
		return refusal(codes.Unavailable, "SHUTTING_DOWN", 0)
	}}
	_, err := watch(within(t, 10*time.Second), pairUp(t, b), 0)
	if calls, _ := b.count(); status.Code(err) != codes.Unavailable || calls != 11 {
		t.Errorf("%v after %d calls, want UNAVAILABLE after 11", err, calls)
	}
}

// TestWatchOperationIsCancelled: ctx ends a stream that says nothing, and a pause.
func TestWatchOperationIsCancelled(t *testing.T) {
	for name, silent := range map[string]bool{"in a stream": true, "in a pause": false} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			hungUp := make(chan struct{})
			b := &broker{watch: func(_ int, req *brokerv1.WatchOperationRequest, s watchStream) error {
				if err := sendEvents(req, s, 2); err != nil {
					return err
				}
				if silent {
					<-s.Context().Done()
				}
				close(hungUp)
				return refusal(codes.Unavailable, "SHUTTING_DOWN", 20*time.Second)
			}}
			c := pairUp(t, b)
			time.AfterFunc(200*time.Millisecond, cancel)
			start := time.Now()
			seen, err := watch(ctx, c, 0)
			if calls, _ := b.count(); len(seen) != 2 || err == nil || calls != 1 || time.Since(start) > 5*time.Second {
				t.Errorf("%v, %v, %d calls after %v", seen, err, calls, time.Since(start))
			}
			select {
			case <-hungUp:
			case <-time.After(5 * time.Second):
				t.Error("the stream is still open")
			}
		})
	}
}

// TestWatchOperationWithRenewedCertificate: the stream ends with the certificate
// it was opened with and goes on under the next one.
func TestWatchOperationWithRenewedCertificate(t *testing.T) {
	a := newAuthority()
	b := &broker{}
	b.serve(t, a, a.issue(leaf{ids: []string{serverID}}))
	f := writeFiles(t.TempDir(), a, a.issue(leaf{ids: []string{callerID}}))
	b.watch = func(n int, req *brokerv1.WatchOperationRequest, s watchStream) error {
		if n > 1 {
			return sendEvents(req, s, lastEvent)
		}
		if err := sendEvents(req, s, 3); err != nil {
			return err
		}
		next := a.issue(leaf{ids: []string{callerID}})
		f.write(f.cert, "CERTIFICATE", next.Certificate[0])
		f.write(f.key, "PRIVATE KEY", keyDER(next))
		return refusal(codes.PermissionDenied, "ACCESS_REVOKED", -1)
	}
	seen, err := watch(within(t, 5*time.Second), dial(t, f.config(b.address)), 0)
	if err != nil || !slices.Equal(seen, eventsAfter(0)) {
		t.Errorf("%v, %v", seen, err)
	}
}

// TestSequence walks the schema: every kind of event has a number.
func TestSequence(t *testing.T) {
	if n := client.Sequence(nil) + client.Sequence(&brokerv1.OperationEvent{}); n != 0 {
		t.Errorf("an event of no kind has the number %d", n)
	}
	m := (&brokerv1.OperationEvent{}).ProtoReflect()
	kinds := m.Descriptor().Oneofs().ByName("event").Fields()
	for i := range kinds.Len() {
		e := &brokerv1.OperationEvent{}
		event := e.ProtoReflect().Mutable(kinds.Get(i)).Message()
		if sequence := event.Descriptor().Fields().ByName("sequence"); sequence != nil {
			event.Set(sequence, protoreflect.ValueOfInt64(7))
		}
		if n := client.Sequence(e); n != 7 {
			t.Errorf("%s: %d", kinds.Get(i).Name(), n)
		}
	}
}
