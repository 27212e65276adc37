package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestChain(t *testing.T) {
	dir := newDir(t)
	clock := time.Date(2031, 1, 1, 0, 0, 0, 0, time.UTC)
	opts := Options{Dir: dir, Now: func() time.Time { return clock }}
	l := mustOpen(t, opts)
	if seq, hash := l.Head(); seq != 0 || hash != zeroHash {
		t.Errorf("empty log: head %d:%s", seq, hash)
	}
	for i := range uint64(3) {
		if seq := mustSync(t, l, Record{Event: EventCall, Call: fmt.Sprint(i)}); seq != i+1 {
			t.Errorf("record %d got seq %d", i+1, seq)
		}
	}
	l.Append(Record{Event: EventStop})
	mustClose(t, l)
	seq, hash := l.Head()
	if seq != 4 {
		t.Errorf("head after Close: %d, want 4", seq)
	}

	l = mustOpen(t, opts)
	if s, h := l.Head(); s != seq || h != hash {
		t.Errorf("head after reopening: %d:%s, want %d:%s", s, h, seq, hash)
	}
	if seq := mustSync(t, l, Record{Event: EventStart}); seq != 5 {
		t.Errorf("after reopening: seq %d, want 5", seq)
	}
	mustClose(t, l)

	recs, bad := readAll(t, dir, ReadOptions{})
	if len(recs) != 5 || len(bad) != 0 {
		t.Fatalf("%d records, bad lines %v", len(recs), bad)
	}
	prev := zeroHash
	for i, r := range recs {
		if r.Seq != uint64(i+1) || r.Prev != prev || !r.Time.Equal(clock) {
			t.Errorf("record %d: %+v", i+1, r)
		}
		prev = r.Hash
	}
	report, err := Verify(dir, VerifyOptions{Head: fmt.Sprintf("%d:%s", seq, hash)})
	if err != nil || report.Records != 5 || report.First != 1 || report.Last != 5 || report.Head != prev {
		t.Errorf("report %+v, %v", report, err)
	}
}

func TestFilesArePrivate(t *testing.T) {
	dir := newDir(t)
	mustSync(t, mustOpen(t, Options{Dir: dir}), Record{Event: EventStart})
	for path, want := range map[string]os.FileMode{
		dir: 0o700 | os.ModeDir, filepath.Join(dir, segmentName(1)): 0o600, filepath.Join(dir, "lock"): 0o600,
	} {
		info, err := os.Stat(path)
		if err != nil || info.Mode() != want {
			t.Errorf("%s: mode %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(dir string) error
	}{
		{"folder that others write to", func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o720)) }},
		{"link to a folder", func(dir string) error { return errors.Join(os.Mkdir(dir+"2", 0o700), os.Symlink(dir+"2", dir)) }},
		{"file", func(dir string) error { return os.WriteFile(dir, nil, 0o600) }},
		{"link for a segment", func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(dir+"2", nil, 0o600), os.Symlink(dir+"2", filepath.Join(dir, segmentName(1))))
		}},
		{"folder for a segment", func(dir string) error { return os.MkdirAll(filepath.Join(dir, segmentName(1)), 0o700) }},
		{"link for the lock", func(dir string) error {
			return errors.Join(os.Mkdir(dir, 0o700), os.Symlink(dir+"2", filepath.Join(dir, "lock")))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := newDir(t)
			if err := tt.make(dir); err != nil {
				t.Fatal(err)
			}
			if l, err := Open(Options{Dir: dir}); err == nil {
				t.Error("opened")
				mustClose(t, l)
			}
		})
	}
	t.Run("another owner", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("needs root")
		}
		dir := newDir(t)
		if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 12345, 12345)); err != nil {
			t.Fatal(err)
		}
		if l, err := Open(Options{Dir: dir}); err == nil {
			t.Error("opened")
			mustClose(t, l)
		}
	})
}

func TestLock(t *testing.T) {
	dir := newDir(t)
	l := mustOpen(t, Options{Dir: dir})
	if _, err := Open(Options{Dir: dir}); !errors.Is(err, ErrLocked) {
		t.Errorf("second Open: %v, want ErrLocked", err)
	}
	mustClose(t, l)
	mustOpen(t, Options{Dir: dir})
}

