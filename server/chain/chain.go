// Package chain is the way every call takes, unary or streaming: this file is
// its order.
//
//	who calls ─ audit opens ─ rate ─ policy ─ freeze ─ request checks ─
//	request_id ─ handler ─ audit closes
//
// and within the handler of a change, when the object is known (see effect.go):
//
//	policy and freeze once more ─ change budget ─ intent on disk ─ effect
//
// A call that is an operation goes the same way, and can go on without its
// caller (see operate.go).
//
// The rate stands before policy, so that a caller who is only ever refused
// cannot flood the audit trail. Policy stands before everything that depends on
// what the request says, so that an error tells nobody what they may not know.
package chain

import (
	"context"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/access"
	"github.com/gortium/hermes-broker/server/audit"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/freeze"
	"github.com/gortium/hermes-broker/server/idempotency"
	"github.com/gortium/hermes-broker/server/identity"
	"github.com/gortium/hermes-broker/server/limits"
	"github.com/gortium/hermes-broker/server/operation"
	"github.com/gortium/hermes-broker/server/policy"
)

// Config is what a chain is made of. Every field is required.
type Config struct {
	// Methods are the declarations of all methods.
	Methods *access.Registry
	// Policy is the policy in force.
	Policy func() *policy.Policy
	// Audit is the audit trail.
	Audit *audit.Log
	// Limits counts calls and changes.
	Limits *limits.Limits
	// Freeze is the operator's switch.
	Freeze *freeze.Switch
	// Requests remembers the answers of changes.
	Requests *idempotency.Store
	// Operations keeps the calls that are operations.
	Operations *operation.Store
	// OperationAge is how long an operation may run.
	OperationAge time.Duration
	// Budget bounds changes to one object by one caller, where the grant has none.
	Budget policy.Budget
	// CallTimeout is the deadline of methods that declare none.
	CallTimeout time.Duration
	// StreamAge is how long a stream may live.
	StreamAge time.Duration
	// SendTimeout is how long a stream's reader may not read.
	SendTimeout time.Duration
	// AuditTimeout is how long a change waits for its record to be on disk.
	AuditTimeout time.Duration
	// Now is the clock.
	Now func() time.Time
}

// Chain serves calls.
type Chain struct {
	Config
	refusals *limits.Sampler

	mu     sync.Mutex
	active map[*op]struct{} // Calls that can be cut.
	// waiting are calls whose message is still to come.
	waiting  map[*arrival]struct{}
	stopping bool
	works    sync.WaitGroup // Operations that run.
}

// New makes a chain.
func New(cfg Config) *Chain {
	return &Chain{Config: cfg, refusals: limits.NewSampler(cfg.Now), active: map[*op]struct{}{}, waiting: map[*arrival]struct{}{}}
}

// Options are the server options that put the chain around every method.
func (c *Chain) Options() []grpc.ServerOption {
	// Innermost, a handler's panic becomes an error that the chain records;
	// outermost, a panic of the chain's own does not end brokerd.
	recovered := recovery.WithRecoveryHandlerContext(func(ctx context.Context, p any) error {
		slog.ErrorContext(ctx, "panic", "value", p, "stack", string(debug.Stack()))
		call.Note(ctx, "panic; brokerd's own log has the stack")
		return fault.Internal(call.ID(ctx))
	})
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(recovery.UnaryServerInterceptor(recovered), c.unary, recovery.UnaryServerInterceptor(recovered)),
		grpc.ChainStreamInterceptor(recovery.StreamServerInterceptor(recovered), c.stream, recovery.StreamServerInterceptor(recovered)),
		// What has no method goes through the chain too, and is recorded.
		grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { return nil }),
	}
}

// op is one call on its way.
type op struct {
	chain   *Chain
	method  *access.Method // nil for an unknown one.
	caller  call.Caller
	started time.Time
	req     proto.Message
	policy  *policy.Policy
	rules   []*policy.Rule // One for each permission that the request needs.
	release func()
	hangUp  func()

	holding  bool // A request_id: this is a change that may happen.
	intended bool // Its intent is on disk.
	recorded bool // Its request_id is.
	answer   *idempotency.Answer
	others   atomic.Bool // It is about another caller's object.
	became   []string    // What its resource turned out to be. Under noteLock.
	work     *work       // Of a call that is an operation.

	cut      context.CancelCauseFunc // Of calls that can be cut.
	sending  sending
	noteLock sync.Mutex
	record   audit.Record
}

func (c *Chain) open(ctx context.Context, fullMethod string) *op {
	o := &op{chain: c, method: c.Methods.Method(fullMethod), started: c.Now()}
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(identity.Info); ok {
			o.hangUp = info.HangUp
			o.caller = call.Caller{ID: info.ID, Serial: info.Serial, NotAfter: info.NotAfter, Address: identity.Address(p.Addr)}
		}
	}
	o.record = audit.Record{
		Event: audit.EventCall, Call: audit.NewCallID(),
		Caller: o.caller.ID, Serial: o.caller.Serial, Peer: o.caller.Address, Method: fullMethod,
	}
	if o.method != nil {
		o.record.Permission, o.record.Effect = o.method.Permission, effectNames[o.method.Effect]
	}
	return o
}

var effectNames = map[access.Effect]string{access.Read: "READ", access.Change: "CHANGE", access.Destroy: "DESTROY"}

