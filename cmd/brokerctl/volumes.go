package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

func (a *app) volumesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "volumes",
		Aliases: []string{"volume"},
		Short:   "List volumes",
		RunE:    a.group,
	}
	cmd.AddCommand(a.listVolumesCommand())
	return cmd
}

func (a *app) listVolumesCommand() *cobra.Command {
	req := &brokerv1.ListVolumesRequest{PageSize: pageSize}
	cmd := &cobra.Command{
		Use:     "ls",
		Short:   "List the volumes within your grants, by name",
		Example: "  brokerctl volumes ls\n  brokerctl volumes ls --name 'media-*' -o name",
		Args:    cobra.NoArgs,
	}
	patternFlag(cmd, &req.NamePattern, "only names that match")
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		all, err := list(ctx, a, func(ctx context.Context, c *client.Client, token string) (*brokerv1.ListVolumesResponse, error) {
			req.PageToken = token
			return c.Engine().ListVolumes(ctx, req)
		}, (*brokerv1.ListVolumesResponse).GetVolumes)
		if err != nil {
			return failed("list volumes", err)
		}
		return a.showList(&brokerv1.ListVolumesResponse{Volumes: all}, namesOf(all, (*brokerv1.Volume).GetName),
			func(bool) *table { return a.volumeTable(all) })
	})
	return cmd
}

func (a *app) volumeTable(all []*brokerv1.Volume) *table {
	t := a.newTable("NAME", "DRIVER", "SCOPE", "AGE")
	for _, v := range all {
		t.add(v.GetName(), v.GetDriver(), v.GetScope(), age(v.GetCreateTime()))
	}
	return t
}
