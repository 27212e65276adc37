package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

const operationPrefix = "OPERATION_STATE_"

func (a *app) opsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ops",
		Aliases: []string{"op", "operations"},
		Short:   "Follow and cancel long work that outlives its call",
		RunE:    a.group,
	}
	cmd.AddCommand(a.listOperationsCommand(), a.showOperationCommand(), a.watchOperationCommand(), a.cancelOperationCommand())
	return cmd
}

// operationName takes a whole name or the ID in it.
func operationName(arg string) string {
	return "operations/" + strings.TrimPrefix(arg, "operations/")
}

func (a *app) listOperationsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List operations, newest first",
		Example: `  brokerctl ops ls
  brokerctl ops ls --state running -o name`,
		Args: cobra.NoArgs,
	}
	states := enumFlag[brokerv1.OperationState](cmd, "state", "only these states", operationPrefix)
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		req := &brokerv1.ListOperationsRequest{PageSize: pageSize}
		var err error
		if req.States, err = states(); err != nil {
			return err
		}
		all, err := a.listOperations(ctx, req)
		if err != nil {
			return failed("list operations", err)
		}
		return a.showList(&brokerv1.ListOperationsResponse{Operations: all}, namesOf(all, (*brokerv1.Operation).GetName),
			func(wide bool) *table { return a.operationsTable(all, wide) })
	})
	return cmd
}

// listOperations reads all pages.
func (a *app) listOperations(ctx context.Context, req *brokerv1.ListOperationsRequest) ([]*brokerv1.Operation, error) {
	return list(ctx, a, func(ctx context.Context, c *client.Client, token string) (*brokerv1.ListOperationsResponse, error) {
		req.PageToken = token
		return c.Operations().ListOperations(ctx, req)
	}, (*brokerv1.ListOperationsResponse).GetOperations)
}

func (a *app) operationsTable(all []*brokerv1.Operation, wide bool) *table {
	header := []string{"NAME", "STATE", "METHOD", "ON", "AGE", "PROBLEM"}
	if wide {
		header = append(header, "TARGET", "CALLER", "DETACHED", "REQUEST ID")
	}
	t := a.newTable(header...)
	for _, o := range all {
		row := cells(plain, o.GetName(), operationState(o), o.GetMethod(), o.GetResource(), age(o.GetCreateTime()), o.GetErrorReason())
		row[1].colour = operationColour(o.GetState())
		if wide {
			row = append(row, cells(plain, o.GetTarget(), o.GetCaller(), yesNo(o.GetDetached()), o.GetRequestId())...)
		}
		t.addCells(row...)
	}
	return t
}

func operationState(o *brokerv1.Operation) string {
	if o.GetState() == brokerv1.OperationState_OPERATION_STATE_UNSPECIFIED {
		return "unknown"
	}
	return enumText(o.GetState(), operationPrefix)
}

func operationColour(s brokerv1.OperationState) colour {
	switch s {
	case brokerv1.OperationState_OPERATION_STATE_SUCCEEDED:
		return green
	case brokerv1.OperationState_OPERATION_STATE_FAILED:
		return red
	case brokerv1.OperationState_OPERATION_STATE_CANCELLED, brokerv1.OperationState_OPERATION_STATE_INTERRUPTED:
		return yellow
	}
	return plain
}

func (a *app) showOperationCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "Describe an operation and how far it is",
		Example:           "  brokerctl ops show operations/QX3M7KZ2V5AEJ4YPT6WNHDBRCU\n  brokerctl ops show QX3M7KZ2V5AEJ4YPT6WNHDBRCU -o json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeOperation(),
		RunE: a.run(func(ctx context.Context, args []string) error {
			c, err := a.client(ctx)
			if err != nil {
				return err
			}
			ctx, cancel := a.deadline(ctx, 0)
			defer cancel()
			resp, err := c.Operations().GetOperation(ctx, &brokerv1.GetOperationRequest{Name: operationName(args[0])})
			if err != nil {
				return failed("show "+args[0], err)
			}
			return a.show(view{
				value: resp,
				names: []string{resp.GetOperation().GetName()},
				text:  func(w io.Writer, _ bool) error { return a.operationTable(resp).write(w) },
			})
		}),
	}
}

