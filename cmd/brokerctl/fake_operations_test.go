package main

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/gortium/hermes-broker/api/brokerv1"
)

const (
	succeeded   = brokerv1.OperationState_OPERATION_STATE_SUCCEEDED
	interrupted = brokerv1.OperationState_OPERATION_STATE_INTERRUPTED
	failedState = brokerv1.OperationState_OPERATION_STATE_FAILED
	runningOp   = brokerv1.OperationState_OPERATION_STATE_RUNNING
)

// operations are named for what becomes of them.
func operations() []*brokerv1.Operation {
	one := func(id string, state brokerv1.OperationState) *brokerv1.Operation {
		return &brokerv1.Operation{
			Name: "operations/" + id, Method: "ImageService/Pull", Resource: "images/" + library + "alpine:3.22", Target: library + "alpine@" + digest("b1"),
			Caller: callerID, RequestId: "0b6ee0c3-9f9e-4c0f-8a3e-6a1f3b6a4a10", State: state, CreateTime: created, LastSequence: 5,
		}
	}
	runs, done, broken, cut := one("RUNS", runningOp), one("DONE", succeeded), one("BROKEN", failedState), one("CUT", interrupted)
	runs.Detached = true
	done.EndTime = created
	broken.ErrorReason, broken.ErrorMessage = "REGISTRY_UNAVAILABLE", "the registry stopped in the middle"
	cut.Aftermath = brokerv1.Aftermath_AFTERMATH_COMPLETE
	// The one that does not heed a cancellation.
	slow := one("SLOW", runningOp)
	evil := &brokerv1.Operation{
		Name: "operations/HOSTILE", Method: hostile, Resource: hostile, Target: hostile, Caller: hostile, RequestId: hostile,
		ErrorReason: hostile, ErrorMessage: hostile,
	}
	return []*brokerv1.Operation{runs, done, broken, cut, slow, evil}
}

func findOperation(name string) (*brokerv1.Operation, error) {
	for _, o := range operations() {
		if o.GetName() == name {
			return o, nil
		}
	}
	return nil, refusal(codes.NotFound, "OPERATION_NOT_FOUND", "no such operation within reach", 0, map[string]string{"operation": name})
}

func (*fakeBroker) ListOperations(_ context.Context, req *brokerv1.ListOperationsRequest) (*brokerv1.ListOperationsResponse, error) {
	all := slices.DeleteFunc(operations(), func(o *brokerv1.Operation) bool {
		return len(req.GetStates()) > 0 && !slices.Contains(req.GetStates(), o.GetState())
	})
	resp := &brokerv1.ListOperationsResponse{}
	resp.Operations, resp.NextPageToken = onePage(all, req.GetPageToken())
	return resp, nil
}

func pullEvent(e *brokerv1.PullResponse) *brokerv1.OperationEvent {
	return &brokerv1.OperationEvent{Event: &brokerv1.OperationEvent_Pull{Pull: e}}
}

func (*fakeBroker) GetOperation(_ context.Context, req *brokerv1.GetOperationRequest) (*brokerv1.GetOperationResponse, error) {
	o, err := findOperation(req.GetName())
	if err != nil {
		return nil, err
	}
	resp := &brokerv1.GetOperationResponse{Operation: o}
	switch events := pullEvents("alpine:3.22"); o.GetState() {
	case runningOp:
		resp.Latest = pullEvent(events[2])
	case succeeded:
		resp.Latest = pullEvent(events[4])
	}
	return resp, nil
}

func (*fakeBroker) WatchOperation(req *brokerv1.WatchOperationRequest, s grpc.ServerStreamingServer[brokerv1.WatchOperationResponse]) error {
	if req.GetName() == "operations/DENIED" {
		return refusal(codes.PermissionDenied, "PERMISSION_DENIED", "operations.watch is not granted", 0, nil)
	}
	o, err := findOperation(req.GetName())
	if err != nil {
		return err
	}
	name := "alpine:3.22"
	if req.GetName() == "operations/HOSTILE" {
		name = hostile
	}
	for _, e := range pullEvents(name) {
		if e.GetSequence() <= req.GetAfter() {
			continue
		}
		if o.GetState() == failedState && e.GetSequence() == 4 {
			return refusal(codes.Unavailable, o.GetErrorReason(), o.GetErrorMessage(), 0, map[string]string{"operation": o.GetName()})
		}
		if o.GetState() == runningOp && e.GetResult() != nil {
			<-s.Context().Done()
			return s.Context().Err()
		}
		if err := s.Send(&brokerv1.WatchOperationResponse{Event: pullEvent(e)}); err != nil {
			return err
		}
		if o.GetState() == succeeded && e.GetSequence() == 3 && req.GetAfter() < 3 {
			return refusal(codes.Aborted, "STREAM_EXPIRED", "the stream is old", 0, nil)
		}
	}
	return nil
}

func (f *fakeBroker) CancelOperation(_ context.Context, r *brokerv1.CancelOperationRequest) (*brokerv1.CancelOperationResponse, error) {
	if err := checkRequestID(r.GetRequestId(), r.GetValidateOnly()); err != nil {
		return nil, err
	}
	o, err := findOperation(r.GetName())
	if err != nil {
		return nil, err
	}
	if !r.GetValidateOnly() {
		f.cancels.Lock()
		f.cancels.names = append(f.cancels.names, r.GetName())
		f.cancels.Unlock()
	}
	if o.GetState() == runningOp && !r.GetValidateOnly() && r.GetName() != "operations/SLOW" {
		o.State = brokerv1.OperationState_OPERATION_STATE_CANCELLED
	}
	return &brokerv1.CancelOperationResponse{Operation: o}, nil
}
