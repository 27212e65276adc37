package hostlink

import (
	"context"
	"sync"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
)

// brokerhost runs so many tools at once; these are the shares of one caller, so that
// none can take all places from the others.
const (
	toolShare   = 4 // Of 8.
	followShare = 6 // Of 16.
)

// shares are the places that callers have.
type shares struct {
	mu    sync.Mutex
	tools map[string]chan struct{} // By caller; there are as many as the policy names.
	// follows are counted: who follows may go on for an hour, so nobody waits.
	follows map[string]int
}

// take takes a place of the caller's, or waits for one, unless it is to follow.
func (s *shares) take(ctx context.Context, follow bool) (leave func(), err error) {
	who := call.From(ctx).ID
	s.mu.Lock()
	if s.tools == nil {
		s.tools, s.follows = map[string]chan struct{}{}, map[string]int{}
	}
	if follow {
		defer s.mu.Unlock()
		if s.follows[who] == followShare {
			return nil, fault.New(brokerv1.ErrorReason_ERROR_REASON_HOST_BUSY,
				"you follow the journal as often as one caller may; let one stream end first", fault.RetryAfter(fault.RetryEngine))
		}
		s.follows[who]++
		return func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.follows[who]--; s.follows[who] == 0 {
				delete(s.follows, who)
			}
		}, nil
	}
	places := s.tools[who]
	if places == nil {
		places = make(chan struct{}, toolShare)
		s.tools[who] = places
	}
	s.mu.Unlock()
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
