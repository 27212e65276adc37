package limits

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// clock is a time that tests move.
type clock struct{ t time.Time }

func newClock() *clock                   { return &clock{time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }
func (c *clock) now() time.Time          { return c.t }
func (c *clock) advance(d time.Duration) { c.t = c.t.Add(d) }

func TestRate(t *testing.T) {
	c := newClock()
	l := New(Config{Rate: 10, Burst: 5, Calls: 100, Streams: 100}, c.now)
	admitted := func(id string) (n int) {
		for {
			refused, wait, release := l.Admit(id, false)
			switch refused {
			case Admitted:
				n++
				release()
			case Rate:
				if wait <= 0 || wait > 100*time.Millisecond {
					t.Errorf("wait %s", wait)
				}
				if release != nil {
					t.Error("a refused call has a release")
				}
				return n
			default:
				t.Fatalf("refused for %v", refused)
			}
		}
	}
	if n := admitted("a"); n != 5 {
		t.Errorf("a burst of %d, want 5", n)
	}
	if n := admitted("b"); n != 5 {
		t.Errorf("one caller took from another: %d of 5", n)
	}
	c.advance(300 * time.Millisecond)
	if n := admitted("a"); n != 3 {
		t.Errorf("%d calls in 300 ms at 10 a second", n)
	}
	c.advance(time.Hour)
	if n := admitted("a"); n != 5 {
		t.Errorf("after an hour a burst of %d, want 5", n)
	}
}

// TestWaitIsEnough: who waits as told is admitted, and who waits less is not.
func TestWaitIsEnough(t *testing.T) {
	c := newClock()
	l := New(Config{Rate: 3, Burst: 1, Calls: 1, Streams: 1}, c.now)
	_, _, release := l.Admit("a", false)
	release()
	_, wait, _ := l.Admit("a", false)
	c.advance(wait - 10*time.Millisecond)
	if refused, _, _ := l.Admit("a", false); refused != Rate {
		t.Error("admitted before its time")
	}
	c.advance(11 * time.Millisecond)
	if refused, _, _ := l.Admit("a", false); refused != Admitted {
		t.Error("not admitted after the wait")
	}
}

func TestConcurrency(t *testing.T) {
	l := New(Config{Rate: 1e6, Burst: 1e6, Calls: 2, Streams: 1}, newClock().now)
	take := func(stream bool) (Refusal, func()) {
		refused, _, release := l.Admit("a", stream)
		return refused, release
	}
	_, first := take(false)
	_, _ = take(false)
	if refused, release := take(false); refused != Concurrency || release != nil {
		t.Errorf("a third call: %v", refused)
	}
	refused, stream := take(true)
	if refused != Admitted {
		t.Error("calls took a stream's place")
	}
	if refused, _ := take(true); refused != Concurrency {
		t.Error("a second stream")
	}
	first()
	if refused, _ := take(true); refused != Concurrency {
		t.Error("a call's release freed a stream")
	}
	if refused, _ := take(false); refused != Admitted {
		t.Error("the released place is not free")
	}
	stream()
	if refused, _ := take(true); refused != Admitted {
		t.Error("the released stream is not free")
	}
	if refused, _, _ := l.Admit("b", false); refused != Admitted {
		t.Error("one caller took another's place")
	}
}

func TestConcurrentUse(t *testing.T) {
	l := New(Config{Rate: 1e9, Burst: 1e9, Calls: 1000, Streams: 1000}, time.Now)
	var w sync.WaitGroup
	for range 8 {
		w.Go(func() {
			for i := range 500 {
				if _, _, release := l.Admit("a", i%2 == 0); release != nil {
					release()
				}
				l.Change("a", 5, time.Minute)
			}
		})
	}
	w.Wait()
	if c := l.callers["a"]; c.calls != 0 || c.streams != 0 {
		t.Errorf("%d calls and %d streams were never given back", c.calls, c.streams)
	}
}

// TestIdleIsForgotten defends memory against callers and objects that come once.
func TestIdleIsForgotten(t *testing.T) {
	c := newClock()
	l := New(Config{Rate: 10, Burst: 10, Calls: 10, Streams: 10}, c.now)
	_, _, _ = l.Admit("open call", false)
	_, _, _ = l.Admit("open stream", true)
	for i := range 1000 {
		_, _, release := l.Admit(fmt.Sprint("once ", i), false)
		release()
		l.Change(fmt.Sprint("object ", i), 6, time.Minute)
		c.advance(time.Second)
	}
	if n := len(l.callers); n > 4 {
		t.Errorf("%d callers are remembered", n)
	}
	if l.callers["open call"] == nil || l.callers["open stream"] == nil {
		t.Error("a caller with something open was forgotten, and its bound with it")
	}
	if n := len(l.objects); n > 11 { // One change is regained in 10 s.
		t.Errorf("%d objects are remembered", n)
	}
}

// TestForgettingGivesNothing: what is not full again is kept, so that coming and
// going earns no call.
func TestForgettingGivesNothing(t *testing.T) {
	c := newClock()
	l := New(Config{Rate: 1, Burst: 3, Calls: 10, Streams: 10}, c.now)
	for range 3 {
		_, _, release := l.Admit("a", false)
		release()
		l.Change("a", 3, 3*time.Minute)
	}
	c.advance(500 * time.Millisecond)
	_, _, _ = l.Admit("other", false)
	l.Change("other", 3, time.Minute)
	if refused, _, _ := l.Admit("a", false); refused != Rate {
		t.Error("a used-up rate was forgotten")
	}
	if ok, _ := l.Change("a", 3, 3*time.Minute); ok {
		t.Error("a used-up budget was forgotten")
	}
}

func TestChange(t *testing.T) {
	c := newClock()
	l := New(Config{}, c.now)
	for range 6 {
		if ok, _ := l.Change("web", 6, time.Minute); !ok {
			t.Fatal("within the budget")
		}
	}
	ok, wait := l.Change("web", 6, time.Minute)
	if ok || wait < 9*time.Second || wait > 10*time.Second {
		t.Errorf("over the budget: %v, wait %s", ok, wait)
	}
	if ok, _ := l.Change("db", 6, time.Minute); !ok {
		t.Error("another object's budget was taken")
	}
	c.advance(wait)
	if ok, _ := l.Change("web", 6, time.Minute); !ok {
		t.Error("not allowed after the wait")
	}
	if ok, _ := l.Change("web", 6, time.Minute); ok {
		t.Error("twice after one wait")
	}
}

// TestAlternatingBudgets defends a budget against a caller with two grants on
// one object that have different ones: neither use may fill up the other.
func TestAlternatingBudgets(t *testing.T) {
	c := newClock()
	l := New(Config{}, c.now)
	small, large := 0, 0
	for range 100 {
		if ok, _ := l.Change("web", 3, time.Minute); ok {
			small++
		}
		if ok, _ := l.Change("web", 10, time.Minute); ok {
			large++
		}
	}
	if small != 3 || large != 10 {
		t.Errorf("%d changes under 3/minute and %d under 10/minute", small, large)
	}
}