func (c *Chain) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	o := c.open(ctx, info.FullMethod)
	var resp any
	err := o.guard(func() error {
		err := o.admit()
		if err == nil {
			err = o.decide(req.(proto.Message))
		}
		if err != nil {
			return err
		}
		ctx := call.With(ctx, o)
		if o.method.Changes() {
			resp, err = o.change(ctx, func(ctx context.Context) (any, error) { return handler(ctx, req) })
			return err
		}
		ctx, cancel := o.deadline(ctx)
		defer cancel()
		if o.method.Deadline > 0 {
			ctx = o.cuttable(ctx)
			defer o.uncuttable()
		}
		if resp, err = handler(ctx, req); err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// guard runs a call between opening and closing its audit record, which a panic
// closes as well.
func (o *op) guard(serve func() error) (err error) {
	finished := false
	defer func() {
		if o.release != nil {
			o.release()
		}
		if !finished {
			err = fault.Internal(o.record.Call)
		}
		err = o.close(fault.Ensure(err, o.record.Call))
	}()
	err = serve()
	finished = true
	return err
}

// admit counts the call against its caller's rate.
func (o *op) admit() error {
	refused, wait, release := o.chain.Limits.Admit(o.caller.ID, o.method != nil && o.method.Stream)
	o.release = release
	switch refused {
	case limits.Rate:
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_RATE_LIMITED,
			"too many calls; wait as RetryInfo says", fault.RetryAfter(wait))
	case limits.Concurrency:
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_CONCURRENCY_LIMITED,
			"too many calls at once; let one end first", fault.RetryAfter(time.Second))
	}
	return nil
}

// decide asks policy and freeze, and checks what concerns every request.
func (o *op) decide(req proto.Message) error {
	o.req = req
	o.record.Request = access.Redacted(req)
	// What cannot be read as a name is decided on as the collection: who has a
	// grant learns how it would be right, others that they have none.
	resource, malformed := o.method.Resource(req)
	o.record.Resource = resource
	if err := o.permitted(); err != nil {
		return err
	}
	if malformed != nil {
		return fault.Invalid(o.method.ResourceField(), malformed.Error())
	}
	if len(req.ProtoReflect().GetUnknown()) > 0 {
		return fault.Invalid("request", "it has a field that this broker does not know, and to ignore it might not be what was meant; use a client of the broker's version")
	}
	return nil
}

// permitted is the decision on the call as it is now, by the policy and the
// freezes of this moment.
func (o *op) permitted() error {
	p := o.chain.Policy()
	o.policy = p
	if p != nil {
		o.record.Policy = p.Hash
	}
	o.rules = o.rules[:0]
	for permission := range o.needs {
		d := p.Decide(o.caller.ID, permission, o.record.Resource)
		if len(o.rules) == 0 {
			o.record.Rule = d.Place()
		}
		if !d.Allowed || p.Revoked(o.caller.Serial) {
			o.record.Permission, o.record.Rule = permission, d.Place()
			return fault.Denied(permission, o.record.Resource, o.caller.ID)
		}
		if !slices.Contains(o.rules, d.Rule) {
			o.rules = append(o.rules, d.Rule)
		}
	}
	o.noteLock.Lock()
	became := o.became
	o.noteLock.Unlock()
	for _, resource := range became {
		if r := p.Denied(o.caller.ID, o.method.Permission, resource); r != nil {
			o.record.Rule = r.Place
			return fault.Denied(o.method.Permission, resource, o.caller.ID)
		}
	}
	return o.unfrozen()
}

// needs calls yield with each permission that the call needs, until it says false.
func (o *op) needs(yield func(string) bool) {
	for permission := range o.method.Needs(o.req) {
		if !yield(permission) {
			return
		}
	}
	if o.others.Load() {
		yield(o.method.Others)
	}
}

// unfrozen refuses changes and streams of a frozen caller. Who may end a freeze
// may go on looking.
func (o *op) unfrozen() error {
	st, frozen := o.chain.Freeze.Check(o.caller.ID)
	switch {
	case !frozen, o.method.WhileFrozen, !o.method.Changes() && !o.method.Stream:
		return nil
	case !o.method.Changes() && o.policy.Decide(o.caller.ID, "broker.unfreeze", "broker").Allowed:
		return nil
	}
	return fault.New(brokerv1.ErrorReason_ERROR_REASON_FROZEN,
		"frozen by "+st.By+": "+st.Reason+"; only an operator can unfreeze", fault.With("freeze_reason", st.Reason))
}

// deadline is the broker's own deadline for the call.
func (o *op) deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	d := o.method.Deadline
	if d == 0 {
		d = o.chain.CallTimeout
	}
	return context.WithTimeout(ctx, d)
}

// close ends the call. err is what the caller will be told.
func (o *op) close(err error) error {
	o.abandon()
	err = o.closeRecord(err)
	if o.work != nil {
		err = o.work.end(err)
	}
	return err
}

// closeRecord writes the call's last record.
func (o *op) closeRecord(err error) error {
	st := status.Convert(err)
	o.record.Code = st.Code().String()
	o.record.Reason = fault.Reason(err)
	o.record.DurationUS = o.chain.Now().Sub(o.started).Microseconds()
	if o.intended {
		return o.closeEffect(err)
	}
	switch o.record.Reason {
	case "RATE_LIMITED", "CONCURRENCY_LIMITED":
		skipped, ok := o.chain.refusals.Take(o.caller.ID)
		if !ok {
			return err
		}
		o.record.Count = uint64(skipped)
	}
	o.chain.Audit.Append(o.snapshot())
	return err
}