func TestConcurrent(t *testing.T) {
	dir := newDir(t)
	l := mustOpen(t, Options{Dir: dir, SegmentBytes: 32 << 10})
	const workers, each = 8, 100
	var mu sync.Mutex
	seqs := map[uint64]string{}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				l.Append(Record{Event: EventCall, Call: fmt.Sprintf("a%d-%d", w, i)})
				call := fmt.Sprintf("s%d-%d", w, i)
				seq, err := l.Sync(t.Context(), Record{Event: EventIntent, Call: call})
				if err != nil {
					t.Error(err)
					return
				}
				if head, _ := l.Head(); head < seq {
					t.Errorf("Sync returned %d before the head, which is at %d", seq, head)
				}
				l.Append(Record{Event: EventOutcome, Call: call})
				mu.Lock()
				seqs[seq] = call
				mu.Unlock()
				if err := l.Healthy(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() { // a verifier beside the writer sees no damage
		for range 20 {
			if _, err := Verify(dir, VerifyOptions{}); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	mustClose(t, l)
	recs, bad := readAll(t, dir, ReadOptions{})
	if len(recs) != 3*workers*each || len(bad) != 0 || len(seqs) != workers*each {
		t.Fatalf("%d records, %d acknowledged, bad lines %v", len(recs), len(seqs), bad)
	}
	for _, r := range recs {
		if want, ok := seqs[r.Seq]; ok && r.Call != want {
			t.Errorf("seq %d was acknowledged for call %s and holds %s", r.Seq, want, r.Call)
		}
	}
	if r := mustVerify(t, dir); len(r.Open) != 0 || r.Segments < 2 {
		t.Errorf("report %+v", r)
	}
}

// TestAppendBecomesDurable: without any Sync, the head moves on by itself.
func TestAppendBecomesDurable(t *testing.T) {
	t.Parallel()
	l := mustOpen(t, Options{Dir: newDir(t)})
	l.Append(Record{Event: EventCall})
	eventually(t, "the record is durable", func() bool { seq, _ := l.Head(); return seq == 1 })
	time.Sleep(flushEvery) // an idle timer must not have been lost
	l.Append(Record{Event: EventCall})
	eventually(t, "the second record is durable", func() bool { seq, _ := l.Head(); return seq == 2 })
}

func TestClosed(t *testing.T) {
	l := mustOpen(t, Options{Dir: newDir(t)})
	mustClose(t, l)
	l.Append(Record{Event: EventCall})
	if _, err := l.Sync(t.Context(), Record{Event: EventIntent}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Sync after Close: %v, want ErrUnavailable", err)
	}
	mustClose(t, l)
}

func TestSyncHonorsContext(t *testing.T) {
	l := mustOpen(t, Options{Dir: newDir(t)})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Sync(ctx, Record{Event: EventIntent}); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if seq := mustSync(t, l, Record{Event: EventIntent}); seq != 1 {
		t.Errorf("seq %d: the cancelled record was written", seq)
	}
}

func TestBadHead(t *testing.T) {
	for _, head := range []string{"x", "1", "1:", "1:" + strings.Repeat("A", 64), ":" + zeroHash, "-1:" + zeroHash, "1:" + zeroHash + "0"} {
		if _, err := Verify(t.TempDir(), VerifyOptions{Head: head}); err == nil {
			t.Errorf("%q accepted", head)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	l := mustOpen(b, Options{Dir: newDir(b), QueueLen: 1 << 20})
	rec := Record{
		Event: EventCall, Call: NewCallID(), Caller: "spiffe://home.example/agent/hermes", Serial: "1234567890",
		Peer: "172.18.0.5:41234", Method: "/hermes.broker.v1.ContainerService/ListContainers", Permission: "containers.list",
		Effect: "READ", Resource: "containers/*", Request: []byte(`{"pageSize":20}`), Rule: "policy.yaml:12",
		Policy: zeroHash, Code: "OK", DurationUS: 431,
	}
	b.ReportAllocs()
	for b.Loop() {
		l.Append(rec)
	}
}

func BenchmarkSync(b *testing.B) {
	l := mustOpen(b, Options{Dir: newDir(b)})
	b.SetParallelism(8)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := l.Sync(b.Context(), Record{Event: EventCall}); err != nil {
				b.Error(err)
			}
		}
	})
}
