package testhost

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"
)

// recordedBody is the largest declared body that a Recorder keeps. Streams and
// build contexts are passed on unread.
const recordedBody = 1 << 20

// A Request is one HTTP request a client made of the engine.
type Request struct {
	Method string
	URI    string      // as on the wire, before any cleaning or unescaping
	Path   string      // unescaped, without the version's prefix
	Query  url.Values  // parsed
	Header http.Header // with Connection and Upgrade, if it asks for a raw stream
	Body   []byte      // whole, or nil when its length is not declared or above 1 MiB
}

func (r Request) String() string { return r.Method + " " + r.URI }

// A Recorder is a unix socket that looks like an engine. It records every
// request, then gives a scripted answer or passes the request on to a real
// engine, raw streams (attach, exec, session) included. Its methods are safe
// for concurrent use.
type Recorder struct {
	// Socket is where it listens.
	Socket string

	dir      string
	server   *http.Server
	cancel   context.CancelFunc // ends raw streams, which the server forgets
	upstream http.Handler       // nil without an engine

	mu       sync.Mutex
	requests []Request
	scripts  map[string]http.HandlerFunc
}

// RecordEngine starts a Recorder in front of the engine's socket at upstream,
// or with no engine behind it when upstream is empty: what has no script is
// then answered with 501. The caller closes it.
func RecordEngine(upstream string) (*Recorder, error) {
	dir, err := os.MkdirTemp("", "rec")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &Recorder{Socket: filepath.Join(dir, "docker.sock"), dir: dir, cancel: cancel}
	if upstream != "" {
		r.upstream = proxyThrough(unixTransport(upstream))
	}
	r.server = &http.Server{
		Handler:     r,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    log.New(io.Discard, "", 0), // injected faults are no news
	}
	listener, err := net.Listen("unix", r.Socket)
	if err != nil {
		cancel()
		os.RemoveAll(dir)
		return nil, err
	}
	go r.server.Serve(listener)
	return r, nil
}

// proxyThrough passes requests on to whatever the transport dials.
func proxyThrough(transport *http.Transport) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = "http", "upstream"
		},
		Transport:     transport,
		FlushInterval: -1, // what streams passes as it comes
		ErrorLog:      log.New(io.Discard, "", 0),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			Fail(http.StatusBadGateway, "proxy: "+err.Error())(w, nil)
		},
	}
}

// Close ends every connection and removes the socket.
func (r *Recorder) Close() error {
	r.cancel()
	err := r.server.Close()
	if t, ok := r.upstream.(*httputil.ReverseProxy); ok {
		t.Transport.(*http.Transport).CloseIdleConnections()
	}
	os.RemoveAll(r.dir)
	return err
}

// Requests returns what was recorded so far, in order of arrival.
func (r *Recorder) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// Reset forgets the recorded requests and the scripts.
func (r *Recorder) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests, r.scripts = nil, nil
}

// Script answers the requests that match pattern, in place of the engine.
// pattern is one of [http.ServeMux] without the version's prefix, such as
// "POST /containers/{id}/restart"; a later script of the same pattern replaces
// the earlier. A malformed or conflicting pattern panics.
func (r *Recorder) Script(pattern string, answer http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.scripts == nil {
		r.scripts = map[string]http.HandlerFunc{}
	}
	r.scripts[pattern] = answer
	r.scripted() // panics here, in the test, and not in the server
}

// scripted builds the router of the scripts. The caller holds mu.
func (r *Recorder) scripted() *http.ServeMux {
	mux := http.NewServeMux()
	for pattern, answer := range r.scripts {
		mux.HandleFunc(pattern, answer)
	}
	return mux
}

var versionPrefix = regexp.MustCompile(`^/v[0-9]+\.[0-9]+(/.*)$`)

// ServeHTTP records the request and answers it.
func (r *Recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	recorded := Request{
		Method: req.Method,
		URI:    req.RequestURI,
		Path:   versionPrefix.ReplaceAllString(req.URL.Path, "$1"),
		Query:  req.URL.Query(),
		Header: req.Header.Clone(),
	}
	if req.ContentLength > 0 && req.ContentLength <= recordedBody {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			panic(http.ErrAbortHandler) // the client has left
		}
		recorded.Body = body
		req.Body = io.NopCloser(bytes.NewReader(body))
	}
	r.mu.Lock()
	r.requests = append(r.requests, recorded)
	mux := r.scripted()
	r.mu.Unlock()

	plain := req.Clone(req.Context())
	plain.URL.Path, plain.URL.RawPath = recorded.Path, ""
	_, pattern := mux.Handler(plain)
	// The router would redirect an unclean path; an engine has to see it.
	if pattern != "" && path.Clean(recorded.Path) == recorded.Path {
		mux.ServeHTTP(w, plain) // not the handler itself: it sets the path values
		return
	}
	r.pass(w, req)
}

func (r *Recorder) pass(w http.ResponseWriter, req *http.Request) {
	if r.upstream == nil {
		Fail(http.StatusNotImplemented, fmt.Sprintf("recorder: no script for %s %s", req.Method, req.URL.Path))(w, req)
		return
	}
	r.upstream.ServeHTTP(w, req)
}

// Delay passes the request on after a delay, unless the client leaves first.
func (r *Recorder) Delay(d time.Duration) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		select {
		case <-time.After(d):
			r.pass(w, req)
		case <-req.Context().Done():
		}
	}
}

// Answer gives the value as JSON with status 200.
func Answer(value any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, value) }
}

// Fail gives an engine's error.
func Fail(status int, message string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, status, map[string]string{"message": message})
	}
}

// Garbage claims to be JSON and is not.
func Garbage() http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, "{\"Id\":\"\xff\xfe\x00[[[")
	}
}

// Drop closes the connection without an answer.
func Drop() http.HandlerFunc {
	return func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(value)
}
