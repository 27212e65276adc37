package client

import (
	"context"
	"iter"

	"google.golang.org/grpc"

	"github.com/gortium/hermes-broker/api/brokerv1"
)

// operationKey is the metadata of an error that is an operation's own end:
// "operations/<id>". Other errors of a stream are about the stream.
const operationKey = "operation"

// WatchOperation yields the events of an operation ("operations/<id>") whose
// sequence number is greater than after, those that were missed first, and goes
// on by itself as [Client.FollowLogs] does; no event is yielded twice.
//
// The sequence ends with the operation's result, or with its failure as the error
// of the last element, which has no event. It ends as well when ctx ends, or when
// the broker stays away. Breaking off, and the end of ctx, leave the operation as
// it is: only CancelOperation cancels what is watched.
func (c *Client) WatchOperation(ctx context.Context, name string, after int64) iter.Seq2[*brokerv1.OperationEvent, error] {
	return func(yield func(*brokerv1.OperationEvent, error) bool) {
		last := after
		f := follower[brokerv1.WatchOperationResponse, brokerv1.OperationEvent]{
			client: c,
			open: func(ctx context.Context) (grpc.ServerStreamingClient[brokerv1.WatchOperationResponse], error) {
				return c.Operations().WatchOperation(ctx, &brokerv1.WatchOperationRequest{Name: name, After: last}, once{})
			},
			items: func(m *brokerv1.WatchOperationResponse) []*brokerv1.OperationEvent {
				return []*brokerv1.OperationEvent{m.GetEvent()}
			},
			known: func(e *brokerv1.OperationEvent) bool {
				n := Sequence(e)
				// An event of a kind newer than this package has no number to it.
				if n != 0 && n <= last {
					return true
				}
				last = max(last, n)
				return false
			},
		}
		f.follow(ctx, yield)
	}
}

// Sequence is the number of an event in its operation, for WatchOperation's after.
// It is 0 for an event of a kind newer than this package.
func Sequence(e *brokerv1.OperationEvent) int64 {
	m := e.ProtoReflect()
	kind := m.WhichOneof(m.Descriptor().Oneofs().ByName("event"))
	if kind == nil {
		return 0
	}
	numbered, ok := m.Get(kind).Message().Interface().(interface{ GetSequence() int64 })
	if !ok {
		return 0
	}
	return numbered.GetSequence()
}
