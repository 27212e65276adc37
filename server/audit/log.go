package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	defaultSegmentBytes = 64 << 20
	defaultQueueLen     = 4096
	// maxQueueBytes bounds the requests and details that wait to be cut.
	maxQueueBytes = 16 << 20
	// flushEvery bounds how long a record that nobody waits for may be lost to a
	// power failure, and how long a broken log rests before it tries again.
	flushEvery = time.Second
	// gatherFor is how long records that nobody waits for are gathered.
	gatherFor = 5 * time.Millisecond
	// stallAfter is when a write that does not return makes the log unhealthy.
	stallAfter = 5 * time.Second
)

// Options configure a Log. Only Dir is required.
type Options struct {
	// Dir is the folder of the log. It is created with mode 0700; its parent must
	// exist. A folder that others may write to is refused.
	Dir string
	// SegmentBytes is the size at which a new segment is begun; a segment exceeds
	// it by less than one record. 0: 64 MiB.
	SegmentBytes int64
	// KeepSegments is how many segments are kept, the one being written included.
	// Segments with an open intent are kept beyond it. 0: all.
	KeepSegments int
	// QueueLen is how many records may wait for the disk. As many again are
	// accepted of those that matter most: outcomes, and what Sync waits for.
	// 0: 4096.
	QueueLen int
	// Now is the clock for Record.Time. nil: time.Now.
	Now func() time.Time

	// openFile opens a segment for writing; tests put their faults here.
	openFile func(path string) (file, int64, error)
}

// Log is the audit log of one process. Its methods are safe for concurrent use.
type Log struct {
	now      func() time.Time
	queueLen int
	orphans  []Record
	status   *status
	lock     *os.File

	mu     sync.Mutex
	queue  []item
	bytes  int    // of requests and details in queue
	lost   uint64 // records refused since the writer last looked
	closed bool

	wake     chan struct{} // holds a token when the writer has something to look at
	hurry    chan struct{} // holds a token when it must look now
	done     chan struct{} // closed when the writer has ended
	closeErr error         // set before done is closed
}

// item is a record on its way to the disk.
type item struct {
	rec    Record
	waiter *waiter // nil if nobody waits
}

// waiter is a call of Sync.
type waiter struct {
	done chan error // holds the result
	seq  uint64     // set before a nil result
	gone atomic.Bool
}

func (w *waiter) finish(seq uint64, err error) {
	if w != nil {
		w.seq = seq
		w.done <- err
	}
}

// status is what the writer lets others see of its state.
type status struct {
	busySince atomic.Int64 // UnixNano at which the writer turned to the disk, 0 while it rests

	mu     sync.Mutex
	seq    uint64
	hash   string
	broken error // nothing can be written
	prune  error // old segments cannot be removed
}

// Open opens the log in opts.Dir, or begins one, and takes the lock that keeps
// other writers out ([ErrLocked]).
//
// It reads the newest segment, and older ones only as far back as an intent may
// be open. A torn line that a crash left at the end is closed and told of by a
// torn record. Every intent without an outcome gets an orphan record. Damage that
// no crash explains is a *[Fault]: the log is then not opened, and the way on is
// to look into it and move the folder aside.
func Open(opts Options) (*Log, error) {
	if opts.SegmentBytes == 0 {
		opts.SegmentBytes = defaultSegmentBytes
	}
	if opts.QueueLen == 0 {
		opts.QueueLen = defaultQueueLen
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.openFile == nil {
		opts.openFile = openAppend
	}
	if opts.Dir == "" || opts.SegmentBytes < 0 || opts.KeepSegments < 0 || opts.QueueLen < 0 {
		return nil, errors.New("audit: Dir is required, and no limit may be negative")
	}
	lock, err := lockDir(opts.Dir)
	if err != nil {
		return nil, err
	}
	w, orphans, err := resume(opts)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	l := &Log{
		now: opts.Now, queueLen: opts.QueueLen, orphans: orphans, status: w.status, lock: lock,
		wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1), done: make(chan struct{}),
	}
	go l.run(w)
	return l, nil
}

// Orphans returns the intents that Open found without an outcome, oldest first,
// as they were written: whether they took effect is unknown. They are returned
// by one Open only. A process that dies before it has passed them on leaves the
// orphan records in the log and nothing else.
func (l *Log) Orphans() []Record { return l.orphans }

// Append queues rec and returns at once. It is on stable storage after about a
// second. If the queue is full or the disk refuses the record, it is counted, and
// a gap record says so as soon as one can be written. After Close it is ignored.
func (l *Log) Append(rec Record) {
	_ = l.enqueue(&rec, nil) // what is not taken is counted
}

