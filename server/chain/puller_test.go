package chain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/operation"
)

// puller is a pull whose every step a test takes.
type puller struct {
	rig   *rig
	begun chan context.Context // Of each that has its intent.
	step  chan func(brokerv1.ImageService_PullServer) error
	ended chan error
}

func (r *rig) puller() *puller {
	p := &puller{rig: r, begun: make(chan context.Context, 10), step: make(chan func(brokerv1.ImageService_PullServer) error), ended: make(chan error, 10)}
	r.images.pull = func(req *brokerv1.PullRequest, s brokerv1.ImageService_PullServer) (err error) {
		defer func() { p.ended <- err }()
		if req.GetValidateOnly() {
			return s.Send(resultEvent("would"))
		}
		ctx, err := call.Intend(s.Context(), req.GetImage()+"@decided")
		if err != nil {
			return err
		}
		p.begun <- ctx
		for {
			select {
			case f := <-p.step:
				if err := f(s); err != nil {
					if errors.Is(err, io.EOF) {
						return nil
					}
					return err
				}
			case <-s.Context().Done():
				return s.Context().Err()
			}
		}
	}
	return p
}

func resultEvent(text string) *brokerv1.PullResponse {
	return &brokerv1.PullResponse{Event: &brokerv1.PullResponse_Result{Result: &brokerv1.PullResult{Image: text}}}
}

func (p *puller) progress(n int32) {
	p.step <- func(s brokerv1.ImageService_PullServer) error {
		return s.Send(&brokerv1.PullResponse{Event: &brokerv1.PullResponse_Progress{Progress: &brokerv1.PullProgress{LayersTotal: n}}})
	}
}

func (p *puller) finish() {
	p.step <- func(s brokerv1.ImageService_PullServer) error {
		if err := s.Send(resultEvent("done")); err != nil {
			return err
		}
		return io.EOF
	}
}

func (p *puller) fail(err error) {
	p.step <- func(brokerv1.ImageService_PullServer) error { return err }
}

func (r *rig) pull(ctx context.Context, req *brokerv1.PullRequest) brokerv1.ImageService_PullClient {
	r.t.Helper()
	if req.Image == "" {
		req.Image = "alpine"
	}
	if req.RequestId == "" && !req.ValidateOnly {
		req.RequestId = uuid.NewString()
	}
	s, err := brokerv1.NewImageServiceClient(r.conn).Pull(ctx, req)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// read reads events until the stream ends: "1 operation, 2 progress 7, 3 result
// done", and the end's reason.
func read(t *testing.T, s brokerv1.ImageService_PullClient, most int) string {
	t.Helper()
	var all []string
	for len(all) < most {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			all = append(all, "OK")
			break
		}
		if err != nil {
			reason := fault.Reason(err)
			if reason == "" {
				reason = err.Error()
			}
			all = append(all, reason)
			break
		}
		text := fmt.Sprint(m.GetSequence())
		switch e := m.GetEvent().(type) {
		case *brokerv1.PullResponse_Operation:
			text += " operation"
		case *brokerv1.PullResponse_Progress:
			text += fmt.Sprint(" progress ", e.Progress.GetLayersTotal())
		case *brokerv1.PullResponse_Result:
			text += " result " + e.Result.GetImage()
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}

func wantEvents(t *testing.T, s brokerv1.ImageService_PullClient, want string) {
	t.Helper()
	if got := read(t, s, 100); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// only is the one operation there is.
func (r *rig) only() *operation.Operation {
	r.t.Helper()
	all := r.chain.Operations.List()
	if len(all) != 1 {
		r.t.Fatalf("%d operations, want 1", len(all))
	}
	return all[0]
}

func (r *rig) ended(x *operation.Operation, state brokerv1.OperationState, reason string) {
	r.t.Helper()
	select {
	case <-x.Ended():
	case <-time.After(5 * time.Second):
		r.t.Fatal("the operation does not end")
	}
	if v := x.View(); v.GetState() != state || v.GetErrorReason() != reason {
		r.t.Errorf("ended as %v %q, want %v %q", v.GetState(), v.GetErrorReason(), state, reason)
	}
}
