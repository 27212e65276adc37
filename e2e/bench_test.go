package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
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

// BenchmarkFirewall10000 reads a firewall of 10,000 rules through the broker, and
// has the tool that it asks write them out, in turn. It reports both medians, their
// ratio, and what brokerd keeps of memory.
func BenchmarkFirewall10000(b *testing.B) {
	h := newHost(b, "", "unshare", "--net")
	br := makeBroker(b, "brokerd", host.Socket, unlimited+"host:\n  socket: "+h.socket()+"\n")
	br.policy(hostPolicy)
	br.run()
	n := &netns{h, br, b, nil}
	var rules strings.Builder
	rules.WriteString("*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n")
	for i := range 10_000 {
		fmt.Fprintf(&rules, "-A INPUT -s 10.%d.%d.0/24 -p tcp -m tcp --dport %d -m comment --comment \"rule %d\" -j ACCEPT\n", i/250, i%250, 1+i%60000, i)
	}
	rules.WriteString("COMMIT\n")
	n.in(rules.String(), "iptables-nft-restore")
	c := br.dial("hermes").Firewall()
	before := br.rss()
	var ours, theirs []time.Duration
	for b.Loop() {
		begun := time.Now()
		resp, err := c.FirewallStatus(context.Background(), &brokerv1.FirewallStatusRequest{PageSize: 500})
		ours = append(ours, time.Since(begun))
		if err != nil || len(resp.GetRules()) != 500 || resp.GetSources()[0].GetRules() != 10_000 {
			b.Fatal(len(resp.GetRules()), err)
		}
		begun = time.Now()
		for _, tool := range [][]string{{"iptables-nft-save", "-c"}, {"ip6tables-nft-save", "-c"}, {"iptables-legacy-save", "-c"}, {"ip6tables-legacy-save", "-c"}, {"nft", "-j", "list", "ruleset"}} {
			if out, err := exec.Command("nsenter", append([]string{"-t", fmt.Sprint(h.pid()), "-n"}, tool...)...).Output(); err != nil {
				b.Fatal(tool, err, len(out))
			}
		}
		theirs = append(theirs, time.Since(begun))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(p50(ours)/1e6, "broker-p50-ms")
	b.ReportMetric(p50(theirs)/1e6, "tools-p50-ms")
	b.ReportMetric(p50(ours)/p50(theirs), "p50-ratio")
	b.ReportMetric(float64(br.rss()-before)/(1<<20), "rss-added-MiB")
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
