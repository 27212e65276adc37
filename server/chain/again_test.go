package chain

import (
	"context"
	"testing"

	"github.com/google/uuid"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/freeze"
)

// became is the digest that a tag turned out to be.
const became = "images/docker.io/library/alpine@sha256:1111111111111111111111111111111111111111111111111111111111111111"

// TestDenialOfWhatItBecame ends what runs, and keeps from beginning what was
// resolved before it.
func TestDenialOfWhatItBecame(t *testing.T) {
	denied := everything + "    deny:\n      - on: [\"" + became + "\"]\n"
	for _, early := range []bool{true, false} {
		r := newRig(t)
		resolved, goOn, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		r.images.pull = func(_ *brokerv1.PullRequest, s brokerv1.ImageService_PullServer) error {
			if call.Denied(s.Context(), became) {
				t.Error("it is denied already")
			}
			if early {
				close(resolved)
				<-goOn
			}
			_, err := call.Intend(s.Context(), "x")
			if !early && err == nil {
				close(resolved)
				<-s.Context().Done()
				err = context.Cause(s.Context())
			}
			ended <- err
			return err
		}
		s := r.pull(t.Context(), &brokerv1.PullRequest{})
		<-resolved
		r.setPolicy(denied)
		want := "PERMISSION_DENIED"
		if early {
			close(goOn)
		} else {
			r.chain.Recheck()
			want = "ACCESS_REVOKED"
		}
		if err := <-ended; fault.Reason(err) != want {
			t.Errorf("early %v: %v, want %s", early, err, want)
		}
		_ = read(t, s, 5)
	}
}

// TestStill tells a change that does thing after thing when it may do no more.
func TestStill(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(*rig)
		want string
	}{
		"nothing happened": {func(*rig) {}, ""},
		"freeze": {func(r *rig) {
			if err := r.chain.Freeze.Set(freeze.Status{Reason: "odd", By: "ada"}); err != nil {
				r.t.Fatal(err)
			}
		}, "FROZEN"},
		"policy":  {func(r *rig) { r.setPolicy("trust_domain: home.example\n") }, "PERMISSION_DENIED"},
		"revoked": {func(r *rig) { r.setPolicy(everything + "revoked_serials: [\"5e\"]\n") }, "PERMISSION_DENIED"},
		"stop":    {func(r *rig) { r.chain.CutAll() }, "SHUTTING_DOWN"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.service.restart = func(ctx context.Context, _ *brokerv1.RestartRequest) (*brokerv1.RestartResponse, error) {
				ctx, err := call.Intend(ctx, "x")
				if err != nil {
					return nil, err
				}
				c.do(r)
				return &brokerv1.RestartResponse{}, call.Still(ctx)
			}
			_, err := r.client.Restart(t.Context(), &brokerv1.RestartRequest{Container: "web", RequestId: uuid.NewString()})
			if got := fault.Reason(err); got != c.want {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
