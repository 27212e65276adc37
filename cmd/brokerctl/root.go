package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/gortium/hermes-broker/client"
)

// defaultTimeout bounds a call that was given no --timeout.
const defaultTimeout = 30 * time.Second

// app is one run of brokerctl: its streams, flags and connection.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	// terminal says that stdout is one; interactive that a question can be asked
	// on stderr and answered on stdin.
	terminal, interactive, colour bool
	// bars says that lines on stderr can be drawn again and again.
	bars bool
	// nextInterrupt gives a context that the next interrupt ends, after the first
	// has ended the command's own.
	nextInterrupt func(context.Context) (context.Context, context.CancelFunc)

	format     format
	timeout    time.Duration
	timeoutSet bool
	target     target // what the flags say

	running  bool // the arguments were accepted; errors are no usage errors
	changing bool // a change may be under way
	conn     *client.Client
	answers  *bufio.Reader // stdin, once something was asked
}

func newApp(stdin, stdout, stderr *os.File, getenv func(string) string) *app {
	isTerminal := func(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, getenv: getenv, format: formatTable}
	a.terminal = isTerminal(stdout)
	a.interactive = isTerminal(stdin) && isTerminal(stderr)
	a.colour = a.terminal && wantsColour(getenv)
	// A terminal that does not say how large it is has no room for bars.
	width, height, err := term.GetSize(int(stderr.Fd()))
	a.bars = err == nil && width > 0 && height > 0 && getenv("TERM") != "dumb"
	a.nextInterrupt = func(ctx context.Context) (context.Context, context.CancelFunc) {
		return signal.NotifyContext(context.WithoutCancel(ctx), interrupts...)
	}
	return a
}

// wantsColour follows no-color.org.
func wantsColour(getenv func(string) string) bool {
	return getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"
}

// execute runs one command line and returns the exit code.
func (a *app) execute(ctx context.Context, args []string) int {
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	err := root.ExecuteContext(ctx)
	if a.conn != nil {
		_ = a.conn.Close()
	}
	if err != nil && !a.running {
		err = usageError(err)
	}
	return a.report(ctx, err)
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "brokerctl",
		Short: "Ask a Hermes broker",
		Long: `Ask a Hermes broker: look after containers, images and the engine, look at the
host's firewall, fail2ban, journal, sshd and sockets, see what a caller may do and
did, and stop it.

Where the broker is and who is asking comes from a context (help contexts), from
BROKER_* variables, or from flags; the later wins.`,
		Example: `  brokerctl containers ls
  brokerctl images pull alpine:3.22
  brokerctl can containers.restart containers/ollama
  brokerctl freeze --reason "looking into the restarts"
  brokerctl doctor`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs, // group judges them, as for every other group
		RunE:          a.group,
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			a.timeoutSet = cmd.Flags().Changed("timeout")
		},
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.target.Address, "address", "", "the broker: host:port or unix:///path")
	flags.StringVar(&a.target.Cert, "cert", "", "certificate file")
	flags.StringVar(&a.target.Key, "key", "", "private key file")
	flags.StringVar(&a.target.Bundle, "bundle", "", "file of the trust domain's CA certificates")
	flags.StringVar(&a.target.ServerID, "server-id", "", "the broker's SPIFFE ID")
	flags.StringVar(&a.target.WorkloadAPI, "workload-api", "", "SPIFFE Workload API instead of files: unix:///path")
	flags.StringVar(&a.target.context, "context", "", "context of the configuration file to use")
	flags.VarP(&a.format, "output", "o", "table, wide, json, yaml or name")
	flags.DurationVar(&a.timeout, "timeout", defaultTimeout, "how long to wait for the broker; 0 is without limit")
	complete(root, "output", formats...)
	complete(root, "context", a.contextNames()...)
	root.AddCommand(
		a.containersCommand(), a.imagesCommand(), a.engineCommand(), a.networksCommand(), a.volumesCommand(), a.opsCommand(),
		a.firewallCommand(), a.fail2banCommand(), a.journalCommand(), a.sshdCommand(), a.socketsCommand(),
		a.whoamiCommand(), a.canCommand(), a.freezeCommand(), a.unfreezeCommand(), a.versionCommand(),
		a.auditCommand(), a.certsCommand(), a.doctorCommand(), a.callCommand(),
		helpTopic("exit-codes", "What the exit codes mean", exitCodesHelp),
		helpTopic("contexts", "How brokerctl finds the broker", contextsHelp),
	)
	return root
}

// helpTopic is shown by `help NAME`.
func helpTopic(name, short, long string) *cobra.Command {
	return &cobra.Command{Use: name, Short: short, Long: long}
}

// group is what a command that only holds others does: it helps, and refuses
// what it does not know, which cobra would take for a request for help.
func (a *app) group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	suggestion := ""
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		suggestion = fmt.Sprintf("; did you mean %q?", near[0])
	}
	return fmt.Errorf("unknown command %q for %q%s", args[0], cmd.CommandPath(), suggestion)
}

// run marks the end of reading the command line.
func (a *app) run(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.running = true
		return f(cmd.Context(), args)
	}
}

// client returns the connection, made on first use.
func (a *app) client(ctx context.Context) (*client.Client, error) {
	if a.conn != nil {
		return a.conn, nil
	}
	t, err := a.resolve()
	if err != nil {
		return nil, err
	}
	c, err := client.Dial(ctx, t.config())
	if err != nil {
		return nil, connectError(err)
	}
	a.conn = c
	return c, nil
}

// deadline bounds one call: by --timeout, or else by the default on top of what
// the call itself may take.
func (a *app) deadline(ctx context.Context, takes time.Duration) (context.Context, context.CancelFunc) {
	limit := a.timeout
	if !a.timeoutSet {
		limit = takes + defaultTimeout
	}
	if limit <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, limit)
}
