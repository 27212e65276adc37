package main

import (
	"math"
	"sync/atomic"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/internal/termclean"
)

// maxBars is how many layers have a bar at a time. The engine works on three or
// so; an answer may name any number.
const maxBars = 8

// progressBars is for a terminal: a bar for each layer in progress, and one for
// all below them. They are gone when the pull has ended.
type progressBars struct {
	app    *app
	bars   *mpb.Progress // nil before the first update
	total  *bar
	layers map[string]*bar
	made   int // how many layers had a bar; they stay in this order
	over   bool
}

// bar is a bar with a text before it. The text changes while it is drawn.
type bar struct {
	*mpb.Bar
	text atomic.Pointer[string]
}

func (p *progressBars) begin(o *brokerv1.Operation) {
	if p.bars == nil {
		p.app.noteOperation(o)
	}
}

func (p *progressBars) update(e *brokerv1.PullProgress) {
	if p.over || p.bars == nil && !p.start() {
		return
	}
	for _, l := range e.GetLayers() {
		p.layer(l)
	}
	p.total.set(progressText(e), e.GetDownloadedBytes(), e.GetTotalBytes())
}

// start reports whether there is something to draw on.
func (p *progressBars) start() bool {
	// That it is a terminal is known already.
	p.bars = mpb.New(mpb.WithOutput(p.app.stderr), mpb.ForceTTY(), mpb.WithAutoRefresh())
	p.layers = map[string]*bar{}
	p.total = p.add(math.MaxInt)
	return p.total != nil
}

// layer makes, moves or removes the bar of a layer.
func (p *progressBars) layer(l *brokerv1.PullLayer) {
	b := p.layers[l.GetId()]
	switch l.GetState() {
	case brokerv1.PullLayerState_PULL_LAYER_STATE_DOWNLOADING, brokerv1.PullLayerState_PULL_LAYER_STATE_EXTRACTING:
	default:
		if b != nil {
			b.Abort(true)
			delete(p.layers, l.GetId())
		}
		return
	}
	if b == nil {
		if len(p.layers) == maxBars {
			return
		}
		if b = p.add(p.made); b == nil {
			return
		}
		p.made++
		p.layers[l.GetId()] = b
	}
	b.set(shortID(l.GetId())+" "+enumText(l.GetState(), "PULL_LAYER_STATE_"), l.GetCurrentBytes(), l.GetTotalBytes())
}

// add makes a bar, above those of a greater priority; nil when the terminal is
// gone.
func (p *progressBars) add(priority int) *bar {
	b := &bar{}
	b.text.Store(new(string))
	var err error
	// A bar without a total never completes by itself: layers come and go as the
	// broker says.
	b.Bar, err = p.bars.Add(0, mpb.BarStyle().Build(), mpb.BarPriority(priority),
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return *b.text.Load() }, decor.WCSyncWidthR)),
		mpb.AppendDecorators(decor.Any(func(s decor.Statistics) string { return sizeText(s.Current) + " of " + sizeText(s.Total) })))
	if err != nil {
		p.over = true
		return nil
	}
	return b
}

func (b *bar) set(text string, current, total int64) {
	text = termclean.String(text)
	b.text.Store(&text)
	b.SetTotal(max(total, 0), false)
	b.SetCurrent(max(current, 0))
}

func (p *progressBars) stop() {
	p.over = true
	if p.bars == nil {
		return
	}
	for _, b := range p.layers {
		b.Abort(true)
	}
	if p.total != nil {
		p.total.Abort(true)
	}
	p.bars.Wait()
	p.bars = nil
}
