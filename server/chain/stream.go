package chain

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/audit"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
)

// stream serves a streaming call. The decision falls on the first message, where
// the request first exists, and is taken again whenever policy or freezes
// change (see Recheck).
func (c *Chain) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	o := c.open(ss.Context(), info.FullMethod)
	if o.method != nil && o.method.Operation != nil {
		return o.operate(srv, ss, handler)
	}
	return o.guard(func() error {
		if err := o.admit(); err != nil {
			return err
		}
		if o.method == nil {
			return o.unknown()
		}
		ctx := o.cuttable(call.With(ss.Context(), o))
		defer o.uncuttable()
		return until(ctx, func() error { return handler(srv, &serverStream{ServerStream: ss, ctx: ctx, op: o}) })
	})
}

// until runs what sends on a stream, and returns at its end or soon after that
// of the context: it may be stuck in Send, behind a reader that does not read.
// It has a moment to end by itself; returning from the stream releases it.
func until(ctx context.Context, send func() error) error {
	done := make(chan error, 1)
	go func() { done <- send() }()
	select {
	case err := <-done:
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return err
	case <-ctx.Done():
	}
	select {
	case <-done:
	case <-time.After(100 * time.Millisecond):
	}
	return context.Cause(ctx)
}

// unknown refuses a method that does not exist: in the same words for all whom
// the policy names, and as a denial for others.
func (o *op) unknown() error {
	if o.chain.Policy().Caller(o.caller.ID) == nil {
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED, "nothing is granted to "+o.caller.ID+"; the operator's policy can change that")
	}
	return fault.New(brokerv1.ErrorReason_ERROR_REASON_METHOD_UNKNOWN,
		"the broker has no such method, and what has no method cannot be asked; docs/rpc.md lists what there is")
}

// serverStream decides on the first message and watches over sending.
type serverStream struct {
	grpc.ServerStream
	ctx context.Context
	op  *op
}

func (s *serverStream) Context() context.Context { return s.ctx }

func (s *serverStream) RecvMsg(m any) error {
	if err := s.op.receive(s.ctx, s.ServerStream, m); err != nil {
		return err
	}
	opened := s.op.snapshot()
	opened.Event = audit.EventStream
	s.op.chain.Audit.Append(opened)
	return nil
}

// receive takes a stream's one request, and decides.
func (o *op) receive(ctx context.Context, ss grpc.ServerStream, m any) error {
	if err := ss.RecvMsg(m); err != nil {
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return err
		}
		return fault.Invalid("request", "it is not a message of this method")
	}
	o.chain.mu.Lock()
	defer o.chain.mu.Unlock() // Recheck reads what decide writes.
	if ctx.Err() != nil {     // Cut, and perhaps closed in the audit trail by now.
		return context.Cause(ctx)
	}
	if err := o.decide(m.(proto.Message)); err != nil {
		return err
	}
	o.sending.begun.Store(true)
	return nil
}

func (s *serverStream) SendMsg(m any) error {
	s.op.sending.since.Store(s.op.chain.Now().UnixNano())
	defer s.op.sending.since.Store(0)
	return s.ServerStream.SendMsg(m)
}

// sending is what the sweep looks at, from outside the stream's goroutine.
type sending struct {
	begun atomic.Bool  // The request was let through.
	since atomic.Int64 // When the Send that runs now began, or 0.
}

// cuttable makes a call's context one that Recheck can end.
func (o *op) cuttable(ctx context.Context) context.Context {
	ctx, o.cut = context.WithCancelCause(ctx)
	o.chain.mu.Lock()
	defer o.chain.mu.Unlock()
	o.chain.active[o] = struct{}{}
	if o.chain.stopping {
		o.cut(o.stopped())
	}
	if !o.method.Stream {
		o.sending.begun.Store(true)
	}
	return ctx
}

func (o *op) uncuttable() {
	o.chain.mu.Lock()
	delete(o.chain.active, o)
	o.chain.mu.Unlock()
	o.cut(nil)
}

// firstMessage is how long a stream may be open without a request.
const firstMessage = 10 * time.Second

// Recheck cuts every running call that would not be let through now: its grant
// is gone, its certificate revoked or expired, its caller frozen, its time up, or
// its reader asleep. It is called on every reload and freeze, and every second.
func (c *Chain) Recheck() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.Now()
	for o := range c.active {
		if err := o.stillFine(now); err != nil {
			o.cut(err)
			if fault.Reason(err) == "SLOW_READER" && o.hangUp != nil {
				// The end of a stream waits behind what was not read of it, and holds
				// its memory; the end of the connection does not.
				time.AfterFunc(hangUpAfter, o.hangUp)
			}
		}
	}
	for a := range c.waiting {
		if now.Sub(a.since) > firstMessage && a.hangUp != nil {
			a.hangUp()
		}
	}
}

// hangUpAfter leaves a slow reader time to read why it was cut.
const hangUpAfter = 5 * time.Second

func (o *op) stillFine(now time.Time) error {
	age := now.Sub(o.started)
	if !o.sending.begun.Load() {
		if age > firstMessage {
			return fault.Invalid("request", "it did not come")
		}
		return nil
	}
	if o.work == nil && now.After(o.caller.NotAfter) {
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_ACCESS_REVOKED, "the certificate has expired; renew it and call again")
	}
	// On a copy: the call's own record belongs to its own goroutine.
	again := &op{chain: o.chain, method: o.method, caller: o.caller, req: o.req}
	again.record.Resource = o.record.Resource
	again.others.Store(o.others.Load())
	o.noteLock.Lock()
	again.became = o.became
	o.noteLock.Unlock()
	if err := again.permitted(); err != nil {
		if fault.Reason(err) == "FROZEN" {
			return err
		}
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_ACCESS_REVOKED,
			"the grant or the certificate behind this call is gone; BrokerService.WhoAmI shows what is granted now")
	}
	if !o.method.Stream || o.work != nil {
		return nil
	}
	if age > o.chain.StreamAge {
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_STREAM_EXPIRED, "the stream reached its maximum age; open it again")
	}
	if since := o.sending.since.Load(); since != 0 && now.UnixNano()-since > int64(o.chain.SendTimeout) {
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_SLOW_READER, "the stream was not read for too long; read faster or ask for less")
	}
	return nil
}

// CutAll ends every stream and every operation, those still to come included, for
// a stop.
func (c *Chain) CutAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopping = true
	for o := range c.active {
		o.cut(o.stopped())
	}
}

// stopped says why a stop of the broker ends the call.
func (o *op) stopped() error {
	if o.work != nil {
		return fault.Interrupted()
	}
	return fault.New(brokerv1.ErrorReason_ERROR_REASON_SHUTTING_DOWN, "the broker is stopping; call again", fault.RetryAfter(time.Second))
}
