package chain

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/freeze"
	"github.com/gortium/hermes-broker/server/operation"
)

func TestOperation(t *testing.T) {
	r := newRig(t)
	p := r.puller()
	s := r.pull(t.Context(), &brokerv1.PullRequest{})
	<-p.begun
	go func() {
		p.progress(1)
		p.progress(2)
		p.finish()
	}()
	wantEvents(t, s, "1 operation, 2 progress 1, 3 progress 2, 4 result done, OK")
	v := r.only().View()
	if v.GetState() != operation.Succeeded || v.GetMethod() != "ImageService/Pull" || v.GetCaller() != hermes || v.GetResource() != "images/docker.io/library/alpine:latest" ||
		v.GetTarget() != "alpine@decided" || v.GetLastSequence() != 4 || v.GetDetached() {
		t.Errorf("%v", v)
	}
	all := r.wantEvents("intent", "outcome OK")
	if v.GetName() != "operations/"+all[0].Call || all[1].Call != all[0].Call || all[0].Target != "alpine@decided" {
		t.Errorf("the operation %s is not the call on record, %+v", v.GetName(), all)
	}
}

func TestOperationThatFails(t *testing.T) {
	r := newRig(t)
	p := r.puller()
	s := r.pull(t.Context(), &brokerv1.PullRequest{})
	<-p.begun
	p.fail(fault.New(brokerv1.ErrorReason_ERROR_REASON_REGISTRY_UNAVAILABLE, "gone"))
	wantEvents(t, s, "1 operation, REGISTRY_UNAVAILABLE")
	r.ended(r.only(), operation.Failed, "REGISTRY_UNAVAILABLE")
	r.wantEvents("intent", "outcome Unavailable REGISTRY_UNAVAILABLE")

	// A result that never comes is a defect, and no success.
	s = r.pull(t.Context(), &brokerv1.PullRequest{})
	<-p.begun
	p.fail(io.EOF)
	wantEvents(t, s, "1 operation, INTERNAL")
	if rec := r.records(4)[3]; !strings.Contains(rec.Detail, "without a result") {
		t.Errorf("%+v", rec)
	}
}

// TestOperationNeedsAnIntent: what fails before it is no operation and leaves the
// request ID free; an event before it is refused.
func TestOperationNeedsAnIntent(t *testing.T) {
	r := newRig(t)
	id := uuid.NewString()
	r.images.pull = func(_ *brokerv1.PullRequest, s brokerv1.ImageService_PullServer) error {
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND, "no such tag")
	}
	for range 2 {
		wantEvents(t, r.pull(t.Context(), &brokerv1.PullRequest{RequestId: id}), "IMAGE_NOT_FOUND")
	}
	r.images.pull = func(_ *brokerv1.PullRequest, s brokerv1.ImageService_PullServer) error {
		return s.Send(resultEvent("early"))
	}
	wantEvents(t, r.pull(t.Context(), &brokerv1.PullRequest{RequestId: id}), "INTERNAL")
	if n := len(r.chain.Operations.List()); n != 0 {
		t.Errorf("%d operations", n)
	}
	p := r.puller()
	wantEvents(t, r.pull(t.Context(), &brokerv1.PullRequest{ValidateOnly: true}), "0 result would, OK")
	<-p.ended
	wantEvents(t, r.pull(t.Context(), &brokerv1.PullRequest{RequestId: "x"}), "INVALID_ARGUMENT")
	wantEvents(t, r.pull(t.Context(), &brokerv1.PullRequest{Image: "ALPINE"}), "INVALID_ARGUMENT")
	wantEvents(t, r.pull(t.Context(), &brokerv1.PullRequest{Image: "ghcr.io/a/b"}), "PERMISSION_DENIED")
	select {
	case <-p.ended:
		t.Error("a refused request reached the handler")
	default:
	}
	r.wantEvents("call NotFound IMAGE_NOT_FOUND", "call NotFound IMAGE_NOT_FOUND", "call Internal INTERNAL", "call OK",
		"call InvalidArgument INVALID_ARGUMENT", "call InvalidArgument INVALID_ARGUMENT", "call PermissionDenied PERMISSION_DENIED")
}

