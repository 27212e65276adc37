package audit

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestReaderPositions(t *testing.T) {
	dir := newDir(t)
	sample(t, dir, 100, 4<<10)
	for _, tt := range []struct {
		opts        ReadOptions
		first, last uint64
	}{
		{ReadOptions{}, 1, 100},
		{ReadOptions{From: 1}, 1, 100},
		{ReadOptions{From: 57}, 57, 100},
		{ReadOptions{From: 100}, 100, 100},
		{ReadOptions{From: 101}, 0, 0},
		{ReadOptions{From: 1 << 63}, 0, 0},
		{ReadOptions{Last: 1}, 100, 100},
		{ReadOptions{Last: 60}, 41, 100},
		{ReadOptions{Last: 100}, 1, 100},
		{ReadOptions{Last: 1000, From: 50}, 1, 100},
	} {
		recs, bad := readAll(t, dir, tt.opts)
		if len(bad) > 0 {
			t.Fatal(bad)
		}
		if tt.first == 0 {
			if len(recs) != 0 {
				t.Errorf("%+v: %d records", tt.opts, len(recs))
			}
			continue
		}
		if len(recs) != int(tt.last-tt.first+1) || recs[0].Seq != tt.first || recs[len(recs)-1].Seq != tt.last {
			t.Errorf("%+v: %d records from %d", tt.opts, len(recs), recs[0].Seq)
		}
	}
	firsts, _ := listSegments(dir)
	for _, first := range firsts { // the borders
		for _, from := range []uint64{max(1, first-1), first, first + 1} {
			if recs, _ := readAll(t, dir, ReadOptions{From: from}); recs[0].Seq != from {
				t.Errorf("from %d: got %d", from, recs[0].Seq)
			}
		}
	}
}

func TestReaderEmpty(t *testing.T) {
	if recs, bad := readAll(t, t.TempDir(), ReadOptions{Last: 5}); len(recs)+len(bad) != 0 {
		t.Errorf("%v %v", recs, bad)
	}
	if _, err := NewReader(filepath.Join(t.TempDir(), "none"), ReadOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// TestReaderHostile: damaged lines are named and passed over.
func TestReaderHostile(t *testing.T) {
	dir := newDir(t)
	lines := sample(t, dir, 4, 0)
	rewrite(t, dir, [][]byte{
		lines[0], []byte("\x1b[2J\n"), lines[1], []byte(strings.Repeat("a", 5*maxLine) + "\n"), []byte("\n"), lines[2], lines[3][:20],
	})
	recs, bad := readAll(t, dir, ReadOptions{})
	if len(recs) != 3 || len(bad) != 3 || bad[0].Line != 2 || bad[1].Line != 4 || bad[2].Line != 5 {
		t.Errorf("%d records, bad lines %v", len(recs), bad)
	}
	for _, b := range bad {
		if strings.ContainsAny(b.Error(), "\x1b\n") || len(b.Error()) > 300 {
			t.Errorf("not safe to print: %q", b.Error())
		}
	}
}

// TestReaderOpensFilesOnly: what is not a regular file neither blocks nor is read.
func TestReaderOpensFilesOnly(t *testing.T) {
	aim := newDir(t)
	sample(t, aim, 3, 0)
	for name, make := range map[string]func(path string) error{
		"link to a segment": func(path string) error { return os.Symlink(filepath.Join(aim, segmentName(1)), path) },
		"pipe":              func(path string) error { return unix.Mkfifo(path, 0o600) },
		"device": func(path string) error { // endless, if it were read
			if os.Geteuid() != 0 {
				return os.Symlink("/dev/zero", path)
			}
			return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5)))
		},
	} {
		dir := t.TempDir()
		if err := make(filepath.Join(dir, segmentName(1))); err != nil {
			t.Fatal(err)
		}
		r, err := NewReader(dir, ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Next(t.Context()); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: got %v", name, err)
		}
		if _, err := Verify(dir, VerifyOptions{}); err == nil {
			t.Errorf("%s: verified", name)
		}
	}
}

