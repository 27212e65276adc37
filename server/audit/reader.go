package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"
)

// pollEvery is how often a following Reader looks for new records.
const pollEvery = 250 * time.Millisecond

// ReadOptions say where a Reader begins and whether it ends.
type ReadOptions struct {
	// From is the first sequence number to return. 0: the oldest there is.
	From uint64
	// Last, if above 0, is how many of the newest records to begin with; From is
	// then ignored.
	Last uint64
	// Follow waits for new records at the end of the log.
	Follow bool
}

// BadLine is a line that is not a record: damage, or what a crash left behind if
// the next record is a torn one. The Reader goes on after it.
type BadLine struct {
	File string // name of the segment within the folder
	Line int    // in File, from 1
	Err  error  // safe to print
}

func (b *BadLine) Error() string { return fmt.Sprintf("audit: %s:%d: %v", b.File, b.Line, b.Err) }

func (b *BadLine) Unwrap() error { return b.Err }

// Reader reads records back, for showing. It takes the log for hostile text: its
// memory is bounded, a line is a record or a *[BadLine], and text fields may hold
// anything, so whoever prints one must quote it. It checks no hashes: that is
// [Verify]'s work. It is not safe for concurrent use.
type Reader struct {
	dir  string
	opts ReadOptions

	f      *os.File // the segment being read, nil before the first
	first  uint64
	lines  *lineReader
	line   int   // number of the next line
	off    int64 // of the next line
	end    bool  // a newer segment was seen, so what is in f now is all of it
	last   uint64
	gapped string // hash of the last gap record returned
	fresh  bool   // the file was looked at again, so records may have been taken back
}

// NewReader returns a Reader over the log in dir, which a writer may have open.
func NewReader(dir string, opts ReadOptions) (*Reader, error) {
	firsts, err := listSegments(dir)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	if opts.Last > 0 {
		newest, err := newestSeq(dir, firsts)
		if err != nil {
			return nil, err
		}
		opts.From = newest + 1 - min(opts.Last, newest)
	}
	r := &Reader{dir: dir, opts: opts}
	if at, exact := slices.BinarySearch(firsts, opts.From); !exact && at > 0 {
		r.first = firsts[at-1] - 1 // next opens the segment after it
	} else if exact {
		r.first = opts.From - 1
	}
	return r, nil
}

// Next returns the next record. At the end it returns io.EOF, or waits if the
// Reader follows. A *[BadLine] is not the end: call Next again. Other errors are.
func (r *Reader) Next(ctx context.Context) (Record, error) {
	for {
		if err := ctx.Err(); err != nil {
			return Record{}, err
		}
		if r.f != nil {
			rec, found, err := r.read()
			if found || err != nil {
				return rec, err
			}
		}
		switch moved, err := r.advance(); {
		case err != nil:
			return Record{}, err
		case moved:
			continue
		case !r.opts.Follow:
			return Record{}, io.EOF
		}
		timer := time.NewTimer(pollEvery)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		if r.f != nil {
			if err := r.refresh(); err != nil {
				return Record{}, err
			}
		}
	}
}

// Close closes the segment being read.
func (r *Reader) Close() error {
	if r.f == nil {
		return nil
	}
	return r.f.Close()
}

// read returns the next record of the segment, found false at its present end.
func (r *Reader) read() (rec Record, found bool, err error) {
	for {
		text, ended, err := r.lines.next()
		if err != nil {
			return rec, false, fmt.Errorf("audit: %s: %w", segmentName(r.first), err)
		}
		if !ended { // half a line is read again when it is whole
			r.lines.seek(r.off)
			return rec, false, nil
		}
		rec, err := parse(text)
		if (err != nil || rec.Seq <= r.last) && r.fresh {
			r.fresh = false
			back, rewindErr := r.rewind()
			if rewindErr != nil {
				return rec, false, rewindErr
			}
			if back {
				continue
			}
		}
		r.off = r.lines.off
		r.line++
		if err != nil {
			return Record{}, false, &BadLine{segmentName(r.first), r.line - 1, err}
		}
		r.last = rec.Seq
		if rec.Event == EventGap {
			r.gapped = rec.Hash
		}
		if rec.Seq >= r.opts.From {
			return rec, true, nil
		}
	}
}

// advance opens the segment after the one being read. It first lets the caller
// read on: the writer may have added to this one before it began the next.
func (r *Reader) advance() (bool, error) {
	firsts, err := listSegments(r.dir)
	if err != nil {
		return false, fmt.Errorf("audit: %w", err)
	}
	at, exact := slices.BinarySearch(firsts, r.first)
	if exact {
		at++
	}
	if at == len(firsts) {
		return false, nil
	}
	if r.f != nil && !r.end {
		r.end = true
		return true, nil
	}
	f, err := openSegment(r.dir, firsts[at])
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // pruned since it was listed
	}
	if err != nil {
		return false, fmt.Errorf("audit: %w", err)
	}
	if r.f != nil {
		_ = r.f.Close() // was only read
	}
	r.f, r.first, r.end = f, firsts[at], false
	r.lines, r.line, r.off = newLineReader(f, 0), 1, 0
	return true, nil
}

// refresh looks whether the file is as long as it was read.
func (r *Reader) refresh() error {
	info, err := r.f.Stat()
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	r.fresh = true
	if info.Size() >= r.off {
		return nil
	}
	back, err := r.rewind()
	if err == nil && !back {
		r.off = info.Size()
		r.lines.seek(r.off)
	}
	return err
}

// rewind goes back after the writer took records back that this Reader had
// returned. What it writes first then is a gap record, so that is where reading
// goes on. It reports whether there is a gap record not yet returned among the
// sequence numbers that were.
func (r *Reader) rewind() (bool, error) {
	lines := newLineReader(r.f, 0)
	var gap link
	var gapOff int64
	var gapLine int
	for n := 1; ; n++ {
		off := lines.off
		text, ended, err := lines.next()
		if err != nil {
			return false, fmt.Errorf("audit: %s: %w", segmentName(r.first), err)
		}
		if !ended {
			break
		}
		l, ok := split(text)
		if ok && l.event == string(EventGap) && l.seq <= r.last {
			gap, gapOff, gapLine = l, off, n
		}
	}
	if gap.seq == 0 || gap.hash == r.gapped {
		return false, nil
	}
	r.last, r.off, r.line = gap.seq-1, gapOff, gapLine
	r.lines.seek(gapOff)
	return true, nil
}

// newestSeq returns the sequence number of the last readable record, 0 if there
// is none.
func newestSeq(dir string, firsts []uint64) (uint64, error) {
	for _, first := range slices.Backward(firsts) {
		seq, err := lastSeq(dir, first)
		if seq > 0 || (err != nil && !errors.Is(err, fs.ErrNotExist)) {
			return seq, err
		}
	}
	return 0, nil
}

func lastSeq(dir string, first uint64) (seq uint64, err error) {
	f, err := openSegment(dir, first)
	if err != nil {
		return 0, fmt.Errorf("audit: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("audit: %w", err)
	}
	// The end of the file is enough, unless it is damaged.
	for _, from := range []int64{max(0, info.Size()-2*maxLine), 0} {
		lines := newLineReader(f, from)
		for ended := true; ended; {
			var text []byte
			if text, ended, err = lines.next(); err != nil {
				return 0, fmt.Errorf("audit: %w", err)
			}
			if l, ok := split(text); ok && ended {
				seq = l.seq
			}
		}
		if seq > 0 {
			break
		}
	}
	return seq, nil
}
