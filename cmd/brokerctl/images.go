package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

func (a *app) imagesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "images",
		Aliases: []string{"image", "i"},
		Short:   "List, pull and remove images",
		RunE:    a.group,
	}
	cmd.AddCommand(a.listImagesCommand(), a.pullCommand(), a.removeImageCommand())
	return cmd
}

func (a *app) listImagesCommand() *cobra.Command {
	req := &brokerv1.ListImagesRequest{PageSize: pageSize}
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the images within your grants, newest first",
		Long: `List the images within your grants, newest first: a line for each reference, and
one for an image without. Images share layers, so that sizes do not add up; engine
df has the truth.`,
		Example: `  brokerctl images ls
  brokerctl images ls --name '*/ollama:*' -o wide
  brokerctl images ls --untagged`,
		Args: cobra.NoArgs,
	}
	patternFlag(cmd, &req.ReferencePattern, "only references that match in full, as docker.io/library/alpine:3.22")
	cmd.Flags().BoolVar(&req.Untagged, "untagged", false, "only images without a tag")
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		all, err := a.listImages(ctx, req)
		if err != nil {
			return failed("list images", err)
		}
		return a.showList(&brokerv1.ListImagesResponse{Images: all}, imageNames(all), func(wide bool) *table { return a.imageTable(all, wide) })
	})
	return cmd
}

// listImages reads all pages.
func (a *app) listImages(ctx context.Context, req *brokerv1.ListImagesRequest) ([]*brokerv1.Image, error) {
	return list(ctx, a, func(ctx context.Context, c *client.Client, token string) (*brokerv1.ListImagesResponse, error) {
		req.PageToken = token
		return c.Images().ListImages(ctx, req)
	}, (*brokerv1.ListImagesResponse).GetImages)
}

// imageNames are what the images can be asked for by: their tags, or else their
// digests, or else, for a built one, at least its ID.
func imageNames(all []*brokerv1.Image) []string {
	names := []string{}
	for _, i := range all {
		switch {
		case len(i.GetReferences()) > 0:
			names = append(names, i.GetReferences()...)
		case len(i.GetDigests()) > 0:
			names = append(names, i.GetDigests()...)
		default:
			names = append(names, i.GetId())
		}
	}
	return names
}

func (a *app) imageTable(all []*brokerv1.Image, wide bool) *table {
	header := []string{"REFERENCE", "DIGEST", "SIZE", "AGE", "IN USE BY"}
	if wide {
		header = append(header, "ID", "ALL REFERENCES")
	}
	t := a.newTable(header...)
	for _, i := range all {
		references := i.GetReferences()
		if len(references) == 0 {
			references = []string{"<none>"}
		}
		for _, r := range references {
			row := []string{r, shortDigest(digestOf(r, i.GetDigests())), sizeText(i.GetSizeBytes()), age(i.GetCreateTime()), strings.Join(i.GetInUseBy(), ", ")}
			if wide {
				row = append(row, shortDigest(i.GetId()), strings.Join(append(i.GetReferences(), i.GetDigests()...), ", "))
			}
			t.add(row...)
		}
	}
	return t
}

// digestOf is the digest that the repository of reference has for an image; of
// any repository, when that has none or there is no reference.
func digestOf(reference string, digests []string) (found string) {
	for _, d := range digests {
		repository, digest, _ := strings.Cut(d, "@")
		if found == "" || strings.HasPrefix(reference, repository+":") {
			found = digest
		}
	}
	return found
}

// shortDigest is the beginning of a digest or of an image's ID.
func shortDigest(s string) string { return shortID(strings.TrimPrefix(s, "sha256:")) }

// sizeText is a size that the schema has as a signed number.
func sizeText(n int64) string { return decimalSize(uint64(max(n, 0))) }

func (a *app) removeImageCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rm IMAGE",
		Short: "Take a reference off an image, and remove it with its last one",
		Long: `Take a reference off an image, and remove the image with its last one. An image
that a container uses stays; --force removes one that only stopped containers use.

What would be removed is shown first. The removal then needs --yes, or a yes to
the question where there is a terminal to ask on.`,
		Example: `  brokerctl images rm alpine:3.21 --dry-run
  brokerctl images rm docker.io/library/alpine:3.21 --yes`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeImage(),
	}
	cmd.Flags().BoolVar(&force, "force", false, "also when a stopped container uses it; needs images.remove_force")
	consent := consentFlags(cmd, "remove without asking")
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		c, err := a.client(ctx)
		if err != nil {
			return err
		}
		return failed("rm "+args[0], destroy(ctx, a, consent, destruction[*brokerv1.RemoveImageResponse]{
			call: func(ctx context.Context, preview *brokerv1.RemoveImageResponse) (*brokerv1.RemoveImageResponse, error) {
				// The engine takes its time with the layers of a large image.
				ctx, cancel := a.deadline(ctx, 5*time.Minute)
				defer cancel()
				return c.Images().RemoveImage(ctx, &brokerv1.RemoveImageRequest{
					Image: args[0], Force: force, ExpectedId: preview.GetImageId(), ValidateOnly: preview == nil,
				})
			},
			would: func(r *brokerv1.RemoveImageResponse) string {
				if r.GetDeleted() {
					return fmt.Sprintf("removes for good: %s and the image (ID %s)", r.GetImage(), shortDigest(r.GetImageId()))
				}
				return fmt.Sprintf("removes: %s; the image (ID %s) stays%s", r.GetImage(), shortDigest(r.GetImageId()), remainingText(r))
			},
			view: removedImageView,
		}))
	})
	return cmd
}

func removedImageView(r *brokerv1.RemoveImageResponse, dryRun bool) view {
	format := "%s: removed, %s"
	if dryRun {
		format = "%s: would be removed, %s (dry run)"
	}
	rest := "the image stays" + remainingText(r)
	if r.GetDeleted() {
		rest = "and the image"
	}
	return view{value: r, names: []string{r.GetImage()}, text: line(format, r.GetImage(), rest)}
}

// remainingText says under which names an image stays, when the caller may know.
func remainingText(r *brokerv1.RemoveImageResponse) string {
	if len(r.GetRemainingReferences()) == 0 {
		return ""
	}
	return " as " + strings.Join(r.GetRemainingReferences(), ", ")
}
