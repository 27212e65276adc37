package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

// hostPolicy lets hermes read the host's own state, but what is hidden.
const hostPolicy = `trust_domain: home.example
callers:
  - id: spiffe://home.example/agent/hermes
    grants:
      - allow: [broker.whoami, broker.can, broker.health, firewall.status, ssh.config, sockets.list]
      - allow: [jails.status, jails.get, jails.banned]
        on: ["jails/*"]
      - allow: [journal.read]
        on: ["journal/kernel", "journal/units/*", "journal/identifiers/*"]
      - allow: [containers.list]
        on: ["containers/*"]
    deny:
      - on: ["containers/hidden", "jails/hidden", "journal/units/hidden.service"]
  - id: spiffe://home.example/operator/ada
    grants:
      - allow: [broker.whoami, broker.health]
`

// brokerhost is a brokerhost process.
type brokerhost struct {
	t       testing.TB
	dir     string
	args    []string // What it is run by: nothing, or unshare -n.
	process *exec.Cmd
	log     *lockedBuffer
	done    chan struct{}
}

// newHost starts a brokerhost whose configuration is that of the machine, with
// settings in place of some. with runs it by another program, such as unshare.
func newHost(t testing.TB, settings string, with ...string) *brokerhost {
	t.Helper()
	dir, err := os.MkdirTemp(host.Dir, "h")
	if err != nil {
		t.Fatal(err)
	}
	h := &brokerhost{t: t, dir: dir, args: append(slices.Clone(with), bin+"/brokerhost", "-config", dir+"/brokerhost.yaml")}
	if err := os.WriteFile(dir+"/brokerhost.yaml", []byte("socket: "+h.socket()+"\n"+settings), 0o600); err != nil {
		t.Fatal(err)
	}
	h.start()
	t.Cleanup(func() {
		h.stop(os.Interrupt)
		if t.Failed() {
			t.Logf("brokerhost:\n%s", h.log)
		}
		os.RemoveAll(dir)
	})
	return h
}

func (h *brokerhost) socket() string { return h.dir + "/sock/host.sock" }

func (h *brokerhost) start() {
	h.t.Helper()
	h.log = &lockedBuffer{}
	h.process = exec.Command(h.args[0], h.args[1:]...)
	h.process.Stderr = h.log
	if err := h.process.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.done = make(chan struct{})
	go func(p *exec.Cmd, done chan struct{}) {
		_ = p.Wait()
		close(done)
	}(h.process, h.done)
	eventually(h.t, "brokerhost serves", func() bool { return strings.Contains(h.log.String(), "msg=serving") })
}

func (h *brokerhost) stop(sig os.Signal) {
	h.t.Helper()
	_ = h.process.Process.Signal(sig)
	select {
	case <-h.done:
	case <-time.After(10 * time.Second):
		h.t.Errorf("brokerhost does not stop:\n%s", h.log)
		_ = h.process.Process.Kill()
		<-h.done
	}
}

// pid is that of brokerhost itself, also below unshare, which becomes it.
func (h *brokerhost) pid() int { return h.process.Process.Pid }

// hostBroker starts a brokerd that asks h, nil for nobody.
func hostBroker(t testing.TB, h *brokerhost) *broker {
	t.Helper()
	socket := host.Dir + "/nobody.sock"
	if h != nil {
		socket = h.socket()
	}
	b := makeBroker(t, "brokerd-race", host.Socket, "host:\n  socket: "+socket+"\n")
	b.policy(hostPolicy)
	b.run()
	return b
}

