// Package fault makes every error that leaves the broker.
//
// It is the one place that picks a gRPC status code. Each error carries exactly
// one google.rpc.ErrorInfo, with a reason out of the schema's ErrorReason, and a
// message that says what the caller can do next. Nothing that the container
// engine or the operating system said is ever put into a message: what is for
// root's eyes only goes to the audit trail (call.Note).
package fault

import (
	"context"
	"errors"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

// Domain is the domain of every ErrorInfo.
const Domain = "broker.hermes.v1"

// RetryEngine is how long a caller is asked to wait for an engine that is down.
const RetryEngine = 2 * time.Second

// codeOf is the status code that each reason comes with, as errors.proto says.
var codeOf = map[brokerv1.ErrorReason]codes.Code{
	brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED:         codes.PermissionDenied,
	brokerv1.ErrorReason_ERROR_REASON_ACCESS_REVOKED:            codes.PermissionDenied,
	brokerv1.ErrorReason_ERROR_REASON_FROZEN:                    codes.FailedPrecondition,
	brokerv1.ErrorReason_ERROR_REASON_RATE_LIMITED:              codes.ResourceExhausted,
	brokerv1.ErrorReason_ERROR_REASON_CONCURRENCY_LIMITED:       codes.ResourceExhausted,
	brokerv1.ErrorReason_ERROR_REASON_CHANGE_BUDGET_EXHAUSTED:   codes.ResourceExhausted,
	brokerv1.ErrorReason_ERROR_REASON_AUDIT_UNAVAILABLE:         codes.Unavailable,
	brokerv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT:          codes.InvalidArgument,
	brokerv1.ErrorReason_ERROR_REASON_CONTAINER_NOT_FOUND:       codes.NotFound,
	brokerv1.ErrorReason_ERROR_REASON_CONTAINER_STATE:           codes.FailedPrecondition,
	brokerv1.ErrorReason_ERROR_REASON_ENGINE_UNAVAILABLE:        codes.Unavailable,
	brokerv1.ErrorReason_ERROR_REASON_ENGINE_ERROR:              codes.Internal,
	brokerv1.ErrorReason_ERROR_REASON_DEADLINE_EXCEEDED:         codes.DeadlineExceeded,
	brokerv1.ErrorReason_ERROR_REASON_REQUEST_ID_REUSED:         codes.InvalidArgument,
	brokerv1.ErrorReason_ERROR_REASON_REQUEST_IN_PROGRESS:       codes.Aborted,
	brokerv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN:           codes.Aborted,
	brokerv1.ErrorReason_ERROR_REASON_METHOD_UNKNOWN:            codes.Unimplemented,
	brokerv1.ErrorReason_ERROR_REASON_STREAM_EXPIRED:            codes.Aborted,
	brokerv1.ErrorReason_ERROR_REASON_SLOW_READER:               codes.ResourceExhausted,
	brokerv1.ErrorReason_ERROR_REASON_SHUTTING_DOWN:             codes.Unavailable,
	brokerv1.ErrorReason_ERROR_REASON_INTERNAL:                  codes.Internal,
	brokerv1.ErrorReason_ERROR_REASON_CANCELLED:                 codes.Canceled,
	brokerv1.ErrorReason_ERROR_REASON_STATE_UNAVAILABLE:         codes.Unavailable,
	brokerv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND:           codes.NotFound,
	brokerv1.ErrorReason_ERROR_REASON_IMAGE_IN_USE:              codes.FailedPrecondition,
	brokerv1.ErrorReason_ERROR_REASON_REGISTRY_NOT_REGISTERED:   codes.FailedPrecondition,
	brokerv1.ErrorReason_ERROR_REASON_REGISTRY_DENIED:           codes.FailedPrecondition,
	brokerv1.ErrorReason_ERROR_REASON_REGISTRY_UNAVAILABLE:      codes.Unavailable,
	brokerv1.ErrorReason_ERROR_REASON_INSUFFICIENT_SPACE:        codes.ResourceExhausted,
	brokerv1.ErrorReason_ERROR_REASON_OPERATION_NOT_FOUND:       codes.NotFound,
	brokerv1.ErrorReason_ERROR_REASON_OPERATION_INTERRUPTED:     codes.Aborted,
	brokerv1.ErrorReason_ERROR_REASON_OPERATION_CANCELLED:       codes.Canceled,
	brokerv1.ErrorReason_ERROR_REASON_PLAN_CHANGED:              codes.Aborted,
	brokerv1.ErrorReason_ERROR_REASON_HOST_UNAVAILABLE:          codes.Unavailable,
	brokerv1.ErrorReason_ERROR_REASON_TOOL_MISSING:              codes.FailedPrecondition,
	brokerv1.ErrorReason_ERROR_REASON_TOOL_TIMEOUT:              codes.DeadlineExceeded,
	brokerv1.ErrorReason_ERROR_REASON_TOOL_OUTPUT_TOO_LARGE:     codes.ResourceExhausted,
	brokerv1.ErrorReason_ERROR_REASON_TOOL_FAILED:               codes.Internal,
	brokerv1.ErrorReason_ERROR_REASON_TOOL_OUTPUT_INVALID:       codes.Internal,
	brokerv1.ErrorReason_ERROR_REASON_HOST_BUSY:                 codes.ResourceExhausted,
	brokerv1.ErrorReason_ERROR_REASON_FAIL2BAN_MISSING:          codes.FailedPrecondition,
	brokerv1.ErrorReason_ERROR_REASON_FAIL2BAN_STOPPED:          codes.Unavailable,
	brokerv1.ErrorReason_ERROR_REASON_JAIL_NOT_FOUND:            codes.NotFound,
	brokerv1.ErrorReason_ERROR_REASON_FAIL2BAN_ANSWER_TRUNCATED: codes.Unavailable,
	brokerv1.ErrorReason_ERROR_REASON_FAIL2BAN_ANSWER_INVALID:   codes.Internal,
	brokerv1.ErrorReason_ERROR_REASON_RULES_CHANGED:             codes.Aborted,
}

// An Option adds to an error.
type Option func(*errdetails.ErrorInfo, *[]protoadapt.MessageV1)

// With adds metadata to the ErrorInfo.
func With(key, value string) Option {
	return func(info *errdetails.ErrorInfo, _ *[]protoadapt.MessageV1) {
		if info.Metadata == nil {
			info.Metadata = map[string]string{}
		}
		info.Metadata[key] = value
	}
}

// RetryAfter adds a RetryInfo.
func RetryAfter(d time.Duration) Option {
	return func(_ *errdetails.ErrorInfo, more *[]protoadapt.MessageV1) {
		*more = append(*more, &errdetails.RetryInfo{RetryDelay: durationpb.New(d)})
	}
}

// New makes an error. The message says what is wrong and what to do next.
func New(reason brokerv1.ErrorReason, message string, opts ...Option) error {
	info := &errdetails.ErrorInfo{Reason: Name(reason), Domain: Domain}
	details := []protoadapt.MessageV1{info}
	for _, o := range opts {
		o(info, &details)
	}
	code, ok := codeOf[reason]
	if !ok {
		code = codes.Internal
	}
	st, err := status.New(code, message).WithDetails(details...)
	if err != nil { // Only for a code OK, which codeOf does not hold.
		return status.Error(codes.Internal, message)
	}
	return st.Err()
}

// Name is a reason as ErrorInfo spells it.
func Name(reason brokerv1.ErrorReason) string {
	return strings.TrimPrefix(reason.String(), "ERROR_REASON_")
}

// Reason is the reason that an error made by New carries, or "".
func Reason(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == Domain {
			return info.GetReason()
		}
	}
	return ""
}

