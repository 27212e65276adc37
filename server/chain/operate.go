package chain

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/idempotency"
	"github.com/gortium/hermes-broker/server/operation"
)

// A call that changes something and streams is an operation. Its handler writes
// to a stream like any other; it need not know that behind the stream stands a
// journal, and that two goroutines serve the call:
//
//   - The work runs the handler, under the call's audit record and request ID,
//     with a context of its own. With its intent it gets a name and a journal.
//   - The stream sends the caller what the journal has, and can end before it.

// work is what of an operation goes on without its caller's stream.
type work struct {
	op     *op
	begun  chan struct{} // Closed when the intent is on record.
	detach bool

	operation *operation.Operation
	known     *operation.Operation // Which an earlier request with this ID began.
	result    proto.Message
}

// errKnown ends the handler of a request that was answered without it.
var errKnown = errors.New("the request is known")

// operate serves a call that is an operation.
func (o *op) operate(srv any, ss grpc.ServerStream, handler grpc.StreamHandler) error {
	if err := o.admit(); err != nil {
		return o.guard(func() error { return err })
	}
	release := o.release
	o.release = nil
	defer release()
	return fault.Ensure(o.serve(srv, ss, handler), o.record.Call)
}

// serve has the work done, and sends its events.
func (o *op) serve(srv any, ss grpc.ServerStream, handler grpc.StreamHandler) error {
	w := &work{op: o, begun: make(chan struct{})}
	o.work = w
	ctx := o.cuttable(call.With(context.WithoutCancel(ss.Context()), o))
	done := make(chan error, 1)
	o.chain.works.Go(func() {
		done <- w.run(ctx, srv, ss, handler)
		o.uncuttable()
	})
	select {
	case err := <-done:
		return w.answer(ss, err)
	case <-w.begun:
		return o.follow(ss, w.operation, w.detach)
	case <-ss.Context().Done():
		if w.named() { // With detach it goes on: follow knows.
			return o.follow(ss, w.operation, w.detach)
		}
		o.cut(hungUp())
		return hungUp()
	case <-ctx.Done():
	}
	select {
	case err := <-done: // Its end is what ended the context.
		return w.answer(ss, err)
	default:
		return context.Cause(ctx)
	}
}

// answer answers a call whose work has ended already.
func (w *work) answer(ss grpc.ServerStream, err error) error {
	if w.known != nil {
		return w.op.follow(ss, w.known, w.detach)
	}
	if w.named() { // It was quick.
		return w.op.follow(ss, w.operation, w.detach)
	}
	return err
}

func hungUp() error {
	return fault.New(brokerv1.ErrorReason_ERROR_REASON_OPERATION_CANCELLED,
		"the caller hung up without detach, which cancels the operation; what was done by then may stay")
}

// run does the work.
func (w *work) run(ctx context.Context, srv any, ss grpc.ServerStream, handler grpc.StreamHandler) (err error) {
	o := w.op
	defer func() {
		if p := recover(); p != nil { // Of the chain itself: guard has closed the record.
			slog.Error("panic", "value", p, "stack", string(debug.Stack()))
			err = fault.Internal(o.record.Call)
		}
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, o.chain.OperationAge, fault.New(brokerv1.ErrorReason_ERROR_REASON_DEADLINE_EXCEEDED,
		"the operation took longer than limits.operation_age allows and was ended; what was done by then may stay"))
	defer cancel()
	return o.guard(func() error {
		err := handler(srv, &workStream{ServerStream: ss, ctx: ctx, work: w})
		switch {
		case errors.Is(err, errKnown):
			return nil
		case err != nil && ctx.Err() != nil:
			err = context.Cause(ctx)
		case err == nil && o.intended && w.result == nil:
			o.Note("the handler ended without a result")
			err = fault.Internal(o.record.Call)
		}
		if o.intended {
			err = fault.Ensure(err, o.record.Call)
			o.answer = encode(w.result, err)
		}
		return err
	})
}

// workStream is the stream of the handler: its request comes from the caller, its
// events go to the journal.
type workStream struct {
	grpc.ServerStream
	ctx  context.Context
	work *work
}

func (s *workStream) Context() context.Context { return s.ctx }

func (s *workStream) RecvMsg(m any) error {
	o, w := s.work.op, s.work
	if err := o.receive(s.ctx, s.ServerStream, m); err != nil {
		return err
	}
	if o.req.(changer).GetValidateOnly() {
		o.record.ValidateOnly = true
		return nil
	}
	w.detach = o.method.Operation.Detach(o.req)
	known, answer, err := o.hold()
	if err != nil || known == idempotency.New {
		return err
	}
	if known != idempotency.Reused {
		w.known = o.chain.Operations.Of(o.caller.ID, o.req.(changer).GetRequestId())
	}
	if w.known != nil {
		o.Note("began " + w.known.View().GetName() + " before; its events were given again")
		return errKnown
	}
	event, err := o.known(known, answer)
	if err != nil {
		return err
	}
	o.method.Operation.Number(event.(proto.Message), 1)
	if err := s.ServerStream.SendMsg(event); err != nil { // Its journal is no longer kept.
		return err
	}
	return errKnown
}

func (s *workStream) SendMsg(m any) error {
	w, form := s.work, s.work.op.method.Operation
	event := m.(proto.Message)
	switch {
	case w.op.record.ValidateOnly: // There is no operation, and one message.
		return s.ServerStream.SendMsg(m)
	case w.operation == nil:
		w.op.Note("the handler sent an event of an operation that has not begun")
		return fault.Internal(w.op.record.Call)
	case form.IsResult(event):
		w.result = event
		return nil
	}
	return w.operation.Append(w.encoder(event))
}

