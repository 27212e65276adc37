package chain

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/limits"
	"github.com/gortium/hermes-broker/server/operation"
)

// TestSameRequestAgain: the events again, from the first, while it runs and
// after; detach added detaches it; anything else changed is another request.
func TestSameRequestAgain(t *testing.T) {
	r := newRig(t)
	p := r.puller()
	id := uuid.NewString()
	ctx, hangUp := context.WithCancel(t.Context())
	first := r.pull(ctx, &brokerv1.PullRequest{RequestId: id})
	<-p.begun
	p.progress(1)
	if got := read(t, first, 2); got != "1 operation, 2 progress 1" {
		t.Fatal(got)
	}
	second := r.pull(t.Context(), &brokerv1.PullRequest{RequestId: id})
	if got := read(t, second, 2); got != "1 operation, 2 progress 1" {
		t.Errorf("the same request while it runs: %s", got)
	}
	wantEvents(t, r.pull(t.Context(), &brokerv1.PullRequest{RequestId: id, Image: "debian"}), "REQUEST_ID_REUSED")
	wantEvents(t, r.pull(t.Context(), &brokerv1.PullRequest{RequestId: id, Detach: true}), "1 operation, OK")
	hangUp()
	r.active(2) // The work and the second stream: what the first one's end does is done.
	p.progress(2)
	p.finish()
	wantEvents(t, second, "3 progress 2, 4 result done, OK")
	for range 2 {
		wantEvents(t, r.pull(t.Context(), &brokerv1.PullRequest{RequestId: id}), "1 operation, 2 progress 1, 3 progress 2, 4 result done, OK")
	}
	r.ended(r.only(), operation.Succeeded, "")
	if n := len(p.ended); n != 1 {
		t.Errorf("the work was done %d times", n)
	}
	// The journal is gone, the answer is not.
	x := r.only()
	r.clock.advance(61 * time.Minute)
	r.chain.Operations.Sweep()
	if len(r.chain.Operations.List()) != 0 {
		t.Fatalf("%v is still kept", x.View())
	}
	r.clock.advance(-2 * time.Minute)
	wantEvents(t, r.pull(t.Context(), &brokerv1.PullRequest{RequestId: id}), "1 result done, OK")
}

// TestFailureIsRemembered: the same request fails in the same way.
func TestFailureIsRemembered(t *testing.T) {
	r := newRig(t)
	p := r.puller()
	id := uuid.NewString()
	s := r.pull(t.Context(), &brokerv1.PullRequest{RequestId: id})
	<-p.begun
	p.fail(fault.New(brokerv1.ErrorReason_ERROR_REASON_INSUFFICIENT_SPACE, "full"))
	wantEvents(t, s, "1 operation, INSUFFICIENT_SPACE")
	wantEvents(t, r.pull(t.Context(), &brokerv1.PullRequest{RequestId: id}), "1 operation, INSUFFICIENT_SPACE")
}

// TestSameRequestWhileItBegins: many at once, at the moment in which the first gets
// its name. Whatever each is told, there is one operation, whole, and no text of
// the system's.
func TestSameRequestWhileItBegins(t *testing.T) {
	r := newRig(t)
	r.chain.Limits = limits.New(limits.Config{Rate: 1e6, Burst: 1e6, Calls: 100, Streams: 100}, r.clock.now)
	p := r.puller()
	for round := range 30 {
		id := uuid.NewString()
		got := make(chan string, 8)
		for n := range cap(got) {
			s := r.pull(t.Context(), &brokerv1.PullRequest{RequestId: id, Detach: n > 0})
			go func() { got <- read(t, s, 1) }()
		}
		<-p.begun
		for range cap(got) {
			if g := <-got; g != "1 operation" && g != "REQUEST_IN_PROGRESS" {
				t.Fatalf("round %d: %s", round, g)
			}
		}
		p.finish()
		if err := <-p.ended; err != nil {
			t.Fatal(err)
		}
		wantEvents(t, r.pull(t.Context(), &brokerv1.PullRequest{RequestId: id}), "1 operation, 2 result done, OK")
	}
	again, err := operation.Open(r.chain.Operations.Options)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(again.List()); n != 30 {
		t.Errorf("%d journals are whole, want 30", n)
	}
	for _, x := range again.List() {
		if x.View().GetState() != operation.Succeeded {
			t.Errorf("%v", x.View())
		}
	}
}

// TestRetryOfWhatWasInterrupted tells how it ended, with detach too: an agent that
// asks again after a crash must not take it for running.
func TestRetryOfWhatWasInterrupted(t *testing.T) {
	r := newRig(t)
	p := r.puller()
	id := uuid.NewString()
	wantEvents(t, r.pull(t.Context(), &brokerv1.PullRequest{RequestId: id, Detach: true}), "1 operation, OK")
	<-p.begun
	r.only().Cancel(fault.Interrupted())
	r.ended(r.only(), operation.Interrupted, "OPERATION_INTERRUPTED")
	wantEvents(t, r.pull(t.Context(), &brokerv1.PullRequest{RequestId: id, Detach: true}), "1 operation, OPERATION_INTERRUPTED")
}

// TestEngineLostInTheMiddle: the engine may have heard of it all the same, so the
// ID stays used. (A change that is no operation gives it back: its one request
// never left.)
func TestEngineLostInTheMiddle(t *testing.T) {
	r := newRig(t)
	p := r.puller()
	id := uuid.NewString()
	s := r.pull(t.Context(), &brokerv1.PullRequest{RequestId: id})
	<-p.begun
	p.fail(fault.New(brokerv1.ErrorReason_ERROR_REASON_ENGINE_UNAVAILABLE, "away"))
	wantEvents(t, s, "1 operation, ENGINE_UNAVAILABLE")
	wantEvents(t, r.pull(t.Context(), &brokerv1.PullRequest{RequestId: id}), "1 operation, ENGINE_UNAVAILABLE")
	if n := len(p.begun); n != 0 {
		t.Errorf("it began %d times more", n)
	}
}

// TestJournalThatCannotBeRead: the caller is told so, and nothing of the system's
// words.
func TestJournalThatCannotBeRead(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"gone":    os.Remove,
		"damaged": func(path string) error { return os.WriteFile(path, []byte(strings.Repeat("canary\n", 200)), 0o600) },
	} {
		r := newRig(t)
		p := r.puller()
		id := uuid.NewString()
		s := r.pull(t.Context(), &brokerv1.PullRequest{RequestId: id})
		<-p.begun
		p.finish()
		wantEvents(t, s, "1 operation, 2 result done, OK")
		if err := spoil(filepath.Join(r.dir, r.only().View().GetName()+".jsonl")); err != nil {
			t.Fatal(err)
		}
		_, err := r.pull(t.Context(), &brokerv1.PullRequest{RequestId: id}).Recv()
		wantReason(t, err, "STATE_UNAVAILABLE")
		if text := err.Error(); strings.Contains(text, r.dir) || strings.Contains(text, "canary") || strings.Contains(text, "jsonl") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
