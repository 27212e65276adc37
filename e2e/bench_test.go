package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	dockerclient "github.com/docker/docker/client"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/e2e/testhost"
)

func p50(d []time.Duration) float64 { slices.Sort(d); return float64(d[len(d)/2]) }

func sdk(b *testing.B) *dockerclient.Client {
	b.Helper()
	cli, err := dockerclient.NewClientWithOpts(dockerclient.WithHost("unix://"+host.Socket), dockerclient.WithAPIVersionNegotiation())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cli.Close() })
	return cli
}

const unlimited = "limits:\n  rate: 1000000\n  burst: 1000000\n"

// BenchmarkListContainers lists 20 containers through the broker and by the
// Docker SDK directly, in turn, on the same engine.
func BenchmarkListContainers(b *testing.B) {
	br := newBroker(b, "brokerd", host.Socket, unlimited)
	for i := range 20 {
		run(b, testhost.ContainerSpec{Name: fmt.Sprintf("web-%d", i), Cmd: []string{"serve"}})
	}
	c, direct := br.dial("hermes").Containers(), sdk(b)
	ctx := context.Background()
	var ours, theirs []time.Duration
	for b.Loop() {
		begun := time.Now()
		page, err := c.ListContainers(ctx, &brokerv1.ListContainersRequest{})
		ours = append(ours, time.Since(begun))
		if err != nil || len(page.GetContainers()) != 20 {
			b.Fatal(len(page.GetContainers()), err)
		}
		begun = time.Now()
		all, err := direct.ContainerList(ctx, container.ListOptions{All: true})
		theirs = append(theirs, time.Since(begun))
		if err != nil || len(all) != 20 {
			b.Fatal(len(all), err)
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(p50(ours), "broker-p50-ns")
	b.ReportMetric(p50(theirs), "sdk-p50-ns")
	b.ReportMetric(p50(ours)/p50(theirs), "p50-ratio")
}

// BenchmarkFollowLogs reads the same log to its end through the broker and from
// the engine's own API, in turn. A follower that does not read is there all the
// while; it may not cost memory.
func BenchmarkFollowLogs(b *testing.B) {
	br := newBroker(b, "brokerd", host.Socket, unlimited)
	ctx := context.Background()
	run(b, testhost.ContainerSpec{Name: "web", Cmd: []string{"chatter", "0"}})
	time.Sleep(time.Second)
	if err := host.API(ctx, "POST", "/containers/web/kill", nil, nil); err != nil {
		b.Fatal(err)
	}
	if _, err := host.Wait(ctx, "web"); err != nil {
		b.Fatal(err)
	}
	c, direct := br.dial("hermes").Containers(), sdk(b)
	before := br.rss()
	asleep, err := br.dial("hermes").Containers().ContainerLogs(ctx, &brokerv1.ContainerLogsRequest{Container: "web", Follow: true})
	if err == nil {
		_, err = asleep.Recv()
	}
	if err != nil {
		b.Fatal(err)
	}
	var ours, theirs []time.Duration
	lines, most := 0, int64(0)
	for b.Loop() {
		begun := time.Now()
		s, err := c.ContainerLogs(ctx, &brokerv1.ContainerLogsRequest{Container: "web", Follow: true})
		if err != nil {
			b.Fatal(err)
		}
		lines = 0
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
			lines += len(m.GetEntries())
		}
		ours = append(ours, time.Since(begun))
		most = max(most, br.rss())
		begun = time.Now()
		raw, err := direct.ContainerLogs(ctx, "web", container.LogsOptions{ShowStdout: true, ShowStderr: true, Follow: true})
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, raw)
		raw.Close()
		theirs = append(theirs, time.Since(begun))
		if err != nil || n == 0 {
			b.Fatal(n, err)
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(lines), "lines")
	b.ReportMetric(float64(lines)/(p50(ours)/1e9), "broker-lines/s")
	b.ReportMetric(float64(lines)/(p50(theirs)/1e9), "engine-lines/s")
	b.ReportMetric(p50(theirs)/p50(ours), "throughput-ratio")
	b.ReportMetric(mib(most-before), "slow-reader-MiB")
}

// BenchmarkStart starts brokerd until it serves, and looks at it when it idles.
func BenchmarkStart(b *testing.B) {
	br := newBroker(b, "brokerd", host.Socket, "")
	if _, err := br.dial("hermes").Broker().WhoAmI(context.Background(), &brokerv1.WhoAmIRequest{}); err != nil {
		b.Fatal(err)
	}
	idle := br.rss()
	var took []time.Duration
	for b.Loop() {
		br.stop(os.Interrupt)
		begun := time.Now()
		br.start()
		took = append(took, time.Since(begun))
	}
	st, err := os.Stat(bin + "/brokerd")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(p50(took)/1e6, "start-ms")
	b.ReportMetric(mib(idle), "idle-RSS-MiB")
	b.ReportMetric(mib(st.Size()), "binary-MiB")
}
