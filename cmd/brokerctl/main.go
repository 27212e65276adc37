// Brokerctl is the operator's and the agent's command line to a Hermes broker.
//
// What it may do: call the broker over mutual TLS through package client, read
// the audit folder of the host it runs on (audit), and write certificates of a
// local authority (certs). It starts no process and holds no rights of its own:
// what a call may do is the broker's decision, about the certificate it presents.
//
// What it promises:
//
//   - Text that comes from containers, the engine or the broker never acts on
//     the terminal: package termclean stands between it and every table, log
//     line and error message. JSON and YAML keep it exact, in escapes.
//   - What cannot be undone is shown first and done only with --yes.
//   - An error says what was asked, why it failed and what to do next, and the
//     exit code tells scripts which of a few kinds it is (help exit-codes).
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	os.Exit(Main())
}

// interrupts are the signals that end a command in order.
var interrupts = []os.Signal{os.Interrupt, syscall.SIGTERM}

// errTerminated is why the context ends when nobody is there to be asked: by
// SIGTERM, not by a key.
var errTerminated = errors.New("terminated")

// Main runs brokerctl with the process's arguments, streams and environment,
// and returns its exit code. The first interrupt ends calls in order; a second
// one kills.
func Main() int {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, interrupts...)
	go func() {
		s := <-signals
		signal.Stop(signals)
		if s == syscall.SIGTERM {
			cancel(errTerminated)
		}
		cancel(nil)
	}()
	return newApp(os.Stdin, os.Stdout, os.Stderr, os.Getenv).execute(ctx, os.Args[1:])
}
