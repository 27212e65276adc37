package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gortium/hermes-broker/internal/hostv1"
)

// TestFixedArguments: what is run is what is written here, with no environment.
func TestFixedArguments(t *testing.T) {
	t.Setenv("CANARY", "of brokerhost")
	r := newRig(t, func(r *rig) {
		r.cfg.Tools.Nft.Value = r.script("env", "/usr/bin/env; pwd; cat; echo done")
		r.cfg.SshdConfig.Value = "/etc/ssh/sshd_config"
		r.cfg.Journal.Value = r.dir
	})
	for _, c := range []struct {
		req  *hostv1.ReadRequest
		want string
	}{
		{iptables, r.cfg.Tools.IptablesNftSave.Value + " -c"},
		{sshd, r.cfg.Tools.Sshd.Value + " -T -f /etc/ssh/sshd_config"},
		{journal(&hostv1.Journal{Source: &hostv1.Journal_Unit{Unit: "ssh.service"}}), r.cfg.Tools.Journalctl.Value + " --no-pager --quiet --all --output=json " +
			"--output-fields=MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,_COMM,SYSLOG_PID,_PID,_SYSTEMD_UNIT,CONTAINER_ID --directory=" + r.dir + " --unit=ssh.service"},
	} {
		if said, end := r.must(t.Context(), c.req); strings.Join(strings.Fields(said), " ") != c.want || end.GetExitCode() != 0 {
			t.Errorf("ran %q, want %q: %v", said, c.want, end)
		}
	}
	// The shell itself sets PWD and the like; nothing else is there, and no input.
	said, _ := r.must(t.Context(), nftables)
	for line := range strings.Lines(said) {
		if name, _, ok := strings.Cut(line, "="); ok && name != "PWD" && name != "SHLVL" && name != "_" && name != "OLDPWD" {
			t.Errorf("a variable: %s", line)
		}
	}
	if !strings.HasSuffix(said, "/\ndone\n") {
		t.Errorf("%q", said)
	}
}

// TestToolsThatMisbehave: each ends at its bound with a reason, nothing of it is
// left, and the next call works.
func TestToolsThatMisbehave(t *testing.T) {
	const wait = 300 * time.Millisecond
	for name, c := range map[string]struct {
		script  string
		outcome hostv1.Outcome
		signal  string
		code    int32
		words   string
	}{
		"hangs":                     {"sleep 1000", hostv1.Outcome_OUTCOME_TIMED_OUT, "", 0, ""},
		"hangs with a child":        {"sleep 1000 & sleep 1000", hostv1.Outcome_OUTCOME_TIMED_OUT, "", 0, ""},
		"ignores signals":           {"trap '' TERM INT HUP; while :; do sleep 1000; done", hostv1.Outcome_OUTCOME_TIMED_OUT, "", 0, ""},
		"closes its output, hangs":  {"exec >&- 2>&-; sleep 1000", hostv1.Outcome_OUTCOME_TIMED_OUT, "", 0, ""},
		"floods":                    {"exec cat /dev/zero", hostv1.Outcome_OUTCOME_TOO_LARGE, "", 0, ""},
		"floods its errors":         {"head -c 3000000 /dev/zero >&2; echo last words >&2; exit 3", hostv1.Outcome_OUTCOME_EXITED, "", 3, "last words\n"},
		"dies":                      {"kill -SEGV $$", hostv1.Outcome_OUTCOME_SIGNALLED, "segmentation fault", 0, ""},
		"leaves a child":            {"sleep 1000 & echo ok; exit 0", hostv1.Outcome_OUTCOME_EXITED, "", 0, ""},
		"leaves a child of errors":  {"sleep 1000 >/dev/null & exit 5", hostv1.Outcome_OUTCOME_EXITED, "", 5, ""},
		"a child leaves the group":  {"setsid sleep 5 & sleep 0.2; echo ok; exit 0", hostv1.Outcome_OUTCOME_TIMED_OUT, "", 0, ""},
		"is no program of any kind": {"\x00\x00", hostv1.Outcome_OUTCOME_EXITED, "", 127, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			script := strings.ReplaceAll(c.script, "sleep 1000", r.sleep())
			tool := &tool{name: "tool", path: r.script("tool", script), timeout: wait, most: 1 << 20}
			begun := time.Now()
			end := tool.run(t.Context(), nil, func(context.Context, []byte) error { return nil })
			if took := time.Since(begun); took > 3*time.Second {
				t.Errorf("it took %v", took)
			}
			if end.GetOutcome() != c.outcome || end.GetSignal() != c.signal || end.GetExitCode() != c.code && c.code != 127 || !strings.HasSuffix(string(end.GetWords()), c.words) {
				t.Errorf("%v", end)
			}
			if len(end.GetWords()) > wordsBytes {
				t.Errorf("%d bytes of words", len(end.GetWords()))
			}
			if !strings.Contains(c.script, "setsid") {
				r.gone()
			}
			if _, end := r.must(t.Context(), iptables); end.GetExitCode() != 0 {
				t.Errorf("the next call: %v", end)
			}
		})
	}
}

