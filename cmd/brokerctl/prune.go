package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

func (a *app) pruneCommand() *cobra.Command {
	var minAge time.Duration
	req := &brokerv1.PruneRequest{}
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove what is not in use: containers, images, build cache",
		Long: `Remove what is not in use, of the kinds that are named. Volumes and networks are
never removed.

What would be removed is shown first, at most 64 things at a time. Their removal
then needs --yes, or a yes to the question where there is a terminal to ask on.
Nothing is removed when that is no longer what was shown. While there is more the
next things are shown and asked about in the same way.`,
		Example: `  brokerctl engine prune --containers --images --dry-run
  brokerctl engine prune --images --unused-images --min-age 168h --yes
  brokerctl engine prune --build-cache --yes`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.BoolVar(&req.Containers, "containers", false, "containers that do not run")
	f.BoolVar(&req.Images, "images", false, "images without a tag that no container uses")
	f.BoolVar(&req.UnusedImages, "unused-images", false, "images that no container uses, with a tag or without")
	f.BoolVar(&req.BuildCache, "build-cache", false, "build cache that no build uses; needs engine.prune_build_cache")
	f.DurationVar(&minAge, "min-age", 0, "only what was made at least so long ago (default: any age)")
	consent := consentFlags(cmd, "remove without asking")
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		// For the broker unused images are more of the images.
		req.Images = req.Images || req.UnusedImages
		if !req.GetContainers() && !req.GetImages() && !req.GetBuildCache() {
			return fail(exitUsage, "for example --containers --images", "prune: no kind of thing is named")
		}
		if minAge != 0 {
			req.MinAge = durationpb.New(minAge)
		}
		c, err := a.client(ctx)
		if err != nil {
			return err
		}
		p := &pruning{app: a, client: c, req: req, consent: consent}
		return failed("prune", p.run(ctx))
	})
	return cmd
}

// pruning is one `engine prune`.
type pruning struct {
	app     *app
	client  *client.Client
	req     *brokerv1.PruneRequest
	consent *consent
	failed  int // things that stayed although nothing stood in their way
}

func (p *pruning) run(ctx context.Context) error {
	for more := true; more && p.failed == 0; {
		var err error
		if more, err = p.batch(ctx); err != nil {
			return err
		}
	}
	if p.failed > 0 {
		return fail(exitFailure, "the engine's own words are in the audit trail: brokerctl audit tail, on the host", "%d of these things were not removed", p.failed)
	}
	return nil
}

// batch shows what one call would remove, removes it, and reports whether there is
// more to be asked for.
func (p *pruning) batch(ctx context.Context) (more bool, err error) {
	a := p.app
	preview, err := p.call(ctx, nil)
	if err != nil {
		return false, err
	}
	if p.consent.dryRun {
		return false, a.showNext(p.view(preview))
	}
	if len(preview.GetItems()) == 0 {
		if !a.changing { // Not after a batch.
			return false, a.showNext(p.view(preview))
		}
		return false, nil
	}
	a.note("removes for good, %s in all:", sizeText(sizeOf(preview.GetItems())))
	if err := a.pruneTable(preview, nil, false).write(a.stderr); err != nil {
		return false, err
	}
	if err := a.confirm(ctx, p.consent.yes); err != nil {
		if a.changing && errors.Is(err, errNotConfirmed) {
			a.note("the rest stays")
			return false, nil // What was confirmed is done.
		}
		return false, err
	}
	a.changing = true
	resp, err := p.call(ctx, preview)
	if err != nil {
		return false, err
	}
	if err := a.showNext(p.view(resp)); err != nil {
		return false, err
	}
	removed := 0
	for _, item := range resp.GetItems() {
		switch {
		case item.GetRemoved():
			removed++
		case !harmless(item.GetProblem()):
			p.failed++
		}
	}
	if removed == 0 && p.failed == 0 && resp.GetMore() > 0 {
		// The next batch would be the same one, for ever.
		return false, fail(exitFailure, "look at the problems above; narrow what is pruned with --min-age or fewer kinds", "nothing of these could be removed; %d more were not tried", resp.GetMore())
	}
	return resp.GetMore() > 0, nil
}

// call asks what would be removed, or removes what an answer listed.
func (p *pruning) call(ctx context.Context, plan *brokerv1.PruneResponse) (*brokerv1.PruneResponse, error) {
	ctx, cancel := p.app.deadline(ctx, 15*time.Minute-defaultTimeout)
	defer cancel()
	req := proto.CloneOf(p.req)
	req.ValidateOnly, req.ExpectedPlan = plan == nil, plan.GetPlan()
	return p.client.Engine().Prune(ctx, req)
}

// harmless reports whether a thing stayed because nothing had to be done any more.
// What comes before that says what went with it.
func harmless(problem string) bool {
	for _, end := range []string{"in use now", "gone already", "changed since"} {
		if strings.HasSuffix(problem, end) {
			return true
		}
	}
	return false
}

// sizeOf is what things take by themselves, together. A preview has no sum.
func sizeOf(items []*brokerv1.PrunedItem) (sum int64) {
	for _, i := range items {
		sum += i.GetSizeBytes()
	}
	return sum
}

// view shows an answer.
func (p *pruning) view(r *brokerv1.PruneResponse) view {
	return view{value: r, names: namesOf(r.GetItems(), prunedName), text: func(w io.Writer, _ bool) error {
		if len(r.GetItems()) == 0 {
			return line("nothing to remove")(w, false)
		}
		if err := p.app.pruneTable(r, p.result, p.app.colour).write(w); err != nil {
			return err
		}
		sum := sizeText(r.GetReclaimedBytes()) + " reclaimed"
		if p.consent.dryRun {
			sum = sizeText(sizeOf(r.GetItems())) + " would be reclaimed (dry run)"
		}
		if r.GetMore() > 0 {
			sum += fmt.Sprintf("; %d more to remove", r.GetMore())
		}
		return line("%s", sum)(w, false)
	}}
}

// result is what became of a thing.
func (p *pruning) result(item *brokerv1.PrunedItem) cell {
	switch {
	case p.consent.dryRun:
		return cell{"would be removed", plain}
	case item.GetRemoved():
		return cell{"removed", plain}
	case harmless(item.GetProblem()):
		return cell{item.GetProblem(), yellow}
	}
	// After a failure the broker tries no more.
	return cell{firstOf(item.GetProblem(), "not tried"), red}
}

// pruneTable lists things, and what became of them when there is a result.
func (a *app) pruneTable(r *brokerv1.PruneResponse, result func(*brokerv1.PrunedItem) cell, painted bool) *table {
	header := []string{"KIND", "NAME", "ID", "SIZE", "AGE"}
	if result != nil {
		header = append(header, "RESULT")
	}
	t := a.newTable()
	t.painted = painted
	t.addCells(cells(bold, header...)...)
	for _, item := range r.GetItems() {
		size := ""
		if item.GetSizeBytes() > 0 {
			size = sizeText(item.GetSizeBytes())
		}
		row := cells(plain, enumText(item.GetKind(), "PRUNED_KIND_"), strings.Join(item.GetNames(), ", "), shortDigest(item.GetId()), size, age(item.GetCreateTime()))
		if result != nil {
			row = append(row, result(item))
		}
		t.addCells(row...)
	}
	return t
}

// prunedName is what a thing is called by people, or else its ID.
func prunedName(item *brokerv1.PrunedItem) string {
	return firstOf(strings.Join(item.GetNames(), ", "), item.GetId())
}