// TestHangUp: without detach it cancels the work, and with it does not.
func TestHangUp(t *testing.T) {
	for name, c := range map[string]struct {
		detach bool
		state  brokerv1.OperationState
		reason string
	}{
		"attached": {false, operation.Cancelled, "OPERATION_CANCELLED"},
		"detached": {true, operation.Succeeded, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			p := r.puller()
			ctx, hangUp := context.WithCancel(t.Context())
			s := r.pull(ctx, &brokerv1.PullRequest{Detach: c.detach})
			work := <-p.begun
			if got := read(t, s, 1); got != "1 operation" {
				t.Fatal(got)
			}
			if c.detach {
				wantEvents(t, s, "OK") // The call ends after its first message.
			}
			hangUp()
			if c.detach {
				p.progress(1)
				p.finish()
			}
			r.ended(r.only(), c.state, c.reason)
			<-p.ended
			if !c.detach && fault.Reason(context.Cause(work)) != "OPERATION_CANCELLED" {
				t.Errorf("the work was ended by %v", context.Cause(work))
			}
			if r.only().View().GetDetached() != c.detach {
				t.Errorf("%v", r.only().View())
			}
			r.records(2)
		})
	}
}

// TestHangUpBeforeTheName: nothing has begun, and nothing will.
func TestHangUpBeforeTheName(t *testing.T) {
	r := newRig(t)
	reached, ended := make(chan struct{}), make(chan error, 1)
	r.images.pull = func(_ *brokerv1.PullRequest, s brokerv1.ImageService_PullServer) error {
		close(reached)
		<-s.Context().Done()
		_, err := call.Intend(s.Context(), "x")
		ended <- err
		return s.Context().Err()
	}
	ctx, hangUp := context.WithCancel(t.Context())
	r.pull(ctx, &brokerv1.PullRequest{Detach: true})
	<-reached
	hangUp()
	if err := <-ended; err == nil {
		t.Error("who has hung up gets an intent")
	}
	r.chain.WaitForWork(5 * time.Second)
	for _, x := range r.chain.Operations.List() {
		r.ended(x, operation.Cancelled, "OPERATION_CANCELLED")
	}
}

// TestWhatEndsTheWork: a freeze, a policy, a cancellation, a stop, its age end it;
// what only ends its stream does not.
func TestWhatEndsTheWork(t *testing.T) {
	for name, c := range map[string]struct {
		do     func(r *rig)
		stream string // How the stream ends; "" if it does not.
		state  brokerv1.OperationState
		reason string
	}{
		"freeze": {func(r *rig) {
			if err := r.chain.Freeze.Set(freeze.Status{Reason: "odd", By: "ada"}); err != nil {
				r.t.Fatal(err)
			}
			r.chain.Recheck()
		}, "FROZEN", operation.Failed, "FROZEN"},
		"policy": {func(r *rig) {
			r.setPolicy("trust_domain: home.example\ncallers:\n  - id: " + hermes + "\n")
			r.chain.Recheck()
		}, "ACCESS_REVOKED", operation.Failed, "ACCESS_REVOKED"},
		"cancel": {func(r *rig) {
			r.only().Cancel(fault.New(brokerv1.ErrorReason_ERROR_REASON_OPERATION_CANCELLED, "by ada"))
		}, "OPERATION_CANCELLED", operation.Cancelled, "OPERATION_CANCELLED"},
		"stop":        {func(r *rig) { r.chain.CutAll() }, "SHUTTING_DOWN", operation.Interrupted, "OPERATION_INTERRUPTED"},
		"age":         {nil, "DEADLINE_EXCEEDED", operation.Failed, "DEADLINE_EXCEEDED"},
		"certificate": {func(r *rig) { r.clock.advance(lifetime + 1); r.chain.Recheck() }, "ACCESS_REVOKED", operation.Running, ""},
		"stream's age": {func(r *rig) {
			r.clock.advance(time.Hour + 1)
			r.chain.Recheck()
		}, "STREAM_EXPIRED", operation.Running, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			if name == "age" {
				r.chain.OperationAge = 50 * time.Millisecond
			}
			p := r.puller()
			s := r.pull(t.Context(), &brokerv1.PullRequest{})
			<-p.begun
			if got := read(t, s, 1); got != "1 operation" {
				t.Fatal(got)
			}
			if c.do != nil {
				r.active(2) // The work and its stream.
				c.do(r)
			}
			got := read(t, s, 10)
			// Stream and work are cut in one go: either tells.
			if got != c.stream && got != c.reason {
				t.Errorf("the stream ended with %s, want %s", got, c.stream)
			}
			if c.state != operation.Running {
				r.ended(r.only(), c.state, c.reason)
				<-p.ended
				return
			}
			p.progress(1)
			p.finish()
			r.ended(r.only(), operation.Succeeded, "")
			if !r.only().View().GetDetached() {
				t.Error("what goes on without its caller does not say so")
			}
		})
	}
}