// script writes a tool.
func script(t testing.TB, name, body string) string {
	t.Helper()
	dir, err := os.MkdirTemp(host.Dir, "t")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// running reports whether a process has that in its command line.
func running(text string) bool {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	return slices.ContainsFunc(all, func(p string) bool {
		line, err := os.ReadFile(p)
		return err == nil && strings.Contains(string(line), text)
	})
}

// hostCalls is one call of each method about the host.
func hostCalls(c *client.Client) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"FirewallStatus": func(ctx context.Context) error {
			_, err := c.Firewall().FirewallStatus(ctx, &brokerv1.FirewallStatusRequest{})
			return err
		},
		"Fail2banStatus": func(ctx context.Context) error {
			_, err := c.Jails().Fail2BanStatus(ctx, &brokerv1.Fail2BanStatusRequest{})
			return err
		},
		"GetJail": func(ctx context.Context) error {
			_, err := c.Jails().GetJail(ctx, &brokerv1.GetJailRequest{Jail: "demo"})
			return err
		},
		"ListBanned": func(ctx context.Context) error {
			_, err := c.Jails().ListBanned(ctx, &brokerv1.ListBannedRequest{Jail: "demo"})
			return err
		},
		"ReadJournal": func(ctx context.Context) error {
			_, _, err := journal(ctx, c, &brokerv1.ReadJournalRequest{Source: "kernel"})
			return err
		},
		"SshdConfig": func(ctx context.Context) error {
			_, err := c.SSH().SshdConfig(ctx, &brokerv1.SshdConfigRequest{})
			return err
		},
		"ListeningSockets": func(ctx context.Context) error {
			_, err := c.Sockets().ListeningSockets(ctx, &brokerv1.ListeningSocketsRequest{})
			return err
		},
	}
}

// TestWithoutBrokerhost: brokerd starts, says what is missing, and so does each
// call; when brokerhost comes all is well without a restart.
func TestWithoutBrokerhost(t *testing.T) {
	h := newHost(t, "")
	h.stop(os.Kill)
	b := hostBroker(t, h)
	c := b.dial("hermes")
	eventually(t, "brokerd says what is missing", func() bool { return strings.Contains(b.log.String(), "brokerhost does not answer") })
	var calls sync.WaitGroup // The client repeats each of them, which takes its time.
	for method, call := range hostCalls(c) {
		calls.Go(func() { want(t, call(within(t)), brokerv1.ErrorReason_ERROR_REASON_HOST_UNAVAILABLE) })
		if !strings.Contains(b.log.String(), method) {
			t.Errorf("brokerd does not say that %s is missing:\n%s", method, b.log)
		}
	}
	calls.Wait()
	serving := func() bool {
		resp, err := c.Health().Check(within(t), &grpc_health_v1.HealthCheckRequest{Service: "hermes.host.v1.HostService"})
		b.must(err)
		return resp.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING
	}
	if serving() {
		t.Error("the health service says that brokerhost is there")
	}
	h.start()
	eventually(t, "the firewall can be read", func() bool { return hostCalls(c)["FirewallStatus"](within(t)) == nil })
	eventually(t, "the health service says so", serving)
}

