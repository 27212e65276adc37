package host

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/gortium/hermes-broker/internal/hostv1"
	"github.com/gortium/hermes-broker/internal/peercred"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	goleak.VerifyTestMain(m)
}

// rig is a brokerhost in this process, whose tools are shell scripts.
type rig struct {
	t      *testing.T
	dir    string
	cfg    *Config
	host   *Host
	stop   func()
	client hostv1.HostServiceClient
}

// newRig needs a folder below root's alone, so it is no t.TempDir.
func newRig(t *testing.T, edit func(*rig)) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "hermes-host-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{t: t, dir: dir, cfg: Defaults()}
	r.cfg.Socket.Value = dir + "/sock/host.sock"
	r.cfg.User.Value = os.Geteuid()
	r.cfg.Fail2ban.Value = dir + "/fail2ban.sock"
	for name, path := range map[string]*string{
		"iptables-nft-save": &r.cfg.Tools.IptablesNftSave.Value, "nft": &r.cfg.Tools.Nft.Value, "sshd": &r.cfg.Tools.Sshd.Value, "journalctl": &r.cfg.Tools.Journalctl.Value,
	} {
		*path = r.script(name, `printf '%s\n' "$0" "$@"`)
	}
	if edit != nil {
		edit(r)
	}
	r.host = New(r.cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.host.Serve(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(r.stop)
	r.client = r.dial(func(uint32) bool { return true })
	for range 1000 { // Until it listens.
		if _, err := os.Stat(r.cfg.Socket.Value); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return r
}

func (r *rig) dial(trust func(uint32) bool) hostv1.HostServiceClient {
	conn, err := grpc.NewClient("passthrough:///host",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", r.cfg.Socket.Value)
		}), grpc.WithTransportCredentials(peercred.New(trust, nil)))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	return hostv1.NewHostServiceClient(conn)
}

// script writes a tool.
func (r *rig) script(name, body string) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// read asks, and gives what was said and how it ended.
func (r *rig) read(ctx context.Context, req *hostv1.ReadRequest) (string, *hostv1.End, error) {
	stream, err := r.client.Read(ctx, req, grpc.WaitForReady(true))
	var said bytes.Buffer
	for err == nil {
		var resp *hostv1.ReadResponse
		if resp, err = stream.Recv(); err == nil {
			if resp.GetEnd() != nil {
				return said.String(), resp.GetEnd(), nil
			}
			said.Write(resp.GetData())
		}
	}
	return said.String(), nil, err
}

func (r *rig) must(ctx context.Context, req *hostv1.ReadRequest) (string, *hostv1.End) {
	r.t.Helper()
	said, end, err := r.read(ctx, req)
	if err != nil {
		r.t.Fatal(err)
	}
	return said, end
}

var (
	iptables = &hostv1.ReadRequest{What: &hostv1.ReadRequest_IptablesSave{IptablesSave: &hostv1.IptablesSave{}}}
	nftables = &hostv1.ReadRequest{What: &hostv1.ReadRequest_NftRuleset{NftRuleset: &hostv1.NftRuleset{}}}
	sshd     = &hostv1.ReadRequest{What: &hostv1.ReadRequest_SshdConfig{SshdConfig: &hostv1.SshdConfig{}}}
)

func journal(q *hostv1.Journal) *hostv1.ReadRequest {
	return &hostv1.ReadRequest{What: &hostv1.ReadRequest_Journal{Journal: q}}
}

// sleep is a program that sleeps for long, by a time that no other test's has.
func (r *rig) sleep() string {
	return "sleep 1000." + strings.TrimLeft(r.dir, "abcdefghijklmnopqrstuvwxyz/-")
}

// gone waits until no process of a script's is left: each has the rig's folder, or
// its time to sleep, in its command line.
func (r *rig) gone() {
	r.t.Helper()
	for range 300 {
		if r.running() == "" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.t.Errorf("still runs: %s", r.running())
}

func (r *rig) running() string {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range all {
		text, err := os.ReadFile(path)
		line := strings.ReplaceAll(string(text), "\x00", " ")
		if err == nil && (strings.Contains(line, r.dir) || strings.Contains(line, r.sleep())) {
			return line
		}
	}
	return ""
}
