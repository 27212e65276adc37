package chain

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
)

// idle is a stream without news. Its end comes with its context's.
func idle(ended chan<- error) func(brokerv1.ContainerService_ContainerLogsServer) error {
	return func(s brokerv1.ContainerService_ContainerLogsServer) error {
		<-s.Context().Done()
		ended <- context.Cause(s.Context())
		return s.Context().Err()
	}
}

// TestStreamsAreCutInTime: by age, by the certificate, by policy and freeze, and
// not before.
func TestStreamsAreCutInTime(t *testing.T) {
	for name, c := range map[string]struct {
		before, after time.Duration // since the stream began: still fine, not any more
		edit          func(*rig)
		want          string
	}{
		"age":         {time.Hour, time.Hour + 1, nil, "STREAM_EXPIRED"},
		"certificate": {lifetime, lifetime + 1, func(r *rig) { r.chain.StreamAge = 2 * lifetime }, "ACCESS_REVOKED"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			if c.edit != nil {
				c.edit(r)
			}
			ended := make(chan error, 1)
			r.service.logs = idle(ended)
			s := r.follow()
			r.active(1)
			r.clock.advance(c.before)
			r.chain.Recheck()
			select {
			case err := <-ended:
				t.Fatalf("cut too early: %v", err)
			case <-time.After(20 * time.Millisecond):
			}
			r.clock.advance(c.after - c.before)
			r.chain.Recheck()
			_, err := s.Recv()
			wantReason(t, err, c.want)
			wantReason(t, <-ended, c.want)
			rec := r.records(2)
			if rec[1].Reason != c.want {
				t.Errorf("recorded as %s", rec[1].Reason)
			}
			r.active(0)
		})
	}
}

// TestSlowReader defends brokerd's memory, and the engine's, against a reader
// that has stopped reading. The handler is stuck in Send, and let go.
func TestSlowReader(t *testing.T) {
	r := newRig(t)
	var sent atomic.Int64
	ended := make(chan error, 1)
	r.service.logs = func(s brokerv1.ContainerService_ContainerLogsServer) error {
		m := &brokerv1.ContainerLogsResponse{Entries: []*brokerv1.LogEntry{{Output: &brokerv1.LogEntry_Stdout{Stdout: make([]byte, 32<<10)}}}}
		for {
			if err := s.Send(m); err != nil {
				ended <- err
				return err
			}
			sent.Add(1)
		}
	}
	s := r.follow()
	for last := int64(-1); last != sent.Load() || last == 0; time.Sleep(30 * time.Millisecond) {
		last = sent.Load()
	}
	if n := sent.Load(); n > 100 {
		t.Errorf("%d messages were sent to nobody", n)
	}
	r.clock.advance(r.chain.SendTimeout)
	r.chain.Recheck()
	select {
	case <-ended:
		t.Fatal("cut too early")
	case <-time.After(20 * time.Millisecond):
	}
	r.clock.advance(time.Millisecond)
	r.chain.Recheck()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Fatal("the handler is stuck")
	}
	var err error
	for err == nil {
		_, err = s.Recv()
	}
	wantReason(t, err, "SLOW_READER")
	r.wantEvents("stream", "call ResourceExhausted SLOW_READER")
}

