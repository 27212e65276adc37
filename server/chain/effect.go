package chain

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/status"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/audit"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/idempotency"
)

// changer is what access.Load has seen to it that every change's request is.
type changer interface {
	GetRequestId() string
	GetValidateOnly() bool
}

// change serves a CHANGE or DESTROY call.
func (o *op) change(ctx context.Context, handler func(context.Context) (any, error)) (any, error) {
	req := o.req.(changer)
	if req.GetValidateOnly() {
		o.record.ValidateOnly = true
		ctx, cancel := o.deadline(ctx)
		defer cancel()
		return handler(ctx)
	}
	known, answer, err := o.hold()
	if err != nil {
		return nil, err
	}
	if known != idempotency.New {
		return o.known(known, answer)
	}
	// Who asks for a change and hangs up still gets it whole, and recorded.
	ctx, cancel := o.deadline(context.WithoutCancel(ctx))
	defer cancel()
	resp, err := handler(ctx)
	if o.intended {
		err = fault.Ensure(err, o.record.Call)
		o.answer = encode(resp, err)
	}
	return resp, err
}

// hold takes the request's ID, unless it is known.
func (o *op) hold() (idempotency.State, idempotency.Answer, error) {
	requestID := o.req.(changer).GetRequestId()
	id, err := uuid.Parse(requestID)
	if err != nil || id.String() != requestID {
		return 0, idempotency.Answer{}, fault.Invalid("request_id", "set it to a new UUID for every change that is meant, lower-case and with hyphens; keep it when repeating one")
	}
	known, answer, err := o.chain.Requests.Begin(o.caller.ID, requestID, o.digest())
	if err != nil {
		o.Note(err.Error())
		return 0, idempotency.Answer{}, fault.New(brokerv1.ErrorReason_ERROR_REASON_STATE_UNAVAILABLE, "the broker cannot remember more request IDs; nothing was done; tell the operator")
	}
	o.holding = known == idempotency.New
	return known, answer, nil
}

// known answers a request whose ID is known.
func (o *op) known(known idempotency.State, answer idempotency.Answer) (any, error) {
	switch known {
	case idempotency.Done:
		o.Note("answered before; the first answer was given again")
		return replay(answer)
	case idempotency.Running:
		return nil, fault.New(brokerv1.ErrorReason_ERROR_REASON_REQUEST_IN_PROGRESS,
			"the first request with this request_id is still running; repeat it to get its answer", fault.RetryAfter(fault.RetryEngine))
	case idempotency.Reused:
		return nil, fault.New(brokerv1.ErrorReason_ERROR_REASON_REQUEST_ID_REUSED,
			"request_id was used with another request; use a new UUID for another change")
	}
	return nil, fault.New(brokerv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN,
		"the broker stopped before it recorded how this request ended; look at the object's state, and use a new request_id to change it")
}

// abandon gives the request's ID back when nothing came of it. Not even a panic
// may leave it held.
func (o *op) abandon() {
	if !o.holding || o.intended {
		return
	}
	if err := o.chain.Requests.Abandon(o.caller.ID, o.req.(changer).GetRequestId(), false); err != nil {
		o.Note(err.Error())
	}
}

// digest is the request's fingerprint: method and canonical bytes.
func (o *op) digest() [32]byte {
	req := o.req
	if o.method.Operation != nil {
		req = o.method.Operation.Attached(req)
	}
	b, _ := proto.MarshalOptions{Deterministic: true}.MarshalAppend([]byte(o.method.Name+"\x00"), req)
	return sha256.Sum256(b)
}

// Intend implements call.Scope.
func (o *op) Intend(ctx context.Context, target string) error {
	if !o.holding || o.intended {
		o.Note("a handler meant to change something that it was not asked to")
		return fault.Internal(o.record.Call)
	}
	o.record.Target = target
	// Time has passed since the first decision; the last one counts.
	if err := o.permitted(); err != nil {
		return err
	}
	if o.work != nil {
		if err := o.work.room(); err != nil {
			return err
		}
	}
	for _, rule := range o.rules {
		budget := rule.Budget
		if budget.Count == 0 {
			budget = o.chain.Budget
		}
		if ok, wait := o.chain.Limits.Change(rule.Place+" "+o.caller.ID+" "+o.record.Resource, budget.Count, budget.Per); !ok {
			return fault.New(brokerv1.ErrorReason_ERROR_REASON_CHANGE_BUDGET_EXHAUSTED,
				o.record.Resource+" was changed as often as allowed ("+budget.String()+"); wait as RetryInfo says", fault.RetryAfter(wait))
		}
	}
	if o.work != nil {
		if err := o.work.begin(target); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, o.chain.AuditTimeout)
	defer cancel()
	intent := o.snapshot()
	intent.Event = audit.EventIntent
	if _, err := o.chain.Audit.Sync(ctx, intent); err != nil {
		// It may yet reach the disk, behind our back; then this closes it.
		o.record.Event = audit.EventOutcome
		o.Note("not carried out: " + err.Error())
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_AUDIT_UNAVAILABLE,
			"the audit trail cannot be written, so nothing was done; tell the operator", fault.RetryAfter(fault.RetryEngine))
	}
	// From here on the record must be closed, whatever becomes of the call.
	o.intended = true
	if err := o.chain.Requests.Record(o.caller.ID, o.req.(changer).GetRequestId()); err != nil {
		o.Note("not carried out: " + err.Error())
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_STATE_UNAVAILABLE,
			"the broker's state cannot be written, so nothing was done; tell the operator", fault.RetryAfter(fault.RetryEngine))
	}
	// The disk may have been slow: a freeze in the meantime still stops it.
	if err := o.permitted(); err != nil {
		o.Note("not carried out")
		return err
	}
	o.recorded = true
	if o.work != nil {
		o.work.publish()
	}
	return nil
}

