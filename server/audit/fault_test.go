package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

var errInjected = fmt.Errorf("injected: %w", syscall.EIO)

// faults stands between the log and real files.
type faults struct {
	mu        sync.Mutex
	sync      error
	syncAfter int // calls of Sync that succeed before it fails
	write     error
	short     int // bytes that a failing write gets through
	truncate  error
	create    error
	hang      chan struct{} // Sync waits for it to be closed
	syncs     int
}

func (f *faults) set(change func(*faults)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *faults) options(opts Options) Options {
	opts.openFile = func(path string) (file, int64, error) {
		f.mu.Lock()
		err := f.create
		f.mu.Unlock()
		if err != nil {
			return nil, 0, err
		}
		real, size, err := openAppend(path)
		return &faultyFile{file: real, f: f}, size, err
	}
	return opts
}

type faultyFile struct {
	file
	f *faults
}

func (f *faultyFile) Write(p []byte) (int, error) {
	f.f.mu.Lock()
	err, short := f.f.write, f.f.short
	f.f.mu.Unlock()
	if err == nil {
		return f.file.Write(p)
	}
	n, _ := f.file.Write(p[:min(short, len(p))])
	return n, err
}

func (f *faultyFile) Sync() error {
	f.f.mu.Lock()
	err, hang := f.f.sync, f.f.hang
	f.f.syncs++
	if f.f.syncAfter > 0 {
		f.f.syncAfter--
		err = nil
	}
	f.f.mu.Unlock()
	if hang != nil {
		<-hang
	}
	if err != nil {
		return err
	}
	return f.file.Sync()
}

func (f *faultyFile) Truncate(size int64) error {
	f.f.mu.Lock()
	err := f.f.truncate
	f.f.mu.Unlock()
	if err != nil {
		return err
	}
	return f.file.Truncate(size)
}

// TestFaults: whatever fails, Sync says so, nothing acknowledged is lost, an
// outcome of an open intent survives, the rest is counted, and the chain is whole.
func TestFaults(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(*faults)
	}{
		{"fsync fails", func(f *faults) { f.sync = errInjected }},
		{"write fails", func(f *faults) { f.write = errInjected }},
		{"short write", func(f *faults) { f.write, f.short = io.ErrShortWrite, 100 }},
		{"write gets all through but its newline", func(f *faults) { f.write, f.short = io.ErrShortWrite, 130 }},
		{"short write of several records", func(f *faults) { f.write, f.short = syscall.ENOSPC, 1000 }},
		{"short write that cannot be taken back", func(f *faults) { f.write, f.short, f.truncate = syscall.ENOSPC, 100, errInjected }},
		{"read-only", func(f *faults) {
			f.write, f.truncate, f.sync, f.create = syscall.EROFS, syscall.EROFS, syscall.EROFS, syscall.EROFS
		}},
		{"fsync fails and cannot be taken back", func(f *faults) { f.sync, f.truncate = errInjected, errInjected }},
		{"no new segment", func(f *faults) { f.create = syscall.EMFILE }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir, fs := newDir(t), &faults{}
			opts := fs.options(Options{Dir: dir})
			if tt.name == "no new segment" {
				opts.SegmentBytes = 1 // every record begins one
			}
			l := mustOpen(t, opts)
			asked := uint64(0) // all but what the log writes about itself
			acked := map[uint64]string{}
			intent := func(call string) error {
				asked++
				seq, err := l.Sync(t.Context(), Record{Event: EventIntent, Call: call})
				if err == nil {
					acked[seq] = call
				}
				return err
			}
			if err := intent("before"); err != nil {
				t.Fatal(err)
			}
			for round := range 3 {
				l.Append(Record{Event: EventCall, Detail: "in time"})
				asked++
				fs.set(tt.damage)
				start := time.Now()
				for i := range 20 {
					if err := intent(fmt.Sprintf("refused%d-%d", round, i)); !errors.Is(err, ErrUnavailable) {
						t.Fatalf("Sync on a broken log: %v", err)
					}
					l.Append(Record{Event: EventCall})
					l.Append(Record{Event: EventOutcome, Call: fmt.Sprintf("refused%d-%d", round, i)}) // its intent is not in the log
					asked += 2
				}
				if took := time.Since(start); took > time.Second {
					t.Errorf("20 refusals took %s", took)
				}
				if round == 1 {
					l.Append(Record{Event: EventOutcome, Call: "before", Code: "OK"})
					asked++
				}
				if err := l.Healthy(); !errors.Is(err, ErrUnavailable) {
					t.Errorf("Healthy: %v", err)
				}
				head, _ := l.Head()
				for seq := range acked {
					if head < seq {
						t.Errorf("head %d is before the acknowledged %d", head, seq)
					}
				}
				fs.set(func(f *faults) { f.sync, f.write, f.truncate, f.create, f.short = nil, nil, nil, nil, 0 })
				time.Sleep(retryEvery)
				if err := intent(fmt.Sprintf("after%d", round)); err != nil {
					t.Fatalf("after the repair: %v", err)
				}
				if err := l.Healthy(); err != nil {
					t.Errorf("after the repair: %v", err)
				}
			}
			mustClose(t, l)

			r := mustVerify(t, dir)
			recs := mustRead(t, dir)
			n := countEvents(recs)
			if r.Gaps == 0 || n[EventTorn] != 0 {
				t.Errorf("report %+v, events %v", r, n)
			}
			if present := r.Records - r.Gaps; present+r.Lost != asked {
				t.Errorf("%d records are there and %d told lost; %d were asked for", present, r.Lost, asked)
			}
			for seq, call := range acked {
				if rec := recs[seq-1]; rec.Seq != seq || rec.Call != call {
					t.Errorf("acknowledged %d (%s) is %+v", seq, call, rec)
				}
			}
			if n[EventOutcome] != 1 {
				t.Errorf("%d outcomes, want that of the open intent alone", n[EventOutcome])
			}
			for _, open := range r.Open {
				if open.Call == "before" {
					t.Error("the outcome of an acknowledged intent was lost")
				}
			}
			gap := recs[len(recs)-1]
			for _, rec := range recs {
				if rec.Event == EventGap {
					gap = rec
				}
			}
			if gap.Reason != ReasonWriteFailed || gap.Detail == "" {
				t.Errorf("gap record %+v", gap)
			}
		})
	}
}

