package e2e

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/e2e/testhost"
)

// TestFollowerIsCut: a follower of logs whose grant is removed loses its stream
// within a second of the policy's being written.
func TestFollowerIsCut(t *testing.T) {
	b := newBroker(t, "brokerd-race", host.Socket, "")
	run(t, testhost.ContainerSpec{Name: "web", Cmd: []string{"chatter", "20"}})
	c := b.dial("hermes").Containers()
	for name, edit := range map[string]func() string{
		"denied":         func() string { return strings.Replace(policyText, "containers/hidden", "containers/web", 1) },
		"grant removed":  func() string { return strings.Replace(policyText, "containers.logs, ", "", 1) },
		"caller removed": func() string { return strings.ReplaceAll(policyText, hermesID, "spiffe://home.example/agent/other") },
	} {
		t.Run(name, func(t *testing.T) {
			b.policy(policyText)
			var s brokerv1.ContainerService_ContainerLogsClient
			eventually(t, "following", func() bool {
				var err error
				if s, err = c.ContainerLogs(t.Context(), &brokerv1.ContainerLogsRequest{Container: "web", Follow: true, Tail: 1}); err == nil {
					_, err = s.Recv()
				}
				return err == nil
			})
			b.policy(edit())
			begun := time.Now()
			var err error
			for err == nil && time.Since(begun) < 10*time.Second {
				_, err = s.Recv()
			}
			want(t, err, brokerv1.ErrorReason_ERROR_REASON_ACCESS_REVOKED)
			if cut := time.Since(begun); cut > time.Second {
				t.Errorf("cut after %s", cut)
			} else {
				t.Logf("cut after %s", cut)
			}
		})
	}
}

// rss is brokerd's resident memory in bytes.
func (b *broker) rss() int64 {
	b.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", b.process.Process.Pid))
	b.must(err)
	pages, err := strconv.ParseInt(strings.Fields(string(data))[1], 10, 64)
	b.must(err)
	return pages * int64(os.Getpagesize())
}

// TestSlowReaders: followers that read nothing do not grow the broker's memory,
// keep nobody else from reading, and are cut in the end.
func TestSlowReaders(t *testing.T) {
	b := newBroker(t, "brokerd", host.Socket, "limits:\n  send_timeout: 4s\n")
	run(t, testhost.ContainerSpec{Name: "web", Cmd: []string{"chatter", "0"}})
	slow, quick := b.dial("hermes").Containers(), b.dial("hermes").Containers()
	follow := func(c brokerv1.ContainerServiceClient) brokerv1.ContainerService_ContainerLogsClient {
		t.Helper()
		s, err := c.ContainerLogs(t.Context(), &brokerv1.ContainerLogsRequest{Container: "web", Follow: true})
		if err == nil {
			_, err = s.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := b.rss()
	var asleep []brokerv1.ContainerService_ContainerLogsClient
	for range 16 {
		asleep = append(asleep, follow(slow))
	}
	awake := follow(quick)
	most := int64(0)
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		if _, err := awake.Recv(); err != nil {
			t.Fatal(err)
		}
		most = max(most, b.rss())
	}
	t.Logf("brokerd: %.1f MiB before, at most %.1f MiB with 16 sleeping followers of a flood", mib(before), mib(most))
	if most-before > 32<<20 {
		t.Errorf("16 sleeping followers cost %.1f MiB", mib(most-before))
	}
	time.Sleep(3 * time.Second)
	for _, s := range asleep {
		var err error
		for range 10_000 {
			if _, err = s.Recv(); err != nil {
				break
			}
		}
		want(t, err, brokerv1.ErrorReason_ERROR_REASON_SLOW_READER)
	}
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// TestSixtyFourFollowers of one chatty container each get its lines, in order.
func TestSixtyFourFollowers(t *testing.T) {
	b := newBroker(t, "brokerd-race", host.Socket, "")
	run(t, testhost.ContainerSpec{Name: "web", Cmd: []string{"chatter", "50"}})
	c := b.dial("hermes").Containers()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var followers sync.WaitGroup
	for i := range 64 {
		followers.Go(func() {
			s, err := c.ContainerLogs(ctx, &brokerv1.ContainerLogsRequest{Container: "web", Follow: true, Tail: 1, Timestamps: true})
			last := time.Time{}
			for n := 0; n < 100 && err == nil; {
				var m *brokerv1.ContainerLogsResponse
				if m, err = s.Recv(); err == nil {
					for _, e := range m.GetEntries() {
						if at := e.GetLogTime().AsTime(); at.Before(last) {
							t.Errorf("follower %d: %s after %s", i, at, last)
						} else {
							last = at
						}
						n++
					}
				}
			}
			if err != nil {
				t.Errorf("follower %d: %v", i, err)
			}
		})
	}
	followers.Wait()
	s, err := c.ContainerLogs(ctx, &brokerv1.ContainerLogsRequest{Container: "web", Follow: true})
	_ = s
	if err != nil {
		t.Error(err)
	}
}