// encoder numbers and serialises an event.
func (w *work) encoder(event proto.Message) func(int64) ([]byte, error) {
	return func(sequence int64) ([]byte, error) {
		w.op.method.Operation.Number(event, sequence)
		return proto.Marshal(event)
	}
}

// room says whether the caller may begin an operation now.
func (w *work) room() error {
	return busy(w.op.chain.Operations.Room(w.op.caller.ID, w.op.method.Short()))
}

func busy(err error) error {
	switch {
	case errors.Is(err, operation.ErrCallerBusy):
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_CONCURRENCY_LIMITED,
			"as many operations of yours run as may (limits.operations); wait for one, or cancel one", fault.RetryAfter(10*time.Second))
	case errors.Is(err, operation.ErrKindBusy):
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_CONCURRENCY_LIMITED,
			"as many operations of this kind run as may (limits.operations_per_kind); try again later", fault.RetryAfter(10*time.Second))
	}
	return err
}

// begin gives the work its name and journal.
func (w *work) begin(target string) error {
	o, form := w.op, w.op.method.Operation
	view := &brokerv1.Operation{
		Name: "operations/" + o.record.Call, Method: o.method.Short(), Resource: o.record.Resource, Target: target,
		Caller: o.caller.ID, RequestId: o.req.(changer).GetRequestId(), Detached: w.detach,
	}
	x, err := o.chain.Operations.Begin(view, func(view *brokerv1.Operation) ([]byte, error) {
		return w.encoder(form.Begun(view))(view.GetLastSequence())
	}, o.cut)
	if err = busy(err); fault.Reason(err) != "" {
		return err
	}
	if err != nil {
		o.Note("not carried out: " + err.Error())
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_STATE_UNAVAILABLE,
			"the operation's journal cannot be written, so nothing was done; tell the operator", fault.RetryAfter(fault.RetryEngine))
	}
	w.operation = x
	return nil
}

// end closes the journal, after the record and before anybody is told.
func (w *work) end(err error) error {
	if w.operation == nil {
		return err
	}
	if w.named() {
		err = fault.Annotate(err, "operation", w.operation.View().GetName())
	} else { // Its intent is not on record: it never came to be.
		w.op.chain.Operations.Discard(w.operation)
	}
	if failed := w.operation.End(w.encoder(w.result), err, w.op.chain.Now()); failed != nil {
		slog.Error("the journal of an operation was not closed; it reads as interrupted after a restart", "call", w.op.record.Call, "error", failed)
	}
	return err
}

// publish makes the operation one that can be looked up: its intent is on record.
func (w *work) publish() {
	w.op.chain.Operations.Publish(w.operation)
	close(w.begun)
}

// named reports whether the operation was published.
func (w *work) named() bool {
	select {
	case <-w.begun:
		return true
	default:
		return false
	}
}

// follow sends an operation's events to the caller whose call this is: the first
// alone if it asked to detach, or all.
func (o *op) follow(ss grpc.ServerStream, x *operation.Operation, detach bool) error {
	// The stream is looked after by itself: its end is not the work's.
	s := &op{chain: o.chain, method: o.method, caller: o.caller, started: o.started, req: o.req, hangUp: o.hangUp}
	s.record.Resource = o.record.Resource
	s.sending.begun.Store(true)
	ctx := s.cuttable(ss.Context())
	defer s.uncuttable()
	// What has ended cannot be left to itself: how it ended is the answer.
	detach = detach && x.View().GetState() == operation.Running
	if detach {
		if err := x.Detach(); err != nil {
			return fault.New(brokerv1.ErrorReason_ERROR_REASON_STATE_UNAVAILABLE,
				"the operation runs and cannot be detached: its journal cannot be written; stay, or tell the operator")
		}
	}
	err := until(ctx, func() error { return s.sendAll(ctx, &serverStream{ServerStream: ss, ctx: ctx, op: s}, x, detach) })
	switch {
	case err == nil && !detach:
		return x.Err()
	case err == nil, x.View().GetDetached():
		return err
	case ss.Context().Err() != nil && fault.Reason(err) == "":
		x.Cancel(hungUp())
	default: // Cut by the broker. The work is judged by itself, and can be watched.
		_ = x.Detach()
	}
	return err
}

// sendAll sends the events up to the operation's end.
func (o *op) sendAll(ctx context.Context, ss grpc.ServerStream, x *operation.Operation, first bool) error {
	w, err := x.Watch(0)
	if err != nil {
		return unreadable(x, err)
	}
	defer w.Close()
	for {
		data, err := w.Next(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && ctx.Err() != nil:
			return err
		case err != nil:
			return unreadable(x, err)
		}
		event, err := o.method.Operation.Decode(data)
		if err != nil {
			return unreadable(x, err)
		}
		if err := ss.SendMsg(event); err != nil || first {
			return err
		}
	}
}

// unreadable says that a journal cannot be read. How is for the log.
func unreadable(x *operation.Operation, err error) error {
	slog.Error("the journal of an operation cannot be read", "operation", x.View().GetName(), "error", err)
	return fault.New(brokerv1.ErrorReason_ERROR_REASON_STATE_UNAVAILABLE,
		"the operation's journal cannot be read; OperationService.GetOperation says where it is; tell the operator", fault.With("operation", x.View().GetName()))
}

// WaitForWork waits until all operations have ended, or for so long.
func (c *Chain) WaitForWork(most time.Duration) {
	done := make(chan struct{})
	go func() { c.works.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(most):
		slog.Warn("operations still run; stopping without them")
	}
}
