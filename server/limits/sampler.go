package limits

import (
	"sync"
	"time"
)

// Sampler thins out records of refusals, so that whoever is refused cannot fill
// the disk with the record of it: one a second for each key, the next of which
// says how many it stands for.
type Sampler struct {
	mu   sync.Mutex
	now  func() time.Time
	seen map[string]*sample
}

type sample struct {
	last    time.Time
	skipped int
}

// maxSampled bounds the keys; those beyond share one.
const maxSampled = 1024

// owed is how long a key is kept whose skipped refusals no record has told of.
const owed = time.Minute

// NewSampler makes an empty sampler.
func NewSampler(now func() time.Time) *Sampler {
	return &Sampler{now: now, seen: map[string]*sample{}}
}

// Take reports whether this refusal is to be recorded, and for how many that
// were not recorded before it the record stands as well.
func (s *Sampler) Take(key string) (skipped int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if len(s.seen) >= maxSampled {
		for k, v := range s.seen {
			// A key that is owed a record is kept for longer, not for ever.
			if idle := now.Sub(v.last); idle >= owed || v.skipped == 0 && idle >= time.Second {
				delete(s.seen, k)
			}
		}
		if len(s.seen) >= maxSampled {
			key = ""
		}
	}
	e := s.seen[key]
	if e == nil {
		e = &sample{}
		s.seen[key] = e
	}
	if now.Sub(e.last) < time.Second {
		e.skipped++
		return 0, false
	}
	skipped, e.skipped, e.last = e.skipped, 0, now
	return skipped, true
}
