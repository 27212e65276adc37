package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gortium/hermes-broker/internal/termclean"
	"github.com/gortium/hermes-broker/server/audit"
)

const defaultAuditDir = "/var/lib/hermes-broker/audit"

func (a *app) auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Read and verify the audit trail of this host",
		Long: `Read and verify the audit trail of this host. It is read from its folder, not
through the broker, so that it can be read when the broker is stopped or not
trusted; that takes root.`,
		RunE: a.group,
	}
	var dir string
	cmd.PersistentFlags().StringVar(&dir, "dir", defaultAuditDir, "the audit trail's folder")
	cmd.AddCommand(a.auditTailCommand(&dir), a.auditShowCommand(&dir), a.auditVerifyCommand(&dir))
	return cmd
}

func (a *app) auditTailCommand(dir *string) *cobra.Command {
	var n uint64
	var follow bool
	cmd := &cobra.Command{
		Use:     "tail",
		Short:   "Show the newest records",
		Example: "  brokerctl audit tail -n 50\n  brokerctl audit tail -f -o json",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().Uint64VarP(&n, "lines", "n", 20, "how many records to begin with")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "stay and show what comes")
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		bad := 0
		err := readAudit(ctx, *dir, audit.ReadOptions{Last: max(n, 1), Follow: follow}, func(r audit.Record) error {
			return a.showNext(recordView(r))
		}, func(b *audit.BadLine) {
			bad++
			fmt.Fprintf(a.stderr, "brokerctl: audit tail: %s\n", termclean.String(b.Error()))
		})
		if err == nil && bad > 0 {
			return fail(exitDamaged, "brokerctl audit verify says whether a crash explains it", "audit tail: %d lines are no records", bad)
		}
		return failed("audit tail", err)
	})
	return cmd
}

// readAudit gives records to show until the end of the log, and what is no record
// to complain.
func readAudit(ctx context.Context, dir string, opts audit.ReadOptions, show func(audit.Record) error, complain func(*audit.BadLine)) error {
	r, err := audit.NewReader(dir, opts)
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		rec, err := r.Next(ctx)
		var bad *audit.BadLine
		switch {
		case err == nil:
			if err := show(rec); err != nil {
				return err
			}
		case errors.As(err, &bad):
			complain(bad)
		case errors.Is(err, io.EOF):
			return nil
		default:
			return err
		}
	}
}

// recordView shows a record on one line: when, what, who, on what, and how it
// ended.
func recordView(r audit.Record) view {
	return view{value: r, names: []string{firstOf(r.Call, strconv.FormatUint(r.Seq, 10))}, text: func(w io.Writer, wide bool) error {
		result := firstOf(r.Code, "-")
		if r.Reason != "" {
			result += " [" + r.Reason + "]"
		}
		if r.ValidateOnly {
			result += " (dry run)"
		}
		columns := []string{
			strconv.FormatUint(r.Seq, 10), r.Time.Local().Format(time.RFC3339), fmt.Sprintf("%-9s", r.Event),
			firstOf(callerOf(r), r.Peer, "-"), firstOf(methodName(r.Method), "-"), firstOf(r.Resource, "-"), result,
		}
		if wide {
			columns = append(columns, firstOf(r.Call, "-"), firstOf(r.Rule, "-"), firstOf(r.Detail, "-"))
		}
		for i := range columns {
			columns[i] = termclean.String(columns[i])
		}
		_, err := fmt.Fprintln(w, strings.Join(columns, "  "))
		return err
	}}
}

func methodName(full string) string { return full[strings.LastIndexByte(full, '/')+1:] }

func (a *app) auditShowCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "show CALL|SEQ",
		Short: "Show all that is recorded about a call, or one record",
		Example: `  brokerctl audit show 1042
  brokerctl audit show QX3M7KZ2V5AEJ4YPT6WNHDBRCU -o json`,
		Args: cobra.ExactArgs(1),
		RunE: a.run(func(ctx context.Context, args []string) error {
			seq, numberErr := strconv.ParseUint(args[0], 10, 64)
			bySeq := numberErr == nil
			opts := audit.ReadOptions{}
			if bySeq {
				opts.From = seq
			}
			found := false
			stop := errors.New("found")
			err := readAudit(ctx, *dir, opts, func(r audit.Record) error {
				switch {
				case bySeq && r.Seq > seq:
					return stop
				case bySeq && r.Seq == seq, !bySeq && r.Call == args[0]:
				default:
					return nil
				}
				found = true
				v := recordView(r)
				v.text = func(w io.Writer, _ bool) error { return a.recordTable(r).write(w) }
				return a.showNext(v)
			}, func(*audit.BadLine) {}) // verify is where damage is judged
			if err != nil && !errors.Is(err, stop) {
				return failed("audit show", err)
			}
			if !found {
				return fail(exitNotFound, "brokerctl audit tail -o wide shows numbers and call IDs; old records may be pruned", "audit show %s: no such record", args[0])
			}
			return nil
		}),
	}
}