func (a *app) operationTable(r *brokerv1.GetOperationResponse) *table {
	t := a.newTable()
	o := r.GetOperation()
	t.field("Name", o.GetName())
	t.addCells(cell{"State:", bold}, cell{operationState(o), operationColour(o.GetState())})
	t.field("Method", o.GetMethod())
	t.field("On", o.GetResource())
	t.field("Target", o.GetTarget())
	t.field("Caller", o.GetCaller())
	t.field("Request ID", o.GetRequestId())
	t.field("Detached", yesNo(o.GetDetached()))
	t.field("Began", shortTime(o.GetCreateTime()))
	t.field("Ended", shortTime(o.GetEndTime()))
	t.field("Events", fmt.Sprint(o.GetLastSequence()))
	switch event := r.GetLatest().GetPull().GetEvent().(type) {
	case *brokerv1.PullResponse_Progress:
		t.field("Progress", progressText(event.Progress))
	case *brokerv1.PullResponse_Result:
		t.field("Result", resultText(event.Result, false))
	}
	if o.GetErrorReason() != "" || o.GetErrorMessage() != "" {
		t.field("Problem", fmt.Sprintf("%s [%s]", o.GetErrorMessage(), o.GetErrorReason()))
	}
	if o.GetState() == brokerv1.OperationState_OPERATION_STATE_INTERRUPTED {
		t.field("Left behind", aftermathText(o.GetAftermath()))
	}
	return t
}

func aftermathText(m brokerv1.Aftermath) string {
	switch m {
	case brokerv1.Aftermath_AFTERMATH_NONE:
		return "nothing that can be used"
	case brokerv1.Aftermath_AFTERMATH_COMPLETE:
		return "all of it: the work had been done"
	}
	return "not looked at yet, or not known"
}

func (a *app) watchOperationCommand() *cobra.Command {
	var after int64
	cmd := &cobra.Command{
		Use:   "watch NAME",
		Short: "Show how an operation goes, until its end",
		Long: `Show how an operation goes, until its end, as the command that began it would have;
go on by itself when the broker was away. The exit code is that of the operation.
Ctrl-C ends the watching, not the operation.`,
		Example: `  brokerctl ops watch QX3M7KZ2V5AEJ4YPT6WNHDBRCU
  brokerctl ops watch operations/QX3M7KZ2V5AEJ4YPT6WNHDBRCU --after 7 -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeOperation(),
	}
	cmd.Flags().Int64Var(&after, "after", 0, "only events with a greater number; 0 is all that are kept")
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		c, err := a.client(ctx)
		if err != nil {
			return err
		}
		call := ctx
		if a.timeoutSet {
			var cancel context.CancelFunc
			call, cancel = a.deadline(ctx, 0)
			defer cancel()
		}
		name, shown := operationName(args[0]), a.newProgress(false)
		defer func() { shown.stop() }()
		for e, err := range c.WatchOperation(call, name, after) {
			if err != nil {
				shown.stop()
			}
			if ctx.Err() != nil {
				a.note("brokerctl: interrupted: %s goes on", name)
				a.note("hint: brokerctl ops watch %s --after %d shows the rest", name, after)
				return silent(exitInterrupted)
			}
			if err != nil {
				return failed("watch "+args[0], err)
			}
			after = max(after, client.Sequence(e))
			if err := a.showEvent(e, e.GetPull(), shown); err != nil {
				return err
			}
		}
		return nil
	})
	return cmd
}

func (a *app) cancelOperationCommand() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "cancel NAME...",
		Short: "Cancel running operations and wait for their end",
		Long: `Cancel running operations and wait for their end, at most 10 s. What they had done
may stay. Cancelling what has ended is no error.`,
		Example: `  brokerctl ops cancel QX3M7KZ2V5AEJ4YPT6WNHDBRCU
  brokerctl ops cancel operations/QX3M7KZ2V5AEJ4YPT6WNHDBRCU --dry-run`,
		ValidArgsFunction: a.completeOperation(brokerv1.OperationState_OPERATION_STATE_RUNNING),
	}
	dryRunFlag(cmd, &dryRun)
	return a.each(cmd, &dryRun, func(ctx context.Context, name string) (view, error) {
		ctx, cancel := a.deadline(ctx, 0)
		defer cancel()
		resp, err := a.conn.Operations().CancelOperation(ctx, &brokerv1.CancelOperationRequest{Name: operationName(name), ValidateOnly: dryRun})
		if err != nil {
			return view{}, err
		}
		return cancelledView(resp, dryRun), nil
	})
}

func cancelledView(resp *brokerv1.CancelOperationResponse, dryRun bool) view {
	o := resp.GetOperation()
	format := "%s: %s"
	switch running := o.GetState() == brokerv1.OperationState_OPERATION_STATE_RUNNING; {
	case dryRun && running:
		format = "%s: would be cancelled, is %s (dry run)"
	case dryRun:
		format = "%s: has ended, is %s (dry run)"
	case running:
		format = "%s: asked to end, still %s"
	}
	return view{value: resp, names: []string{o.GetName()}, text: line(format, o.GetName(), operationState(o))}
}

// yesNo is a truth in words.
func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
