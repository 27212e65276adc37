package audit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// hashedAtOpen is how much of the newest segment's end has its hashes checked
// when the log is opened; the rest is followed by its links. Verify checks all.
const hashedAtOpen = 1 << 20

// lockDir creates the folder if need be and takes the lock in it, which the
// kernel gives back when the process ends.
func lockDir(dir string) (*os.File, error) {
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		err = syncDir(filepath.Dir(filepath.Clean(dir)))
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("audit: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return nil, fmt.Errorf("audit: %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&0o022 != 0 || int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("audit: %s must be a folder, not a link, that belongs to user %d and that no one else may write to (owner %d, mode %04o)",
			dir, os.Geteuid(), st.Uid, st.Mode&0o7777)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%w: %s", ErrLocked, path)
	} else if err != nil {
		err = fmt.Errorf("audit: locking %s: %w", path, err)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// resume finds the end of the log, closes what a dead process left there and
// returns a writer that continues it, with the intents found open.
func resume(opts Options) (*writer, []Record, error) {
	segments, err := listSegments(opts.Dir)
	if err != nil {
		return nil, nil, fmt.Errorf("audit: %w", err)
	}
	t := tail{walker: newWalker()}
	if len(segments) > 0 {
		if t, err = readTail(opts.Dir, segments); err != nil {
			return nil, nil, err
		}
	} else {
		segments = []uint64{1}
	}
	newest := segments[len(segments)-1]
	f, size, err := opts.openFile(filepath.Join(opts.Dir, segmentName(newest)))
	if err == nil && size != t.size {
		err = errors.Join(fmt.Errorf("%s changed while it was opened", segmentName(newest)), f.Close())
	}
	if err == nil {
		if err = syncDir(opts.Dir); err != nil {
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("audit: %w", err)
	}
	w := &writer{opts: opts, status: new(status), segments: segments, f: f, open: map[string]uint64{}}
	w.durable = position{off: t.size, seq: t.walker.seq, hash: t.walker.hash}
	w.end, w.next = w.durable, w.durable
	orphans := t.walker.openIntents()
	for _, rec := range orphans {
		w.open[rec.Call] = rec.Seq
	}
	if err := w.closeTail(t, orphans); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrUnavailable, errors.Join(err, f.Close()))
	}
	w.publish()
	return w, orphans, nil
}

// closeTail writes what has to be said about the end of the log, durably.
func (w *writer) closeTail(t tail, orphans []Record) error {
	if t.unended {
		w.buf = append(w.buf, '\n')
		w.next.off++
	}
	if t.torn != nil {
		w.encode(&item{rec: Record{Time: w.opts.Now(), Event: EventTorn, TornBytes: t.torn.TornBytes, TornSHA256: t.torn.TornSHA256}})
	}
	for _, rec := range orphans {
		if err := w.makeRoom(); err != nil {
			return err
		}
		w.encode(&item{rec: Record{
			Time: w.opts.Now(), Event: EventOrphan, Call: rec.Call, Caller: rec.Caller, Method: rec.Method,
			Permission: rec.Permission, Effect: rec.Effect, Resource: rec.Resource, Target: rec.Target,
			Reason: ReasonOutcomeUnknown,
		}})
	}
	if err := w.flush(); err != nil {
		return err
	}
	// Also when nothing was written here: what the dead process wrote may not be
	// durable yet, and new records will lean on it.
	return w.sync()
}

// tail is the end of a log as it was found.
type tail struct {
	walker  *walker
	size    int64   // of the newest segment
	unended bool    // it does not end in a newline
	torn    *Record // what to write about its last bytes, nil if they are a record
}

// readTail reads the newest segment, and older ones as far as intents may be open
// in them.
func readTail(dir string, segments []uint64) (tail, error) {
	from, err := oldestNeeded(dir, segments)
	if err != nil {
		return tail{}, err
	}
	t := tail{walker: newWalker()}
	t.walker.quick = true
	for i := from; i < len(segments); i++ {
		if err := t.read(dir, segments[i], i == len(segments)-1); err != nil {
			return tail{}, err
		}
	}
	return t, nil
}

func (t *tail) read(dir string, first uint64, newest bool) error {
	f, err := openSegment(dir, first)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	t.size, t.walker.hashFrom = info.Size(), info.Size()
	if newest {
		t.walker.hashFrom -= hashedAtOpen
	}
	rest, err := t.walker.segment(first, f)
	if err != nil {
		return err
	}
	if !newest && (rest.fault != nil || !rest.ended) {
		return &Fault{FaultSegment, segmentName(first), rest.line, t.walker.seq + 1, "the segment does not end with a record"}
	}
	if rest.from == rest.to {
		return nil
	}
	t.unended = !rest.ended
	if t.unended && rest.fault == nil {
		if complete, err := t.finish(f, rest); complete || err != nil {
			return err
		}
	}
	to := rest.to
	if rest.ended {
		to-- // an earlier start got as far as the newline
	}
	sum, err := hashRange(f, rest.from, to)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	t.torn = &Record{TornBytes: uint64(to - rest.from), TornSHA256: sum}
	return nil
}

// finish takes the last line into the chain if all it lacks is its newline.
func (t *tail) finish(src io.ReaderAt, rest leftover) (bool, error) {
	line, _, err := newLineReader(src, rest.from).next()
	if err != nil {
		return false, fmt.Errorf("audit: %w", err)
	}
	rec, fault := t.walker.check(line, rest.from)
	if fault != nil {
		return false, nil
	}
	if fault := t.walker.apply(rec); fault != nil {
		return false, fault
	}
	return true, nil
}

// oldestNeeded returns the index of the oldest segment in which an intent may be
// open, which the first record of the newest segment tells.
func oldestNeeded(dir string, segments []uint64) (int, error) {
	// A segment that was just begun has no record yet; its predecessor has.
	for i := len(segments) - 1; i >= 0; i-- {
		f, err := openSegment(dir, segments[i])
		if err != nil {
			return 0, fmt.Errorf("audit: %w", err)
		}
		rec, found, err := firstRecord(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return 0, fmt.Errorf("audit: %w", err)
		}
		if !found {
			continue
		}
		if rec.OpenFrom == 0 {
			return i, nil
		}
		at, exact := slices.BinarySearch(segments[:i], rec.OpenFrom)
		if !exact {
			at--
		}
		return max(at, 0), nil
	}
	return 0, nil
}

// firstRecord returns the first whole record of a segment.
func firstRecord(src io.ReaderAt) (rec Record, found bool, err error) {
	lines := newLineReader(src, 0)
	for {
		text, ended, err := lines.next()
		if err != nil {
			return rec, false, err
		}
		if whole(text) {
			rec, err = parse(text)
			return rec, err == nil, err
		}
		if !ended {
			return rec, false, nil
		}
	}
}
