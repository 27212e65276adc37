package docker

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/page"
)

// service is a Containers over an engine of the test's own.
func service(edit func(*engine)) *Containers {
	e := &engine{}
	edit(e)
	return &Containers{engine: e}
}

// sight is a scope that shows what hidden does not name.
type sight struct {
	leave
	hidden func(resource string) bool
}

func (s sight) Visible(resource string) bool { return s.hidden == nil || !s.hidden(resource) }

// world is what an engine's list would give now.
type world []container.Summary

func (w *world) add(name string, created int64, state string) {
	id := make([]byte, 32)
	for i := range id {
		id[i] = byte(rand.IntN(256))
	}
	*w = append(*w, container.Summary{ID: hex.EncodeToString(id), Names: []string{"/" + name}, Created: created, State: state})
}

func (w *world) service() *Containers {
	return service(func(e *engine) {
		e.list = func(context.Context) ([]page.Item[*brokerv1.Container], error) { return converter{}.list(*w), nil }
	})
}

func names(page *brokerv1.ListContainersResponse) (out []string) {
	for _, c := range page.GetContainers() {
		out = append(out, c.GetName())
	}
	return out
}

// TestPagesAreStable: whatever comes and goes between two pages, what was there
// all the time is shown once, and nothing twice.
func TestPagesAreStable(t *testing.T) {
	for round := range 50 {
		var w world
		for i := range 40 {
			w.add(fmt.Sprintf("c%d", i), int64(rand.IntN(10)), "running")
		}
		s := w.service()
		scope := call.With(t.Context(), sight{})
		stays := map[string]bool{}
		for _, c := range w {
			stays[c.Names[0][1:]] = true
		}
		seen := map[string]int{}
		req := &brokerv1.ListContainersRequest{PageSize: int32(1 + rand.IntN(9))}
		for pages := 0; ; pages++ {
			page, err := s.ListContainers(scope, req)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(page.GetContainers()); n > int(req.GetPageSize()) || (page.GetNextPageToken() != "" && n != int(req.GetPageSize())) {
				t.Fatalf("a page of %d, size %d", n, req.GetPageSize())
			}
			for _, name := range names(page) {
				seen[name]++
			}
			if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
				break
			}
			if pages > 100 {
				t.Fatal("no end")
			}
			// Also the one that the page ended with may go.
			for range 2 {
				i := rand.IntN(len(w))
				delete(stays, w[i].Names[0][1:])
				w = slices.Delete(slices.Clone(w), i, i+1)
				w.add(fmt.Sprintf("new%d-%d", pages, rand.Int()), int64(rand.IntN(10)), "running")
			}
		}
		for name, n := range seen {
			if n > 1 {
				t.Errorf("round %d: %s was shown %d times", round, name, n)
			}
		}
		for name := range stays {
			if seen[name] != 1 {
				t.Errorf("round %d: %s was there all the time and shown %d times", round, name, seen[name])
			}
		}
	}
}

// TestHiddenLeavesNoTrace defends the existence of what a caller may not see:
// every page and token is what it would be if that did not exist.
func TestHiddenLeavesNoTrace(t *testing.T) {
	var with, without world
	for i := range 60 {
		name := fmt.Sprintf("shown%d", i)
		if i%3 != 0 {
			name = fmt.Sprintf("hidden%d", i)
		}
		with.add(name, int64(i/4), []string{"running", "exited"}[i%2])
		if i%3 == 0 {
			without = append(without, with[len(with)-1])
		}
	}
	hidden := func(resource string) bool { return strings.HasPrefix(resource, "containers/hidden") }
	scope := call.With(t.Context(), sight{hidden: hidden})
	for _, filter := range []*brokerv1.ListContainersRequest{
		{}, {NamePattern: "*"}, {NamePattern: "hidden*"}, {NamePattern: "*1*"}, {States: []brokerv1.ContainerState{brokerv1.ContainerState_CONTAINER_STATE_EXITED}},
		{Healths: []brokerv1.ContainerHealth{brokerv1.ContainerHealth_CONTAINER_HEALTH_NONE}},
	} {
		for size := range int32(22) {
			filter.PageSize, filter.PageToken = size, ""
			for {
				got, err := with.service().ListContainers(scope, filter)
				if err != nil {
					t.Fatal(err)
				}
				want, err := without.service().ListContainers(scope, filter)
				if err != nil {
					t.Fatal(err)
				}
				if !proto.Equal(got, want) {
					t.Fatalf("%v\ngot  %v %s\nwant %v %s", filter, names(got), got.GetNextPageToken(), names(want), want.GetNextPageToken())
				}
				if filter.PageToken = got.GetNextPageToken(); filter.PageToken == "" {
					break
				}
			}
		}
	}
	// Past the chain there is no scope, and nothing is shown.
	page, err := with.service().ListContainers(t.Context(), &brokerv1.ListContainersRequest{})
	if err != nil || len(page.GetContainers()) != 0 || page.GetNextPageToken() != "" {
		t.Errorf("without a scope: %v, %v", names(page), err)
	}
}