// TestToolsThatMisbehave: the call ends at the tool's bound with the reason, the
// tool's process group is gone, and the next call works.
func TestToolsThatMisbehave(t *testing.T) {
	tool := script(t, "sshd", "exec sleep 1000")
	h := newHost(t, "tools:\n  sshd: "+tool+"\n  nft: "+host.Dir+"/none\n")
	b := hostBroker(t, h)
	c := b.dial("hermes")
	ask := func() error { return hostCalls(c)["SshdConfig"](within(t)) }
	sleep := fmt.Sprintf("sleep 1000.%d", os.Getpid()) // Of a time that nobody else sleeps for.
	rewrite := func(body string) { b.must(os.WriteFile(tool, []byte("#!/bin/sh\n# "+tool+"\n"+body+"\n"), 0o755)) }
	gone := func() {
		t.Helper()
		eventually(t, "nothing of the tool is left", func() bool { return !running(filepath.Dir(tool)) && !running(strings.TrimPrefix(sleep, "sleep ")) })
	}
	for body, reason := range map[string]brokerv1.ErrorReason{
		sleep + " & " + sleep: brokerv1.ErrorReason_ERROR_REASON_TOOL_TIMEOUT,
		"exec cat /dev/zero":  brokerv1.ErrorReason_ERROR_REASON_TOOL_OUTPUT_TOO_LARGE,
		"kill -KILL $$":       brokerv1.ErrorReason_ERROR_REASON_TOOL_FAILED,
		"echo 'canary: no such option /etc/ssh/secret' >&2; exit 255": brokerv1.ErrorReason_ERROR_REASON_TOOL_FAILED,
		"echo hello": brokerv1.ErrorReason_ERROR_REASON_TOOL_OUTPUT_INVALID,
	} {
		rewrite(body)
		begun := time.Now()
		err := ask()
		want(t, err, reason)
		if took := time.Since(begun); took > 8*time.Second {
			t.Errorf("%s: %v after %s", body, err, took)
		}
		if strings.Contains(fmt.Sprint(err), "canary") {
			t.Errorf("the tool's words came out: %v", err)
		}
		gone()
	}
	// What the tool said is where root looks.
	if out, code := b.auditLog(); code != 0 || !strings.Contains(out, "canary: no such option") {
		t.Errorf("the audit trail lacks the tool's words:\n%s", out)
	}
	// The caller leaves, and the tool with it.
	rewrite(sleep + " & " + sleep)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := hostCalls(c)["SshdConfig"](ctx); err == nil || ctx.Err() == nil {
		t.Errorf("the caller did not leave: %v", err)
	}
	gone()
	// brokerhost is killed, and the tool with it.
	rewrite("exec " + sleep)
	result := make(chan error, 1)
	go func() { result <- ask() }()
	eventually(t, "the tool runs", func() bool { return running(strings.TrimPrefix(sleep, "sleep ")) })
	h.stop(syscall.SIGKILL)
	want(t, <-result, brokerv1.ErrorReason_ERROR_REASON_HOST_UNAVAILABLE)
	gone()
	rewrite("exec /usr/sbin/sshd \"$@\"")
	h.start()
	eventually(t, "the next call", func() bool {
		err := ask()
		return client.Reason(err) != brokerv1.ErrorReason_ERROR_REASON_HOST_UNAVAILABLE
	})
	// A tool that somebody else can change is not run; one that is not there is said.
	b.must(os.Chmod(tool, 0o777))
	want(t, ask(), brokerv1.ErrorReason_ERROR_REASON_TOOL_MISSING)
	b.must(os.Remove(tool))
	want(t, ask(), brokerv1.ErrorReason_ERROR_REASON_TOOL_MISSING)
	// A host without one firewall tool has the others.
	resp, err := c.Firewall().FirewallStatus(within(t), &brokerv1.FirewallStatusRequest{})
	b.must(err)
	for _, s := range resp.GetSources() {
		missing := s.GetState() == brokerv1.FirewallSourceState_FIREWALL_SOURCE_STATE_MISSING
		if missing != (s.GetBackend() == brokerv1.FirewallBackend_FIREWALL_BACKEND_NFTABLES) || missing && s.GetProblem() == "" {
			t.Errorf("%v", s)
		}
	}
}

// auditLog is the audit trail as the operator reads it.
func (b *broker) auditLog() (string, int) {
	b.t.Helper()
	return b.ctl("ada", "audit", "tail", "--dir", b.dir+"/state/audit", "-n", "50", "-o", "json")
}

