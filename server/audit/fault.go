package audit

import (
	"errors"
	"fmt"
)

// FaultKind says what is wrong with a log.
type FaultKind string

// Kinds of damage.
const (
	FaultUnparsable FaultKind = "unparsable" // the line is not a record
	FaultAltered    FaultKind = "altered"    // the record does not agree with its own hash
	FaultSequence   FaultKind = "sequence"   // a record was dropped, repeated, moved or put in here
	FaultLink       FaultKind = "link"       // the record does not follow from the one before it
	FaultTorn       FaultKind = "torn"       // a torn record and the fragment before it do not match
	FaultSegment    FaultKind = "segment"    // a segment is missing, cut off or misnamed
	FaultHead       FaultKind = "head"       // the log is whole, but not the one the expected head is from
)

// Fault is the first damage found in a log.
type Fault struct {
	Kind FaultKind
	File string // name of the segment within the folder; empty if there is none
	Line int    // in File, from 1; one past the last line if something is missing at the end
	Seq  uint64 // the sequence number that belongs in this place
	What string // one sentence part, safe to print
}

func (f *Fault) Error() string {
	if f.File == "" {
		return fmt.Sprintf("audit: damaged at record %d: %s", f.Seq, f.What)
	}
	return fmt.Sprintf("audit: %s:%d: damaged at record %d: %s", f.File, f.Line, f.Seq, f.What)
}

// Errors of the log. Test for them with errors.Is.
var (
	// ErrUnavailable: the record is not on stable storage, so what it announces
	// must not be done.
	ErrUnavailable = errors.New("audit: log unavailable")
	// ErrLocked: another process has the log open for writing.
	ErrLocked = errors.New("audit: log is in use by another process")

	errClosed    = errors.New("the log is closed")
	errQueueFull = errors.New("the queue is full")

	errTooManyOpen = errors.New("too many intents are open")
)
