// Command brokerhost reads the host's own state for brokerd: it is the part of the
// broker that runs programs, out of a closed table, and it has no network.
//
//	brokerhost [-config FILE]          serve
//	brokerhost check [-config FILE]    print the table, as this host has it
//	brokerhost version
//
// SIGTERM and SIGINT stop. Exit status: 0, 1 for a failure, 2 for wrong usage. A
// tool that this host lacks is no failure of check: its RPC says so.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"

	"github.com/gortium/hermes-broker/internal/termclean"
	"github.com/gortium/hermes-broker/server/host"
)

// version is set when a release is linked.
var version = "devel"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	const defaultConfig = "/etc/hermes-broker/brokerhost.yaml"
	command := "serve"
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		command, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("brokerhost "+command, flag.ContinueOnError)
	flags.SetOutput(stderr)
	config := flags.String("config", defaultConfig, "configuration `FILE`; the default one may be missing")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "brokerhost: unexpected argument %q; see brokerhost -h\n", flags.Arg(0))
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	slog.SetDefault(slog.New(slog.NewTextHandler(stderr, nil)))
	switch command {
	case "serve", "check":
		cfg, err := host.LoadConfig(*config, *config == defaultConfig)
		if err == nil && command == "serve" {
			err = host.New(cfg).Serve(ctx)
		} else if err == nil {
			err = check(ctx, host.New(cfg), stdout)
		}
		if err != nil {
			fmt.Fprintf(stderr, "brokerhost: %v\n", err)
			return 1
		}
	case "version":
		fmt.Fprintln(stdout, "brokerhost", version)
	default:
		fmt.Fprintf(stderr, "brokerhost: unknown command %q; there are check and version, and none to serve\n", command)
		return 2
	}
	return 0
}

// check prints the table.
func check(ctx context.Context, h *host.Host, out io.Writer) error {
	table := h.Table(ctx)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TOOL\tSTATE\tVERSION\tOWNER\tPATH\tLEADS TO")
	dash := func(s string) string {
		if s == "" {
			return "-"
		}
		return termclean.String(s)
	}
	for _, l := range table {
		state := "ok"
		if l.Problem != "" {
			state = "missing"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", l.Name, state, dash(l.Version), dash(l.Owner), dash(l.Path), dash(l.Target))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, l := range table {
		if l.Problem != "" {
			fmt.Fprintf(out, "%s: %s\n", l.Name, termclean.String(l.Problem))
		}
	}
	return nil
}