func TestFilters(t *testing.T) {
	var w world
	w.add("web", 3, "running")
	w.add("web-db", 2, "exited")
	w.add("cache", 1, "running")
	s, scope := w.service(), call.With(t.Context(), sight{})
	const running, exited = brokerv1.ContainerState_CONTAINER_STATE_RUNNING, brokerv1.ContainerState_CONTAINER_STATE_EXITED
	for _, c := range []struct {
		req  *brokerv1.ListContainersRequest
		want string
	}{
		{&brokerv1.ListContainersRequest{}, "[web web-db cache]"},
		{&brokerv1.ListContainersRequest{NamePattern: "web"}, "[web]"},
		{&brokerv1.ListContainersRequest{NamePattern: "web*"}, "[web web-db]"},
		{&brokerv1.ListContainersRequest{NamePattern: "WEB"}, "[]"},
		{&brokerv1.ListContainersRequest{States: []brokerv1.ContainerState{running}}, "[web cache]"},
		{&brokerv1.ListContainersRequest{States: []brokerv1.ContainerState{running, exited}, NamePattern: "*b"}, "[web web-db]"},
		{&brokerv1.ListContainersRequest{Healths: []brokerv1.ContainerHealth{brokerv1.ContainerHealth_CONTAINER_HEALTH_HEALTHY}}, "[]"},
	} {
		page, err := s.ListContainers(scope, c.req)
		if err != nil || fmt.Sprint(names(page)) != c.want {
			t.Errorf("%v: %v, %v; want %s", c.req, names(page), err, c.want)
		}
	}
	for _, bad := range []string{"a/b", "?", "[ab]", "{a}", `\*`, strings.Repeat("a", 129)} {
		if _, err := s.ListContainers(scope, &brokerv1.ListContainersRequest{NamePattern: bad}); fault.Reason(err) != "INVALID_ARGUMENT" {
			t.Errorf("pattern %q: %v", bad, err)
		}
	}
}

func TestPageSize(t *testing.T) {
	var w world
	for i := range 600 {
		w.add(fmt.Sprint("c", i), 1, "running")
	}
	for size, want := range map[int32]int{0: 50, 1: 1, 499: 499, 500: 500, 501: 500, 1 << 30: 500} {
		page, err := w.service().ListContainers(call.With(t.Context(), sight{}), &brokerv1.ListContainersRequest{PageSize: size})
		if err != nil || len(page.GetContainers()) != want || page.GetNextPageToken() == "" {
			t.Errorf("size %d: %d, %v", size, len(page.GetContainers()), err)
		}
	}
	if _, err := w.service().ListContainers(t.Context(), &brokerv1.ListContainersRequest{PageSize: -1}); fault.Reason(err) != "INVALID_ARGUMENT" {
		t.Errorf("size -1: %v", err)
	}
	// A last page that is full is the last.
	page, err := w.service().ListContainers(call.With(t.Context(), sight{}), &brokerv1.ListContainersRequest{PageSize: 500, NamePattern: "c59*"})
	if err != nil || len(page.GetContainers()) != 11 || page.GetNextPageToken() != "" {
		t.Errorf("%d, token %q, %v", len(page.GetContainers()), page.GetNextPageToken(), err)
	}
}

