package client

import (
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	"github.com/gortium/hermes-broker/api/brokerv1"
)

// errorDomain is the domain of the broker's own ErrorInfo. Reasons of another
// domain are another server's words.
const errorDomain = "broker.hermes.v1"

// Reason says why the broker refused or failed a call. It is UNSPECIFIED for nil,
// for errors that are not the broker's (no connection, the caller's own deadline)
// and for reasons newer than this package; [status.Code] still tells those apart.
// Wrapped errors are unwrapped.
func Reason(err error) brokerv1.ErrorReason {
	info := errorInfo(err)
	return brokerv1.ErrorReason(brokerv1.ErrorReason_value["ERROR_REASON_"+info.GetReason()])
}

// ErrorMetadata returns what the broker adds to a reason, such as "field" or
// "freeze_reason". It is nil when there is none.
func ErrorMetadata(err error) map[string]string {
	return errorInfo(err).GetMetadata()
}

// RetryAfter says how long to wait before asking again, and whether the broker
// said so. A negative delay is taken as none.
func RetryAfter(err error) (delay time.Duration, ok bool) {
	info := detail[*errdetails.RetryInfo](err)
	if info.GetRetryDelay() == nil {
		return 0, false
	}
	return max(0, info.GetRetryDelay().AsDuration()), true
}

func errorInfo(err error) *errdetails.ErrorInfo {
	info := detail[*errdetails.ErrorInfo](err)
	if info.GetDomain() != errorDomain {
		return nil
	}
	return info
}

// detail returns the first detail of type T that an error's status carries.
func detail[T any](err error) T {
	var none T
	if err == nil {
		return none
	}
	s, _ := status.FromError(err)
	for _, d := range s.Details() {
		if found, ok := d.(T); ok {
			return found
		}
	}
	return none
}
