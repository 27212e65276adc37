package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// rotate begins the next segment. Everything before is durable by then, so the
// chain has no hole between two files.
func (w *writer) rotate() error {
	first := w.end.seq + 1
	path := filepath.Join(w.opts.Dir, segmentName(first))
	f, size, err := w.opts.openFile(path)
	if err != nil {
		return w.fail(err, w.end)
	}
	// An earlier attempt may have left the file behind, but never with content.
	if size != 0 {
		err = fmt.Errorf("%s exists already", path)
	}
	if err == nil {
		err = syncDir(w.opts.Dir)
	}
	if err != nil {
		return w.fail(errors.Join(err, f.Close()), w.end)
	}
	_ = w.f.Close() // all of it is durable
	w.f = f
	w.segments = append(w.segments, first)
	w.end.off = 0
	w.durable, w.next = w.end, w.end
	w.rotated = true
	return nil
}

// prune removes the oldest segments beyond KeepSegments, one at a time: first the
// record that names it is made durable, then it goes. A failure to remove does
// not keep the log from being written; it is tried again at the next rotation.
func (w *writer) prune() {
	var err error
	for w.opts.KeepSegments > 0 && len(w.segments) > w.opts.KeepSegments && err == nil {
		if oldest := w.oldestOpen(); oldest != 0 && oldest < w.segments[1] {
			break
		}
		err = w.pruneOldest()
	}
	if w.broken != nil {
		return // the removal is tried again when the log is back
	}
	w.rotated = false
	w.status.mu.Lock()
	defer w.status.mu.Unlock()
	w.status.prune = err
}

func (w *writer) pruneOldest() error {
	through := w.segments[1] - 1
	hash, err := w.hashBefore(w.segments[1])
	if err != nil {
		return fmt.Errorf("audit: removing an old segment: %w", err)
	}
	if err := w.makeRoom(); err != nil {
		return err
	}
	w.encode(&item{rec: Record{Time: w.opts.Now(), Event: EventPruned, ThroughSeq: through, ThroughHash: hash}})
	if err := w.flush(); err != nil {
		return err
	}
	if err := w.sync(); err != nil {
		return err
	}
	err = os.Remove(filepath.Join(w.opts.Dir, segmentName(w.segments[0])))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("audit: removing an old segment: %w", err)
	}
	w.segments = slices.Delete(w.segments, 0, 1)
	if err := syncDir(w.opts.Dir); err != nil {
		return fmt.Errorf("audit: removing an old segment: %w", err)
	}
	return nil
}

// hashBefore returns the hash that the first record of a segment continues.
func (w *writer) hashBefore(first uint64) (string, error) {
	f, err := openSegment(w.opts.Dir, first)
	if err != nil {
		return "", err
	}
	defer f.Close()
	rec, found, err := firstRecord(f)
	if err == nil && (!found || rec.Seq != first) {
		err = fmt.Errorf("%s does not begin with its record", segmentName(first))
	}
	return rec.Prev, err
}

// oldestOpen returns the oldest intent that is open on stable storage, or 0.
func (w *writer) oldestOpen() uint64 {
	var oldest uint64
	for _, seq := range w.open {
		if oldest == 0 || seq < oldest {
			oldest = seq
		}
	}
	return oldest
}
