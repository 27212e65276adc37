package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

func (a *app) pullCommand() *cobra.Command {
	var quiet bool
	req := &brokerv1.PullRequest{}
	cmd := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Fetch an image from its registry",
		Long: `Fetch an image from its registry. Progress goes to stderr, the image that is there
at the end to stdout.

A pull is an operation of the broker, and is cancelled when brokerctl ends before
it. With --detach brokerctl names the operation and ends; ops watch has the rest.
On a terminal Ctrl-C asks whether to leave it running; a second one cancels it.`,
		Example: `  brokerctl images pull alpine:3.22
  brokerctl images pull docker.io/library/alpine@sha256:` + exampleDigest + ` --quiet
  brokerctl images pull ollama/ollama --detach -o name
  brokerctl images pull ollama/ollama --dry-run`,
		Args: cobra.ExactArgs(1),
	}
	dryRunFlag(cmd, &req.ValidateOnly)
	cmd.Flags().BoolVarP(&req.Detach, "detach", "d", false, "end at once and leave it running on the broker")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show the result only")
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		c, err := a.client(ctx)
		if err != nil {
			return err
		}
		req.Image = args[0]
		a.changing = !req.GetValidateOnly()
		if a.changing {
			// The same request under the same ID detaches it later.
			req.RequestId = client.NewRequestID()
		}
		p := &pull{app: a, client: c, req: req}
		switch {
		case req.GetValidateOnly():
			err = p.preview(ctx)
		case req.GetDetach():
			err = p.begin(ctx)
		default:
			p.shown = a.newProgress(quiet)
			err = p.run(ctx)
		}
		return failed("pull "+args[0], err)
	})
	return cmd
}

const exampleDigest = "4bcff63911fcb4448bd4fdacec207030997caf25e9bea4045fa6c8c44de311d1"

// pull is one `images pull`.
type pull struct {
	app       *app
	client    *client.Client
	req       *brokerv1.PullRequest
	shown     progress
	operation string        // its name, once it is known
	watching  bool          // the call was cut, and the broker goes on without it
	done      bool          // the result was shown
	answer    <-chan string // to the question that is asked
}

// once makes a call that ends with its first message.
func (p *pull) once(ctx context.Context, req *brokerv1.PullRequest) (first *brokerv1.PullResponse, err error) {
	ctx, cancel := p.app.deadline(ctx, 0)
	defer cancel()
	stream, err := p.client.Images().Pull(ctx, req)
	for m := range messages(stream, &err) {
		first = firstOf(first, m)
	}
	if err == nil && first == nil {
		err = errNoResult
	}
	return first, err
}

var errNoResult = fail(exitFailure, "brokerctl ops ls shows what became of it", "the broker ended the call without a result")

func (p *pull) preview(ctx context.Context) error {
	m, err := p.once(ctx, p.req)
	if err != nil {
		return err
	}
	if p.app.exact() {
		if err := p.app.showNext(view{value: m}); err != nil {
			return err
		}
	}
	return p.app.showResult(m.GetResult(), true)
}

// begin leaves the pull to the broker.
func (p *pull) begin(ctx context.Context) error {
	m, err := p.once(ctx, p.req)
	if err != nil {
		return err
	}
	o := m.GetOperation()
	if err := p.app.showNext(view{value: m, names: []string{o.GetName()}, text: line("%s", operationText(o))}); err != nil {
		return err
	}
	p.app.noteGoesOn(o.GetName())
	return nil
}

func (a *app) noteGoesOn(operation string) {
	a.note("%s goes on; brokerctl ops watch %s", operation, operation)
}

// received is a message of a call that runs beside.
type received struct {
	message  *brokerv1.PullResponse
	watching bool
	err      error
}

// receive makes the call and gives its messages, then what it failed with, if it
// did, until gone is closed.
func (p *pull) receive(ctx context.Context, gone <-chan struct{}) <-chan received {
	out := make(chan received)
	give := func(r received) bool {
		select {
		case out <- r:
			return true
		case <-gone:
			return false
		}
	}
	go func() {
		defer close(out)
		var operation string
		var last int64
		stream, err := p.client.Images().Pull(ctx, p.req)
		for m := range messages(stream, &err) {
			operation, last = firstOf(operation, m.GetOperation().GetName()), m.GetSequence()
			if !give(received{message: m}) {
				return
			}
		}
		if operation != "" && cut(err) && give(received{watching: true}) {
			err = p.rest(ctx, operation, last, err, give)
		}
		if err != nil {
			give(received{err: err})
		}
	}()
	return out
}

// cut reports whether err ended a call and not the operation: the stream was too
// old, its certificate was, or the broker went away.
func cut(err error) bool {
	switch {
	case client.ErrorMetadata(err)["operation"] != "":
		return false
	case client.Reason(err) == brokerv1.ErrorReason_ERROR_REASON_STREAM_EXPIRED, client.Reason(err) == brokerv1.ErrorReason_ERROR_REASON_ACCESS_REVOKED:
		return true
	}
	return status.Code(err) == codes.Unavailable
}

