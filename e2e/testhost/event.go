package testhost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"sync"
	"time"
)

// eventBacklog is how many past events an engine remembers. Older ones are
// dropped in silence.
const eventBacklog = 256

// An Event is something the engine did.
type Event struct {
	Type   string // container, image, network, volume, daemon
	Action string // start, die, kill, restart, pull, ...
	ID     string // of a container the 64-hex ID
	Name   string
	Time   time.Time // by the engine's clock
}

type wireEvent struct {
	Type, Action string
	Actor        struct {
		ID         string
		Attributes map[string]string
	}
	TimeNano int64 `json:"timeNano"`
}

func (w wireEvent) event() Event {
	return Event{w.Type, w.Action, w.Actor.ID, w.Actor.Attributes["name"], time.Unix(0, w.TimeNano)}
}

// EngineEvents returns the events of a past interval, oldest first. It fails
// rather than return a part: an engine remembers 256 events, so what has more
// needs [Host.FollowEvents].
func (h *Host) EngineEvents(ctx context.Context, since, until time.Time) ([]Event, error) {
	if until.After(time.Now()) {
		return nil, errors.New("testhost: EngineEvents of an interval that has not ended")
	}
	// All there is, and filtered here: a full backlog has to be recognisable.
	body, err := h.events(ctx, time.Unix(1, 0), time.Now())
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var wanted []Event
	known, oldest := 0, time.Time{}
	for events := json.NewDecoder(body); ; known++ {
		var wire wireEvent
		if err := events.Decode(&wire); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("engine events: %w", err)
		}
		e := wire.event()
		if known == 0 {
			oldest = e.Time
		}
		if !e.Time.Before(since) && !e.Time.After(until) {
			wanted = append(wanted, e)
		}
	}
	if known >= eventBacklog && !oldest.Before(since) {
		return nil, fmt.Errorf("engine events: the engine has forgotten some since %v", since)
	}
	return wanted, nil
}

func (h *Host) events(ctx context.Context, since, until time.Time) (io.ReadCloser, error) {
	query := url.Values{"since": {engineTime(since)}}
	if !until.IsZero() {
		query.Set("until", engineTime(until))
	}
	resp, err := h.api.do(ctx, "GET", "/events?"+query.Encode(), "", nil)
	if err != nil {
		return nil, fmt.Errorf("engine events: %w", err)
	}
	return resp.Body, nil
}

func engineTime(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }

// An EventLog collects the engine's events as they happen.
type EventLog struct {
	body io.Closer
	done chan struct{}

	mu     sync.Mutex
	events []Event
	err    error
}

// FollowEvents collects every event from now on, until ctx ends, the engine
// stops or Close.
func (h *Host) FollowEvents(ctx context.Context) (*EventLog, error) {
	// The engine answers before it subscribes; asking for the past since now
	// closes that gap.
	body, err := h.events(ctx, time.Now(), time.Time{})
	if err != nil {
		return nil, err
	}
	l := &EventLog{body: body, done: make(chan struct{})}
	go l.collect(body)
	return l, nil
}

func (l *EventLog) collect(body io.Reader) {
	defer close(l.done)
	for events := json.NewDecoder(body); ; {
		var e wireEvent
		err := events.Decode(&e)
		l.mu.Lock()
		if err != nil {
			l.err = fmt.Errorf("engine events: %w", err)
			l.mu.Unlock()
			return
		}
		l.events = append(l.events, e.event())
		l.mu.Unlock()
	}
}

// Events returns what was collected so far, oldest first. The error says why
// collecting has ended; it is nil while it goes on.
func (l *EventLog) Events() ([]Event, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events), l.err
}

// Close ends the collecting. What was collected stays readable.
func (l *EventLog) Close() error {
	err := l.body.Close()
	<-l.done
	return err
}
