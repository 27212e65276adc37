package audit

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(killedDirEnv); dir != "" {
		os.Exit(runKilled(dir))
	}
	goleak.VerifyTestMain(m)
}

func newDir(t testing.TB) string { return filepath.Join(t.TempDir(), "audit") }

func mustOpen(t testing.TB, opts Options) *Log {
	t.Helper()
	l, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close(context.Background()) })
	return l
}

func mustSync(t testing.TB, l *Log, rec Record) uint64 {
	t.Helper()
	seq, err := l.Sync(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

func mustClose(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func mustVerify(t testing.TB, dir string) Report {
	t.Helper()
	r, err := Verify(dir, VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// wantFault looks once, where Verify would look again and take its time.
func wantFault(t testing.TB, dir, head string) *Fault {
	t.Helper()
	var expected link
	if head != "" {
		var err error
		if expected.seq, expected.hash, err = parseHead(head); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err := verify(dir, expected)
	var fault *Fault
	if !errors.As(err, &fault) {
		t.Fatalf("Verify: got %v, want a *Fault", err)
	}
	return fault
}

// readAll returns the records and the bad lines of a log.
func readAll(t testing.TB, dir string, opts ReadOptions) (recs []Record, bad []*BadLine) {
	t.Helper()
	r, err := NewReader(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for {
		rec, err := r.Next(t.Context())
		var line *BadLine
		switch {
		case errors.Is(err, io.EOF):
			return recs, bad
		case errors.As(err, &line):
			bad = append(bad, line)
		case err != nil:
			t.Fatal(err)
		default:
			recs = append(recs, rec)
		}
	}
}

func countEvents(recs []Record) map[Event]int {
	n := map[Event]int{}
	for _, r := range recs {
		n[r.Event]++
	}
	return n
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still not so: " + what)
		}
	}
}
