package main

import (
	"context"
	"fmt"
	"io"
	"iter"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
	"github.com/gortium/hermes-broker/internal/termclean"
)

// priorities are syslog's words, in the order of the schema's values after the
// zero.
var priorities = []string{"emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"}

type journalOptions struct {
	since, until, priority, grep, regexp, cursor string
	limit                                        int32
	follow                                       bool
}

func (a *app) journalCommand() *cobra.Command {
	var o journalOptions
	cmd := &cobra.Command{
		Use:   "journal SOURCE",
		Short: "Show the host's journal",
		Long: `Show entries of the host's journal, the oldest first: the newest ones, or with
--since or --cursor those from there on. SOURCE is kernel; units/NAME, a unit by its
full name; or identifiers/NAME, what calls itself so.

A line is TIME UNIT/IDENTIFIER[PID]: MESSAGE. The journal vouches for time, unit and
PID, and nobody for the rest: any program can write under any identifier, and "-" is
a unit that is not known. Control characters are shown as escapes.`,
		Example: `  brokerctl journal units/ssh.service
  brokerctl journal kernel --since 1h --priority err
  brokerctl journal identifiers/sudo --grep COMMAND= -n 20
  brokerctl journal units/docker.service -f -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeSource,
	}
	f := cmd.Flags()
	f.StringVar(&o.since, "since", "", "only from then on: a duration ago (10m) or a time (RFC 3339)")
	f.StringVar(&o.until, "until", "", "only until then, as --since; not with --follow")
	f.StringVar(&o.priority, "priority", "", "only entries at least so severe: "+strings.Join(priorities, ", "))
	f.StringVar(&o.grep, "grep", "", "only messages with these very characters")
	f.StringVar(&o.regexp, "regexp", "", "only messages that this regular expression (RE2) matches; not with --grep")
	f.Int32VarP(&o.limit, "limit", "n", 0, "at most so many entries; 0 is 100; with --follow: to begin with")
	f.BoolVarP(&o.follow, "follow", "f", false, "stay and show what comes; go on by itself when the broker was away")
	f.StringVar(&o.cursor, "cursor", "", "go on behind the entry with this cursor; not with --since")
	complete(cmd, "priority", priorities...)
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		req, err := o.request(args[0], f, time.Now())
		if err != nil {
			return err
		}
		c, err := a.client(ctx)
		if err != nil {
			return err
		}
		if !o.follow || a.timeoutSet {
			var cancel context.CancelFunc
			ctx, cancel = a.deadline(ctx, 0)
			defer cancel()
		}
		var end *brokerv1.JournalEnd
		for e, err := range a.journalEntries(ctx, c, req, &end) {
			if err != nil {
				return failed("journal "+args[0], err)
			}
			if err := a.showNext(a.journalView(e)); err != nil {
				return err
			}
		}
		a.noteEnd(req, end, f)
		return nil
	})
	return cmd
}

// completeSource offers how sources begin.
func completeSource(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return []string{"kernel", "units/", "identifiers/"}, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

func (o journalOptions) request(source string, flags *pflag.FlagSet, now time.Time) (*brokerv1.ReadJournalRequest, error) {
	for _, pair := range [][2]string{{"until", "follow"}, {"cursor", "since"}, {"grep", "regexp"}} {
		if flags.Changed(pair[0]) && flags.Changed(pair[1]) {
			return nil, fail(exitUsage, "leave out one of them", "--%s does not go with --%s", pair[0], pair[1])
		}
	}
	req := &brokerv1.ReadJournalRequest{Source: source, Limit: o.limit, Follow: o.follow, Cursor: o.cursor}
	var err error
	if req.Since, err = moment("--since", o.since, now); err != nil {
		return nil, err
	}
	if req.Until, err = moment("--until", o.until, now); err != nil {
		return nil, err
	}
	if flags.Changed("priority") {
		at := slices.Index(priorities, o.priority)
		if at < 0 {
			return nil, fail(exitUsage, "--help of the command lists the values", "--priority: unknown value %q", o.priority)
		}
		req.Priority = brokerv1.JournalPriority(at + 1)
	}
	switch {
	case flags.Changed("grep"):
		req.Pattern = &brokerv1.ReadJournalRequest_Contains{Contains: o.grep}
	case flags.Changed("regexp"):
		req.Pattern = &brokerv1.ReadJournalRequest_Matches{Matches: o.regexp}
	}
	return req, nil
}

// journalView shows an entry on one line. A unit's name has no slash, so that no
// identifier passes for one.
func (a *app) journalView(e *brokerv1.JournalEntry) view {
	return view{value: e, text: func(w io.Writer, _ bool) error {
		writer := firstOf(e.GetUnit(), "-") + "/" + firstOf(e.GetIdentifier(), "-")
		if pid := e.GetPid(); pid != 0 {
			writer += fmt.Sprintf("[%d]", pid)
		}
		text := firstOf(shortTime(e.GetEntryTime()), "-") + " " + termclean.String(writer) + ": " + termclean.Line(e.GetMessage())
		text = paint(a.colour, priorityColour(e.GetPriority()), text)
		if e.GetTruncated() {
			text += " " + paint(a.colour, bold, "[cut]")
		}
		_, err := fmt.Fprintln(w, text)
		return err
	}}
}

func priorityColour(p brokerv1.JournalPriority) colour {
	switch {
	case p == brokerv1.JournalPriority_JOURNAL_PRIORITY_UNSPECIFIED:
		return plain
	case p <= brokerv1.JournalPriority_JOURNAL_PRIORITY_ERROR:
		return red
	case p == brokerv1.JournalPriority_JOURNAL_PRIORITY_WARNING:
		return yellow
	}
	return plain
}

// journalEntries are the entries that req asks for. When they have ended, end says
// why, and where.
func (a *app) journalEntries(ctx context.Context, c *client.Client, req *brokerv1.ReadJournalRequest, end **brokerv1.JournalEnd) iter.Seq2[*brokerv1.JournalEntry, error] {
	if req.GetFollow() {
		return func(yield func(*brokerv1.JournalEntry, error) bool) {
			for e, err := range c.FollowJournal(ctx, req) {
				*end = &brokerv1.JournalEnd{Cursor: firstOf(e.GetCursor(), (*end).GetCursor())}
				if !yield(e, err) {
					return
				}
			}
		}
	}
	return func(yield func(*brokerv1.JournalEntry, error) bool) {
		stream, err := c.Journal().ReadJournal(ctx, req)
		for batch := range messages(stream, &err) {
			for _, e := range batch.GetEntries() {
				if !yield(e, nil) {
					return
				}
			}
			*end = batch.GetEnd()
		}
		if err != nil {
			yield(nil, err)
		}
	}
}

// cursorSyntax is what a shell leaves alone in single quotes.
var cursorSyntax = regexp.MustCompile(`^[a-zA-Z0-9=;]{1,256}$`)

// noteEnd says why there are no more entries, when there may be, and with which
// command to go on.
func (a *app) noteEnd(req *brokerv1.ReadJournalRequest, end *brokerv1.JournalEnd, flags *pflag.FlagSet) {
	newest := req.GetSince() == nil && req.GetCursor() == ""
	why := ""
	switch {
	case req.GetFollow():
		why = "the stream ended"
	case end.GetReason() == brokerv1.JournalEndReason_JOURNAL_END_REASON_LIMIT && newest:
		why = "these are the newest; -n and --until show older ones"
	case end.GetReason() == brokerv1.JournalEndReason_JOURNAL_END_REASON_LIMIT:
		why = "these are as many as -n says; there may be more"
	case end.GetReason() == brokerv1.JournalEndReason_JOURNAL_END_REASON_SCANNED && newest:
		why = fmt.Sprintf("only the newest %d entries were looked at; --until shows older ones", end.GetScanned())
	case end.GetReason() == brokerv1.JournalEndReason_JOURNAL_END_REASON_SCANNED:
		why = fmt.Sprintf("%d entries were looked at, as many as one call may; there may be more", end.GetScanned())
	default:
		return
	}
	a.note("note: %s", why)
	// People paste it into a shell.
	if !cursorSyntax.MatchString(end.GetCursor()) {
		return
	}
	command := "brokerctl journal " + quoteShell(req.GetSource())
	flags.Visit(func(f *pflag.Flag) {
		switch f.Name {
		case "since", "cursor":
		case "until": // It may have been a duration ago.
			command += " --until=" + req.GetUntil().AsTime().Format(time.RFC3339Nano)
		default:
			command += " --" + f.Name + "=" + quoteShell(f.Value.String())
		}
	})
	command += " --cursor=" + quoteShell(end.GetCursor())
	if termclean.String(command) != command {
		command = "the same command with --cursor=" + quoteShell(end.GetCursor())
	}
	a.note("to go on: %s", command)
}

// plainShell is a word that no shell takes for anything but itself.
var plainShell = regexp.MustCompile(`^[A-Za-z0-9_./:@,+-]+$`)

// quoteShell makes one word of s, for a shell.
func quoteShell(s string) string {
	if plainShell.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
