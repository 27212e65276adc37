package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/gortium/hermes-broker/api/brokerv1"
)

// changed is the answer to a change of one container.
type changed interface {
	proto.Message
	GetContainer() *brokerv1.ContainerStatus
}

// dryRunFlag is --dry-run, the request's validate_only.
func dryRunFlag(cmd *cobra.Command, to *bool) {
	cmd.Flags().BoolVar(to, "dry-run", false, "check everything, grants included, and do nothing")
}

func graceFlag(cmd *cobra.Command, to *time.Duration) {
	cmd.Flags().DurationVar(to, "grace", 0, "how long it may take to stop before it is killed, 0s to 300s (default: the container's own)")
}

func (a *app) startCommand() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:     "start NAME...",
		Short:   "Start containers",
		Example: "  brokerctl containers start ollama\n  brokerctl containers start ollama media-1 --dry-run",
	}
	dryRunFlag(cmd, &dryRun)
	return a.eachContainer(cmd, "started", &dryRun, func(ctx context.Context, name string) (changed, error) {
		ctx, cancel := a.deadline(ctx, 0)
		defer cancel()
		return a.conn.Containers().Start(ctx, &brokerv1.StartRequest{Container: name, ValidateOnly: dryRun})
	})
}

func (a *app) stopCommand() *cobra.Command {
	var dryRun bool
	var grace time.Duration
	cmd := &cobra.Command{
		Use:     "stop NAME...",
		Short:   "Stop containers",
		Example: "  brokerctl containers stop ollama\n  brokerctl containers stop ollama media-1 --grace 30s",
	}
	dryRunFlag(cmd, &dryRun)
	graceFlag(cmd, &grace)
	return a.eachContainer(cmd, "stopped", &dryRun, func(ctx context.Context, name string) (changed, error) {
		ctx, cancel := a.deadline(ctx, grace)
		defer cancel()
		return a.conn.Containers().Stop(ctx, &brokerv1.StopRequest{Container: name, Grace: graceOf(cmd, grace), ValidateOnly: dryRun})
	})
}

func (a *app) restartCommand() *cobra.Command {
	var dryRun bool
	var grace time.Duration
	cmd := &cobra.Command{
		Use:     "restart NAME...",
		Short:   "Restart containers",
		Example: "  brokerctl containers restart ollama\n  brokerctl containers restart ollama --grace 30s --dry-run",
	}
	dryRunFlag(cmd, &dryRun)
	graceFlag(cmd, &grace)
	return a.eachContainer(cmd, "restarted", &dryRun, func(ctx context.Context, name string) (changed, error) {
		ctx, cancel := a.deadline(ctx, grace)
		defer cancel()
		return a.conn.Containers().Restart(ctx, &brokerv1.RestartRequest{Container: name, Grace: graceOf(cmd, grace), ValidateOnly: dryRun})
	})
}

func graceOf(cmd *cobra.Command, grace time.Duration) *durationpb.Duration {
	if !cmd.Flags().Changed("grace") {
		return nil
	}
	return durationpb.New(grace)
}

// each makes cmd change the things it names, one after the other. A failure is
// reported and does not keep the others from their turn.
func (a *app) each(cmd *cobra.Command, dryRun *bool, change func(context.Context, string) (view, error)) *cobra.Command {
	cmd.Args = cobra.MinimumNArgs(1)
	verb := cmd.Name()
	cmd.RunE = a.run(func(ctx context.Context, names []string) error {
		if _, err := a.client(ctx); err != nil {
			return err
		}
		a.changing = !*dryRun
		code := exitOK
		for _, name := range names {
			v, err := change(ctx, name)
			if err == nil {
				err = a.showNext(v)
			}
			if err != nil {
				this := a.report(ctx, failed(verb+" "+name, err))
				code = firstOf(code, this)
			}
			if ctx.Err() != nil {
				return silent(exitInterrupted)
			}
		}
		if code != exitOK {
			return silent(code)
		}
		return nil
	})
	return cmd
}

// eachContainer is each for containers.
func (a *app) eachContainer(cmd *cobra.Command, done string, dryRun *bool, change func(context.Context, string) (changed, error)) *cobra.Command {
	cmd.ValidArgsFunction = a.completeContainer()
	return a.each(cmd, dryRun, func(ctx context.Context, name string) (view, error) {
		resp, err := change(ctx, name)
		if err != nil {
			return view{}, err
		}
		return changedView(resp, done, *dryRun), nil
	})
}

func changedView(resp changed, done string, dryRun bool) view {
	c := resp.GetContainer()
	format := "%s: %s, now %s"
	if dryRun {
		format = "%s: would be %s, is %s (dry run)"
	}
	return view{value: resp, names: []string{c.GetName()}, text: line(format, c.GetName(), done, statusText(c))}
}

func statusText(c *brokerv1.ContainerStatus) string {
	if c.GetState() == brokerv1.ContainerState_CONTAINER_STATE_UNSPECIFIED {
		return "in an unknown state"
	}
	return enumText(c.GetState(), statePrefix)
}

func (a *app) removeCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rm NAME",
		Short: "Remove a stopped container; its volumes stay",
		Long: `Remove a stopped container. Its volumes stay; its own file system is lost.

What would be removed is shown first. The removal then needs --yes, or a yes to
the question where there is a terminal to ask on.`,
		Example: `  brokerctl containers rm media-old --dry-run
  brokerctl containers rm media-old --yes
  brokerctl containers rm media-old --force --yes`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeContainer(),
	}
	cmd.Flags().BoolVar(&force, "force", false, "kill it first if it runs; needs containers.remove_force")
	consent := consentFlags(cmd, "remove without asking")
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		c, err := a.client(ctx)
		if err != nil {
			return err
		}
		return failed("rm "+args[0], destroy(ctx, a, consent, destruction[*brokerv1.RemoveResponse]{
			call: func(ctx context.Context, preview *brokerv1.RemoveResponse) (*brokerv1.RemoveResponse, error) {
				ctx, cancel := a.deadline(ctx, 0)
				defer cancel()
				return c.Containers().Remove(ctx, &brokerv1.RemoveRequest{
					Container: args[0], Force: force, ExpectedId: preview.GetContainer().GetId(), ValidateOnly: preview == nil,
				})
			},
			would: func(r *brokerv1.RemoveResponse) string {
				c := r.GetContainer()
				return fmt.Sprintf("removes for good: %s (ID %s, %s); volumes stay", c.GetName(), shortID(c.GetId()), statusText(c))
			},
			view: func(r *brokerv1.RemoveResponse, dryRun bool) view {
				v := changedView(r, "removed", dryRun)
				if !dryRun {
					v.text = line("%s: removed", r.GetContainer().GetName())
				}
				return v
			},
		}))
	})
	return cmd
}
