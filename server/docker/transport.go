package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/gortium/hermes-broker/server/call"
)

// route is one request that may go to the engine. Everything else stays here.
type route struct {
	method string
	path   *regexp.Regexp // Of the path behind the API version.
	query  []string       // Keys that may be set.
	change bool           // Needs a recorded intent.
}

const (
	idPattern   = `[0-9a-f]{64}`
	namePattern = `[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}`
)

func path(p string) *regexp.Regexp {
	return regexp.MustCompile(`^` + strings.NewReplacer("{id}", idPattern, "{name}", namePattern, "{image}", "sha256:"+idPattern).Replace(p) + `$`)
}

// routes is the list.
var routes = []route{
	{method: "HEAD", path: path(`/_ping`)},
	{method: "GET", path: path(`/_ping`)},
	{method: "GET", path: path(`/containers/json`), query: []string{"all"}},
	{method: "GET", path: path(`/containers/{name}/json`)},
	{method: "GET", path: path(`/images/{image}/json`)},
	{method: "GET", path: path(`/containers/{id}/logs`), query: []string{"stdout", "stderr", "since", "until", "timestamps", "follow", "tail"}},
	{method: "GET", path: path(`/containers/{id}/stats`), query: []string{"stream"}},
	// A wait changes nothing, although the engine has it as a POST.
	{method: "POST", path: path(`/containers/{id}/wait`), query: []string{"condition"}},
	{method: "POST", path: path(`/containers/{id}/start`), change: true},
	{method: "POST", path: path(`/containers/{id}/stop`), query: []string{"t"}, change: true},
	{method: "POST", path: path(`/containers/{id}/restart`), query: []string{"t"}, change: true},
	// No v: volumes stay. No link.
	{method: "DELETE", path: path(`/containers/{id}`), query: []string{"force"}, change: true},
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
		for key := range r.URL.Query() {
			if !slices.Contains(rt.query, key) {
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
