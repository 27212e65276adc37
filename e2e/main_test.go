// Package e2e is the suite over mutual TLS against a real container engine: a
// brokerd built from this source, the Go client, brokerctl, and a container
// that plays Hermes. testhost raises the host it runs on.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gortium/hermes-broker/certs"
	"github.com/gortium/hermes-broker/client"
	"github.com/gortium/hermes-broker/e2e/testhost"
)

// host is what all tests share.
var host *testhost.Host

// bin has what was built from this source: brokerd, brokerd-race, brokerctl.
var bin string

func TestMain(m *testing.M) { os.Exit(testhost.Main(suite{m})) }

type suite struct{ m *testing.M }

func (s suite) Run() int {
	code, err := s.run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	return code
}

func (s suite) run() (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var err error
	if host, err = testhost.Start(ctx); err != nil {
		return 0, err
	}
	defer host.Close()
	bin = filepath.Join(host.Dir, "bin")
	tags := []string{"build", "-trimpath", "-tags", "grpcnotrace,retrynotrace"}
	for _, b := range []struct {
		env  string
		args []string
	}{
		{"CGO_ENABLED=0", []string{"-ldflags=-s -w", "-o", bin + "/", "../cmd/brokerd", "../cmd/brokerhost", "../cmd/brokerctl", "./agent"}},
		{"CGO_ENABLED=1", []string{"-race", "-o", bin + "/brokerd-race", "../cmd/brokerd"}},
	} {
		cmd := exec.CommandContext(ctx, "go", append(slices.Clone(tags), b.args...)...)
		cmd.Env = append(os.Environ(), b.env)
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("build: %w\n%s", err, out)
		}
	}
	agent, err := os.ReadFile(bin + "/agent")
	if err != nil {
		return 0, err
	}
	if err := host.BuildImage(ctx, "hermes-test/agent:latest", map[string][]byte{"agent": agent}, `ENTRYPOINT ["/agent"]`); err != nil {
		return 0, err
	}
	return s.m.Run(), nil
}

const (
	brokerID = "spiffe://home.example/broker"
	hermesID = "spiffe://home.example/agent/hermes"
	adminID  = "spiffe://home.example/operator/ada"
)

// policyText is the policy most tests run under.
const policyText = `trust_domain: home.example
callers:
  - id: spiffe://home.example/agent/hermes
    grants:
      - allow: [broker.whoami, broker.can, broker.version, broker.health, engine.events]
      - allow: [containers.list, containers.inspect, containers.logs, containers.stats, containers.wait]
        on: ["containers/*"]
      - allow: [containers.start, containers.stop, containers.restart, containers.remove]
        on: ["containers/web*", "containers/crash-*"]
        budget: 100000/second
    deny:
      - on: ["containers/hidden"]
  - id: spiffe://home.example/operator/ada
    grants:
      - allow: [broker.whoami, broker.can, broker.version, broker.freeze, broker.unfreeze]
      - allow: [containers.list, containers.inspect, containers.inspect_mount_sources, containers.remove, containers.remove_force]
        on: ["containers/*"]
`

// broker is a brokerd process.
type broker struct {
	t       testing.TB
	dir     string
	binary  string
	ca      *certs.CA
	socket  string
	tcp     string
	process *exec.Cmd
	log     *lockedBuffer
	done    chan struct{}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newBroker starts a brokerd on the engine at the given socket, under policyText.
// extra is appended to its configuration.
func newBroker(t testing.TB, binary, engine, extra string) *broker {
	t.Helper()
	b := makeBroker(t, binary, engine, extra)
	b.policy(policyText)
	b.run()
	return b
}

// makeBroker makes all that a brokerd needs, less the policy.
func makeBroker(t testing.TB, binary, engine, extra string) *broker {
	t.Helper()
	dir, err := os.MkdirTemp(host.Dir, "b")
	if err != nil {
		t.Fatal(err)
	}
	b := &broker{t: t, dir: dir, binary: filepath.Join(bin, binary), socket: dir + "/sock/b.sock", tcp: host.Gateway + ":7443"}
	b.must(os.Mkdir(dir+"/sock", 0o755))
	b.must(os.Mkdir(dir+"/certs", 0o755))
	options := certs.Options{}
	b.must(options.TrustDomain.UnmarshalText([]byte("home.example")))
	b.ca, err = certs.Init(dir+"/ca", options)
	b.must(err)
	b.issue(brokerID, certs.Server, "broker")
	b.issue(hermesID, certs.Agent, "hermes")
	b.issue(adminID, certs.Operator, "ada")
	b.write("brokerd.yaml", fmt.Sprintf(`listen:
  - unix: %[1]s/sock/b.sock
    mode: "0666"
  - tcp: %[2]s
identity:
  certificate: %[1]s/certs/broker.crt
  key: %[1]s/certs/broker.key
  bundle: %[1]s/certs/bundle.crt
policy: %[1]s/policy.yaml
state: %[1]s/state
engine:
  socket: %[3]s
containers:
  labels: [shown]
%[4]s`, dir, b.tcp, engine, extra))
	t.Cleanup(func() { os.RemoveAll(dir) })
	return b
}

// run starts brokerd for the length of the test.
func (b *broker) run() {
	b.t.Helper()
	b.start()
	b.t.Cleanup(func() {
		b.stop(os.Interrupt)
		if b.t.Failed() {
			b.t.Logf("brokerd:\n%s", b.log)
		}
		if strings.Contains(b.log.String(), "DATA RACE") {
			b.t.Errorf("brokerd has a data race:\n%s", b.log)
		}
	})
}

func (b *broker) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *broker) write(name, text string) {
	b.t.Helper()
	b.must(os.WriteFile(b.dir+"/"+name+".tmp", []byte(text), 0o600))
	b.must(os.Rename(b.dir+"/"+name+".tmp", b.dir+"/"+name))
}