// rest gives what comes of an operation after the call that began it was cut. An
// operation that cannot be watched leaves the call's error as the answer.
func (p *pull) rest(ctx context.Context, operation string, after int64, because error, give func(received) bool) error {
	seen := false
	for e, err := range p.client.WatchOperation(ctx, operation, after) {
		own := client.ErrorMetadata(err)["operation"] != "" && client.Reason(err) != brokerv1.ErrorReason_ERROR_REASON_OPERATION_NOT_FOUND
		switch {
		case err != nil && !own && !seen:
			return because
		case err != nil:
			return err
		case !give(received{message: e.GetPull()}):
			return nil
		}
		seen = true
	}
	return nil
}

const leaveIt = "\nLeave it running on the broker? [Y/n] "

// run pulls and stays to the end. The command's own context does not end the call:
// the first interrupt is a question, where somebody is there to answer.
func (p *pull) run(ctx context.Context) error {
	a := p.app
	call, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	if a.timeoutSet {
		var cancel context.CancelFunc
		call, cancel = a.deadline(call, 0)
		defer cancel()
	}
	defer func() { p.shown.stop() }()
	gone := make(chan struct{})
	defer close(gone)

	events := p.receive(call, gone)
	interrupted, again, stop := ctx.Done(), context.WithoutCancel(ctx), func() {}
	defer func() { stop() }()
	for {
		select {
		case r, ok := <-events:
			p.watching = p.watching || r.watching
			switch {
			case r.message != nil:
				if err := p.show(r.message); err != nil {
					return err
				}
			case r.err != nil:
				return p.failed(ctx, r.err)
			case !ok && !p.done:
				return errNoResult
			case !ok:
				return nil
			}
		case <-interrupted:
			interrupted = nil
			if p.done {
				return nil
			}
			p.silence()
			if !a.interactive || errors.Is(context.Cause(ctx), errTerminated) {
				return p.cancelled(ctx)
			}
			again, stop = a.nextInterrupt(ctx)
			p.answer = a.ask(leaveIt)
		case word := <-p.answer:
			p.answer = nil
			switch word {
			case "", "y", "yes":
				err := p.leave(again)
				if err == nil {
					return nil
				}
				if again.Err() != nil {
					stop()
					return p.cancelled(ctx)
				}
				a.report(again, failed("leave it running", err))
				a.note("the pull goes on here; Ctrl-C cancels it")
				p.shown = &progressLines{app: a, now: time.Now}
			case "n", "no":
				stop()
				return p.cancelled(ctx)
			default:
				p.answer = a.ask(leaveIt)
			}
		case <-again.Done():
			stop() // One more kills.
			return p.cancelled(ctx)
		}
	}
}

// silence ends the progress, for good or for a question.
func (p *pull) silence() {
	p.shown.stop()
	p.shown = noProgress{}
	if p.answer != nil {
		fmt.Fprintln(p.app.stderr) // after the question
	}
}

func (p *pull) show(m *brokerv1.PullResponse) error {
	p.operation = firstOf(p.operation, m.GetOperation().GetName())
	if m.GetResult() != nil {
		p.done = true
		p.silence()
	}
	return p.app.showEvent(m, m, p.shown)
}

// leave makes the broker go on without this call.
func (p *pull) leave(ctx context.Context) error {
	req := proto.CloneOf(p.req)
	req.Detach = true
	m, err := p.once(ctx, req)
	if err != nil {
		return err
	}
	p.app.noteGoesOn(m.GetOperation().GetName())
	return nil
}

// cancelled ends the command, and with it the call and the work. Work that lost
// its call does not end with it.
func (p *pull) cancelled(ctx context.Context) error {
	p.silence()
	if p.watching {
		ctx, cancel := p.app.deadline(context.WithoutCancel(ctx), 0)
		defer cancel()
		if _, err := p.client.Operations().CancelOperation(ctx, &brokerv1.CancelOperationRequest{Name: p.operation}); err != nil {
			p.app.report(ctx, failed("cancel "+p.operation, err))
			p.app.noteGoesOn(p.operation)
			return silent(exitInterrupted)
		}
	}
	p.app.note("brokerctl: interrupted: %s is cancelled", firstOf(p.operation, "the pull"))
	p.app.note("hint: --detach leaves a pull running when brokerctl ends")
	return silent(exitInterrupted)
}

// failed reports why the pull failed, also after an interrupt, whose fault it is
// not.
func (p *pull) failed(ctx context.Context, err error) error {
	p.silence()
	code := p.app.report(context.WithoutCancel(ctx), failed("pull "+p.req.GetImage(), err))
	if _, own := client.ErrorMetadata(err)["operation"]; p.operation != "" && !own {
		p.app.note("brokerctl ops show %s says what became of it", p.operation)
	}
	return silent(code)
}