// closeEffect records the outcome of a change, on disk, before the caller hears
// of it.
func (o *op) closeEffect(err error) error {
	o.record.Event = audit.EventOutcome
	ctx, cancel := context.WithTimeout(context.Background(), o.chain.AuditTimeout)
	defer cancel()
	_, failed := o.chain.Audit.Sync(ctx, o.snapshot())
	requestID := o.req.(changer).GetRequestId()
	if !o.recorded || o.record.Reason == "ENGINE_UNAVAILABLE" && o.work == nil {
		// The effect never began, and the engine never heard of it: the ID may be
		// used again.
		if e := o.chain.Requests.Abandon(o.caller.ID, requestID, true); e != nil {
			slog.Error("a request ID was not given back; it reads as unknown after a restart", "call", o.record.Call, "error", e)
		}
		return err
	}
	if o.answer == nil { // A panic took the answer.
		o.answer = encode(nil, err)
	}
	if e := o.chain.Requests.Finish(o.caller.ID, requestID, *o.answer); e != nil {
		failed = errors.Join(failed, e)
	}
	if failed != nil && err == nil {
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN,
			"the change was made, but the record of it could not be closed; look at the object's state, and tell the operator that the disk fails")
	}
	return err
}

// encode keeps an answer for whoever repeats the request.
func encode(resp any, err error) *idempotency.Answer {
	if err != nil {
		b, _ := proto.Marshal(grpcstatus.Convert(err).Proto())
		return &idempotency.Answer{Status: b}
	}
	a, _ := anypb.New(resp.(proto.Message))
	b, _ := proto.Marshal(a)
	return &idempotency.Answer{Response: b}
}

func replay(a idempotency.Answer) (any, error) {
	if a.Status != nil {
		var st status.Status
		if err := proto.Unmarshal(a.Status, &st); err != nil {
			return nil, err
		}
		return nil, grpcstatus.FromProto(&st).Err()
	}
	var any anypb.Any
	if err := proto.Unmarshal(a.Response, &any); err != nil {
		return nil, err
	}
	return any.UnmarshalNew()
}

// Visible implements call.Scope.
func (o *op) Visible(resource string) bool {
	return o.policy.Decide(o.caller.ID, o.method.Permission, resource).Allowed
}

// Permits implements call.Scope.
func (o *op) Permits(permission, resource string) bool {
	return o.chain.Policy().Decide(o.caller.ID, permission, resource).Allowed
}

// Denied implements call.Scope.
func (o *op) Denied(resource string) bool {
	if r := o.chain.Policy().Denied(o.caller.ID, o.method.Permission, resource); r != nil {
		o.record.Rule = r.Place
		return true
	}
	// From now on every decision is about that too.
	o.noteLock.Lock()
	defer o.noteLock.Unlock()
	o.became = append(o.became, resource)
	return false
}

// Still implements call.Scope.
func (o *op) Still() error {
	o.chain.mu.Lock()
	stopping := o.chain.stopping
	o.chain.mu.Unlock()
	if stopping {
		return o.stopped()
	}
	return o.permitted()
}

// Others implements call.Scope.
func (o *op) Others() bool {
	may := o.method.Others != "" && o.Permits(o.method.Others, o.record.Resource)
	if may {
		o.others.Store(true)
	}
	return may
}

// Note implements call.Scope.
func (o *op) Note(detail string) {
	o.noteLock.Lock()
	defer o.noteLock.Unlock()
	if o.record.Detail != "" {
		o.record.Detail += "; "
	}
	o.record.Detail += detail
}

// Caller implements call.Scope.
func (o *op) Caller() call.Caller { return o.caller }

// ID implements call.Scope.
func (o *op) ID() string { return o.record.Call }

// snapshot is the record as it is now: a handler that was left behind may still
// add notes.
func (o *op) snapshot() audit.Record {
	o.noteLock.Lock()
	defer o.noteLock.Unlock()
	return o.record
}
