package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/gortium/hermes-broker/certs"
	"github.com/gortium/hermes-broker/certs/certstest"
	"github.com/gortium/hermes-broker/e2e/testhost"
	"github.com/gortium/hermes-broker/server/audit"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // Benchmarks print between its lines.
	goleak.VerifyTestMain(m)
}

const (
	hermes   = "spiffe://home.example/agent/hermes"
	operator = "spiffe://home.example/operator/ada"
	stranger = "spiffe://home.example/agent/stranger"
)

// everything grants hermes all there is about containers but a few names.
const everything = `trust_domain: home.example
callers:
  - id: spiffe://home.example/agent/hermes
    grants:
      - allow: [broker.whoami, broker.can, broker.version, broker.health]
      - allow: [containers.list, containers.inspect, containers.logs, containers.stats, containers.wait,
                containers.start, containers.stop, containers.restart, containers.remove]
        on: ["containers/*"]
        budget: 100000/second
    deny:
      - on: ["containers/vault"]
  - id: spiffe://home.example/operator/ada
    grants:
      - allow: [broker.whoami, broker.freeze, broker.unfreeze]
      - allow: [containers.logs, containers.restart]
        on: ["containers/*"]
`

// nothing grants nobody anything.
const nothing = "trust_domain: home.example\ncallers:\n  - id: " + hermes + "\n"

// rig is a brokerd in this process, on a socket and a port, with real
// certificates and an engine that answers what the test scripts.
type rig struct {
	t      testing.TB
	dir    string
	ca     *certs.CA
	server *Server
	engine *testhost.Recorder
	socket string
	stop   func()
}

func newRig(t testing.TB, policyText string, edit func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), ca: certstest.NewCA(t, "home.example")}
	if err := os.Chmod(r.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	engine, err := testhost.RecordEngine("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	r.engine = engine
	engine.Script("HEAD /_ping", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Api-Version", "1.41") })
	engine.Script("GET /_ping", testhost.Answer("OK"))
	r.writePolicy(policyText)
	r.issue("server")
	r.start(edit)
	return r
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

func (r *rig) writePolicy(text string) {
	r.t.Helper()
	tmp := r.path("policy.tmp")
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(tmp, r.path("policy.yaml")); err != nil {
		r.t.Fatal(err)
	}
}

// issue writes the broker's own certificate.
func (r *rig) issue(name string) {
	r.t.Helper()
	leaf, err := r.ca.Issue(certs.Request{ID: spiffeid.RequireFromString("spiffe://home.example/broker"), Role: certs.Server, DNS: []string{"localhost"}})
	if err == nil {
		err = leaf.Write(r.dir, name)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) start(edit func(*Config)) {
	r.t.Helper()
	cfg := Defaults()
	cfg.Policy.Value = r.path("policy.yaml")
	cfg.State.Value = r.path("state")
	cfg.Engine.Socket.Value = r.engine.Socket
	cfg.Host.Socket.Value = r.path("host.sock") // Nobody is there.
	cfg.Identity.Certificate.Value, cfg.Identity.Key.Value, cfg.Identity.Bundle.Value = r.path("server.crt"), r.path("server.key"), r.path("bundle.crt")
	r.socket = r.path("b.sock")
	cfg.Listen = []Listener{{Unix: at(r.socket)}}
	cfg.Limits.Rate.Value, cfg.Limits.Burst.Value = 1e6, 1e6
	if edit != nil {
		edit(cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s, err := New(ctx, cfg)
	if err != nil {
		cancel()
		r.t.Fatal(err)
	}
	r.server = s
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("serve: %v", err)
		}
	}
	r.t.Cleanup(r.stop)
	for range 200 {
		if c, err := net.Dial("unix", r.socket); err == nil {
			c.Close()
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	r.t.Fatal("brokerd does not listen")
}

// tlsOf is a caller's side of the handshake, made without the client package,
// so that tests can do what it would not.
func (r *rig) tlsOf(pair tls.Certificate) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(r.ca.Certificate())
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: pool, ServerName: "localhost", NextProtos: []string{"h2"},
	}
}

// serverTLS is the plain configuration of a server with the broker's certificate
// that verifies its clients.
func (r *rig) serverTLS() *tls.Config {
	pair, err := tls.LoadX509KeyPair(r.path("server.crt"), r.path("server.key"))
	if err != nil {
		r.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(r.ca.Certificate())
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{"h2"}}
}

func (r *rig) pair(id string) *certstest.Pair {
	r.t.Helper()
	return certstest.Mint(r.t, r.ca, certs.Request{ID: spiffeid.RequireFromString(id), Role: certs.Agent}, nil)
}

func (r *rig) dial(id string) *grpc.ClientConn { return r.dialTLS(r.tlsOf(r.pair(id).TLS)) }

func (r *rig) dialTLS(cfg *tls.Config) *grpc.ClientConn {
	r.t.Helper()
	conn, err := grpc.NewClient("unix://"+r.socket, grpc.WithTransportCredentials(credentials.NewTLS(cfg)), grpc.WithAuthority("localhost"))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	return conn
}

// records are the audit trail's records so far. Those that nobody waits for
// take a moment to reach the file.
func (r *rig) records() []audit.Record {
	r.t.Helper()
	var out []audit.Record
	files, err := filepath.Glob(r.path("state/audit/*.jsonl"))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil && !os.IsNotExist(err) {
			r.t.Fatal(err)
		}
		sc := bufio.NewScanner(bytes.NewReader(data))
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			var rec audit.Record
			if err := json.Unmarshal(sc.Bytes(), &rec); err != nil {
				continue // A line being written.
			}
			out = append(out, rec)
		}
	}
	return out
}

// eventually waits for something that happens soon.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("did not happen: " + what)
}

// container scripts a container on the engine, and returns its ID.
func (r *rig) container(name string) string {
	id := fmt.Sprintf("%064x", []byte(name)[:min(len(name), 32)])[:64]
	body := map[string]any{
		"Id": id, "Name": "/" + name, "Created": "2026-01-02T03:04:05.6Z", "Image": "sha256:" + strings.Repeat("a", 64),
		"State": map[string]any{"Status": "running", "Running": true}, "HostConfig": map[string]any{},
		"Config": map[string]any{"Image": "i", "Env": []string{"TOKEN=canary-env"}, "Cmd": []string{"canary-cmd"}}, "NetworkSettings": map[string]any{},
	}
	r.engine.Script("GET /containers/"+name+"/json", testhost.Answer(body))
	for _, verb := range []string{"start", "stop", "restart"} {
		r.engine.Script("POST /containers/"+id+"/"+verb, noContent)
	}
	r.engine.Script("DELETE /containers/"+id, noContent)
	return id
}

// changes counts the requests by which the engine was asked to change something.
func (r *rig) changes() int {
	n := 0
	for _, q := range r.engine.Requests() {
		if q.Method != "GET" && q.Method != "HEAD" && !strings.HasSuffix(q.Path, "/wait") {
			n++
		}
	}
	return n
}

func noContent(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }
