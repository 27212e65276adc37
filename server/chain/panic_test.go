package chain

import (
	"context"
	"strings"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/policy"
)

func wantReason(t *testing.T, err error, want string) {
	t.Helper()
	if got := fault.Reason(err); got != want {
		t.Errorf("got %v (%s), want %s", err, got, want)
	}
}

// wantInternal defends against a panic's text coming out, and its stack.
func wantInternal(t *testing.T, err error) {
	t.Helper()
	wantReason(t, err, "INTERNAL")
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), ".go") {
		t.Errorf("got %v", err)
	}
}

func newRestart() *brokerv1.RestartRequest {
	return &brokerv1.RestartRequest{Container: "web", RequestId: uuid.NewString()}
}

// TestPanicBeforeIntent: nothing was done, so the request may be repeated.
func TestPanicBeforeIntent(t *testing.T) {
	r := newRig(t)
	r.service.restart = func(context.Context, *brokerv1.RestartRequest) (*brokerv1.RestartResponse, error) { panic("canary") }
	req := newRestart()
	_, err := r.client.Restart(t.Context(), req)
	wantInternal(t, err)
	r.service.restart = func(context.Context, *brokerv1.RestartRequest) (*brokerv1.RestartResponse, error) {
		return &brokerv1.RestartResponse{}, nil
	}
	if _, err := r.client.Restart(t.Context(), req); err != nil {
		t.Errorf("the ID is held by a call that is gone: %v", err)
	}
	if rec := r.wantEvents("call Internal INTERNAL", "call OK"); !strings.Contains(rec[0].Detail, "panic") {
		t.Errorf("the operator is told %q", rec[0].Detail)
	}
}

// TestPanicAfterIntent defends against acting twice: nobody knows how far the
// handler came, so its ID stays answered, and the intent gets its outcome.
func TestPanicAfterIntent(t *testing.T) {
	r := newRig(t)
	effects := 0
	r.service.restart = func(ctx context.Context, _ *brokerv1.RestartRequest) (*brokerv1.RestartResponse, error) {
		if _, err := call.Intend(ctx, "id"); err != nil {
			return nil, err
		}
		effects++
		panic("canary")
	}
	req := newRestart()
	for range 2 {
		_, err := r.client.Restart(t.Context(), req)
		wantInternal(t, err)
	}
	if effects != 1 {
		t.Errorf("%d effects", effects)
	}
	rec := r.wantEvents("intent", "outcome Internal INTERNAL", "call Internal INTERNAL")
	if rec[0].Call != rec[1].Call || rec[0].Target != "id" || !strings.Contains(rec[1].Detail, "panic") || !strings.Contains(rec[2].Detail, "answered before") {
		t.Errorf("records %+v", rec)
	}
}

func TestPanicInStream(t *testing.T) {
	r := newRig(t)
	r.service.logs = func(s brokerv1.ContainerService_ContainerLogsServer) error {
		_ = s.Send(&brokerv1.ContainerLogsResponse{})
		panic("canary")
	}
	s := r.follow()
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	_, err := s.Recv()
	wantInternal(t, err)
	r.wantEvents("stream", "call Internal INTERNAL")
	r.active(0)
}

// TestPanicGoesNoFurther: brokerd serves on, its places given back.
func TestPanicGoesNoFurther(t *testing.T) {
	r := newRig(t)
	r.service.inspect = func(context.Context) error { panic("canary") }
	r.service.wait = func(context.Context) error { panic("canary") }
	r.service.logs = func(brokerv1.ContainerService_ContainerLogsServer) error { panic("canary") }
	for range 11 { // One more than may run at once.
		_, err := r.client.InspectContainer(t.Context(), &brokerv1.InspectContainerRequest{Container: "web"})
		wantInternal(t, err)
		_, err = r.client.Wait(t.Context(), &brokerv1.WaitRequest{Container: "web"})
		wantInternal(t, err)
		_, err = r.follow().Recv()
		wantInternal(t, err)
	}
	r.service.inspect = func(context.Context) error { return nil }
	if _, err := r.client.InspectContainer(t.Context(), &brokerv1.InspectContainerRequest{Container: "web"}); err != nil {
		t.Error(err)
	}
	r.active(0)
}

// TestPanicOfTheChain: even what should decide may fail, and then denies.
func TestPanicOfTheChain(t *testing.T) {
	r := newRig(t)
	reached := false
	r.service.inspect = func(context.Context) error { reached = true; return nil }
	r.service.logs = func(brokerv1.ContainerService_ContainerLogsServer) error { reached = true; return nil }
	r.chain.Policy = func() *policy.Policy { panic("canary") }
	_, err := r.client.InspectContainer(t.Context(), &brokerv1.InspectContainerRequest{Container: "web"})
	wantInternal(t, err)
	_, err = r.follow().Recv()
	wantInternal(t, err)
	if reached {
		t.Error("the handler was reached without a decision")
	}
	r.wantEvents("call Internal INTERNAL", "call Internal INTERNAL")
}
