package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/gortium/hermes-broker/server/call"
)

// route is one request that may go to the engine. Everything else stays here.
type route struct {
	method string
	path   *regexp.Regexp            // Of the path behind the API version.
	query  map[string]*regexp.Regexp // Keys that may be set, to what.
	must   []string                  // Keys that must be set: without them the engine does more.
	change bool                      // Needs a recorded intent.
	auth   bool                      // May carry a registry's credentials.
}

const (
	idPattern     = `[0-9a-f]{64}`
	namePattern   = `[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}`
	digestPattern = `sha256:` + idPattern
	tagPattern    = `[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}`
	// repositoryPattern is a canonical one: a registry and at least one part.
	repositoryPattern = `[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*(:[1-9][0-9]{0,4})?(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)+`
	referencePattern  = repositoryPattern + `(:` + tagPattern + `|@` + digestPattern + `)`
	cachePattern      = `[a-z0-9]{1,64}`
)

var spelled = strings.NewReplacer("{id}", idPattern, "{name}", namePattern, "{image}", digestPattern, "{reference}", referencePattern,
	"{repository}", repositoryPattern, "{tag}", tagPattern, "{cache}", cachePattern, "{time}", `[0-9]{1,11}(\.[0-9]{1,9})?`)

// only matches all of a text.
func only(pattern string) *regexp.Regexp {
	return regexp.MustCompile(`^(?:` + spelled.Replace(pattern) + `)$`)
}

// keys are query keys and what they may be set to.
func keys(pairs ...string) map[string]*regexp.Regexp {
	m := map[string]*regexp.Regexp{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = only(pairs[i+1])
	}
	return m
}

// routes is the list.
var routes = []route{
	{method: "HEAD", path: only(`/_ping`)},
	{method: "GET", path: only(`/_ping`)},
	{method: "GET", path: only(`/version`)},
	{method: "GET", path: only(`/info`)},
	{method: "GET", path: only(`/system/df`)},
	{method: "GET", path: only(`/events`), query: keys("since", `{time}`, "until", `{time}`)},
	{method: "GET", path: only(`/networks`)},
	{method: "GET", path: only(`/volumes`)},
	{method: "GET", path: only(`/containers/json`), query: keys("all", `1`)},
	{method: "GET", path: only(`/containers/{name}/json`)},
	{method: "GET", path: only(`/containers/{id}/logs`), query: keys("stdout", `1`, "stderr", `1`, "since", `{time}`, "until", `{time}`, "timestamps", `1`, "follow", `1`, "tail", `all|[0-9]+`)},
	{method: "GET", path: only(`/containers/{id}/stats`), query: keys("stream", `0|1`)},
	// A wait changes nothing, although the engine has it as a POST.
	{method: "POST", path: only(`/containers/{id}/wait`), query: keys("condition", `not-running|removed`)},
	{method: "POST", path: only(`/containers/{id}/start`), change: true},
	{method: "POST", path: only(`/containers/{id}/stop`), query: keys("t", `[0-9]+`), change: true},
	{method: "POST", path: only(`/containers/{id}/restart`), query: keys("t", `[0-9]+`), change: true},
	// No v: volumes stay. No link.
	{method: "DELETE", path: only(`/containers/{id}`), query: keys("force", `1`), change: true},
	{method: "GET", path: only(`/images/json`)},
	{method: "GET", path: only(`/images/(?:{image}|{reference})/json`)},
	{method: "GET", path: only(`/distribution/{reference}/json`), auth: true},
	// No fromSrc, repo, changes: nothing is imported. No platform.
	{method: "POST", path: only(`/images/create`), query: keys("fromImage", `{repository}`, "tag", `{tag}|{image}`), must: []string{"fromImage", "tag"}, change: true, auth: true},
	{method: "DELETE", path: only(`/images/(?:{image}|{reference})`), query: keys("force", `1`), change: true},
	// One record of the build cache, by its ID.
	{method: "POST", path: only(`/build/prune`), query: keys("all", `1`, "filters", `\{"id":\{"{cache}":true\}\}`), must: []string{"filters"}, change: true},
}

var (
	errForbidden   = errors.New("a request that brokerd must not make was stopped")
	errNoIntent    = errors.New("a change without a recorded intent was stopped")
	errUnreachable = errors.New("the engine's socket does not answer")
)

var versionPrefix = regexp.MustCompile(`^/v1\.[0-9]{1,2}`)

// transport lets only listed requests through.
type transport struct{ base *http.Transport }

func newTransport(socket string) *transport {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	return &transport{base: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, "unix", socket)
			if err != nil && ctx.Err() == nil {
				return nil, fmt.Errorf("%w: %w", errUnreachable, err)
			}
			return c, err
		},
		DisableCompression:     true,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         64 << 10, // A log comes in chunks of a line.
	}}
}

// RoundTrip sends a listed request, and stops every other.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := admit(r); err != nil {
		return nil, err
	}
	return t.base.RoundTrip(r)
}

func admit(r *http.Request) error {
	p := versionPrefix.ReplaceAllString(r.URL.Path, "")
	for i := range routes {
		rt := &routes[i]
		if rt.method != r.Method || !rt.path.MatchString(p) {
			continue
		}
		// One spelling only, and nothing that turns a connection into a tunnel.
		if r.URL.RawPath != "" || r.Header.Get("Upgrade") != "" || r.Header.Get("Connection") != "" || (r.Body != nil && r.Body != http.NoBody) {
			break
		}
		if r.Header.Get("X-Registry-Auth") != "" && !rt.auth {
			break
		}
		query := r.URL.Query()
		for _, key := range rt.must {
			if !query.Has(key) {
				return fmt.Errorf("%w: %s %s without %q", errForbidden, r.Method, r.URL.Path, key)
			}
		}
		for key, values := range query {
			if allowed := rt.query[key]; allowed == nil || len(values) != 1 || !allowed.MatchString(values[0]) {
				return fmt.Errorf("%w: %s %s with %q", errForbidden, r.Method, r.URL.Path, key)
			}
		}
		if rt.change && !call.Intended(r.Context()) {
			return fmt.Errorf("%w: %s %s", errNoIntent, r.Method, r.URL.Path)
		}
		return nil
	}
	return fmt.Errorf("%w: %s %s", errForbidden, r.Method, r.URL.Path)
}
