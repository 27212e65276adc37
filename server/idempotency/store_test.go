package idempotency

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// rig is a store in a file, which reopen opens anew as a crash would leave it.
type rig struct {
	*Store
	t    testing.TB
	path string
	c    *clock
	keep time.Duration
	most int
}

func newRig(t testing.TB, most int) *rig {
	t.Helper()
	r := &rig{t: t, path: filepath.Join(t.TempDir(), "requests.jsonl"), c: newClock(), keep: time.Hour, most: most}
	r.open()
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func (r *rig) open() {
	r.t.Helper()
	s, err := Open(r.path, r.keep, r.most, r.c.now)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Store = s
}

func (r *rig) reopen() {
	r.t.Helper()
	_ = r.Close()
	r.open()
}

func sum(s string) (d [32]byte) { copy(d[:], s); return d }

func answer(s string) Answer { return Answer{Response: []byte(s)} }

func (r *rig) begin(id string, want State) Answer {
	r.t.Helper()
	got, a, err := r.Begin("ada", id, sum(id))
	if err != nil || got != want {
		r.t.Fatalf("Begin(%s) is %v, %v; want %v", id, got, err, want)
	}
	return a
}

func (r *rig) done(id string) {
	r.t.Helper()
	if a := r.begin(id, Done); string(a.Response) != "answer of "+id {
		r.t.Errorf("the answer of %s is %q", id, a.Response)
	}
}

func (r *rig) record(id string) {
	r.t.Helper()
	if err := r.Record("ada", id); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) finish(id string) {
	r.t.Helper()
	if err := r.Finish("ada", id, answer("answer of "+id)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) abandon(id string, recorded bool) {
	r.t.Helper()
	if err := r.Abandon("ada", id, recorded); err != nil {
		r.t.Fatal(err)
	}
}

func TestStates(t *testing.T) {
	r := newRig(t, 100)
	r.begin("a", New)
	r.begin("a", Running)
	r.record("a")
	r.begin("a", Running)
	if s, _, _ := r.Begin("ada", "a", sum("other")); s != Reused {
		t.Errorf("another request with a running ID: %v", s)
	}
	r.finish("a")
	r.done("a")
	if s, a, _ := r.Begin("ada", "a", sum("other")); s != Reused || a.Response != nil {
		t.Errorf("another request with an answered ID: %v, %q", s, a.Response)
	}
	// Another caller's IDs are its own: neither its answers nor its use show.
	if s, a, _ := r.Begin("bob", "a", sum("a")); s != New || a.Response != nil {
		t.Errorf("another caller: %v, %q", s, a.Response)
	}
	r.begin("status", New)
	r.record("status")
	if err := r.Finish("ada", "status", Answer{Status: []byte("failed")}); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	r.done("a")
	if a := r.begin("status", Done); string(a.Status) != "failed" || a.Response != nil {
		t.Errorf("a failure's answer: %+v", a)
	}
}

// TestBegunIsUnknownAfterACrash defends against acting twice: what was recorded
// and not answered is never New again, and what was not recorded did not happen.
func TestBegunIsUnknownAfterACrash(t *testing.T) {
	r := newRig(t, 100)
	r.begin("held", New)
	r.begin("recorded", New)
	r.record("recorded")
	r.reopen()
	r.begin("held", New)
	for range 3 { // Compaction at each Open keeps it.
		r.begin("recorded", Unknown)
		r.reopen()
	}
	if s, _, _ := r.Begin("ada", "recorded", sum("other")); s != Reused {
		t.Errorf("another request with an unknown ID: %v", s)
	}
}

func TestAbandon(t *testing.T) {
	r := newRig(t, 100)
	r.begin("before", New)
	r.abandon("before", false)
	r.begin("after", New)
	r.record("after")
	r.abandon("after", true)
	for range 2 {
		r.begin("before", New)
		r.begin("after", New)
		r.reopen()
	}
}

func TestRetention(t *testing.T) {
	r := newRig(t, 100)
	for _, id := range []string{"done", "unknown"} {
		r.begin(id, New)
		r.record(id)
	}
	r.finish("done")
	r.reopen()
	r.c.advance(r.keep - time.Nanosecond)
	r.done("done")
	r.begin("unknown", Unknown)
	r.reopen()
	r.done("done")
	r.begin("unknown", Unknown)
	r.c.advance(time.Nanosecond)
	r.begin("done", New)
	r.begin("unknown", New)
}

// TestRunningOutlivesRetention defends against two effects of one ID at once
// when a change takes longer than IDs are kept.
func TestRunningOutlivesRetention(t *testing.T) {
	r := newRig(t, 1)
	r.begin("slow", New)
	r.record("slow")
	r.c.advance(10 * r.keep)
	r.begin("slow", Running)
	if _, _, err := r.Begin("ada", "other", sum("other")); !errors.Is(err, ErrFull) {
		t.Errorf("a running ID gave way: %v", err)
	}
	r.finish("slow")
}

// TestFullForgetsNothing defends against pushing an ID out before its time by
// using many others.
func TestFullForgetsNothing(t *testing.T) {
	r := newRig(t, 10)
	for i := range 10 {
		r.begin(fmt.Sprint(i), New)
		r.record(fmt.Sprint(i))
		r.finish(fmt.Sprint(i))
		r.c.advance(time.Minute)
	}
	for range 100 {
		if _, _, err := r.Begin("ada", "more", sum("more")); !errors.Is(err, ErrFull) {
			t.Fatalf("one more than there may be: %v", err)
		}
	}
	if _, _, err := r.Begin("bob", "his", sum("his")); err != nil {
		t.Errorf("another caller's share: %v", err)
	}
	if err := r.Abandon("bob", "his", false); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	for i := range 10 {
		r.done(fmt.Sprint(i))
	}
	r.c.advance(r.keep - 10*time.Minute) // The first is due, the second not yet.
	r.begin("more", New)
	r.done("1")
	if _, _, err := r.Begin("ada", "0", sum("0")); !errors.Is(err, ErrFull) {
		t.Errorf("the place of the first was given twice: %v", err)
	}
}

func TestTornLastLine(t *testing.T) {
	r := newRig(t, 100)
	r.begin("a", New)
	r.record("a")
	r.finish("a")
	r.begin("b", New)
	r.record("b")
	whole, err := os.ReadFile(r.path)
	if err != nil {
		t.Fatal(err)
	}
	last := bytes.LastIndexByte(whole[:len(whole)-1], '\n') + 1
	for cut := last; cut < len(whole); cut++ {
		_ = r.Close()
		if err := os.WriteFile(r.path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		r.open()
		r.done("a")
		r.begin("b", New)
		// What is written next does not stand behind the torn piece.
		r.record("b")
		r.reopen()
		r.begin("b", Unknown)
	}
}

// TestDamageRefusesToOpen defends against acting twice on a file that lost some
// of what it knew.
func TestDamageRefusesToOpen(t *testing.T) {
	r := newRig(t, 100)
	for _, id := range []string{"a", "b", "c"} {
		r.begin(id, New)
		r.record(id)
		r.finish(id)
	}
	whole, err := os.ReadFile(r.path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(whole), "\n")
	for name, bad := range map[string]string{
		"no JSON":      "\x00\x00\x00\n",
		"empty line":   "\n",
		"half a line":  lines[2][:len(lines[2])/2] + "\n",
		"two in one":   strings.TrimSuffix(lines[2], "\n") + lines[3],
		"no digest":    `{"caller":"ada","id":"b"}` + "\n",
		"short digest": `{"caller":"ada","id":"b","digest":"AAAA"}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Join(lines[:2], "") + bad + strings.Join(lines[3:], "")
			if err := os.WriteFile(r.path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := Open(r.path, time.Hour, 100, r.c.now)
			if err == nil {
				_ = s.Close()
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), r.path) || !strings.Contains(err.Error(), "line 3") {
				t.Errorf("the error does not name the place: %v", err)
			}
			if now, _ := os.ReadFile(r.path); string(now) != text {
				t.Error("the evidence was changed")
			}
		})
	}
}

func TestConcurrentUse(t *testing.T) {
	r := newRig(t, 1000)
	var w sync.WaitGroup
	var mu sync.Mutex
	began := map[string]int{}
	for g := range 8 {
		w.Go(func() {
			for i := range 20 {
				id := fmt.Sprint(i)
				s, _, err := r.Begin("ada", id, sum(id))
				if err != nil {
					t.Error(err)
				}
				if s != New {
					continue
				}
				if g%2 == 1 && i%5 == 0 {
					r.abandon(id, false)
					continue
				}
				mu.Lock()
				began[id]++
				mu.Unlock()
				r.record(id)
				r.finish(id)
			}
		})
	}
	w.Wait()
	for id, n := range began {
		if n != 1 {
			t.Errorf("%s was begun %d times", id, n)
		}
	}
	r.reopen()
	for id := range began {
		r.done(id)
	}
}
