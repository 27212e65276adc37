package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

func (a *app) networksCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "networks",
		Aliases: []string{"network"},
		Short:   "List networks",
		RunE:    a.group,
	}
	cmd.AddCommand(a.listNetworksCommand())
	return cmd
}

func (a *app) listNetworksCommand() *cobra.Command {
	req := &brokerv1.ListNetworksRequest{PageSize: pageSize}
	cmd := &cobra.Command{
		Use:     "ls",
		Short:   "List the networks within your grants, by name",
		Example: "  brokerctl networks ls\n  brokerctl networks ls --name 'media-*' -o wide",
		Args:    cobra.NoArgs,
	}
	patternFlag(cmd, &req.NamePattern, "only names that match")
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		all, err := list(ctx, a, func(ctx context.Context, c *client.Client, token string) (*brokerv1.ListNetworksResponse, error) {
			req.PageToken = token
			return c.Engine().ListNetworks(ctx, req)
		}, (*brokerv1.ListNetworksResponse).GetNetworks)
		if err != nil {
			return failed("list networks", err)
		}
		return a.showList(&brokerv1.ListNetworksResponse{Networks: all}, namesOf(all, (*brokerv1.Network).GetName),
			func(wide bool) *table { return a.networkTable(all, wide) })
	})
	return cmd
}

func (a *app) networkTable(all []*brokerv1.Network, wide bool) *table {
	header := []string{"NAME", "DRIVER", "SCOPE", "SUBNETS", "INTERNAL", "AGE"}
	if wide {
		header = append(header, "ID", "IPV6")
	}
	t := a.newTable(header...)
	for _, n := range all {
		row := []string{n.GetName(), n.GetDriver(), n.GetScope(), strings.Join(n.GetSubnets(), ", "), yesNo(n.GetInternal()), age(n.GetCreateTime())}
		if wide {
			row = append(row, shortID(n.GetId()), yesNo(n.GetIpv6()))
		}
		t.add(row...)
	}
	return t
}