// TestRequestThatDoesNotCome is cut like that of any stream.
func TestRequestThatDoesNotCome(t *testing.T) {
	r := newRig(t)
	r.puller()
	s, err := r.conn.NewStream(t.Context(), &brokerv1.ImageService_ServiceDesc.Streams[0], brokerv1.ImageService_Pull_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	r.eventually("the call is there", func() bool {
		r.chain.mu.Lock()
		defer r.chain.mu.Unlock()
		return len(r.chain.active) == 1
	})
	r.clock.advance(firstMessage + 1)
	r.chain.Recheck()
	err = s.RecvMsg(&brokerv1.PullResponse{})
	wantReason(t, err, "INVALID_ARGUMENT")
}

// TestOperationsAreBounded, and a detached one counts when its stream is gone.
func TestOperationsAreBounded(t *testing.T) {
	r := newRig(t)
	r.setPolicy(strings.ReplaceAll(everything, "100000/second", "4/day"))
	p := r.puller()
	for range 3 {
		wantEvents(t, r.pull(t.Context(), &brokerv1.PullRequest{Detach: true}), "1 operation, OK")
		<-p.begun
	}
	wantEvents(t, r.pull(t.Context(), &brokerv1.PullRequest{}), "CONCURRENCY_LIMITED")
	<-p.ended
	p.finish()
	<-p.ended
	r.eventually("there is room", func() bool { return r.chain.Operations.Room(hermes, "ImageService/Pull") == nil })
	// What was refused for want of room took nothing from the budget.
	wantEvents(t, r.pull(t.Context(), &brokerv1.PullRequest{Detach: true}), "1 operation, OK")
	r.chain.CutAll()
	r.chain.WaitForWork(5 * time.Second)
	for _, x := range r.chain.Operations.List() {
		if s := x.View().GetState(); s == operation.Running {
			t.Errorf("%v runs after the stop", x.View())
		}
	}
}

// TestJournalThatCannotBeWritten: no name, no intent, no work.
func TestJournalThatCannotBeWritten(t *testing.T) {
	r := newRig(t)
	p := r.puller()
	dir := filepath.Join(r.dir, "operations")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	id := uuid.NewString()
	wantEvents(t, r.pull(t.Context(), &brokerv1.PullRequest{RequestId: id}), "STATE_UNAVAILABLE")
	r.wantEvents("call Unavailable STATE_UNAVAILABLE")
	<-p.ended
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s := r.pull(t.Context(), &brokerv1.PullRequest{RequestId: id})
	<-p.begun
	p.finish()
	wantEvents(t, s, "1 operation, 2 result done, OK")
}

// TestPanicOfTheWork ends the operation and nothing else.
func TestPanicOfTheWork(t *testing.T) {
	r := newRig(t)
	p := r.puller()
	s := r.pull(t.Context(), &brokerv1.PullRequest{})
	<-p.begun
	p.step <- func(brokerv1.ImageService_PullServer) error { panic("canary") }
	wantEvents(t, s, "1 operation, INTERNAL")
	r.ended(r.only(), operation.Failed, "INTERNAL")
	r.wantEvents("intent", "outcome Internal INTERNAL")
}