// callerOf is who called; of a refused handshake, who it only said it was.
func callerOf(r audit.Record) string {
	if r.Event == audit.EventHandshake && r.Caller != "" {
		return "(claims) " + r.Caller
	}
	return r.Caller
}

func (a *app) recordTable(r audit.Record) *table {
	t := a.newTable()
	row := func(name, value string) {
		if value != "" {
			t.field(name, value)
		}
	}
	row("Record", strconv.FormatUint(r.Seq, 10))
	row("Time", r.Time.Local().Format(time.RFC3339Nano))
	row("Event", string(r.Event))
	row("Call", r.Call)
	row("Caller", callerOf(r))
	row("Serial", r.Serial)
	row("From", r.Peer)
	row("Method", r.Method)
	row("Permission", r.Permission)
	row("Effect", r.Effect)
	row("Resource", r.Resource)
	row("Request", string(r.Request))
	row("Target", r.Target)
	row("Rule", r.Rule)
	row("Code", r.Code)
	row("Reason", r.Reason)
	row("Detail", r.Detail)
	if r.ValidateOnly {
		row("Dry run", "yes")
	}
	if r.DurationUS > 0 {
		row("Took", (time.Duration(r.DurationUS) * time.Microsecond).String())
	}
	if r.Count > 0 {
		row("Stands for", fmt.Sprintf("%d records", r.Count))
	}
	row("Cut", strings.Join(r.Cut, " "))
	row("Hash", r.Hash)
	return t
}

func (a *app) auditVerifyCommand(dir *string) *cobra.Command {
	var head string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Verify the audit trail's chain and name the first bad record",
		Long: `Verify the audit trail's chain and name the first bad record. The exit code is 7
when it is damaged.

The last line is the head. Keep it somewhere else, and give it to --head later: it
shows what the chain alone cannot, that nothing was cut off the end.`,
		Example: `  brokerctl audit verify
  brokerctl audit verify --head 1042:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&head, "head", "", "a head that was kept elsewhere, SEQ:HASH")
	cmd.RunE = a.run(func(context.Context, []string) error {
		report, err := audit.Verify(*dir, audit.VerifyOptions{Head: head})
		var fault *audit.Fault
		if errors.As(err, &fault) {
			return fail(exitDamaged, "keep a copy of the folder as it is; what comes after the named record is not proven", "audit verify: %w", err)
		}
		if err != nil {
			return failed("audit verify", err)
		}
		return a.show(view{value: verifyResult(report), text: func(w io.Writer, _ bool) error { return printReport(w, report) }})
	})
	return cmd
}

// verified is a Report as JSON.
type verified struct {
	OK         bool           `json:"ok"`
	Segments   int            `json:"segments"`
	Records    uint64         `json:"records"`
	First      uint64         `json:"first"`
	Last       uint64         `json:"last"`
	Head       string         `json:"head"`
	Torn       int            `json:"torn"`
	Gaps       uint64         `json:"gaps"`
	Lost       uint64         `json:"lost"`
	Unfinished int64          `json:"unfinished_bytes"`
	Open       []audit.Record `json:"open"`
}

func headText(r audit.Report) string { return fmt.Sprintf("%d:%s", r.Last, r.Head) }

func verifyResult(r audit.Report) verified {
	return verified{
		OK: true, Segments: r.Segments, Records: r.Records, First: r.First, Last: r.Last, Head: headText(r),
		Torn: r.Torn, Gaps: r.Gaps, Lost: r.Lost, Unfinished: r.Unfinished, Open: append([]audit.Record{}, r.Open...),
	}
}

func printReport(w io.Writer, r audit.Report) error {
	lines := []string{fmt.Sprintf("ok: %d records in %d segments, %d to %d", r.Records, r.Segments, r.First, r.Last)}
	if r.Torn > 0 {
		lines = append(lines, fmt.Sprintf("torn: %d lines that a crash cut short, each accounted for", r.Torn))
	}
	if r.Gaps > 0 {
		lines = append(lines, fmt.Sprintf("gaps: %d, which stand for %d records that could not be written", r.Gaps, r.Lost))
	}
	for _, o := range r.Open {
		lines = append(lines, fmt.Sprintf("open: record %d, %s on %s by %s has no outcome", o.Seq, methodName(o.Method), o.Resource, o.Caller))
	}
	if r.Unfinished > 0 {
		lines = append(lines, fmt.Sprintf("unfinished: the last %d bytes are being written", r.Unfinished))
	}
	lines = append(lines, "head: "+headText(r))
	for _, l := range lines {
		if _, err := fmt.Fprintln(w, termclean.String(l)); err != nil {
			return err
		}
	}
	return nil
}