// TestFsyncFailureIsNotForgotten: the kernel reports a failed fsync once and may
// have thrown the pages away, so what was written since the last success must not
// pass for durable when the next fsync succeeds.
func TestFsyncFailureIsNotForgotten(t *testing.T) {
	t.Parallel()
	dir, fs := newDir(t), &faults{}
	l := mustOpen(t, fs.options(Options{Dir: dir}))
	first := mustSync(t, l, Record{Event: EventIntent, Call: "durable"})
	fs.set(func(f *faults) { f.sync = errInjected })
	_, err := l.Sync(t.Context(), Record{Event: EventIntent, Call: "lost"})
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, syscall.EIO) {
		t.Fatalf("got %v", err)
	}
	fs.set(func(f *faults) { f.sync = nil })
	eventually(t, "the log mends itself with no call to help it", func() bool { return l.Healthy() == nil })
	mustClose(t, l)
	recs := mustRead(t, dir)
	if len(recs) != 2 || recs[0].Seq != first || recs[1].Event != EventGap || recs[1].Count != 1 {
		t.Errorf("records %+v", recs)
	}
}

func TestRetryIsRateLimited(t *testing.T) {
	dir, fs := newDir(t), &faults{}
	l := mustOpen(t, fs.options(Options{Dir: dir}))
	fs.set(func(f *faults) { f.sync, f.syncs = errInjected, 0 })
	start, calls := time.Now(), 0
	for ; time.Since(start) < 3*retryEvery; calls++ {
		_, _ = l.Sync(t.Context(), Record{Event: EventIntent})
	}
	fs.set(func(f *faults) {
		if f.syncs > 5 || f.syncs < 2 {
			t.Errorf("%d attempts for %d calls in %s", f.syncs, calls, time.Since(start))
		}
		f.sync = nil
	})
}