// Sync writes rec and returns its sequence number once it is on stable storage.
//
// Any error wraps [ErrUnavailable]: the record is then not durable as far as
// anyone may rely on it, and what it announces must not be done. It may yet reach
// the file, for instance if ctx ended while the disk hung; whoever gives up on an
// intent closes it by appending an outcome that says so.
//
// An intent is refused when some 15,000 are open. Records that wait at the same
// time share one fsync.
func (l *Log) Sync(ctx context.Context, rec Record) (seq uint64, err error) {
	if ctx.Err() != nil {
		return 0, fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
	}
	w := &waiter{done: make(chan error, 1)}
	if err := l.enqueue(&rec, w); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	select {
	case err := <-w.done:
		if err != nil {
			return 0, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		return w.seq, nil
	case <-ctx.Done():
		w.gone.Store(true)
		return 0, fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(ctx))
	}
}

func (l *Log) enqueue(rec *Record, w *waiter) error {
	if rec.Time.IsZero() {
		rec.Time = l.now()
	}
	size := len(rec.Request) + len(rec.Detail)
	limit, limitBytes := l.queueLen, maxQueueBytes
	if w != nil || rec.Event == EventOutcome {
		limit, limitBytes = 2*limit, 2*limitBytes
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errClosed
	}
	if len(l.queue) >= limit || l.bytes+size > limitBytes {
		l.lost++
		return errQueueFull
	}
	l.queue = append(l.queue, item{rec: *rec, waiter: w})
	l.bytes += size
	if w != nil || len(l.queue) > l.queueLen/2 || l.bytes > maxQueueBytes/2 {
		signal(l.hurry)
	} else {
		signal(l.wake)
	}
	return nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run is the writer goroutine: it alone touches w and the files.
func (l *Log) run(w *writer) {
	defer close(l.done)
	timer := time.NewTimer(flushEvery)
	defer timer.Stop()
	armed := true
	gather := time.NewTimer(gatherFor)
	defer gather.Stop()
	var batch []item
	for {
		due := false
		select {
		case <-l.hurry:
		case <-l.wake:
			// Nobody waits for these, and they come in crowds: a moment's patience
			// saves a wake-up and a write for each.
			gather.Reset(gatherFor)
			select {
			case <-l.hurry:
			case <-gather.C:
			}
		case <-timer.C:
			armed, due = false, true
		}
		l.mu.Lock()
		batch, l.queue = l.queue, batch[:0]
		lost, closed := l.lost, l.closed
		l.bytes, l.lost = 0, 0
		l.mu.Unlock()

		l.status.busySince.Store(time.Now().UnixNano())
		w.commit(batch, lost)
		if due {
			w.settle()
		}
		if closed {
			l.closeErr = errors.Join(w.close(), l.lock.Close())
			l.status.busySince.Store(0)
			return
		}
		l.status.busySince.Store(0)
		clear(batch) // lets go of the requests
		if !armed && w.unsettled() {
			timer.Reset(flushEvery)
			armed = true
		}
	}
}

// Healthy returns nil if the log takes records and can remove old ones, and what
// is wrong otherwise. Of a broken log it says so until a write has succeeded.
func (l *Log) Healthy() error {
	s := l.status
	if since := s.busySince.Load(); since != 0 {
		if stalled := time.Since(time.Unix(0, since)); stalled > stallAfter {
			return fmt.Errorf("%w: the disk has not answered for %s", ErrUnavailable, stalled.Round(time.Second))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, s.broken)
	}
	return s.prune
}

// Head returns the sequence number and hash of the last record on stable storage
// (0 and 64 zeros for an empty log). Kept elsewhere as "seq:hash", it lets
// [Verify] notice records that were cut off.
func (l *Log) Head() (seq uint64, hash string) {
	l.status.mu.Lock()
	defer l.status.mu.Unlock()
	return l.status.seq, l.status.hash
}

// Close writes what is queued, makes it durable and gives the lock back. It
// returns an error if that failed, or if ctx ended first: a write that hangs then
// goes on in the background, and the lock is held until it returns. Calls after
// the first wait for the same end.
func (l *Log) Close(ctx context.Context) error {
	l.mu.Lock()
	l.closed = true
	signal(l.hurry)
	l.mu.Unlock()
	select {
	case <-l.done:
		return l.closeErr
	case <-ctx.Done():
		return fmt.Errorf("audit: closing: %w", context.Cause(ctx))
	}
}
