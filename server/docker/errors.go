package docker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/client"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/imageref"
)

// about is what an engine's "not found" and "conflict" mean for a request.
type about struct {
	what              string // "the container's state": where to look after an unknown outcome.
	missing, conflict error
}

// engineFault maps the engine's error. Its text may hold host paths, names of
// other containers and secrets: it goes to the audit trail alone.
func engineFault(ctx context.Context, err error, a about) error {
	if fault.Reason(err) != "" {
		return err
	}
	if ctx.Err() != nil && fault.Reason(context.Cause(ctx)) != "" {
		return context.Cause(ctx)
	}
	if ctx.Err() != nil && call.Intended(ctx) {
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN,
			"the engine took longer than the broker waits, and may still be at it; look at "+a.what+", and use a new request_id to change it")
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	call.Note(ctx, "engine: "+err.Error())
	switch {
	case errors.Is(err, errForbidden), errors.Is(err, errNoIntent):
		return fault.Internal(call.ID(ctx))
	case errdefs.IsNotFound(err) && a.missing != nil:
		return a.missing
	case errdefs.IsConflict(err) && a.conflict != nil:
		return a.conflict
	case errors.Is(err, errEngineGone), client.IsErrConnectionFailed(err) && call.Intended(ctx) && !unreached(err):
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN,
			"the engine went away before it answered; look at "+a.what+", and use a new request_id to change it")
	case client.IsErrConnectionFailed(err):
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_ENGINE_UNAVAILABLE,
			"the container engine does not answer; try again, and tell the operator if it stays so", fault.RetryAfter(fault.RetryEngine))
	}
	return fault.New(brokerv1.ErrorReason_ERROR_REASON_ENGINE_ERROR,
		"the engine failed; the operator finds its words in the audit trail under call "+call.ID(ctx), fault.With("call", call.ID(ctx)))
}

// containerFault maps an error of a request about a container.
func containerFault(ctx context.Context, err error, name string) error {
	return engineFault(ctx, err, about{
		what: "the container's state", missing: notFound(name),
		conflict: fault.New(brokerv1.ErrorReason_ERROR_REASON_CONTAINER_STATE,
			"container "+name+" is in a state that does not allow this; inspect it and try again"),
	})
}

// imageFault maps an error of a request about an image on the engine.
func imageFault(ctx context.Context, err error, ref imageref.Ref) error {
	return engineFault(ctx, err, about{what: "the list of images", missing: imageNotFound(ref), conflict: imageInUse(ref)})
}

// wholeFault maps an error of a request about the engine as a whole.
func wholeFault(ctx context.Context, err error) error {
	return engineFault(ctx, err, about{what: "what there is on the engine"})
}

func imageNotFound(ref imageref.Ref) error {
	return fault.New(brokerv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND,
		fmt.Sprintf("the engine has no image %s; ListImages shows those that it has", ref), fault.With("image", ref.String()))
}

func imageInUse(ref imageref.Ref) error {
	return fault.New(brokerv1.ErrorReason_ERROR_REASON_IMAGE_IN_USE,
		fmt.Sprintf("a container uses %s, or an image that was made from it; remove that first", ref), fault.With("image", ref.String()))
}

// registryFault maps an error of a request that the engine passed on to a
// registry. In a stream the engine gives words alone.
func registryFault(ctx context.Context, err error, ref imageref.Ref) error {
	if fault.Reason(err) != "" || ctx.Err() != nil || client.IsErrConnectionFailed(err) || errors.Is(err, errEngineGone) ||
		errors.Is(err, errForbidden) || errors.Is(err, errNoIntent) {
		return imageFault(ctx, err, ref)
	}
	call.Note(ctx, "engine: "+err.Error())
	text := strings.ToLower(err.Error())
	says := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
	}
	registry := fault.With("registry", ref.Registry)
	switch {
	// Before "not found": who has no credentials is told that a repository "does
	// not exist or may require 'docker login'".
	case errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err), says("unauthorized", "no basic auth credentials", "access denied", "denied:", "authentication required"):
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_REGISTRY_DENIED,
			"the registry "+ref.Registry+" refuses "+ref.String()+", or has no such repository; the operator can give the broker credentials for it (registries)", registry)
	case errdefs.IsNotFound(err), says("manifest unknown", "not found", "name unknown"):
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND,
			fmt.Sprintf("the registry has no %s; look for the right tag or digest", ref), fault.With("image", ref.String()))
	}
	return fault.New(brokerv1.ErrorReason_ERROR_REASON_REGISTRY_UNAVAILABLE,
		"the registry "+ref.Registry+" did not answer, or stopped in the middle; try again with a new request_id, and tell the operator if it stays so", registry, fault.RetryAfter(fault.RetryEngine))
}

// unreached reports whether the request cannot have reached the engine. The SDK
// puts its own error, without a cause, in the place of a failed dial.
func unreached(err error) bool {
	return errors.Is(err, errUnreachable) || errors.Unwrap(errors.Unwrap(err)) == nil
}
