// Command demohost gives the demo a container engine with two containers on it.
//
//	demohost GUEST
//
// GUEST is the static helper program of e2e/testhost/guest. demohost uses the
// engine that answers at DOCKER_HOST (a unix socket) or /run/docker.sock, unless
// it has something of the demo's names already. Otherwise it raises an engine of
// its own, in namespaces where it cannot disturb the machine (package testhost).
//
// It prints one line when the containers run, "<socket> <whose> <registry>", where
// whose is "machine" or "private". Beside an engine of its own stands a registry,
// with one image for the demo to pull; on the machine's, registry is "-". At the end of its standard input, or on a signal, it
// removes the containers, the image and the engine it raised, and nothing else.
package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gortium/hermes-broker/e2e/testhost"
)

const (
	repository = "hermes-broker-demo"
	image      = repository + ":latest"
	pullable   = "media/player:2"

	// socketEnv carries the outer process's choice into the namespaces: the path
	// of the machine's engine, or private.
	socketEnv = "HERMES_DEMO_ENGINE"
	private   = "private"
)

// containers are the demo's, by name. The secret is made up: it shows that an
// environment's values stay inside.
var containers = map[string][]string{
	"media-player": {"LIBRARY=/srv/media"},
	"vault":        {"VAULT_UNSEAL_KEY=correct-horse-battery-staple"},
}

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demohost:", err)
		code = 1
	}
	os.Exit(code)
}

func run() (int, error) {
	if len(os.Args) != 2 {
		return 2, errors.New("usage: demohost GUEST")
	}
	if os.Getenv(socketEnv) == "" {
		if err := os.Setenv(socketEnv, choose()); err != nil {
			return 1, err
		}
	}
	socket := os.Getenv(socketEnv)
	if socket == private && !testhost.Inside() {
		return testhost.Enter()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	return 0, serve(ctx, socket)
}

// choose is the socket of an engine that can be used as it is, or private.
func choose() string {
	socket, ok := strings.CutPrefix(os.Getenv("DOCKER_HOST"), "unix://")
	if !ok {
		socket = "/run/docker.sock"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	e := newEngine(socket)
	if _, err := e.call(ctx, "GET", "/_ping", nil); err != nil {
		return private
	}
	taken := []string{"/images/" + image + "/json"}
	for name := range containers {
		taken = append(taken, "/containers/"+name+"/json")
	}
	for _, path := range taken {
		var refused *refusal
		if _, err := e.call(ctx, "GET", path, nil); !errors.As(err, &refused) || refused.status != http.StatusNotFound {
			return private
		}
	}
	return socket
}

// serve has the containers run until ctx ends.
func serve(ctx context.Context, socket string) (err error) {
	whose, registry := "machine", "-"
	if socket == private {
		whose = private
		host, failed := testhost.Start(ctx)
		if failed != nil {
			return failed
		}
		defer func() { err = errors.Join(err, host.Close()) }()
		socket = host.Socket
		r, failed := host.StartRegistry(ctx)
		if failed != nil {
			return failed
		}
		defer func() { err = errors.Join(err, r.Close()) }()
		registry = r.Addr
		if _, err := r.Push(ctx, pullable, testhost.RandomLayer(2<<20), testhost.RandomLayer(6<<20), testhost.RandomLayer(1<<20)); err != nil {
			return err
		}
		// Slow enough to be watched.
		r.Intercept(func(w http.ResponseWriter, req *http.Request, next http.Handler) {
			if testhost.IsBlob(req.Method, req.URL.Path) {
				w = testhost.Throttle(w, 2<<20)
			}
			next.ServeHTTP(w, req)
		})
	}
	e := newEngine(socket)
	// What goes wrong halfway is cleaned up as well.
	defer func() { err = errors.Join(err, e.clean()) }()
	if err := e.build(ctx, os.Args[1]); err != nil {
		return err
	}
	for name, env := range containers {
		if err := e.start(ctx, name, env); err != nil {
			return err
		}
	}
	fmt.Println(socket, whose, registry)
	<-ctx.Done()
	return nil
}

// An engine is a client of the Engine API, for the few requests made here.
type engine struct {
	http.Client
	made []string // Paths of what to remove, in the order of making.
}

type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return fmt.Sprintf("engine: %d: %s", r.status, r.text) }

func newEngine(socket string) *engine {
	return &engine{Client: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}}
}

// call makes one request. A body is JSON, but for a tar archive's.
func (e *engine) call(ctx context.Context, method, path string, body io.Reader) (answer []byte, err error) {
	contentType := "application/json"
	if strings.HasPrefix(path, "/images/create") {
		contentType = "application/x-tar"
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://engine/v1.41"+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := e.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode >= 400 {
		err = fmt.Errorf("%s %s: %w", method, path, &refusal{resp.StatusCode, string(bytes.TrimSpace(answer))})
	}
	return answer, err
}

// build makes the image from nothing but the program.
func (e *engine) build(ctx context.Context, guest string) error {
	program, err := os.ReadFile(guest)
	if err != nil {
		return err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: "guest", Mode: 0o755, Size: int64(len(program))}); err != nil {
		return err
	}
	if _, err := w.Write(program); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	query := url.Values{"fromSrc": {"-"}, "repo": {repository}, "tag": {"latest"}, "changes": {`ENTRYPOINT ["/guest"]`, `CMD ["serve"]`}}
	if _, err := e.call(ctx, "POST", "/images/create?"+query.Encode(), &layer); err != nil {
		return err
	}
	e.made = append(e.made, "/images/"+image+"?force=1")
	return nil
}

func (e *engine) start(ctx context.Context, name string, env []string) error {
	spec, err := json.Marshal(map[string]any{
		"Image": image, "Env": env, "HostConfig": map[string]any{"NetworkMode": "none", "Memory": 64 << 20},
	})
	if err != nil {
		return err
	}
	answer, err := e.call(ctx, "POST", "/containers/create?name="+name, bytes.NewReader(spec))
	if err != nil {
		return err
	}
	var created struct{ ID string }
	if err := json.Unmarshal(answer, &created); err != nil {
		return err
	}
	e.made = append(e.made, "/containers/"+created.ID+"?force=1&v=1")
	_, err = e.call(ctx, "POST", "/containers/"+created.ID+"/start", nil)
	return err
}

// clean removes what was made here and is still there, the last first.
func (e *engine) clean() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, path := range slices.Backward(e.made) {
		var refused *refusal
		if _, e := e.call(ctx, "DELETE", path, nil); e != nil && !(errors.As(e, &refused) && refused.status == http.StatusNotFound) {
			err = errors.Join(err, e)
		}
	}
	return err
}
