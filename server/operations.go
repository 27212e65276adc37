package server

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"google.golang.org/grpc"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/access"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/operation"
	"github.com/gortium/hermes-broker/server/page"
)

// operations is OperationService: long work after the call that began it.
type operations struct {
	brokerv1.UnimplementedOperationServiceServer
	store   *operation.Store
	methods *access.Registry
}

// find is an operation that the caller may see. What belongs to another is, to
// who may not see it, as if it were not there.
func (s *operations) find(ctx context.Context, name string) (*operation.Operation, error) {
	o := s.store.Get(name)
	if o == nil || !visible(ctx, o.View()) {
		return nil, fault.New(brokerv1.ErrorReason_ERROR_REASON_OPERATION_NOT_FOUND,
			"there is no such operation, or it is no longer kept; ListOperations shows yours", fault.With("operation", name))
	}
	return o, nil
}

func visible(ctx context.Context, v *brokerv1.Operation) bool {
	return v.GetCaller() == call.From(ctx).ID || call.Others(ctx)
}

// event is a journal's event in the form that is common to all operations.
func (s *operations) event(v *brokerv1.Operation, data []byte) (*brokerv1.OperationEvent, error) {
	m := s.methods.Method("/hermes.broker.v1." + v.GetMethod())
	if m == nil || m.Operation == nil { // Of a broker that had another schema.
		return nil, fault.Internal(v.GetName())
	}
	event, err := m.Operation.Decode(data)
	if err != nil {
		return nil, err
	}
	return m.Operation.Wrap(event), nil
}

// ListOperations implements brokerv1.OperationServiceServer.
func (s *operations) ListOperations(ctx context.Context, req *brokerv1.ListOperationsRequest) (*brokerv1.ListOperationsResponse, error) {
	p, err := page.New(req)
	if err != nil {
		return nil, err
	}
	var all []page.Item[*brokerv1.Operation]
	for _, o := range s.store.List() {
		v := o.View()
		all = append(all, page.Item[*brokerv1.Operation]{Key: page.Newest(v.GetCreateTime().AsTime(), v.GetName()), Value: v})
	}
	resp := &brokerv1.ListOperationsResponse{}
	resp.Operations, resp.NextPageToken = page.Cut(p, page.Sort(all), func(v *brokerv1.Operation) bool {
		return call.Visible(ctx, v.GetName()) && visible(ctx, v) && (len(req.GetStates()) == 0 || slices.Contains(req.GetStates(), v.GetState()))
	})
	return resp, nil
}

// GetOperation implements brokerv1.OperationServiceServer.
func (s *operations) GetOperation(ctx context.Context, req *brokerv1.GetOperationRequest) (*brokerv1.GetOperationResponse, error) {
	o, err := s.find(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	resp := &brokerv1.GetOperationResponse{Operation: o.View()}
	if latest := o.Latest(); latest != nil {
		resp.Latest, err = s.event(resp.Operation, latest)
	}
	return resp, err
}

// WatchOperation implements brokerv1.OperationServiceServer.
func (s *operations) WatchOperation(req *brokerv1.WatchOperationRequest, stream grpc.ServerStreamingServer[brokerv1.WatchOperationResponse]) error {
	ctx := stream.Context()
	if req.GetAfter() < 0 {
		return fault.Invalid("after", "give the sequence of the last event you have, or 0 for all")
	}
	o, err := s.find(ctx, req.GetName())
	if err != nil {
		return err
	}
	w, err := o.Watch(req.GetAfter())
	if err != nil {
		call.Note(ctx, err.Error())
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_STATE_UNAVAILABLE, "the operation's journal cannot be read; tell the operator")
	}
	defer w.Close()
	for {
		data, err := w.Next(ctx)
		if errors.Is(err, io.EOF) {
			return o.Err()
		}
		if err != nil {
			return err
		}
		event, err := s.event(o.View(), data)
		if err != nil {
			return err
		}
		if err := stream.Send(&brokerv1.WatchOperationResponse{Event: event}); err != nil {
			return err
		}
	}
}

// cancelPatience is how long CancelOperation waits for the end.
const cancelPatience = 10 * time.Second

// CancelOperation implements brokerv1.OperationServiceServer.
func (s *operations) CancelOperation(ctx context.Context, req *brokerv1.CancelOperationRequest) (*brokerv1.CancelOperationResponse, error) {
	o, err := s.find(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if !req.GetValidateOnly() {
		if ctx, err = call.Intend(ctx, req.GetName()); err != nil {
			return nil, err
		}
		o.Cancel(fault.New(brokerv1.ErrorReason_ERROR_REASON_OPERATION_CANCELLED,
			call.From(ctx).ID+" cancelled the operation; what was done by then may stay", fault.With("operation", req.GetName())))
		select {
		case <-o.Ended():
		case <-time.After(cancelPatience):
		case <-ctx.Done():
		}
	}
	return &brokerv1.CancelOperationResponse{Operation: o.View()}, nil
}
