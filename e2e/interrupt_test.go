package e2e

import (
	"os"
	"syscall"
	"testing"
	"time"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
	"github.com/gortium/hermes-broker/e2e/testhost"
)

// TestInterrupted stops brokerd in the middle of a pull in every way. The
// operation is then told to be interrupted, with what is left of it, is not begun
// again, and keeps nobody from another pull.
func TestInterrupted(t *testing.T) {
	r := registry(t)
	b := imagesBroker(t, imagesConfig)
	for _, tc := range []struct {
		name   string
		end    os.Signal
		detach bool
		// finish lets the engine end the pull before brokerd, which sleeps, is ended.
		finish bool
	}{
		{name: "kill -9", end: os.Kill},
		{name: "kill -9 of detached work", end: os.Kill, detach: true},
		{name: "kill -9 when the engine is done", end: os.Kill, finish: true},
		{name: "in order", end: syscall.SIGTERM},
		{name: "in order with detached work", end: syscall.SIGTERM, detach: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r.Reset()
			image := push(t, r, "team/app:1", testhost.RandomLayer(100<<10))
			held := holdLayers(t, r, image)
			name := r.Addr + "/team/app@" + image.Digest
			req := &brokerv1.PullRequest{Image: name, RequestId: client.NewRequestID(), Detach: tc.detach}
			caller := b.dial("hermes")
			s, first := begin(t, within(t), caller, req)
			held.wait(t)
			w, err := caller.Operations().WatchOperation(within(t), &brokerv1.WatchOperationRequest{Name: first.GetOperation().GetName()})
			if err == nil {
				_, err = w.Recv()
			}
			if err != nil {
				t.Fatal(err)
			}
			aftermath := brokerv1.Aftermath_AFTERMATH_NONE
			if tc.finish {
				aftermath = brokerv1.Aftermath_AFTERMATH_COMPLETE
				b.must(b.process.Process.Signal(syscall.SIGSTOP))
				held.release()
				eventually(t, "the engine has the image", func() bool { return len(present(t, name)) == 1 })
			}
			begun := time.Now()
			b.stop(tc.end)
			if took := time.Since(begun); took > 10*time.Second {
				t.Errorf("brokerd took %s to end", took)
			}
			// Streams end with it, and not as if all were well.
			for stream, recv := range map[string]func() error{
				"pull":  func() error { _, err := receive(s); return err },
				"watch": func() error { _, err := receive(w); return err },
			} {
				if err := recv(); err == nil && !(stream == "pull" && tc.detach) {
					t.Errorf("the stream of %s ended without an error", stream)
				}
			}
			held.release()
			b.start()

			c := b.dial("hermes")
			o := ended(t, c, first.GetOperation().GetName(), brokerv1.OperationState_OPERATION_STATE_INTERRUPTED)
			if o.GetLastSequence() < 1 {
				t.Errorf("operation %v", o)
			}
			eventually(t, "the broker has looked at what is left", func() bool {
				return operation(t, c, o.GetName()).GetAftermath() == aftermath
			})
			req = &brokerv1.PullRequest{Image: name, RequestId: req.GetRequestId()}
			_, events, err := pullRequest(t, c, req)
			want(t, err, brokerv1.ErrorReason_ERROR_REASON_OPERATION_INTERRUPTED)
			if client.ErrorMetadata(err)["operation"] != o.GetName() || len(events) > 0 && events[0].GetOperation().GetName() != o.GetName() {
				t.Errorf("the same request: %v, %v, metadata %v", events, err, client.ErrorMetadata(err))
			}
			if _, err := watch(t, c, o.GetName(), 0); client.Reason(err) != brokerv1.ErrorReason_ERROR_REASON_OPERATION_INTERRUPTED {
				t.Errorf("watching it: %v", err)
			}
			if found := present(t, name); (len(found) == 1) != tc.finish {
				t.Errorf("nobody began it again, and the engine has %+v", found)
			}
			result, _, err := pull(t, c, name)
			if err != nil || result.GetImageId() != image.ID || result.GetAlreadyPresent() != tc.finish {
				t.Errorf("a new pull: %v, %v", result, err)
			}
		})
	}
}