func (b *broker) policy(text string) { b.write("policy.yaml", text) }

func (b *broker) issue(id string, role certs.Role, name string) {
	b.t.Helper()
	req := certs.Request{Role: role}
	b.must(req.ID.UnmarshalText([]byte(id)))
	leaf, err := b.ca.Issue(req)
	b.must(err)
	b.must(leaf.Write(b.dir+"/certs", name))
}

// start starts brokerd and waits until it listens.
func (b *broker) start() {
	b.t.Helper()
	b.log = &lockedBuffer{}
	b.process = exec.Command(b.binary, "-config", b.dir+"/brokerd.yaml")
	b.process.Stderr = b.log
	// The race detector sleeps for a second at the end of a program by default.
	b.process.Env = append(os.Environ(), "GORACE=halt_on_error=0 atexit_sleep_ms=50")
	b.must(b.process.Start())
	b.done = make(chan struct{})
	go func(p *exec.Cmd, done chan struct{}) {
		_ = p.Wait()
		close(done)
	}(b.process, b.done)
	for range 2000 {
		if strings.Count(b.log.String(), "msg=serving") == 2 {
			return
		}
		select {
		case <-b.done:
			b.t.Fatalf("brokerd ended:\n%s", b.log)
		case <-time.After(2 * time.Millisecond):
		}
	}
	b.t.Fatalf("brokerd does not serve:\n%s", b.log)
}

// stop ends brokerd and waits for its end.
func (b *broker) stop(sig os.Signal) {
	b.t.Helper()
	if err := b.process.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		b.t.Error(err)
	}
	select {
	case <-b.done:
	case <-time.After(30 * time.Second):
		b.t.Errorf("brokerd does not stop:\n%s", b.log)
		_ = b.process.Process.Kill()
		<-b.done
	}
}

// dial is a client of this brokerd as name, over the socket.
func (b *broker) dial(name string) *client.Client {
	b.t.Helper()
	c, err := client.Dial(context.Background(), b.config(name, "unix://"+b.socket))
	b.must(err)
	b.t.Cleanup(func() { c.Close() })
	return c
}

func (b *broker) config(name, address string) client.Config {
	return client.Config{
		Address: address, CertFile: b.dir + "/certs/" + name + ".crt", KeyFile: b.dir + "/certs/" + name + ".key",
		BundleFile: b.dir + "/certs/bundle.crt", ServerID: brokerID,
	}
}

// ctl runs brokerctl as name and returns its output and exit code.
func (b *broker) ctl(name string, args ...string) (string, int) {
	b.t.Helper()
	cmd := exec.Command(bin+"/brokerctl", args...)
	cmd.Env = append(os.Environ(), "HOME="+b.dir, "BROKER_ADDRESS=unix://"+b.socket, "BROKER_CERT="+b.dir+"/certs/"+name+".crt",
		"BROKER_KEY="+b.dir+"/certs/"+name+".key", "BROKER_BUNDLE="+b.dir+"/certs/bundle.crt", "BROKER_SERVER_ID="+brokerID)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// run runs a container for the length of the test.
func run(t testing.TB, spec testhost.ContainerSpec) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	id, err := host.Run(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := host.Remove(ctx, spec.Name); err != nil {
			t.Error(err)
		}
	})
	return id
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("did not happen: " + what)
}