func TestHangingFsync(t *testing.T) {
	dir, fs := newDir(t), &faults{}
	l := mustOpen(t, fs.options(Options{Dir: dir, QueueLen: 10}))
	mustSync(t, l, Record{Event: EventIntent, Call: "before"})
	hang := make(chan struct{})
	fs.set(func(f *faults) { f.hang = hang })

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := l.Sync(ctx, Record{Event: EventIntent, Call: "hangs"}); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Sync: %v", err)
	}
	if _, err := l.Sync(ctx, Record{Event: EventIntent, Call: "never taken"}); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("Sync: %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := l.Sync(short, Record{Event: EventIntent, Call: "given up"}); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("Sync: %v", err)
	}
	start := time.Now()
	for range 100 {
		l.Append(Record{Event: EventCall})
	}
	l.Append(Record{Event: EventOutcome, Call: "before"})
	if took := time.Since(start); took > time.Second {
		t.Errorf("Append waited for the disk: %s", took)
	}
	l.status.busySince.Store(time.Now().Add(-time.Minute).UnixNano())
	if err := l.Healthy(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Healthy while the disk hangs: %v", err)
	}
	if err := l.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close while the disk hangs: %v", err)
	}
	fs.set(func(f *faults) { f.hang = nil })
	close(hang)
	mustClose(t, l)

	r := mustVerify(t, dir)
	recs := mustRead(t, dir)
	for _, rec := range recs {
		if rec.Call == "given up" || rec.Call == "never taken" {
			t.Errorf("an intent whose caller had given up was written: %+v", rec)
		}
	}
	// 100 calls less the queue's 9 (the intent given up took a place), and that intent.
	if n := countEvents(recs); n[EventOutcome] != 1 || n[EventCall] != 9 || r.Lost != 92 || r.Gaps != 1 {
		t.Errorf("events %v, report %+v", n, r)
	}
}

// TestQueueBytes: large requests cannot make the queue large while the disk hangs.
func TestQueueBytes(t *testing.T) {
	dir, fs := newDir(t), &faults{}
	l := mustOpen(t, fs.options(Options{Dir: dir}))
	hang := make(chan struct{})
	fs.set(func(f *faults) { f.hang = hang })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, _ = l.Sync(ctx, Record{Event: EventIntent})
	for range 3 * maxQueueBytes >> 20 {
		l.Append(Record{Event: EventCall, Request: make([]byte, 1<<20)})
	}
	l.mu.Lock()
	if l.bytes != maxQueueBytes || l.lost != 2*maxQueueBytes>>20 {
		t.Errorf("%d bytes wait, %d records lost", l.bytes, l.lost)
	}
	l.mu.Unlock()
	fs.set(func(f *faults) { f.hang = nil })
	close(hang)
}

// TestTooManyOpen: intents that nobody closes cannot grow without end.
func TestTooManyOpen(t *testing.T) {
	dir := newDir(t)
	l := mustOpen(t, Options{Dir: dir, QueueLen: 2 * maxOpen})
	for i := range maxOpen + 1 {
		l.Append(Record{Event: EventIntent, Call: strconv.Itoa(i)})
	}
	if _, err := l.Sync(t.Context(), Record{Event: EventIntent, Call: "more"}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Sync: %v", err)
	}
	for i := range maxOpen {
		l.Append(Record{Event: EventOutcome, Call: strconv.Itoa(i)})
	}
	mustSync(t, l, Record{Event: EventCall})
	mustSync(t, l, Record{Event: EventIntent, Call: "now"})
	mustClose(t, l)
	if r := mustVerify(t, dir); len(r.Open) != 1 || r.Lost == 0 {
		t.Errorf("%d open, %d lost", len(r.Open), r.Lost)
	}
}

// TestHeadIsDurable: a record that is only written does not move the head.
func TestHeadIsDurable(t *testing.T) {
	dir, fs := newDir(t), &faults{}
	l := mustOpen(t, fs.options(Options{Dir: dir}))
	mustSync(t, l, Record{Event: EventStart})
	fs.set(func(f *faults) { f.sync = errInjected })
	l.Append(Record{Event: EventCall})
	eventually(t, "the record is written", func() bool { return mustVerify(t, dir).Last == 2 })
	fs.set(func(f *faults) { f.write = errInjected })
	_, _ = l.Sync(t.Context(), Record{Event: EventIntent})
	if seq, _ := l.Head(); seq != 1 {
		t.Errorf("head %d, want 1", seq)
	}
	fs.set(func(f *faults) { f.write, f.sync = nil, nil })
}
