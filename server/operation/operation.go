// Package operation keeps the record of long work that outlives the call that
// began it.
//
// An operation is a journal: a file of JSON lines with a description of the
// operation and its events. What an answer depends on is on disk before the
// answer: the description before the operation is named to its caller, the end
// before anybody is told of it. Progress in between is written and not waited
// for. Watchers read the file, so that one who reads slowly, or comes late,
// costs no memory. What was running when the broker stopped reads as interrupted
// and is never begun again.
//
// The package knows who an operation belongs to and leaves it to others to act
// on that.
package operation

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/fault"
)

// States of an operation, for short.
const (
	Running     = brokerv1.OperationState_OPERATION_STATE_RUNNING
	Succeeded   = brokerv1.OperationState_OPERATION_STATE_SUCCEEDED
	Failed      = brokerv1.OperationState_OPERATION_STATE_FAILED
	Cancelled   = brokerv1.OperationState_OPERATION_STATE_CANCELLED
	Interrupted = brokerv1.OperationState_OPERATION_STATE_INTERRUPTED
)

// maxJournal bounds the events of one operation on disk. Progress beyond it is
// dropped; the end is always written.
const maxJournal = 1 << 20

// Operation is one operation. Its methods are safe for concurrent use.
type Operation struct {
	id, path string

	// io is held while the file is written, which a bad disk can make long. Who
	// reads waits for mu alone.
	io     sync.Mutex
	file   *os.File // Of a running one.
	broken bool     // Something may stand behind size.

	mu      sync.Mutex          // Of what follows. Written under io as well.
	view    *brokerv1.Operation // Replaced on every change, never written to.
	status  []byte              // Of one that failed: a serialised google.rpc.Status.
	latest  []byte              // The newest event.
	size    int64               // Of the file's whole lines.
	changed chan struct{}       // Closed at the next change.
	ended   chan struct{}
	cancel  context.CancelCauseFunc // Of a running one.
}

// line is one line of a journal: a new description, or an event, or both.
type line struct {
	Operation json.RawMessage `json:"operation,omitempty"`
	Status    []byte          `json:"status,omitempty"`
	Sequence  int64           `json:"sequence,omitempty"`
	Event     []byte          `json:"event,omitempty"`
}

// View describes the operation as it is now. It must not be changed.
func (o *Operation) View() *brokerv1.Operation {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.view
}

// Err is how the operation ended: nil for one that runs or has succeeded, and
// otherwise what its caller was told.
func (o *Operation) Err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var st spb.Status
	switch {
	case o.view.GetState() == Running, o.view.GetState() == Succeeded:
		return nil
	case o.status != nil && proto.Unmarshal(o.status, &st) == nil:
		return status.FromProto(&st).Err()
	}
	return fault.Annotate(fault.Interrupted(), "operation", o.view.GetName())
}

// Latest is the newest event, or nil.
func (o *Operation) Latest() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.latest
}

// Ended is closed when the operation has ended.
func (o *Operation) Ended() <-chan struct{} { return o.ended }

// Cancel asks a running operation to end, for a reason.
func (o *Operation) Cancel(cause error) {
	o.mu.Lock()
	cancel := o.cancel
	o.mu.Unlock()
	if cancel != nil {
		cancel(cause)
	}
}

// Append adds an event of progress; encode gets its number. What cannot be
// written is dropped: progress is no promise.
func (o *Operation) Append(encode func(sequence int64) ([]byte, error)) error {
	o.io.Lock()
	defer o.io.Unlock()
	if o.file == nil || o.size >= maxJournal {
		return nil
	}
	view := proto.CloneOf(o.view)
	view.LastSequence++
	event, err := encode(view.LastSequence)
	if err != nil {
		return err
	}
	if err := o.write(line{Sequence: view.LastSequence, Event: event}); err == nil {
		o.show(view, event)
	}
	return nil
}

// Detach marks the operation as one that goes on without its caller. It is on
// disk when Detach returns without an error.
func (o *Operation) Detach() error {
	return o.edit(func(view *brokerv1.Operation) bool {
		was := view.Detached
		view.Detached = true
		return !was && view.State == Running
	})
}

// Found records what an interrupted operation has left on the engine.
func (o *Operation) Found(a brokerv1.Aftermath) error {
	return o.edit(func(view *brokerv1.Operation) bool {
		view.Aftermath = a
		return true
	})
}

