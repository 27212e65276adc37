package client_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"log"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

// cfg is what a caller is given: where the broker is, who it is, and where the
// caller's own certificate lies.
var cfg client.Config

func Example() {
	defer exampleBroker()()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	me, err := c.Broker().WhoAmI(ctx, &brokerv1.WhoAmIRequest{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(me.GetSpiffeId())

	_, err = c.Containers().Restart(ctx, &brokerv1.RestartRequest{
		Container: "ollama",
		Grace:     durationpb.New(30 * time.Second),
	})
	switch client.Reason(err) {
	case brokerv1.ErrorReason_ERROR_REASON_CHANGE_BUDGET_EXHAUSTED:
		after, _ := client.RetryAfter(err)
		fmt.Println("restarted too often; possible again in", after)
	case brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED:
		fmt.Println("not granted; ask the operator")
	default:
		fmt.Println(err)
	}
	// Output:
	// spiffe://home.example/agent/hermes
	// restarted too often; possible again in 42s
}

func ExampleClient_FollowLogs() {
	defer exampleBroker()()

	c, err := client.Dial(context.Background(), cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	for entry, err := range c.FollowLogs(context.Background(), &brokerv1.ContainerLogsRequest{Container: "ollama", Tail: 2}) {
		if err != nil {
			log.Fatal(err)
		}
		// Hostile text: %q, or a filter, before a terminal sees it.
		fmt.Printf("%d %q\n", entry.GetLogTime().GetSeconds(), entry.GetStdout())
	}
	// Output:
	// 4 "line 6"
	// 5 "line 7"
}

// exampleBroker runs a broker on loopback until the returned function is called.
func exampleBroker() (stop func()) {
	dir, err := os.MkdirTemp("", "example")
	check(err)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	a := newAuthority()
	b := &broker{
		restart: func(*brokerv1.RestartRequest) error {
			return refusal(codes.ResourceExhausted, "CHANGE_BUDGET_EXHAUSTED", 42*time.Second)
		},
		logs: func(_ int, req *brokerv1.ContainerLogsRequest, s grpc.ServerStreamingServer[brokerv1.ContainerLogsResponse]) error {
			return sendLog(req, s, len(times))
		},
	}
	shutDown := b.start(lis, a, a.issue(leaf{ids: []string{serverID}}), tls.VersionTLS13)
	cfg = writeFiles(dir, a, a.issue(leaf{ids: []string{callerID}})).config(b.address)
	return func() {
		shutDown()
		_ = os.RemoveAll(dir)
	}
}
