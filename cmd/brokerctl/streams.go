package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
	"github.com/gortium/hermes-broker/internal/termclean"
)

type logOptions struct {
	follow, stdout, stderr, timestamps, raw bool
	since, until                            string
	tail                                    int32
}

func (a *app) logsCommand() *cobra.Command {
	var o logOptions
	cmd := &cobra.Command{
		Use:   "logs NAME",
		Short: "Show what a container wrote",
		Long: `Show what a container wrote: its standard output on stdout, its standard error
on stderr. Control characters are shown as escapes, because a log may hold
anything; --raw writes the bytes as they are, and never to a terminal.`,
		Example: `  brokerctl containers logs ollama --tail 50
  brokerctl containers logs -f --since 10m ollama
  brokerctl containers logs ollama --since 2026-01-02T15:04:05Z --until 2026-01-02T16:00:00Z -t
  brokerctl containers logs ollama --stdout --raw > ollama.log`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeContainer(),
	}
	f := cmd.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "stay and show what comes; go on by itself when the broker was away")
	f.StringVar(&o.since, "since", "", "only from then on: a duration ago (10m) or a time (RFC 3339)")
	f.StringVar(&o.until, "until", "", "only before then, as --since; not with --follow")
	f.Int32VarP(&o.tail, "tail", "n", 0, "only the last so many lines; 0 is all")
	f.BoolVar(&o.stdout, "stdout", false, "standard output; without this and --stderr: both")
	f.BoolVar(&o.stderr, "stderr", false, "standard error")
	f.BoolVarP(&o.timestamps, "timestamps", "t", false, "begin each line with the time the engine received it")
	f.BoolVar(&o.raw, "raw", false, "write the bytes as they are; not to a terminal")
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		req, err := o.request(args[0], time.Now())
		if err != nil {
			return err
		}
		if o.raw && (a.terminal || a.interactive) {
			return fail(exitUsage, "leave out --raw, or send stdout and stderr to files", "--raw does not write to a terminal")
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
		out := &logWriter{app: a, options: o}
		for entry, err := range logEntries(ctx, c, req) {
			if err != nil {
				return failed("logs "+args[0], err)
			}
			if err := out.write(entry); err != nil {
				return err
			}
		}
		return nil
	})
	return cmd
}

func (o logOptions) request(name string, now time.Time) (*brokerv1.ContainerLogsRequest, error) {
	req := &brokerv1.ContainerLogsRequest{Container: name, Follow: o.follow, Tail: o.tail, Timestamps: o.timestamps}
	if o.follow && o.until != "" {
		return nil, fail(exitUsage, "leave out one of them", "--until does not go with --follow")
	}
	var err error
	if req.Since, err = moment("--since", o.since, now); err != nil {
		return nil, err
	}
	if req.Until, err = moment("--until", o.until, now); err != nil {
		return nil, err
	}
	if o.stdout {
		req.Streams = append(req.Streams, brokerv1.LogStream_LOG_STREAM_STDOUT)
	}
	if o.stderr {
		req.Streams = append(req.Streams, brokerv1.LogStream_LOG_STREAM_STDERR)
	}
	return req, nil
}

// moment reads a time, or a duration before now.
func moment(flag, text string, now time.Time) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return timestamppb.New(now.Add(-d)), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, fail(exitUsage, "for example 10m, 1h30m or 2026-01-02T15:04:05Z", "%s: %q is neither a duration nor a time", flag, text)
	}
	return timestamppb.New(t), nil
}

// logEntries yields a log's entries, following or not.
func logEntries(ctx context.Context, c *client.Client, req *brokerv1.ContainerLogsRequest) iter.Seq2[*brokerv1.LogEntry, error] {
	if req.GetFollow() {
		return c.FollowLogs(ctx, req)
	}
	return func(yield func(*brokerv1.LogEntry, error) bool) {
		stream, err := c.Containers().ContainerLogs(ctx, req)
		for batch := range messages(stream, &err) {
			for _, entry := range batch.GetEntries() {
				if !yield(entry, nil) {
					return
				}
			}
		}
		if err != nil {
			yield(nil, err)
		}
	}
}

// messages yields what a stream sends and leaves what ended it in err; nothing
// when err is set before.
func messages[T any](stream grpc.ServerStreamingClient[T], err *error) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		for *err == nil {
			var m *T
			if m, *err = stream.Recv(); *err == nil && !yield(m) {
				return
			}
		}
		if errors.Is(*err, io.EOF) {
			*err = nil
		}
	}
}

// logWriter writes a container's lines.
type logWriter struct {
	app     *app
	options logOptions
	partial bool // the line before goes on
}

func (w *logWriter) write(e *brokerv1.LogEntry) error {
	if w.app.exact() {
		return w.app.showNext(view{value: e})
	}
	out, line := w.app.stdout, e.GetStdout()
	if _, ok := e.GetOutput().(*brokerv1.LogEntry_Stderr); ok {
		out, line = w.app.stderr, e.GetStderr()
	}
	text := string(line)
	if !w.options.raw {
		text = termclean.Line(line)
	}
	if w.options.timestamps && !w.partial {
		text = e.GetLogTime().AsTime().Format("2006-01-02T15:04:05.000000000Z07:00") + " " + text
	}
	if w.partial = e.GetPartial(); !w.partial {
		text += "\n"
	}
	_, err := io.WriteString(out, text)
	return err
}

