package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
	"github.com/gortium/hermes-broker/e2e/testhost"
	"github.com/gortium/hermes-broker/server/audit"
)

const (
	crashRestarts = 1000
	crashKills    = 200
	crashWorkers  = 3
)

// TestKilledAtAnyMoment kills brokerd -9 at random moments of a thousand
// restarts on the real engine. Every restart has a request_id, repeated until it
// is answered for good. Then: no effect without an intent before it, no request
// that took effect twice, no answer whose outcome is not on record, and a chain
// that verifies after every single start.
func TestKilledAtAnyMoment(t *testing.T) {
	b := newBroker(t, "brokerd", host.Socket, "limits:\n  burst: 100000\n  rate: 10000\n")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	ids := make([]string, crashWorkers)
	for i := range ids {
		ids[i] = run(t, testhost.ContainerSpec{Name: fmt.Sprintf("crash-%d", i), Cmd: []string{"serve"}})
	}
	events, err := host.FollowEvents(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()

	var left, finished atomic.Int64
	left.Store(crashRestarts)
	type answer struct {
		worker  int
		id      string
		ok      bool
		unknown bool
	}
	var mu sync.Mutex
	var answers []answer
	var workers sync.WaitGroup
	for w := range crashWorkers {
		workers.Go(func() {
			c, err := client.Dial(ctx, b.config("hermes", "unix://"+b.socket))
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for left.Add(-1) >= 0 {
				a := answer{worker: w, id: client.NewRequestID()}
				req := &brokerv1.RestartRequest{Container: fmt.Sprintf("crash-%d", w), Grace: durationpb.New(0), RequestId: a.id}
				for ctx.Err() == nil {
					_, err := c.Containers().Restart(ctx, req)
					if a.ok = err == nil; a.ok {
						break
					}
					if a.unknown = client.Reason(err) == brokerv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN; a.unknown {
						break
					}
					time.Sleep(5 * time.Millisecond)
				}
				mu.Lock()
				answers = append(answers, a)
				mu.Unlock()
				finished.Add(1)
			}
		})
	}
	done := make(chan struct{})
	go func() { workers.Wait(); close(done) }()
	kills := 0
	for stop := false; !stop; {
		// Spread over what is left to do, and at no particular moment of it.
		pace := time.Duration(rand.Int64N(int64(400 * time.Millisecond)))
		select {
		case <-done:
			stop = true
		case <-time.After(pace):
			if kills == crashKills || int64(kills)*crashRestarts > (finished.Load()+crashWorkers)*crashKills {
				continue
			}
			b.stop(os.Kill)
			kills++
			b.start()
			if _, err := audit.Verify(b.dir+"/state/audit", audit.VerifyOptions{}); err != nil {
				t.Fatalf("after kill %d: %v", kills, err)
			}
		}
	}
	b.stop(os.Interrupt)
	time.Sleep(time.Second) // What the engine was in the middle of.
	all, err := events.Events()
	if err != nil {
		t.Fatal(err)
	}
	judge(t, b, ids, all, func(yield func(worker int, id string, ok bool)) {
		for _, a := range answers {
			yield(a.worker, a.id, a.ok)
		}
	})
	unknown := 0
	for _, a := range answers {
		if a.unknown {
			unknown++
		}
	}
	t.Logf("%d restarts asked for, %d kills, %d answered OK, %d unknown", len(answers), kills, len(answers)-unknown, unknown)
	if len(answers) != crashRestarts || kills != crashKills {
		t.Errorf("%d restarts and %d kills; %d and %d were meant", len(answers), kills, crashRestarts, crashKills)
	}
}

func judge(t *testing.T, b *broker, ids []string, events []testhost.Event, answers func(func(worker int, id string, ok bool))) {
	t.Helper()
	intents := map[string][]time.Time{} // By container.
	outcomes := map[string]bool{}       // Request IDs with an OK on record.
	asked := make([]int, len(ids))      // Requests by worker.
	effects := map[string][]time.Time{} // By container.

	r, err := audit.NewReader(b.dir+"/state/audit", audit.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for {
		rec, err := r.Next(context.Background())
		if errors.Is(err, io.EOF) {
			break
		}
		var bad *audit.BadLine
		if errors.As(err, &bad) {
			continue // What a kill left of a line; Verify has judged it.
		}
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case rec.Event == audit.EventIntent:
			intents[rec.Target] = append(intents[rec.Target], rec.Time)
		case rec.Event == audit.EventOutcome && rec.Code == "OK":
			outcomes[requestID(rec)] = true
		}
	}
	lost := 0
	answers(func(worker int, id string, ok bool) {
		asked[worker]++
		if ok && !outcomes[id] {
			lost++
		}
	})
	if lost > 0 {
		t.Errorf("%d restarts were acknowledged and have no outcome on record", lost)
	}
	for _, e := range events {
		if e.Type == "container" && e.Action == "restart" {
			effects[e.ID] = append(effects[e.ID], e.Time)
		}
	}
	total := 0
	for w, id := range ids {
		total += len(effects[id])
		if len(effects[id]) > asked[w] {
			t.Errorf("%d requests restarted container %d %d times", asked[w], w, len(effects[id]))
		}
		for n, at := range effects[id] {
			if n >= len(intents[id]) || intents[id][n].After(at) {
				t.Errorf("effect %d on container %d has no intent before it", n, w)
				break
			}
		}
	}
	t.Logf("%d effects on the engine", total)
	if total < crashRestarts/2 {
		t.Errorf("only %d effects were seen", total)
	}
}

// requestID is the request_id of a record's request.
func requestID(rec audit.Record) string {
	var req struct {
		RequestID string `json:"request_id"`
	}
	_ = json.Unmarshal(rec.Request, &req)
	return req.RequestID
}
