package docker

import (
	"io"
	"sync"
	"time"
)

// gathered reads ahead of its reader. The engine sends a followed log line by
// line and stalls when they are not taken at once, and to wake up for each and
// pass it on by itself would cost more than the line. So one goroutine takes
// what comes, and Read is woken for the first of it, and again only when there
// is enough or patience is over.
type gathered struct {
	body io.ReadCloser

	mu     sync.Mutex
	change sync.Cond // Of what follows; signalled only when somebody needs it.
	buf    []byte
	err    error
	closed bool
	want   int // Read waits for so much; 0 when it does not wait.

	last time.Time // When Read last returned.
	done chan struct{}
}

const (
	patience  = 2 * time.Millisecond
	enough    = batchBytes
	maxGather = 128 << 10
)

func gather(body io.ReadCloser) *gathered {
	g := &gathered{body: body, buf: make([]byte, 0, maxGather), done: make(chan struct{})}
	g.change.L = &g.mu
	go g.fill()
	return g
}

func (g *gathered) fill() {
	defer close(g.done)
	piece := make([]byte, maxGather/2)
	for {
		n, err := g.body.Read(piece)
		g.mu.Lock()
		for len(g.buf) > maxGather-n && !g.closed {
			g.change.Wait()
		}
		if g.closed {
			g.mu.Unlock()
			return
		}
		g.buf, g.err = append(g.buf, piece[:n]...), err
		if g.want > 0 && (len(g.buf) >= g.want || err != nil) {
			g.change.Broadcast()
		}
		g.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Read gives what was gathered.
func (g *gathered) Read(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.buf) == 0 && g.err == nil { // A timer of the Read before may wake it early.
		g.await(1)
	}
	if wait := patience - time.Since(g.last); wait > 0 && len(g.buf) < enough && g.err == nil {
		over := time.AfterFunc(wait, func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.want = 0
			g.change.Broadcast()
		})
		g.await(enough)
		over.Stop()
	}
	g.last = time.Now()
	if len(g.buf) == 0 {
		return 0, g.err
	}
	n := copy(p, g.buf)
	g.buf = g.buf[:copy(g.buf, g.buf[n:])]
	g.change.Broadcast() // There is room again.
	return n, nil
}

// await waits until so much is there, the body has ended, or want is reset.
func (g *gathered) await(want int) {
	g.want = want
	for g.want > 0 && len(g.buf) < g.want && g.err == nil {
		g.change.Wait()
	}
	g.want = 0
}

// Close closes the body and waits for the end of reading ahead.
func (g *gathered) Close() error {
	g.mu.Lock()
	g.closed = true
	g.change.Broadcast()
	g.mu.Unlock()
	err := g.body.Close()
	<-g.done
	return err
}
