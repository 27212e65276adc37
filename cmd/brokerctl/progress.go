package main

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gortium/hermes-broker/api/brokerv1"
)

// progress shows on stderr how a pull goes.
type progress interface {
	begin(*brokerv1.Operation)
	update(*brokerv1.PullProgress)
	// stop leaves stderr to others. Nothing is shown after it.
	stop()
}

// newProgress is bars on a terminal and lines elsewhere; nothing when quiet, or
// when the events themselves are the answer.
func (a *app) newProgress(quiet bool) progress {
	switch {
	case quiet || a.exact():
		return noProgress{}
	case a.bars:
		return &progressBars{app: a}
	}
	return &progressLines{app: a, now: time.Now}
}

type noProgress struct{}

func (noProgress) begin(*brokerv1.Operation)     {}
func (noProgress) update(*brokerv1.PullProgress) {}
func (noProgress) stop()                         {}

// linePause is how long the lines that sum up a pull are apart at least.
const linePause = 2 * time.Second

// progressLines is for a stderr that is no terminal: a line for each layer that is
// in place, and from time to time one that sums up.
type progressLines struct {
	app  *app
	now  func() time.Time
	last time.Time
}

func (p *progressLines) begin(o *brokerv1.Operation) { p.app.noteOperation(o) }

func (p *progressLines) update(e *brokerv1.PullProgress) {
	for _, l := range e.GetLayers() {
		switch l.GetState() {
		case brokerv1.PullLayerState_PULL_LAYER_STATE_DONE:
			p.app.note("%s: done", l.GetId())
		case brokerv1.PullLayerState_PULL_LAYER_STATE_EXISTS:
			p.app.note("%s: was there already", l.GetId())
		}
	}
	if now := p.now(); now.Sub(p.last) >= linePause {
		p.last = now
		p.app.note("%s", progressText(e))
	}
}

func (p *progressLines) stop() {}

// progressText sums up how far a pull is.
func progressText(e *brokerv1.PullProgress) string {
	return fmt.Sprintf("%d of %d layers, %s of %s", e.GetLayersDone(), e.GetLayersTotal(), sizeText(e.GetDownloadedBytes()), sizeText(e.GetTotalBytes()))
}

// noteOperation says what an operation does.
func (a *app) noteOperation(o *brokerv1.Operation) { a.note("%s", operationText(o)) }

func operationText(o *brokerv1.Operation) string {
	return fmt.Sprintf("%s: pulling %s", o.GetName(), strings.TrimPrefix(o.GetResource(), "images/"))
}

// showEvent shows an event of a pull. JSON and YAML have them all as value, which
// is the event in the form in which the call gave it; otherwise the result alone
// is an answer.
func (a *app) showEvent(value proto.Message, e *brokerv1.PullResponse, shown progress) error {
	if a.exact() {
		if err := a.showNext(view{value: value}); err != nil {
			return err
		}
	}
	switch event := e.GetEvent().(type) {
	case *brokerv1.PullResponse_Operation:
		shown.begin(event.Operation)
	case *brokerv1.PullResponse_Progress:
		shown.update(event.Progress)
	case *brokerv1.PullResponse_Result:
		shown.stop()
		return a.showResult(event.Result, false)
	}
	return nil
}

// showResult shows the image that was pulled, unless it was shown as an event, and
// warns where its tag is not what was asked for.
func (a *app) showResult(r *brokerv1.PullResult, dryRun bool) error {
	if !a.exact() {
		if err := a.show(view{names: []string{r.GetImage()}, text: line("%s", resultText(r, dryRun))}); err != nil {
			return err
		}
	}
	switch r.GetTag() {
	case brokerv1.PulledTag_PULLED_TAG_MOVED:
		a.note("warning: %s: the registry moved the tag during the pull; the image is here by its digest, the tag is as it was before; pull again for the newer one", r.GetImage())
	case brokerv1.PulledTag_PULLED_TAG_DROPPED:
		a.note("warning: %s: the registry moved the tag in the last moment; the tag was taken off, so that nothing uses what was not decided on; pull again", r.GetImage())
	}
	return nil
}

// resultText is a result in words.
func resultText(r *brokerv1.PullResult, dryRun bool) string {
	done := "pulled"
	switch {
	case r.GetAlreadyPresent():
		done = "already present,"
	case dryRun:
		done = "would be pulled,"
	}
	text := fmt.Sprintf("%s: %s %s", r.GetImage(), done, r.GetDigest())
	if r.GetSizeBytes() > 0 {
		text += " (" + sizeText(r.GetSizeBytes()) + ")"
	}
	if dryRun {
		text += " (dry run)"
	}
	return text
}
