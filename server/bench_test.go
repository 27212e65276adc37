package server

import (
	"context"
	"net"
	"runtime"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

// echo answers at once: a broker without a broker.
type echo struct {
	brokerv1.UnimplementedBrokerServiceServer
}

func (echo) Can(context.Context, *brokerv1.CanRequest) (*brokerv1.CanResponse, error) {
	return &brokerv1.CanResponse{Allowed: true, Rule: "policy.yaml:6", Explanation: "granted by policy.yaml:6"}, nil
}

// BenchmarkRead holds a READ call of the broker against a bare grpc-go server
// with the same messages over the same kind of socket and TLS, call by call in
// turn. It reports both medians, their ratio, and the allocations that the
// broker adds.
func BenchmarkRead(b *testing.B) {
	r := newRig(b, everything, nil)
	bare := grpc.NewServer(grpc.Creds(credentials.NewTLS(r.serverTLS())))
	brokerv1.RegisterBrokerServiceServer(bare, echo{})
	l, err := net.Listen("unix", r.path("echo.sock"))
	if err != nil {
		b.Fatal(err)
	}
	go bare.Serve(l)
	defer bare.Stop()
	broker := brokerv1.NewBrokerServiceClient(r.dial(hermes))
	socket := r.socket
	r.socket = r.path("echo.sock")
	baseline := brokerv1.NewBrokerServiceClient(r.dial(hermes))
	r.socket = socket
	req := &brokerv1.CanRequest{Permission: "containers.list", Resource: "containers/web"}
	call := func(c brokerv1.BrokerServiceClient) time.Duration {
		begun := time.Now()
		if _, err := c.Can(context.Background(), req); err != nil {
			b.Fatal(err)
		}
		return time.Since(begun)
	}
	allocs := func(c brokerv1.BrokerServiceClient) float64 {
		const n = 2000
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range n {
			call(c)
		}
		runtime.ReadMemStats(&after)
		return float64(after.Mallocs-before.Mallocs) / n
	}
	for range 500 {
		call(broker)
		call(baseline)
	}
	var ours, theirs []time.Duration
	for b.Loop() {
		ours = append(ours, call(broker))
		theirs = append(theirs, call(baseline))
	}
	p50 := func(d []time.Duration) float64 { slices.Sort(d); return float64(d[len(d)/2]) }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(p50(ours), "broker-p50-ns")
	b.ReportMetric(p50(theirs), "bare-p50-ns")
	b.ReportMetric(p50(ours)/p50(theirs), "p50-ratio")
	b.ReportMetric(allocs(broker)-allocs(baseline), "allocs-added")
}