// TestNothingBecomesAnOption: whatever a caller says, no tool gets it as an option
// or a second argument; here no tool is run for it at all.
func TestNothingBecomesAnOption(t *testing.T) {
	ran := host.Dir + "/ran"
	tool := script(t, "journalctl", "echo \"$@\" >>"+ran)
	h := newHost(t, "tools:\n  journalctl: "+tool+"\n")
	b := hostBroker(t, h)
	c := b.dial("hermes")
	values := []string{
		"-", "--", "-f", "--file=/etc/shadow", "--rotate", " ssh.service", "ssh.service ", "ssh.service\n--rotate", "ssh.service\x00--rotate", "*", "ssh*.service", "?.service", "[a-z].service",
		"$(id).service", "`id`.service", "a;b.service", "../../etc/passwd", "/etc/passwd", "ss\u04bb.service", "\u2010\u2010rotate", "\uff0d\uff0drotate", "ssh.service\u200b",
		"\u202essh.service", "_UID=0", "%s.service", "ssh.service --rotate", "'ssh.service'", strings.Repeat("a", 60<<10),
	}
	refused := func(what string, err error) {
		t.Helper()
		if r := client.Reason(err); r != brokerv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT && r != brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED {
			t.Errorf("%.60q: %v", what, err)
		}
	}
	for _, v := range values {
		for _, source := range []string{"units/" + v, "identifiers/" + v, v, "kernel/" + v} {
			_, _, err := journal(within(t), c, &brokerv1.ReadJournalRequest{Source: source})
			refused(source, err)
		}
		_, _, err := journal(within(t), c, &brokerv1.ReadJournalRequest{Source: "kernel", Cursor: v})
		refused(v, err)
		_, err = c.Jails().GetJail(within(t), &brokerv1.GetJailRequest{Jail: v})
		refused(v, err)
		_, err = c.Jails().ListBanned(within(t), &brokerv1.ListBannedRequest{Jail: v})
		refused(v, err)
	}
	if out, err := os.ReadFile(ran); err == nil {
		t.Errorf("it ran: %s", out)
	}
	// A pattern may be anything: it never leaves brokerd.
	for _, v := range append(values[:len(values)-1], "(?i)x{2}") {
		_, _, err := journal(within(t), c, &brokerv1.ReadJournalRequest{Source: "kernel", Pattern: &brokerv1.ReadJournalRequest_Contains{Contains: v}})
		b.must(err)
		_, _, err = journal(within(t), c, &brokerv1.ReadJournalRequest{Source: "kernel", Pattern: &brokerv1.ReadJournalRequest_Matches{Matches: v}})
		if err != nil {
			refused(v, err)
		}
	}
	out, err := os.ReadFile(ran)
	b.must(err)
	for line := range strings.Lines(string(out)) {
		if line != "--no-pager --quiet --all --output=json --output-fields=MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,_COMM,SYSLOG_PID,_PID,_SYSTEMD_UNIT,CONTAINER_ID _TRANSPORT=kernel --reverse\n" {
			t.Errorf("it ran with %q", line)
		}
	}
	b.must(os.Remove(ran))
}

// TestBrokerhostHasNoNetwork: it listens on its socket and on nothing else, in a
// folder of root's, and hears no other user.
func TestBrokerhostHasNoNetwork(t *testing.T) {
	h := newHost(t, "")
	out, err := exec.Command("ss", "-Hlnpx").Output()
	if err != nil || !strings.Contains(string(out), h.socket()) {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err = exec.Command("ss", "-Hanptuw").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), fmt.Sprintf("pid=%d,", h.pid())) {
		t.Errorf("brokerhost has a socket of the network:\n%s", out)
	}
	for _, path := range []string{h.dir + "/sock", h.socket()} {
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", path, st.Mode(), err)
		}
	}
	check, err := exec.Command(bin+"/brokerhost", "check").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, check)
	}
	for _, tool := range []string{"iptables_nft_save", "ip6tables_legacy_save", "nft", "sshd", "journalctl", "fail2ban"} {
		if !strings.Contains(string(check), "\n"+tool+" ") {
			t.Errorf("brokerhost check lacks %s:\n%s", tool, check)
		}
	}
	if !strings.Contains(string(check), "1.8.") || !strings.Contains(string(check), "xtables-nft-multi") || !strings.Contains(string(check), " root ") {
		t.Errorf("%s", check)
	}
}
