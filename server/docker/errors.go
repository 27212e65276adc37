package docker

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/client"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
)

// engineFault maps the engine's error. Its text may hold host paths, names of
// other containers and secrets: it goes to the audit trail alone.
func engineFault(ctx context.Context, err error, name string) error {
	if fault.Reason(err) != "" {
		return err
	}
	if ctx.Err() != nil && call.Intended(ctx) {
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN,
			"the engine took longer than the broker waits, and may still be at it; look at the container's state, and use a new request_id to change it")
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	call.Note(ctx, "engine: "+err.Error())
	switch {
	case errors.Is(err, errForbidden), errors.Is(err, errNoIntent):
		return fault.Internal(call.ID(ctx))
	case errdefs.IsNotFound(err):
		return notFound(name)
	case errdefs.IsConflict(err):
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_CONTAINER_STATE,
			"container "+name+" is in a state that does not allow this; inspect it and try again")
	case client.IsErrConnectionFailed(err) && call.Intended(ctx) && !unreached(err):
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN,
			"the engine went away before it answered; look at the container's state, and use a new request_id to change it")
	case client.IsErrConnectionFailed(err):
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_ENGINE_UNAVAILABLE,
			"the container engine does not answer; try again, and tell the operator if it stays so", fault.RetryAfter(fault.RetryEngine))
	}
	return fault.New(brokerv1.ErrorReason_ERROR_REASON_ENGINE_ERROR,
		"the engine failed; the operator finds its words in the audit trail under call "+call.ID(ctx), fault.With("call", call.ID(ctx)))
}

// unreached reports whether the request cannot have reached the engine. The SDK
// puts its own error, without a cause, in the place of a failed dial.
func unreached(err error) bool {
	return errors.Is(err, errUnreachable) || errors.Unwrap(errors.Unwrap(err)) == nil
}