// Invalid says that a request field is wrong, and how it would be right.
func Invalid(field, message string) error {
	return New(brokerv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, field+": "+message, With("field", field))
}

// Denied says that the policy does not grant a permission, in the same words
// whether or not the thing exists.
func Denied(permission, resource, caller string) error {
	return New(brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED,
		permission+" on "+resource+" is not granted to "+caller+"; BrokerService.WhoAmI shows what is, the operator's policy can grant it",
		With("permission", permission), With("resource", resource))
}

// Interrupted says that the broker was stopped while an operation ran.
func Interrupted() error {
	return New(brokerv1.ErrorReason_ERROR_REASON_OPERATION_INTERRUPTED,
		"the broker was stopped while the operation ran, and did not begin it again; OperationService.GetOperation says what is left of it; use a new request_id to repeat it")
}

// Annotate adds metadata to an error of New's.
func Annotate(err error, key, value string) error {
	if Reason(err) == "" {
		return err
	}
	st := status.Convert(err).Proto()
	for _, d := range st.GetDetails() {
		info := &errdetails.ErrorInfo{}
		if d.MessageIs(info) && d.UnmarshalTo(info) == nil {
			With(key, value)(info, nil)
			_ = d.MarshalFrom(info) // It came out of there.
		}
	}
	return status.FromProto(st).Err()
}

// NotUnderstood says that what a tool of the host's said makes no sense. Where it
// does not goes to the audit trail.
func NotUnderstood(tool, callID string) error {
	return New(brokerv1.ErrorReason_ERROR_REASON_TOOL_OUTPUT_INVALID,
		"what "+tool+" said is not understood; tell the operator the call's ID, "+callID, With("tool", tool), With("call", callID))
}

// Internal is a defect or something that must not happen.
func Internal(callID string) error {
	return New(brokerv1.ErrorReason_ERROR_REASON_INTERNAL,
		"the broker failed; tell the operator the call's ID, "+callID, With("call", callID))
}

// Ensure gives an error that reached the chain's end an ErrorInfo, if it has
// none: context errors get their reasons, everything else is Internal.
func Ensure(err error, callID string) error {
	switch {
	case err == nil || Reason(err) != "":
		return err
	case errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded:
		return New(brokerv1.ErrorReason_ERROR_REASON_DEADLINE_EXCEEDED, "the deadline passed; try again with a longer one")
	case errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled:
		return New(brokerv1.ErrorReason_ERROR_REASON_CANCELLED, "the caller hung up")
	case status.Code(err) == codes.NotFound: // The health service's, of a service it does not know.
		return Invalid("service", "no such service; leave it empty, or name one such as hermes.broker.v1.ContainerService")
	default:
		return Internal(callID)
	}
}
