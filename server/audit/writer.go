package audit

import (
	"fmt"
	"slices"
	"time"
)

const (
	// chunkBytes is about how much is encoded before it is written.
	chunkBytes = 256 << 10
	// maxUnsynced bounds the records that one failing fsync can lose.
	maxUnsynced = 1024
	// retryEvery is how often a broken log may be tried.
	retryEvery = 100 * time.Millisecond
)

// position is a place between two records.
type position struct {
	off  int64  // in the segment being written
	seq  uint64 // of the record before it
	hash string // of the record before it
}

// writer writes the segments. It is used by one goroutine.
type writer struct {
	opts     Options
	status   *status
	segments []uint64 // first sequence numbers, ascending; the last one is being written
	f        file

	// durable <= end <= next: what fsync has confirmed, what write has accepted,
	// and that plus buf.
	durable, end, next position
	buf                []byte
	// unsynced are the records after durable, in order.
	unsynced []item
	waiting  bool // one of them is waited for
	rotated  bool // a segment was begun, so old ones may have to go

	// open are the intents on stable storage that have no outcome there.
	open map[string]uint64

	// broken is why the last attempt to write failed; nil if it did not. The
	// file may then hold part of a record after end, which goes first.
	broken   error
	lastTry  time.Time
	lost     uint64   // records to be told of by a gap record
	outcomes []Record // of open intents, to be written when the log is back
}

// commit writes a batch, and makes it durable if any of it is waited for. lost
// records were refused after the batch was queued.
func (w *writer) commit(batch []item, lost uint64) {
	if len(batch) > 0 && w.broken != nil {
		w.recover()
	}
	for i := range batch {
		it := &batch[i]
		if it.waiter != nil && it.waiter.gone.Load() && it.rec.Event != EventOutcome {
			w.lost++ // its caller has given up and will not act
			continue
		}
		if it.rec.Event == EventIntent && len(w.open) >= maxOpen-maxUnsynced {
			w.lost++
			it.waiter.finish(0, errTooManyOpen)
			continue
		}
		if w.broken != nil || w.makeRoom() != nil {
			w.drop(it)
			continue
		}
		w.encode(it)
	}
	w.lost += lost
	if w.lost > 0 && w.broken == nil && w.makeRoom() == nil {
		w.encode(&item{rec: Record{Time: w.opts.Now(), Event: EventGap, Count: w.lost, Reason: ReasonNotTaken}})
		w.lost = 0
	}
	if w.broken == nil && w.flush() == nil && (w.waiting || len(w.unsynced) >= maxUnsynced) {
		_ = w.sync() // a failure is in w.broken
	}
	if w.broken == nil && w.rotated {
		w.prune()
	}
}

// settle makes durable what nobody waits for, or tries a broken log again.
func (w *writer) settle() {
	if w.broken != nil {
		w.recover()
	} else if len(w.unsynced) > 0 {
		_ = w.sync()
	}
}

// unsettled reports whether settle has something to do.
func (w *writer) unsettled() bool { return w.broken != nil || len(w.unsynced) > 0 }

// makeRoom prepares for one more record: with an error, none may be encoded.
func (w *writer) makeRoom() error {
	full := w.next.off >= w.opts.SegmentBytes
	if full || len(w.buf) >= chunkBytes || len(w.unsynced) >= maxUnsynced {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if full || len(w.unsynced) >= maxUnsynced {
		if err := w.sync(); err != nil {
			return err
		}
	}
	if full {
		return w.rotate()
	}
	return nil
}

// encode adds a record to the buffer and to the chain.
func (w *writer) encode(it *item) {
	rec := &it.rec
	rec.Seq, rec.Prev = w.next.seq+1, w.next.hash
	rec.OpenFrom = 0
	if rec.Seq == w.segments[len(w.segments)-1] {
		rec.OpenFrom = w.oldestOpen()
	}
	before := len(w.buf)
	w.buf = appendRecord(w.buf, rec)
	w.next = position{off: w.next.off + int64(len(w.buf)-before), seq: rec.Seq, hash: rec.Hash}
	w.waiting = w.waiting || it.waiter != nil
	w.unsynced = append(w.unsynced, *it)
	if rec.Event != EventOutcome {
		w.unsynced[len(w.unsynced)-1].rec.Request = nil // only outcomes are ever written again
	}
}

// flush writes the buffer. If it fails, the file is cut back to the last record
// that was complete before.
func (w *writer) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	if _, err := w.f.Write(w.buf); err != nil {
		return w.fail(err, w.end)
	}
	w.end, w.buf = w.next, w.buf[:0]
	return nil
}

