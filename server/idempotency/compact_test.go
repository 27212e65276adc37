package idempotency

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// fill makes the next line that is written one too many, so that it compacts.
func (r *rig) fill() { r.lines = 1000 + 4*len(r.known) }

func TestCompactionKeepsWhatIsKnown(t *testing.T) {
	r := newRig(t, 100)
	r.begin("old", New)
	r.record("old")
	r.finish("old")
	r.c.advance(r.keep)
	for _, id := range []string{"done", "recorded", "void"} {
		r.begin(id, New)
		r.record(id)
	}
	r.finish("done")
	r.begin("held", New)
	r.abandon("void", true)
	before := size(t, r.path)
	r.fill()
	r.begin("last", New)
	r.record("last") // Compacts.
	if after := size(t, r.path); after >= before {
		t.Fatalf("the file has %d bytes, before it %d", after, before)
	}
	r.finish("last") // Into the new file.
	r.begin("recorded", Running)
	r.reopen()
	r.done("done")
	r.done("last")
	r.begin("recorded", Unknown)
	for _, id := range []string{"old", "void", "held"} {
		r.begin(id, New)
	}
}

// TestAbandonThatCompacts: the compaction does not bring back what the line
// before it voided, nor what was given back before it was recorded.
func TestAbandonThatCompacts(t *testing.T) {
	r := newRig(t, 100)
	r.begin("held", New)
	r.begin("void", New)
	r.record("void")
	r.fill()
	r.abandon("void", true)
	r.abandon("held", false)
	if n := size(t, r.path); n != 0 {
		t.Errorf("the file has %d bytes of nothing", n)
	}
	r.reopen()
	r.begin("held", New)
	r.begin("void", New)
}

// TestFileStaysShort defends the disk against a caller who changes and changes.
func TestFileStaysShort(t *testing.T) {
	r := newRig(t, 50)
	for i := range 3000 {
		id := fmt.Sprint(i)
		r.begin(id, New)
		r.record(id)
		r.finish(id)
		r.c.advance(r.keep / 10)
	}
	// At most 1000 lines and those of the IDs that are known.
	if n := size(t, r.path); n > 250_000 {
		t.Errorf("%d bytes", n)
	}
}

// TestCrashWithinCompaction: before the rename there is a part of a new file
// beside the old one, after it the new one alone.
func TestCrashWithinCompaction(t *testing.T) {
	r := newRig(t, 100)
	r.begin("a", New)
	r.record("a")
	r.finish("a")
	if err := os.WriteFile(filepath.Join(filepath.Dir(r.path), ".requests.jsonl123"), []byte(`{"time":"20`), 0o600); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	r.done("a")
	if err := r.compact(); err != nil {
		t.Fatal(err)
	}
	r.open() // As if the process had ended there, its descriptor still open.
	r.done("a")
}

// TestCompactionFails: the old file stays, and stays in use.
func TestCompactionFails(t *testing.T) {
	r := newRig(t, 100)
	r.begin("a", New)
	r.record("a")
	dir := filepath.Dir(r.path)
	away := dir + ".away"
	if err := os.Rename(dir, away); err != nil {
		t.Fatal(err)
	}
	r.fill()
	r.finish("a") // Durable, although there is nowhere to put a new file.
	if err := os.Rename(away, dir); err != nil {
		t.Fatal(err)
	}
	r.begin("b", New)
	r.record("b")
	r.reopen()
	r.done("a")
	r.begin("b", Unknown)
}

// TestFileIsPrivate: answers are nobody else's business, and no piece of them
// passes through a directory that is shared.
func TestFileIsPrivate(t *testing.T) {
	shared := t.TempDir()
	t.Setenv("TMPDIR", shared)
	var st os.FileInfo
	before, err := os.Stat(shared)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, path: filepath.Join(t.TempDir(), "requests.jsonl"), c: newClock(), keep: 1, most: 1}
	r.open()
	defer r.Close()
	if st, err = os.Stat(r.path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if after, err := os.Stat(shared); err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("TMPDIR was used: %v", err)
	}
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}
