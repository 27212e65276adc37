// Command brokerd is the daemon that holds the power over the host and lends it
// out by typed operations.
//
//	brokerd [-config FILE]          serve
//	brokerd check [-config FILE]    say what is wrong with configuration, policy
//	                                and certificates, and start nothing
//	brokerd version
//
// SIGHUP reloads the policy, SIGTERM and SIGINT stop. Exit status: 0, 1 for a
// failure, 2 for wrong usage.
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

	"github.com/gortium/hermes-broker/server"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	command := "serve"
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		command, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("brokerd "+command, flag.ContinueOnError)
	flags.SetOutput(stderr)
	config := flags.String("config", "/etc/hermes-broker/brokerd.yaml", "configuration `FILE`")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "brokerd: unexpected argument %q; see brokerd -h\n", flags.Arg(0))
		return 2
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(stderr, nil)))
	switch command {
	case "serve":
		if err := serve(*config); err != nil {
			fmt.Fprintf(stderr, "brokerd: %v\n", err)
			return 1
		}
	case "check":
		problems := server.Check(*config)
		for _, p := range problems {
			fmt.Fprintln(stderr, p.Error())
		}
		if len(problems) > 0 {
			return 1
		}
		fmt.Fprintln(stdout, "configuration, policy and certificates are fine")
	case "version":
		fmt.Fprintln(stdout, "brokerd", server.Version)
	default:
		fmt.Fprintf(stderr, "brokerd: unknown command %q; there are check and version, and none to serve\n", command)
		return 2
	}
	return 0
}

func serve(path string) error {
	cfg, err := server.LoadConfig(path)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP) // From now on it does not end brokerd.
	s, err := server.New(ctx, cfg)
	if err != nil {
		return err
	}
	go func() {
		for range hup {
			s.Reload()
		}
	}()
	return s.Serve(ctx)
}