// edit changes the description, durably; change reports whether it did.
func (o *Operation) edit(change func(*brokerv1.Operation) bool) error {
	o.io.Lock()
	defer o.io.Unlock()
	view := proto.CloneOf(o.view)
	if !change(view) {
		return nil
	}
	if o.file == nil {
		f, err := os.OpenFile(o.path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		o.file = f
		defer func() { o.file = nil; f.Close() }()
	}
	if err := o.writeView(view, nil, nil); err != nil {
		return err
	}
	o.show(view, nil)
	return nil
}

// End closes the journal: with the encoded result of an operation that succeeded,
// or with what the caller of one that did not is told. After an error the end is
// known until the broker stops, and reads as interrupted after.
func (o *Operation) End(result func(sequence int64) ([]byte, error), failure error, now time.Time) (err error) {
	o.io.Lock()
	defer o.io.Unlock()
	view := proto.CloneOf(o.view)
	view.State, view.EndTime = Succeeded, timestamppb.New(now)
	var last, told []byte
	if failure == nil {
		view.LastSequence++
		if last, err = result(view.LastSequence); err != nil {
			failure = fault.Internal(o.id)
		}
	}
	if failure != nil {
		st := status.Convert(failure)
		view.State, view.ErrorReason, view.ErrorMessage = stateOf(failure), fault.Reason(failure), st.Message()
		told, _ = proto.Marshal(st.Proto()) // A status always marshals.
	}
	err = errors.Join(err, o.writeView(view, last, told), o.file.Close())
	o.file = nil
	o.mu.Lock()
	o.status = told
	o.cancel = nil // It holds on to the call, and to its connection.
	o.mu.Unlock()
	o.show(view, last)
	close(o.ended)
	return err
}

func stateOf(failure error) brokerv1.OperationState {
	switch fault.Reason(failure) {
	case fault.Name(brokerv1.ErrorReason_ERROR_REASON_OPERATION_CANCELLED):
		return Cancelled
	case fault.Name(brokerv1.ErrorReason_ERROR_REASON_OPERATION_INTERRUPTED):
		return Interrupted
	}
	return Failed
}

// show makes a description the one in force, with a new event if there is one, and
// wakes who waits for it.
func (o *Operation) show(view *brokerv1.Operation, event []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.view = view
	if event != nil {
		o.latest = event
	}
	close(o.changed)
	o.changed = make(chan struct{})
}

// writeView writes a description, an event with it if there is one, and waits
// until they are on disk.
func (o *Operation) writeView(view *brokerv1.Operation, event, status []byte) error {
	text, err := protojson.Marshal(view)
	if err != nil {
		return err
	}
	l := line{Operation: text, Status: status, Event: event}
	if event != nil {
		l.Sequence = view.GetLastSequence()
	}
	if err := o.write(l); err != nil {
		return err
	}
	if err := o.file.Sync(); err != nil {
		o.broken = true
		return err
	}
	return nil
}

// write adds a line or nothing: after a failure, what may have been written of it
// is cut off before anything else is.
func (o *Operation) write(l line) error {
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if o.broken {
		if err := o.file.Truncate(o.size); err != nil {
			return err
		}
		o.broken = false
	}
	if _, err := o.file.WriteAt(append(text, '\n'), o.size); err != nil {
		o.broken = true
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.size += int64(len(text)) + 1
	return nil
}

// Watch reads the events with a greater number than after, as they come.
func (o *Operation) Watch(after int64) (*Watcher, error) {
	f, err := os.Open(o.path)
	if err != nil {
		return nil, err
	}
	return &Watcher{op: o, file: f, lines: newLines(f, 0, 0), after: after}, nil
}

// Watcher reads an operation's events.
type Watcher struct {
	op    *Operation
	file  *os.File
	lines *lines
	after int64
}

// Next waits for the next event. At the operation's end it returns io.EOF; how it
// ended, the operation says.
func (w *Watcher) Next(ctx context.Context) ([]byte, error) {
	for {
		w.op.mu.Lock()
		size, changed, view, latest := w.op.size, w.op.changed, w.op.view, w.op.latest
		w.op.mu.Unlock()
		if w.lines.offset == w.lines.limit && w.lines.limit < size {
			w.lines = newLines(w.file, w.lines.limit, size)
		}
		for w.lines.offset < w.lines.limit {
			l, err := w.lines.next()
			if err != nil {
				return nil, err
			}
			if l.Event != nil && l.Sequence > w.after {
				w.after = l.Sequence
				return l.Event, nil
			}
		}
		if view.GetState() != Running {
			if view.GetState() == Succeeded && w.after < view.GetLastSequence() {
				// The disk did not take the result.
				w.after = view.GetLastSequence()
				return latest, nil
			}
			return nil, io.EOF
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Close ends the watching.
func (w *Watcher) Close() error { return w.file.Close() }
