package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func fill(t testing.TB, l *Log, n int) {
	t.Helper()
	for range n {
		mustSync(t, l, Record{Event: EventCall, Caller: "spiffe://home.example/agent/hermes"})
	}
}

func TestRotate(t *testing.T) {
	dir := newDir(t)
	l := mustOpen(t, Options{Dir: dir, SegmentBytes: 4 << 10})
	fill(t, l, 100)
	mustClose(t, l)
	firsts, err := listSegments(dir)
	if err != nil || len(firsts) < 5 {
		t.Fatalf("segments %d, %v", firsts, err)
	}
	for _, first := range firsts {
		info, err := os.Stat(filepath.Join(dir, segmentName(first)))
		if err != nil || info.Size() > 5<<10 || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", segmentName(first), info, err)
		}
	}
	if r := mustVerify(t, dir); r.Segments != len(firsts) || r.Records != 100 {
		t.Errorf("report %+v", r)
	}
}

// TestRotateFollowsNoLink: a link where the next segment belongs is not written to.
func TestRotateFollowsNoLink(t *testing.T) {
	dir := newDir(t)
	l := mustOpen(t, Options{Dir: dir, SegmentBytes: 1})
	fill(t, l, 1)
	aim := filepath.Join(t.TempDir(), "aim")
	if err := os.Symlink(aim, filepath.Join(dir, segmentName(2))); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Sync(t.Context(), Record{Event: EventIntent}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Sync: %v", err)
	}
	if _, err := os.Lstat(aim); err == nil {
		t.Error("the link was followed")
	}
}

func TestPrune(t *testing.T) {
	dir := newDir(t)
	opts := Options{Dir: dir, SegmentBytes: 4 << 10, KeepSegments: 3}
	l := mustOpen(t, opts)
	fill(t, l, 10)
	seq, hash := l.Head()
	fill(t, l, 100)
	mustClose(t, l)
	firsts, _ := listSegments(dir)
	r := mustVerify(t, dir)
	if len(firsts) != 3 || r.First != firsts[0] || r.First == 1 {
		t.Fatalf("segments %d, report %+v", firsts, r)
	}
	if n := countEvents(mustRead(t, dir))[EventPruned]; n == 0 {
		t.Error("no pruned record left")
	}
	l = mustOpen(t, opts)
	fill(t, l, 100)
	mustClose(t, l)
	mustVerify(t, dir)

	if fault := wantFault(t, dir, fmt.Sprintf("%d:%s", seq, hash)); fault.Kind != FaultHead {
		t.Errorf("a head that was pruned: %v", fault)
	}
	// Removing one segment more is not covered.
	firsts, _ = listSegments(dir)
	if err := os.Remove(filepath.Join(dir, segmentName(firsts[0]))); err != nil {
		t.Fatal(err)
	}
	if fault := wantFault(t, dir, ""); fault.Kind != FaultSegment || fault.File != segmentName(firsts[1]) || fault.Line != 1 {
		t.Errorf("tampering taken for pruning: %v", fault)
	}
}

func mustRead(t testing.TB, dir string) []Record {
	t.Helper()
	recs, bad := readAll(t, dir, ReadOptions{})
	if len(bad) != 0 {
		t.Fatalf("bad lines %v", bad)
	}
	return recs
}

// TestPruneRecordFirst: nothing is removed before the record that tells of it is
// durable.
func TestPruneRecordFirst(t *testing.T) {
	for after := 1; after <= 2; after++ { // the old segment's fsync, and that of the record that began the new one
		dir, fs := newDir(t), &faults{}
		l := mustOpen(t, fs.options(Options{Dir: dir, SegmentBytes: 4 << 10, KeepSegments: 1}))
		path := filepath.Join(dir, segmentName(1))
		for info := os.FileInfo(nil); info == nil || info.Size() < 4<<10; {
			fill(t, l, 1)
			var err error
			if info, err = os.Stat(path); err != nil {
				t.Fatal(err)
			}
		}
		fs.set(func(f *faults) { f.syncAfter, f.sync = after, errInjected })
		_, _ = l.Sync(t.Context(), Record{Event: EventCall})
		eventually(t, "the log is broken", func() bool { return l.Healthy() != nil })
		if firsts, _ := listSegments(dir); len(firsts) != 2 || firsts[0] != 1 {
			t.Errorf("after %d fsyncs: segments %d", after, firsts)
		}
		fs.set(func(f *faults) { f.sync = nil })
		time.Sleep(retryEvery)
		fill(t, l, 1)
		mustClose(t, l)
		if r := mustVerify(t, dir); r.Segments != 1 || r.First == 1 {
			t.Errorf("after the repair: %+v", r)
		}
	}
}

// TestPruneKeepsOpenIntents: a segment with an open intent stays until it is
// closed.
func TestPruneKeepsOpenIntents(t *testing.T) {
	dir := newDir(t)
	l := mustOpen(t, Options{Dir: dir, SegmentBytes: 4 << 10, KeepSegments: 2})
	fill(t, l, 20)
	mustSync(t, l, Record{Event: EventIntent, Call: "long"})
	fill(t, l, 100)
	r := mustVerify(t, dir)
	if len(r.Open) != 1 || r.Segments < 4 {
		t.Errorf("report %+v", r)
	}
	mustSync(t, l, Record{Event: EventOutcome, Call: "long"})
	fill(t, l, 20)
	mustClose(t, l)
	if r := mustVerify(t, dir); r.Segments != 2 || len(r.Open) != 0 {
		t.Errorf("report %+v", r)
	}
}

// TestPruneFails: a segment that cannot be removed is said to be so, and the log
// goes on.
func TestPruneFails(t *testing.T) {
	dir := newDir(t)
	l := mustOpen(t, Options{Dir: dir, SegmentBytes: 4 << 10, KeepSegments: 1})
	fill(t, l, 1)
	path := filepath.Join(dir, segmentName(1))
	// A folder that is not empty stands in for a file that cannot be removed.
	if err := errors.Join(os.Rename(path, path+".away"), os.MkdirAll(filepath.Join(path, "x"), 0o700)); err != nil {
		t.Fatal(err)
	}
	fill(t, l, 30)
	if err := l.Healthy(); err == nil || errors.Is(err, ErrUnavailable) {
		t.Errorf("Healthy: %v", err)
	}
	if err := errors.Join(os.RemoveAll(path), os.Rename(path+".away", path)); err != nil {
		t.Fatal(err)
	}
	fill(t, l, 30)
	if err := l.Healthy(); err != nil {
		t.Errorf("Healthy: %v", err)
	}
	mustClose(t, l)
	if r := mustVerify(t, dir); r.Segments != 1 {
		t.Errorf("report %+v", r)
	}
}