func TestPageTokens(t *testing.T) {
	var w world
	w.add("web", 3, "running")
	w.add("db", -2, "running")
	s, scope := w.service(), call.With(t.Context(), sight{})
	first, err := s.ListContainers(scope, &brokerv1.ListContainersRequest{PageSize: 1, NamePattern: "*"})
	if err != nil {
		t.Fatal(err)
	}
	token := first.GetNextPageToken()
	if page, err := s.ListContainers(scope, &brokerv1.ListContainersRequest{PageSize: 7, NamePattern: "*", PageToken: token}); err != nil || fmt.Sprint(names(page)) != "[db]" {
		t.Errorf("another page size: %v, %v", names(page), err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		t.Fatal(err)
	}
	other := slices.Clone(raw)
	other[len(other)-1] ^= 1
	for name, req := range map[string]*brokerv1.ListContainersRequest{
		"no filters":     {PageToken: token},
		"other pattern":  {PageToken: token, NamePattern: "**"},
		"another filter": {PageToken: token, NamePattern: "*", States: []brokerv1.ContainerState{1}},
		"other hash":     {PageToken: base64.RawURLEncoding.EncodeToString(other), NamePattern: "*"},
		"no base64":      {PageToken: "!", NamePattern: "*"},
		"padded":         {PageToken: token + "=", NamePattern: "*"},
		"short":          {PageToken: token[:len(token)-4], NamePattern: "*"},
		"long":           {PageToken: token + "AAAA", NamePattern: "*"},
		"blank":          {PageToken: " ", NamePattern: "*"},
	} {
		if _, err := s.ListContainers(scope, req); fault.Reason(err) != "INVALID_ARGUMENT" {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A forged position shows no more than a list from the start would.
	blind := call.With(t.Context(), sight{hidden: func(string) bool { return true }})
	filters := &brokerv1.ListContainersRequest{NamePattern: "*"}
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(filters)
	sum := sha256.Sum256(append(b, 0))
	filters.PageToken = base64.RawURLEncoding.EncodeToString(append(sum[:8], 0))
	page, err := s.ListContainers(blind, filters)
	if err != nil || len(page.GetContainers()) != 0 {
		t.Errorf("forged: %v, %v", names(page), err)
	}
}

// wire takes down what the SDK would send.
type wire struct{ sent []*http.Request }

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	w.sent = append(w.sent, r)
	return &http.Response{StatusCode: 404, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(`{"message":"no"}`)), Request: r}, nil
}

// FuzzName defends the engine's URLs against names: one that passes is one
// segment, unescaped, and meant by exactly one route of the transport; one that
// does not pass never gets there.
func FuzzName(f *testing.F) {
	for _, seed := range []string{"web", "a.", "a..", "..", "json", "web/json", "a%2fb", "web?x=1", "web#", "web\n", "we\x00b", "w", "Web_1.2-x", strings.Repeat("x", 128), strings.Repeat("x", 129), "wéb", "\xffab", someID, "json/../x", ""} {
		f.Add(seed)
	}
	w := &wire{}
	cli, err := client.NewClientWithOpts(client.WithHost("unix:///dev/null/nope"), client.WithHTTPClient(&http.Client{Transport: w}), client.WithVersion("1.51"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name string) {
		w.sent = nil
		s := service(func(e *engine) {
			e.inspect = func(ctx context.Context, name string) (*inspected, error) {
				_, err := cli.ContainerInspect(ctx, name)
				return nil, err
			}
		})
		_, err := s.find(t.Context(), name)
		if !nameSyntax.MatchString(name) {
			if fault.Reason(err) != "INVALID_ARGUMENT" || len(w.sent) != 0 {
				t.Fatalf("%q: %v, sent %v", name, err, w.sent)
			}
			return
		}
		if fault.Reason(err) != "CONTAINER_NOT_FOUND" || len(w.sent) != 1 {
			t.Fatalf("%q: %v, sent %d", name, err, len(w.sent))
		}
		u := w.sent[0].URL
		if u.RequestURI() != "/v1.51/containers/"+name+"/json" || u.RawPath != "" {
			t.Errorf("%q: asked for %s", name, u.RequestURI())
		}
		matched := 0
		for _, r := range routes {
			if r.method == "GET" && r.path.MatchString(versionPrefix.ReplaceAllString(u.Path, "")) {
				matched++
			}
		}
		if err := admit(w.sent[0]); err != nil || matched != 1 {
			t.Errorf("%q: %d routes, %v", name, matched, err)
		}
	})
}
