package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

// consent is what the command line says of a change that cannot be undone.
type consent struct{ yes, dryRun bool }

func consentFlags(cmd *cobra.Command, usage string) *consent {
	o := &consent{}
	dryRunFlag(cmd, &o.dryRun)
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, usage)
	return o
}

// destruction is a change that cannot be undone.
type destruction[R proto.Message] struct {
	// call asks what would happen when preview is nil. Otherwise it makes the
	// change, of what the preview was about and of nothing else.
	call  func(ctx context.Context, preview R) (R, error)
	would func(R) string // what the preview says, before the question
	view  func(r R, dryRun bool) view
}

// destroy shows what a change would do, and makes it once that is confirmed.
func destroy[R proto.Message](ctx context.Context, a *app, o *consent, d destruction[R]) error {
	var none R
	preview, err := d.call(ctx, none)
	if err != nil {
		return err
	}
	if o.dryRun {
		return a.show(d.view(preview, true))
	}
	a.note("%s", d.would(preview))
	if err := a.confirm(ctx, o.yes); err != nil {
		return err
	}
	a.changing = true
	resp, err := d.call(ctx, preview)
	if err != nil {
		return err
	}
	return a.show(d.view(resp, false))
}

var errNotConfirmed = fail(exitUsage, "nothing was done", "not confirmed")

// confirm wants a yes: from the flag, or from a person.
func (a *app) confirm(ctx context.Context, yes bool) error {
	if yes {
		return nil
	}
	if !a.interactive {
		return fail(exitUsage, "nothing was done; add --yes when you mean it", "this cannot be undone and --yes is not given")
	}
	select {
	case word := <-a.ask("Really? [y/N] "):
		if word == "y" || word == "yes" {
			return nil
		}
		return errNotConfirmed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ask puts a question to a person and gives the answer in lower-case letters, ""
// when there is none.
func (a *app) ask(question string) <-chan string {
	fmt.Fprint(a.stderr, question)
	if a.answers == nil {
		a.answers = bufio.NewReader(a.stdin) // It may read ahead, so there is one.
	}
	answer := make(chan string, 1)
	go func() {
		line, _ := a.answers.ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	return answer
}
