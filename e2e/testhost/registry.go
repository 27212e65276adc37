package testhost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// RegistryAddr is where a Registry listens. An engine speaks plain HTTP with
	// what is on a loopback address.
	RegistryAddr = "127.0.0.1:5000"

	// RegistryUser and RegistryPassword are what a protected Registry asks for.
	RegistryUser     = "robot"
	RegistryPassword = "registry-password"

	// registryLogin is the line of them that htpasswd makes, at the lowest cost.
	registryLogin = RegistryUser + ":$2a$04$xzmXuwZa77ORRq5QOZblIe0hKnH8DM9viFYr7Um3rkoM3CFRX9nfq\n"

	// registryBackend is where the registry itself listens, behind the proxy.
	registryBackend = "127.0.0.1:5001"
)

const registryConfig = `version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %[1]s/storage}
  delete: {enabled: true}
http: {addr: %[2]s, secret: not-a-secret, draintimeout: 1s}
`

const registryAuth = "auth: {htpasswd: {realm: testhost, path: %[1]s/htpasswd}}\n"

// An Interceptor stands in the way of one request to a Registry: it may answer
// in the registry's place, or let next answer, before and after whatever it
// likes. See [IsBlob], [IsManifest], [Cut] and [Throttle].
type Interceptor func(w http.ResponseWriter, r *http.Request, next http.Handler)

// A Registry is a real registry on the host's loopback, with a proxy in front of
// it that records requests and lets a test make faults. Pushing goes past the
// proxy. Its methods are safe for concurrent use, but for Protect and Close.
type Registry struct {
	// Addr is the constant RegistryAddr, the first part of its images' names.
	Addr string

	dir     string
	process *process
	server  *http.Server
	proxy   http.Handler
	client  *http.Client

	mu        sync.Mutex
	requests  []Request
	intercept Interceptor
}

// StartRegistry starts an empty registry and waits until it answers. There can
// be one at a time. The caller closes it, before the Host.
func (h *Host) StartRegistry(ctx context.Context) (_ *Registry, err error) {
	dir, err := os.MkdirTemp(h.Dir, "registry")
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, registryBackend)
		},
		DisableCompression: true, // bytes pass as the registry wrote them
	}
	r := &Registry{Addr: RegistryAddr, dir: dir, client: &http.Client{Transport: transport}, proxy: proxyThrough(transport)}
	r.server = &http.Server{Handler: r, ErrorLog: log.New(io.Discard, "", 0)} // injected faults are no news
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if err := r.serve(ctx, ""); err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", RegistryAddr)
	if err != nil {
		return nil, err
	}
	go r.server.Serve(listener)
	return r, nil
}

// serve starts the registry on the storage it had.
func (r *Registry) serve(ctx context.Context, more string) error {
	config := filepath.Join(r.dir, "config.yml")
	text := fmt.Sprintf(registryConfig, r.dir, registryBackend) + more
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	process, err := startProcess(filepath.Join(r.dir, "log"), exec.Command("docker-registry", "serve", config))
	if err != nil {
		return fmt.Errorf("starting docker-registry: %w", err)
	}
	r.process = process
	err = process.waitReady(ctx, func(ctx context.Context) error { return r.call(ctx, "GET", "/v2/", "", nil, nil) })
	if err != nil {
		return fmt.Errorf("starting docker-registry: %w", err)
	}
	return nil
}

// stop stops the registry itself; the proxy stays and answers 502.
func (r *Registry) stop() error {
	p := r.process
	if p == nil {
		return nil
	}
	r.process = nil
	r.client.CloseIdleConnections()
	if err := p.stop(); err != nil {
		return fmt.Errorf("docker-registry: %w", err)
	}
	return nil
}

// Protect starts the registry anew on what it holds, so that it asks for
// RegistryUser and RegistryPassword from now on.
func (r *Registry) Protect(ctx context.Context) error {
	if err := r.stop(); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(r.dir, "htpasswd"), []byte(registryLogin), 0o600); err != nil {
		return err
	}
	return r.serve(ctx, fmt.Sprintf(registryAuth, r.dir))
}

// Close cuts every connection, ends the registry and removes what it holds.
// Closing twice is harmless.
func (r *Registry) Close() error {
	return errors.Join(r.server.Close(), r.stop(), os.RemoveAll(r.dir))
}

// Intercept puts f in the way of all requests from now on; nil takes away what
// was there.
func (r *Registry) Intercept(f Interceptor) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.intercept = f
}

// Requests returns what was asked so far through the proxy, in order of
// arrival, less the requests that match is false for. A nil match takes all.
func (r *Registry) Requests(match func(method, path string) bool) []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.requests), func(q Request) bool {
		return match != nil && !match(q.Method, q.Path)
	})
}

// Reset forgets the requests and the Interceptor.
func (r *Registry) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests, r.intercept = nil, nil
}

// ServeHTTP records a request and passes it on.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, Request{
		Method: req.Method, URI: req.RequestURI, Path: req.URL.Path, Query: req.URL.Query(), Header: req.Header.Clone(),
	})
	intercept := r.intercept
	r.mu.Unlock()
	if intercept == nil {
		r.proxy.ServeHTTP(w, req)
		return
	}
	intercept(w, req, r.proxy)
}

// IsBlob matches the fetching of a blob: a layer, or an image's configuration.
func IsBlob(method, path string) bool {
	return method == http.MethodGet && strings.Contains(path, "/blobs/sha256:")
}

// IsManifest matches the asking for a manifest, by tag or digest, of any image.
func IsManifest(_, path string) bool { return strings.Contains(path, "/manifests/") }

// Cut passes on n bytes of an answer's body and cuts the connection instead of
// passing on more.
func Cut(w http.ResponseWriter, n int) http.ResponseWriter {
	return &paced{ResponseWriter: w, before: func(size int) int {
		allowed := min(size, n)
		n -= allowed
		return allowed
	}}
}

// Throttle passes on an answer's body at so many bytes a second.
func Throttle(w http.ResponseWriter, perSecond int) http.ResponseWriter {
	const most = 16 << 10
	return &paced{ResponseWriter: w, before: func(size int) int {
		size = min(size, most)
		time.Sleep(time.Duration(size) * time.Second / time.Duration(perSecond))
		return size
	}}
}

// paced asks before each piece of a body how much of it to write; 0 cuts the
// connection.
type paced struct {
	http.ResponseWriter
	before func(size int) int
}

func (p *paced) Write(b []byte) (written int, err error) {
	for written < len(b) && err == nil {
		n := p.before(len(b) - written)
		if n == 0 {
			p.Flush() // what was passed on has to arrive
			panic(http.ErrAbortHandler)
		}
		n, err = p.ResponseWriter.Write(b[written : written+n])
		written += n
		p.Flush()
	}
	return written, err
}

func (p *paced) Flush() { _ = http.NewResponseController(p.ResponseWriter).Flush() }

// call makes one request of the registry itself, past the proxy. see unless nil
// gets the answer before its body is closed.
func (r *Registry) call(ctx context.Context, method, uri, contentType string, body io.Reader, see func(*http.Response) error) error {
	at, err := url.Parse(uri)
	if err != nil {
		return err
	}
	at.Scheme, at.Host = "http", registryBackend
	req, err := http.NewRequestWithContext(ctx, method, at.String(), body)
	if err != nil {
		return err
	}
	req.SetBasicAuth(RegistryUser, RegistryPassword) // which one without protection ignores
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return fmt.Errorf("registry: %s %s: %s: %s", method, uri, resp.Status, said)
	}
	if see != nil {
		return see(resp)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
