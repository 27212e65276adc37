package hostlink

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/gortium/hermes-broker/internal/hostv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
)

// by is a call of a caller's.
type by struct {
	call.Scope
	id string
}

func (b by) Caller() call.Caller { return call.Caller{ID: b.id} }
func (by) Note(string)           {}
func (by) ID() string            { return "C1" }

// TestShares: no caller takes the places of the others. Who follows is told at once
// that there is none; who asks waits, and no longer than its call.
func TestShares(t *testing.T) {
	for kind, share := range map[string]int{"follow": followShare, "ask": toolShare} {
		t.Run(kind, func(t *testing.T) {
			release := make(chan struct{})
			h := &host{read: func(s hostv1.HostService_ReadServer) error {
				_ = s.Send(data("x"))
				select {
				case <-release:
				case <-s.Context().Done():
				}
				return s.Send(end(&hostv1.End{Outcome: hostv1.Outcome_OUTCOME_EXITED}))
			}}
			socket := t.TempDir() + "/h.sock"
			serve(t, socket, h)
			l := link(t, socket)
			req := &hostv1.ReadRequest{What: &hostv1.ReadRequest_Journal{Journal: &hostv1.Journal{Follow: kind == "follow"}}}
			begun := make(chan struct{})
			ask := func(who string, wait time.Duration) error {
				ctx, cancel := context.WithTimeout(call.With(t.Context(), by{id: who}), wait)
				defer cancel()
				return l.Read(ctx, req, func(r io.Reader) error {
					if _, err := r.Read(make([]byte, 1)); err != nil {
						return err
					}
					begun <- struct{}{}
					_, err := io.Copy(io.Discard, r)
					return err
				})
			}
			var running sync.WaitGroup
			start := func(who string) {
				running.Go(func() {
					if err := ask(who, time.Minute); err != nil {
						t.Errorf("%s: %v", who, err)
					}
				})
				<-begun
			}
			for range share {
				start("a")
			}
			err := ask("a", 100*time.Millisecond)
			if kind == "follow" && fault.Reason(err) != "HOST_BUSY" || kind == "ask" && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("one more: %v", err)
			}
			start("b")
			close(release)
			running.Wait()
			start("a") // Places are free again.
			running.Wait()
		})
	}
}