func TestFollow(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	l := mustOpen(t, Options{Dir: dir, SegmentBytes: 4 << 10, KeepSegments: 100})
	r, err := NewReader(dir, ReadOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	const n = 200
	go func() {
		for range n {
			l.Append(Record{Event: EventCall, Caller: "spiffe://home.example/agent/hermes"})
			time.Sleep(2 * time.Millisecond)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for i := range uint64(n) {
		rec, err := r.Next(ctx)
		if err != nil || rec.Seq != i+1 {
			t.Fatalf("record %d: %+v, %v", i+1, rec, err)
		}
	}
	if firsts, _ := listSegments(dir); len(firsts) < 2 {
		t.Error("nothing was rotated")
	}
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := r.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("at the end: %v", err)
	}
}

// TestReaderReadsToTheEnd: what was added to a segment before the next one began
// is not passed over.
func TestReaderReadsToTheEnd(t *testing.T) {
	dir := newDir(t)
	lines := sample(t, dir, 3, 0)
	rewrite(t, dir, lines[:1])
	r, err := NewReader(dir, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if rec, err := r.Next(t.Context()); err != nil || rec.Seq != 1 {
		t.Fatalf("%+v, %v", rec, err)
	}
	if _, found, err := r.read(); found || err != nil { // sees the end
		t.Fatal(found, err)
	}
	appendBytes(t, filepath.Join(dir, segmentName(1)), string(lines[1]))
	if err := os.WriteFile(filepath.Join(dir, segmentName(3)), lines[2], 0o600); err != nil {
		t.Fatal(err)
	}
	if moved, err := r.advance(); !moved || err != nil { // sees the new segment
		t.Fatal(moved, err)
	}
	for _, want := range []uint64{2, 3} {
		if rec, err := r.Next(t.Context()); err != nil || rec.Seq != want {
			t.Fatalf("%+v, %v; want %d", rec, err, want)
		}
	}
}

// TestFollowDamage: a bad line is told of once, and nothing is shown again for it.
func TestFollowDamage(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	l := mustOpen(t, Options{Dir: dir})
	mustSync(t, l, Record{Event: EventStart})
	mustSync(t, l, Record{Event: EventGap, Count: 1})
	mustClose(t, l)
	r, err := NewReader(dir, ReadOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 2 {
		if _, err := r.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), pollEvery/2)
	defer cancel()
	if _, err := r.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	appendBytes(t, filepath.Join(dir, segmentName(1)), "junk\n")
	var bad *BadLine
	if rec, err := r.Next(t.Context()); !errors.As(err, &bad) || bad.Line != 3 {
		t.Errorf("got %+v, %v", rec, err)
	}
}

// TestFollowPartialLine: half a line is not shown until it is whole.
func TestFollowPartialLine(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	lines := sample(t, dir, 3, 0)
	rewrite(t, dir, [][]byte{lines[0], lines[1][:50]})
	r, err := NewReader(dir, ReadOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if rec, err := r.Next(t.Context()); err != nil || rec.Seq != 1 {
		t.Fatalf("%+v, %v", rec, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*pollEvery)
	defer cancel()
	if rec, err := r.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("half a line: %+v, %v", rec, err)
	}
	appendBytes(t, filepath.Join(dir, segmentName(1)), string(lines[1][50:])+string(lines[2]))
	for _, want := range []uint64{2, 3} {
		if rec, err := r.Next(t.Context()); err != nil || rec.Seq != want {
			t.Fatalf("%+v, %v", rec, err)
		}
	}
}

// TestFollowRollback: records that the writer took back after they were shown are
// followed by those that replaced them, from the gap record on.
func TestFollowRollback(t *testing.T) {
	t.Parallel()
	dir, fs := newDir(t), &faults{}
	l := mustOpen(t, fs.options(Options{Dir: dir}))
	r, err := NewReader(dir, ReadOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	shown, again := map[uint64]string{}, 0
	showUntil := func(event Event) {
		t.Helper()
		for {
			rec, err := r.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if shown[rec.Seq] == rec.Hash {
				t.Errorf("shown twice: %+v", rec)
			}
			if shown[rec.Seq] != "" {
				again++
			}
			if shown[rec.Seq] = rec.Hash; rec.Event == event {
				return
			}
		}
	}
	for range 3 {
		mustSync(t, l, Record{Event: EventStart})
		for range 5 {
			l.Append(Record{Event: EventCall})
		}
		l.Append(Record{Event: EventFreeze})
		showUntil(EventFreeze)
		fs.set(func(f *faults) { f.sync = errInjected })
		_, _ = l.Sync(t.Context(), Record{Event: EventIntent})
		fs.set(func(f *faults) { f.sync = nil })
		time.Sleep(retryEvery)
		for range 9 { // past the place where the reader stands
			mustSync(t, l, Record{Event: EventReload, Detail: strings.Repeat("x", 99)})
		}
		mustSync(t, l, Record{Event: EventStop})
		showUntil(EventStop)
	}
	mustClose(t, l)
	for _, rec := range mustRead(t, dir) {
		if shown[rec.Seq] != rec.Hash {
			t.Errorf("not shown: %+v", rec)
		}
	}
	if again == 0 {
		t.Error("nothing that was shown was taken back")
	}
}