func (a *app) statsCommand() *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use:   "stats NAME",
		Short: "Show what a container uses, once a second",
		Example: `  brokerctl containers stats ollama
  brokerctl containers stats ollama --no-stream -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeContainer(),
	}
	cmd.Flags().BoolVar(&once, "no-stream", false, "show one sample and end")
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		c, err := a.client(ctx)
		if err != nil {
			return err
		}
		if once || a.timeoutSet {
			var cancel context.CancelFunc
			ctx, cancel = a.deadline(ctx, 0)
			defer cancel()
		}
		stream, err := c.Containers().ContainerStats(ctx, &brokerv1.ContainerStatsRequest{Container: args[0], OneShot: once})
		first := true
		for s := range messages(stream, &err) {
			show := a.showNext(view{value: s, text: func(w io.Writer, _ bool) error { return a.statsTable(args[0], s, first).write(w) }})
			if show != nil {
				return show
			}
			first = false
		}
		return failed("stats "+args[0], err)
	})
	return cmd
}

// statsTable is one sample under a header. On a terminal the next sample takes
// the place of the last; elsewhere each is one line, as wide as the header.
func (a *app) statsTable(name string, s *brokerv1.ContainerStatsResponse, first bool) *table {
	t := a.newTable()
	header := []string{"NAME", "CPU", "MEMORY", "LIMIT", "MEMORY %", "NET RECEIVED", "NET SENT", "BLOCK READ", "BLOCK WRITTEN", "PIDS"}
	share := "-"
	if limit := s.GetMemoryLimitBytes(); limit > 0 {
		share = fmt.Sprintf("%.1f%%", float64(s.GetMemoryBytes())/float64(limit)*100)
	}
	row := []string{
		name, fmt.Sprintf("%.1f%%", s.GetCpuPercent()), binarySize(s.GetMemoryBytes()), binarySize(s.GetMemoryLimitBytes()), share,
		decimalSize(s.GetNetworkReceiveBytes()), decimalSize(s.GetNetworkTransmitBytes()),
		decimalSize(s.GetBlockReadBytes()), decimalSize(s.GetBlockWriteBytes()), fmt.Sprint(s.GetPids()),
	}
	for i := range row {
		row[i] = fmt.Sprintf("%-*s", max(len(header[i]), 8), row[i])
		header[i] = fmt.Sprintf("%-*s", len(row[i]), header[i])
	}
	switch {
	case first:
		t.addCells(cells(bold, header...)...)
	case a.terminal:
		t.overwrite = true
	}
	t.add(row...)
	return t
}

func (a *app) waitCommand() *cobra.Command {
	var until string
	conditions := map[string]brokerv1.WaitCondition{
		"stopped": brokerv1.WaitCondition_WAIT_CONDITION_STOPPED,
		"removed": brokerv1.WaitCondition_WAIT_CONDITION_REMOVED,
	}
	cmd := &cobra.Command{
		Use:   "wait NAME",
		Short: "Wait until a container has stopped or is removed",
		Long: `Wait until a container has stopped or is removed, for as long as --timeout says,
at most an hour. The exit code is 8 when the condition did not come true in time.`,
		Example: `  brokerctl containers wait ollama --for stopped --timeout 10m
  brokerctl containers wait media-old --for removed`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeContainer(),
	}
	cmd.Flags().StringVar(&until, "for", "stopped", "what to wait for: stopped or removed")
	complete(cmd, "for", "stopped", "removed")
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		condition, ok := conditions[until]
		if !ok {
			return fail(exitUsage, "--for stopped, or --for removed", "--for: unknown condition %q", until)
		}
		limit := a.timeout
		if limit <= 0 {
			limit = time.Hour
		}
		c, err := a.client(ctx)
		if err != nil {
			return err
		}
		// The broker ends the wait; the call's own deadline is for a broker that
		// does not.
		ctx, cancel := context.WithTimeout(ctx, limit+defaultTimeout)
		defer cancel()
		resp, err := c.Containers().Wait(ctx, &brokerv1.WaitRequest{Container: args[0], Condition: condition, Timeout: durationpb.New(limit)})
		if err != nil {
			return failed("wait "+args[0], err)
		}
		err = a.show(view{value: resp, names: []string{args[0]}, text: func(w io.Writer, _ bool) error {
			if !resp.GetMet() {
				return nil
			}
			_, err := fmt.Fprintf(w, "%s: %s, exit code %d\n", termclean.String(args[0]), until, resp.GetExitCode())
			return err
		}})
		if err != nil {
			return err
		}
		if !resp.GetMet() {
			return fail(exitUnknown, "wait again, or longer with --timeout", "wait %s: not %s within %s", args[0], until, shortDuration(limit))
		}
		return nil
	})
	return cmd
}
