package limits

import (
	"fmt"
	"testing"
	"time"
)

func TestSampler(t *testing.T) {
	c := newClock()
	s := NewSampler(c.now)
	want := func(key string, skipped int, ok bool) {
		t.Helper()
		if n, is := s.Take(key); n != skipped || is != ok {
			t.Errorf("%s: %d, %v; want %d, %v", key, n, is, skipped, ok)
		}
	}
	want("a", 0, true)
	want("a", 0, false)
	want("a", 0, false)
	want("b", 0, true)
	c.advance(999 * time.Millisecond)
	want("a", 0, false)
	c.advance(time.Millisecond)
	want("a", 3, true)
	c.advance(time.Second)
	want("a", 0, true)
}

// TestSamplerIsBounded defends memory, and the record of everybody else, against
// somebody who is refused under ever new keys.
func TestSamplerIsBounded(t *testing.T) {
	c := newClock()
	s := NewSampler(c.now)
	flood := func(name string) (records int) {
		for i := range 5000 {
			for range 2 {
				if _, ok := s.Take(fmt.Sprint(name, i)); ok {
					records++
				}
			}
		}
		return records
	}
	if n := flood("first"); n > maxSampled+1 {
		t.Errorf("%d records in a moment", n)
	}
	if n := len(s.seen); n > maxSampled+1 {
		t.Errorf("%d keys are remembered", n)
	}
	// When the flood is over, keys are told apart again.
	c.advance(2 * time.Minute)
	for _, key := range []string{"x", "y", "z"} {
		if _, ok := s.Take(key); !ok {
			t.Errorf("%s shares a record with the flood of two minutes ago", key)
		}
	}
}
