package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/gortium/hermes-broker/client"
)

// pageSize is the most that a page of any list may have.
const pageSize = 500

// patternFlag is --name, a glob.
func patternFlag(cmd *cobra.Command, to *string, usage string) {
	cmd.Flags().StringVar(to, "name", "", usage+`; "*" is any run of characters`)
}

// page is a page of any list.
type page interface{ GetNextPageToken() string }

// list reads all pages of a list: ask gives the page that a token stands for.
func list[Page page, Item any](ctx context.Context, a *app, ask func(context.Context, *client.Client, string) (Page, error), items func(Page) []Item) ([]Item, error) {
	c, err := a.client(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.deadline(ctx, 0)
	defer cancel()
	all := []Item{}
	for token := ""; ; {
		p, err := ask(ctx, c, token)
		if err != nil {
			return nil, err
		}
		all = append(all, items(p)...)
		if token = p.GetNextPageToken(); token == "" {
			return all, nil
		}
	}
}

// wholePage is for lists of which more than the items is of interest.
func wholePage[Page any](p Page) []Page { return []Page{p} }

// ask makes one call.
func ask[R any](ctx context.Context, a *app, takes time.Duration, call func(context.Context, *client.Client) (R, error)) (R, error) {
	c, err := a.client(ctx)
	if err != nil {
		var none R
		return none, err
	}
	ctx, cancel := a.deadline(ctx, takes)
	defer cancel()
	return call(ctx, c)
}

// showList shows a list whose pages were put together in value.
func (a *app) showList(value proto.Message, names []string, rows func(wide bool) *table) error {
	return a.show(view{value: value, names: names, text: func(w io.Writer, wide bool) error { return rows(wide).write(w) }})
}

// namesOf are the names of a list's items, never nil.
func namesOf[Item any](all []Item, name func(Item) string) []string {
	names := []string{}
	for _, item := range all {
		names = append(names, name(item))
	}
	return names
}
