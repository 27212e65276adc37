// Command agent plays Hermes in the end-to-end suite: it runs in a container,
// with a certificate and nothing else, and does through the Go client what an
// agent does. It prints one line for each step.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Println("error:", client.Reason(err), err)
		os.Exit(1)
	}
}

func run(address, target string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := client.Dial(ctx, client.Config{
		Address: address, CertFile: "/certs/hermes.crt", KeyFile: "/certs/hermes.key", BundleFile: "/certs/bundle.crt",
		ServerID: "spiffe://home.example/broker",
	})
	if err != nil {
		return err
	}
	defer c.Close()
	who, err := c.Broker().WhoAmI(ctx, &brokerv1.WhoAmIRequest{})
	if err != nil {
		return err
	}
	fmt.Println("whoami:", who.GetSpiffeId(), "from", who.GetPeerAddress())
	list, err := c.Containers().ListContainers(ctx, &brokerv1.ListContainersRequest{})
	if err != nil {
		return err
	}
	for _, item := range list.GetContainers() {
		fmt.Println("container:", item.GetName(), item.GetState())
	}
	if _, err := c.Containers().Restart(ctx, &brokerv1.RestartRequest{Container: target}); err != nil {
		return err
	}
	fmt.Println("restarted:", target)
	_, err = c.Containers().Restart(ctx, &brokerv1.RestartRequest{Container: "vault"})
	fmt.Println("vault:", client.Reason(err))
	for entry, err := range c.FollowLogs(ctx, &brokerv1.ContainerLogsRequest{Container: target, Tail: 3}) {
		if err == nil {
			fmt.Printf("log: %s\n", append(entry.GetStdout(), entry.GetStderr()...))
		}
		return err
	}
	return nil
}
