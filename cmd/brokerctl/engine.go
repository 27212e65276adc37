package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

func (a *app) engineCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "engine",
		Short: "See and tidy up the container engine as a whole",
		RunE:  a.group,
	}
	cmd.AddCommand(a.engineInfoCommand(), a.engineVersionCommand(), a.diskUsageCommand(), a.pruneCommand(), a.eventsCommand())
	return cmd
}

// describe makes cmd show the one answer to a question without arguments.
func describe[R proto.Message](a *app, cmd *cobra.Command, takes time.Duration, call func(context.Context, *client.Client) (R, error), text func(R) *table) *cobra.Command {
	cmd.Args = cobra.NoArgs
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		resp, err := ask(ctx, a, takes, call)
		if err != nil {
			return failed("engine "+cmd.Name(), err)
		}
		return a.show(view{value: resp, text: func(w io.Writer, _ bool) error { return text(resp).write(w) }})
	})
	return cmd
}

func (a *app) engineInfoCommand() *cobra.Command {
	return describe(a, &cobra.Command{
		Use:     "info",
		Short:   "Describe the engine and its host",
		Example: "  brokerctl engine info\n  brokerctl engine info -o json",
	}, 0, func(ctx context.Context, c *client.Client) (*brokerv1.InfoResponse, error) {
		return c.Engine().Info(ctx, &brokerv1.InfoRequest{})
	}, a.infoTable)
}

func (a *app) infoTable(r *brokerv1.InfoResponse) *table {
	t := a.newTable()
	t.field("Engine", r.GetServerVersion())
	t.field("API", r.GetApiVersion())
	t.field("Operating system", r.GetOperatingSystem())
	t.field("Kernel", r.GetKernelVersion())
	t.field("Platform", strings.Trim(r.GetOsType()+"/"+r.GetArchitecture(), "/"))
	t.field("CPUs", fmt.Sprint(r.GetCpus()))
	t.field("Memory", binarySize(uint64(max(r.GetMemoryBytes(), 0))))
	t.field("Storage driver", r.GetStorageDriver())
	t.field("Cgroups", strings.TrimSpace(r.GetCgroupDriver()+" "+r.GetCgroupVersion()))
	t.field("Runtime", r.GetDefaultRuntime())
	t.field("Security", strings.Join(r.GetSecurityOptions(), " "))
	t.field("Live restore", yesNo(r.GetLiveRestore()))
	t.field("Swarm", yesNo(r.GetSwarm()))
	t.field("Clock", shortTime(r.GetSystemTime()))
	free := "not known to the broker"
	if r.GetDataTotalBytes() > 0 {
		free = sizeText(r.GetDataFreeBytes()) + " free of " + sizeText(r.GetDataTotalBytes())
	}
	t.field("Data", free)
	return t
}

func (a *app) engineVersionCommand() *cobra.Command {
	return describe(a, &cobra.Command{
		Use:     "version",
		Short:   "Show the versions of the engine and its parts",
		Example: "  brokerctl engine version\n  brokerctl engine version -o yaml",
	}, 0, func(ctx context.Context, c *client.Client) (*brokerv1.VersionResponse, error) {
		return c.Engine().Version(ctx, &brokerv1.VersionRequest{})
	}, func(r *brokerv1.VersionResponse) *table {
		t := a.newTable("PART", "VERSION", "REVISION", "GO", "API")
		t.add("engine", r.GetVersion(), shortID(r.GetGitCommit()), r.GetGoVersion(), r.GetMinApiVersion()+" to "+r.GetApiVersion())
		for _, c := range r.GetComponents() {
			t.add(c.GetName(), c.GetVersion(), "", "", "")
		}
		return t
	})
}

func (a *app) diskUsageCommand() *cobra.Command {
	return describe(a, &cobra.Command{
		Use:   "df",
		Short: "Show what takes space on the engine",
		Long: `Show what takes space on the engine, of what you may list. Images share layers, so
that their sizes do not add up; the last line has all layers, each counted once.
The engine measures anew each time, which can take long.`,
		Example: "  brokerctl engine df\n  brokerctl engine df -o json",
	}, 90*time.Second, func(ctx context.Context, c *client.Client) (*brokerv1.DiskUsageResponse, error) {
		return c.Engine().DiskUsage(ctx, &brokerv1.DiskUsageRequest{})
	}, func(r *brokerv1.DiskUsageResponse) *table {
		t := a.newTable("KIND", "COUNT", "ACTIVE", "SIZE", "RECLAIMABLE")
		row := func(kind string, u *brokerv1.DiskUsage) {
			t.add(kind, fmt.Sprint(u.GetCount()), fmt.Sprint(u.GetActive()), sizeText(u.GetSizeBytes()), sizeText(u.GetReclaimableBytes()))
		}
		row("containers", r.GetContainers())
		row("images", r.GetImages())
		row("volumes", r.GetVolumes())
		row("build cache", r.GetBuildCache())
		t.add("all layers", "", "", sizeText(r.GetLayersBytes()), "")
		return t
	})
}