// TestWaitIsCutWithItsGrant: a call that may last an hour ends with the grant
// behind it.
func TestWaitIsCutWithItsGrant(t *testing.T) {
	r := newRig(t)
	ended := make(chan struct{})
	r.service.wait = func(ctx context.Context) error {
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	}
	got := make(chan error, 1)
	go func() {
		_, err := r.client.Wait(t.Context(), &brokerv1.WaitRequest{Container: "web"})
		got <- err
	}()
	r.active(1)
	// A reload that leaves the grant leaves the call.
	r.setPolicy(everything + "    deny: [{on: [\"containers/vault\"]}]\n")
	r.chain.Recheck()
	select {
	case err := <-got:
		t.Fatalf("cut too early: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	r.setPolicy(strings.Replace(everything, "containers.wait, ", "", 1))
	r.chain.Recheck()
	wantReason(t, <-got, "ACCESS_REVOKED")
	<-ended
	r.wantEvents("call PermissionDenied ACCESS_REVOKED")
}

// TestRequestThatNeverComes defends places for streams against callers who open
// and say nothing.
func TestRequestThatNeverComes(t *testing.T) {
	r := newRig(t)
	r.service.logs = func(brokerv1.ContainerService_ContainerLogsServer) error {
		t.Error("reached without a request")
		return nil
	}
	s, err := r.conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, brokerv1.ContainerService_ContainerLogs_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	r.eventually("it is open", func() bool {
		r.chain.mu.Lock()
		defer r.chain.mu.Unlock()
		return len(r.chain.active) == 1
	})
	r.clock.advance(firstMessage)
	r.chain.Recheck()
	r.clock.advance(time.Millisecond)
	r.chain.Recheck()
	err = s.RecvMsg(&brokerv1.ContainerLogsResponse{})
	wantReason(t, err, "INVALID_ARGUMENT")
	r.wantEvents("call InvalidArgument INVALID_ARGUMENT")
}

// late is a stream whose request comes now.
type late struct {
	grpc.ServerStream
	ctx context.Context
}

func (l late) Context() context.Context { return l.ctx }

func (l late) RecvMsg(m any) error {
	proto.Merge(m.(proto.Message), &brokerv1.ContainerLogsRequest{Container: "web"})
	return nil
}

// TestRequestAfterTheCut: what was cut for want of a request, and closed in the
// audit trail, is not opened by the request that comes all the same.
func TestRequestAfterTheCut(t *testing.T) {
	r := newRig(t)
	o := r.chain.open(t.Context(), brokerv1.ContainerService_ContainerLogs_FullMethodName)
	o.caller.ID = hermes
	ctx := o.cuttable(t.Context())
	defer o.uncuttable()
	cause := errors.New("cut")
	o.cut(cause)
	s := &serverStream{ServerStream: late{ctx: ctx}, ctx: ctx, op: o}
	if err := s.RecvMsg(&brokerv1.ContainerLogsRequest{}); err == nil || o.sending.begun.Load() || o.record.Request != nil {
		t.Errorf("let through: %v", err)
	}
}

// TestHangingUpDuringAChange: it is finished, recorded, and its answer kept.
func TestHangingUpDuringAChange(t *testing.T) {
	r := newRig(t)
	inside, release := make(chan struct{}), make(chan struct{})
	effects := 0
	r.service.restart = func(ctx context.Context, _ *brokerv1.RestartRequest) (*brokerv1.RestartResponse, error) {
		ctx, err := call.Intend(ctx, "id")
		if err != nil {
			return nil, err
		}
		close(inside)
		<-release
		if ctx.Err() != nil {
			t.Errorf("the change was cut off: %v", ctx.Err())
		}
		effects++
		return &brokerv1.RestartResponse{Container: &brokerv1.ContainerStatus{Name: "web"}}, nil
	}
	req := newRestart()
	ctx, hangUp := context.WithCancel(t.Context())
	gone := make(chan struct{})
	go func() {
		_, _ = r.client.Restart(ctx, req)
		close(gone)
	}()
	<-inside
	hangUp()
	<-gone
	time.Sleep(20 * time.Millisecond) // For the hang-up to reach the server.
	close(release)
	rec := r.wantEvents("intent", "outcome OK")
	if rec[0].Call != rec[1].Call {
		t.Errorf("records %+v", rec)
	}
	r.eventually("the answer is there", func() bool {
		resp, err := r.client.Restart(t.Context(), req)
		if err != nil && fault.Reason(err) != "REQUEST_IN_PROGRESS" {
			t.Fatal(err)
		}
		return resp.GetContainer().GetName() == "web"
	})
	if effects != 1 {
		t.Errorf("%d effects", effects)
	}
}

// TestStop ends what can be cut, and says why.
func TestStop(t *testing.T) {
	r := newRig(t)
	r.service.logs = idle(make(chan error, 1))
	s := r.follow()
	r.active(1)
	r.chain.CutAll()
	_, err := s.Recv()
	wantReason(t, err, "SHUTTING_DOWN")
	r.wantEvents("stream", "call Unavailable SHUTTING_DOWN")
}