// sync makes everything written durable. If it fails, the kernel may have thrown
// away the pages and will not report it again, so all since the last success is
// cut off and written anew or counted as lost.
func (w *writer) sync() error {
	if err := w.f.Sync(); err != nil {
		return w.fail(err, w.durable)
	}
	w.durable = w.end
	w.publish()
	for i := range w.unsynced {
		it := &w.unsynced[i]
		switch it.rec.Event {
		case EventIntent:
			w.open[it.rec.Call] = it.rec.Seq
		case EventOutcome, EventOrphan:
			delete(w.open, it.rec.Call)
		}
		it.waiter.finish(it.rec.Seq, nil)
	}
	w.forget(0)
	return nil
}

// forget drops all but the first n unsynced records.
func (w *writer) forget(n int) {
	clear(w.unsynced[n:])
	w.unsynced = w.unsynced[:n]
	w.waiting = false
}

// fail breaks the log and takes the file back to a position. Whoever waits is
// told, for the records before it too: they are in the file, but not durable.
func (w *writer) fail(err error, to position) error {
	w.broken, w.lastTry = err, time.Now()
	w.buf, w.end, w.next = w.buf[:0], to, to
	if err := w.f.Truncate(to.off); err != nil {
		w.broken = fmt.Errorf("%w (taking it back: %w)", w.broken, err)
	}
	w.publish()
	kept := 0
	for i := range w.unsynced {
		it := &w.unsynced[i]
		if it.rec.Seq > to.seq {
			w.drop(it)
			continue
		}
		it.waiter.finish(0, w.broken)
		it.waiter = nil
		kept = i + 1
	}
	w.forget(kept)
	return w.broken
}

// drop gives up a record that a broken log did not take. The outcome of an intent
// that is in the log is kept for later: there are no more of them than open
// intents.
func (w *writer) drop(it *item) {
	rec := &it.rec
	_, open := w.open[rec.Call]
	switch {
	case rec.Event == EventOutcome && open:
		same := func(r Record) bool { return r.Call == rec.Call }
		if !slices.ContainsFunc(w.outcomes, same) {
			w.outcomes = append(w.outcomes, *rec)
		}
	case rec.Event == EventGap:
		w.lost += rec.Count
	case rec.Event == EventPruned: // is written when the removal is tried again
	default:
		w.lost++
	}
	it.waiter.finish(0, w.broken)
}

// recover tries to bring a broken log back: the file is cut to its last record, a
// gap record and the outcomes kept go in and are made durable.
func (w *writer) recover() {
	if time.Since(w.lastTry) < retryEvery {
		return
	}
	w.lastTry = time.Now()
	if err := w.f.Truncate(w.end.off); err != nil {
		w.broken = fmt.Errorf("taking back a failed write: %w", err)
		w.publish()
		return
	}
	again := []item{{rec: Record{
		Time: w.opts.Now(), Event: EventGap, Count: w.lost, Reason: ReasonWriteFailed, Detail: w.broken.Error(),
	}}}
	for _, rec := range w.outcomes {
		again = append(again, item{rec: rec})
	}
	w.lost, w.outcomes = 0, nil
	failed := false
	for i := range again {
		if failed = failed || w.makeRoom() != nil; failed {
			w.drop(&again[i])
			continue
		}
		w.encode(&again[i])
	}
	if failed || w.flush() != nil || w.sync() != nil {
		return
	}
	w.broken = nil
	w.publish()
}

func (w *writer) publish() {
	w.status.mu.Lock()
	defer w.status.mu.Unlock()
	w.status.seq, w.status.hash, w.status.broken = w.durable.seq, w.durable.hash, w.broken
}

// close makes everything durable, with one last try if the log is broken.
func (w *writer) close() error {
	w.lastTry = time.Time{}
	w.settle()
	err := w.broken
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if closeErr := w.f.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("audit: %w", closeErr)
	}
	return err
}