// TestCallerLeaves: with the caller goes the tool.
func TestCallerLeaves(t *testing.T) {
	r := newRig(t, func(r *rig) {
		r.cfg.Tools.Journalctl.Value = r.script("journalctl", "while :; do echo x; "+r.sleep()+" & wait; done")
	})
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := r.client.Read(ctx, journal(&hostv1.Journal{Source: &hostv1.Journal_Kernel{Kernel: true}, Follow: true}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if r.running() == "" {
		t.Fatal("it does not run")
	}
	cancel()
	r.gone()
	// A reader who takes nothing holds the tool up, and no longer than it may run.
	slow := &tool{name: "slow", path: r.script("slow", "exec cat /dev/zero"), timeout: 200 * time.Millisecond}
	block := make(chan struct{})
	time.AfterFunc(400*time.Millisecond, func() { close(block) })
	if end := slow.run(t.Context(), nil, func(context.Context, []byte) error { <-block; return nil }); end.GetOutcome() != hostv1.Outcome_OUTCOME_TIMED_OUT {
		t.Errorf("%v", end)
	}
	failed := slow.run(t.Context(), nil, func(context.Context, []byte) error { return errors.New("gone") })
	if failed.GetOutcome() != hostv1.Outcome_OUTCOME_SIGNALLED {
		t.Errorf("%v", failed)
	}
	r.gone()
}

// TestReaderWhoDoesNotRead: the tool ends at its bound, and its place is free, also
// when nobody reads what it said.
func TestReaderWhoDoesNotRead(t *testing.T) {
	r := newRig(t, func(r *rig) {
		r.cfg.Tools.Sshd.Value = r.script("sshd", "exec head -c 900000 /dev/zero")
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range maxTools {
		if _, err := r.client.Read(ctx, sshd); err != nil { // And never Recv.
			t.Fatal(err)
		}
	}
	begun := time.Now()
	for {
		_, end := r.must(t.Context(), iptables)
		if end.GetOutcome() == hostv1.Outcome_OUTCOME_EXITED && time.Since(begun) > time.Second {
			break
		}
		if time.Since(begun) > 15*time.Second {
			t.Fatalf("no place is free: %v", end)
		}
		time.Sleep(100 * time.Millisecond)
	}
	r.gone()
}

// TestBusy: over the bound nothing is begun, and followers take nothing from those
// who ask.
func TestBusy(t *testing.T) {
	r := newRig(t, func(r *rig) {
		r.cfg.Tools.Nft.Value = r.script("nft", "sleep 1")
		r.cfg.Tools.Journalctl.Value = r.script("journalctl", "echo x; "+r.sleep())
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	follow := journal(&hostv1.Journal{Source: &hostv1.Journal_Kernel{Kernel: true}, Follow: true})
	var waiting sync.WaitGroup
	for range maxFollows {
		stream, err := r.client.Read(ctx, follow)
		if err == nil {
			_, err = stream.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, end := r.must(t.Context(), follow); end.GetOutcome() != hostv1.Outcome_OUTCOME_BUSY {
		t.Errorf("one follower more: %v", end)
	}
	outcomes := make(chan hostv1.Outcome, maxTools+3)
	for range maxTools + 3 {
		waiting.Go(func() {
			_, end, err := r.read(t.Context(), nftables)
			if err != nil {
				t.Error(err)
			}
			outcomes <- end.GetOutcome()
		})
	}
	waiting.Wait()
	close(outcomes)
	busy := 0
	for o := range outcomes {
		if o == hostv1.Outcome_OUTCOME_BUSY {
			busy++
		}
	}
	if busy != 3 {
		t.Errorf("%d of %d were busy", busy, maxTools+3)
	}
	cancel()
	r.gone()
}

// TestWhoMayAsk: the folder is root's alone, and so is the right to ask.
func TestWhoMayAsk(t *testing.T) {
	r := newRig(t, func(r *rig) { r.cfg.User.Value = 4242 })
	if _, err := r.client.Describe(contextWithin(t, 5*time.Second), &hostv1.DescribeRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("another user than the configured one: %v", err)
	}
	info, err := os.Stat(r.cfg.Socket.Value)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	good := newRig(t, nil)
	good.must(t.Context(), iptables)
	info, err = os.Stat(good.dir + "/sock")
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	// It starts again where it was before, for another user too.
	r.stop()
	again := New(r.cfg)
	l, err := again.listen()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := os.Chmod(r.dir+"/sock", 0o755); err != nil {
		t.Fatal(err)
	}
	if l, err := again.listen(); err == nil {
		l.Close()
		t.Error("it listens in a folder that others can read")
	}
	// And brokerd asks nobody but root.
	strict := good.dial(func(uint32) bool { return false })
	if _, err := strict.Describe(contextWithin(t, time.Second), &hostv1.DescribeRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("a server that is not trusted: %v", err)
	}
}

func contextWithin(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestTrust: a tool that somebody else could have exchanged is not run.
func TestTrust(t *testing.T) {
	r := newRig(t, nil)
	const other = 65534
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	inside := func(path string) (dir, moved string) {
		dir = path + ".d"
		must(os.Mkdir(dir, 0o755), os.Rename(path, dir+"/tool"))
		return dir, dir + "/tool"
	}
	for name, prepare := range map[string]func(path string) string{
		"not there":       func(path string) string { return path + "none" },
		"writable":        func(path string) string { must(os.Chmod(path, 0o777)); return path },
		"of another user": func(path string) string { must(os.Chown(path, other, other)); return path },
		"no program":      func(path string) string { must(os.Chmod(path, 0o644)); return path },
		"a folder":        func(string) string { return r.dir },
		"a link to another's": func(path string) string {
			must(os.Chown(path, other, other), os.Symlink(path, path+".link"))
			return path + ".link"
		},
		"a link of another": func(path string) string {
			must(os.Symlink(path, path+".link"), os.Lchown(path+".link", other, other))
			return path + ".link"
		},
		"below a folder of another": func(path string) string {
			dir, moved := inside(path)
			must(os.Chown(dir, other, other))
			return moved
		},
		"below a writable folder": func(path string) string {
			dir, moved := inside(path)
			must(os.Chmod(dir, 0o775))
			return moved
		},
		"a link out of a writable folder": func(path string) string {
			dir, moved := inside(path)
			must(os.Chmod(dir, 0o777), os.Symlink(moved, path))
			return path
		},
		"a link in a circle": func(path string) string { must(os.Remove(path), os.Symlink(path, path)); return path },
	} {
		t.Run(name, func(t *testing.T) {
			marker := r.dir + "/ran"
			path := prepare(r.script("tool-"+strings.ReplaceAll(name, " ", "-"), "echo > "+marker))
			tool := &tool{name: "tool", path: path, timeout: time.Second, most: 1 << 20}
			end := tool.run(t.Context(), nil, func(context.Context, []byte) error { return nil })
			if end.GetOutcome() != hostv1.Outcome_OUTCOME_UNAVAILABLE || len(end.GetWords()) == 0 {
				t.Errorf("%v", end)
			}
			if _, err := os.Stat(marker); err == nil {
				t.Error("it ran")
			}
			if d := tool.line(t.Context()); d.Problem == "" || d.Target != "" {
				t.Errorf("%v", d)
			}
		})
	}
	good := r.script("good", "echo 1.2.3")
	must(os.Symlink("good", r.dir+"/relative"), os.Symlink("../"+filepath.Base(r.dir)+"/relative", r.dir+"/up"), os.Symlink(r.dir+"/up", r.dir+"/absolute"))
	tool := &tool{name: "tool", path: r.dir + "/absolute", version: "--version", timeout: time.Second, most: 1 << 20}
	if d := tool.line(t.Context()); d.Problem != "" || d.Target != good || d.Version != "1.2.3" || d.Owner != "root" {
		t.Errorf("%v", d)
	}
}
