// Package limits bounds how much one caller may ask for.
//
// A caller has a rate of calls, a number of calls and a number of streams that
// may run at once; an object has a number of changes. Every caller is counted
// alone, so that one of them cannot take another's share. Memory is bounded by
// the callers the policy names and the objects the engine has: what is full
// again is forgotten.
package limits

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Config are the bounds of each caller.
type Config struct {
	// Rate is calls a second, Burst how many at once.
	Rate  float64
	Burst int
	// Calls and Streams may run at the same time.
	Calls, Streams int
}

// Limits counts. The zero value is not usable; see New.
type Limits struct {
	cfg Config
	now func() time.Time

	mu      sync.Mutex
	callers map[string]*caller
	objects map[budget]*rate.Limiter
}

// budget is part of the key, so that a caller with two grants on one object
// cannot empty the count of one by using the other in between.
type budget struct {
	object string
	count  int
	per    time.Duration
}

type caller struct {
	rate           *rate.Limiter
	calls, streams int
}

// New makes empty counters.
func New(cfg Config, now func() time.Time) *Limits {
	return &Limits{cfg: cfg, now: now, callers: map[string]*caller{}, objects: map[budget]*rate.Limiter{}}
}

// Refusal says which bound was met.
type Refusal int

// The bounds.
const (
	Admitted Refusal = iota
	Rate
	Concurrency
)

// Admit takes a call of a caller into account. When it is admitted, release must
// be called at its end; when its rate is used up, wait says for how long.
func (l *Limits) Admit(id string, stream bool) (refused Refusal, wait time.Duration, release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.callers[id]
	if c == nil {
		l.forget()
		c = &caller{rate: rate.NewLimiter(rate.Limit(l.cfg.Rate), l.cfg.Burst)}
		l.callers[id] = c
	}
	now := l.now()
	if !c.rate.AllowN(now, 1) {
		return Rate, until(c.rate, now), nil
	}
	open, most := &c.calls, l.cfg.Calls
	if stream {
		open, most = &c.streams, l.cfg.Streams
	}
	if *open >= most {
		return Concurrency, 0, nil
	}
	*open++
	return Admitted, 0, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		*open--
	}
}

// Change takes a change of an object into account, under a budget of count
// changes per time; each budget of an object is counted by itself. When it is
// not allowed, wait says when it will be.
func (l *Limits) Change(object string, count int, per time.Duration) (ok bool, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	key := budget{object, count, per}
	b := l.objects[key]
	if b == nil {
		l.forget()
		b = rate.NewLimiter(rate.Every(per/time.Duration(count)), count)
		l.objects[key] = b
	}
	if !b.AllowN(now, 1) {
		return false, until(b, now)
	}
	return true, 0
}

// until is how long a limiter takes to have a token again.
func until(b *rate.Limiter, now time.Time) time.Duration {
	missing := 1 - b.TokensAt(now)
	return max(time.Millisecond, time.Duration(missing/float64(b.Limit())*float64(time.Second)))
}

// forget drops what is as good as new. It runs only when something is added.
func (l *Limits) forget() {
	now := l.now()
	for id, c := range l.callers {
		if c.calls == 0 && c.streams == 0 && c.rate.TokensAt(now) >= float64(l.cfg.Burst) {
			delete(l.callers, id)
		}
	}
	for object, b := range l.objects {
		if b.TokensAt(now) >= float64(b.Burst()) {
			delete(l.objects, object)
		}
	}
}
