package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/gortium/hermes-broker/api/brokerv1"
)

const (
	eventKindPrefix   = "EVENT_KIND_"
	eventActionPrefix = "EVENT_ACTION_"
)

func (a *app) eventsCommand() *cobra.Command {
	var since, until string
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happens on the engine, as it happens",
		Long: `Show what happens on the engine, as it happens, to what you may list; go on by
itself when the broker was away. The engine remembers about 256 events; what is
older cannot be asked for.`,
		Example: `  brokerctl engine events
  brokerctl engine events --since 1h --kind container,image
  brokerctl engine events --since 10m --until 0s -o json`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&since, "since", "", "also what happened from then on: a duration ago (10m) or a time (RFC 3339)")
	cmd.Flags().StringVar(&until, "until", "", "end there, as --since; 0s is now")
	kinds := enumFlag[brokerv1.EventKind](cmd, "kind", "only events of these kinds of thing", eventKindPrefix)
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		now := time.Now()
		req := &brokerv1.EventsRequest{}
		var err error
		if req.Since, err = moment("--since", since, now); err != nil {
			return err
		}
		if req.Until, err = moment("--until", until, now); err != nil {
			return err
		}
		if req.Kinds, err = kinds(); err != nil {
			return err
		}
		c, err := a.client(ctx)
		if err != nil {
			return err
		}
		if a.timeoutSet {
			var cancel context.CancelFunc
			ctx, cancel = a.deadline(ctx, 0)
			defer cancel()
		}
		for e, err := range c.FollowEvents(ctx, req) {
			if err != nil {
				return failed("events", err)
			}
			if err := a.showNext(eventView(e)); err != nil {
				return err
			}
		}
		return nil
	})
	return cmd
}

// eventView shows an event on one line: when, what kind of thing, what happened,
// to which.
func eventView(e *brokerv1.EventsResponse) view {
	return view{value: e, names: []string{firstOf(e.GetName(), e.GetId())}, text: line("%s  %-9s  %-10s  %s  %s",
		firstOf(shortTime(e.GetEventTime()), "-"), enumText(e.GetKind(), eventKindPrefix), eventAction(e),
		firstOf(e.GetName(), "-"), firstOf(shortDigest(e.GetId()), "-"))}
}

// eventAction is what happened, or the engine's word for what this build does not
// know.
func eventAction(e *brokerv1.EventsResponse) string {
	if e.GetAction() == brokerv1.EventAction_EVENT_ACTION_UNSPECIFIED {
		return firstOf(e.GetActionText(), "unknown")
	}
	return enumText(e.GetAction(), eventActionPrefix)
}
