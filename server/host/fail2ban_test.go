package host

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gortium/hermes-broker/internal/hostv1"
)

func ask(verb hostv1.Fail2BanVerb, jail string) *hostv1.ReadRequest {
	return &hostv1.ReadRequest{What: &hostv1.ReadRequest_Fail2Ban{Fail2Ban: &hostv1.Fail2Ban{Verb: verb, Jail: jail}}}
}

// daemon answers one connection after the other.
func (r *rig) daemon(answer func(question string, c net.Conn)) {
	r.t.Helper()
	l, err := net.Listen("unix", r.cfg.Fail2ban.Value)
	if err != nil {
		r.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			var question strings.Builder
			b := bufio.NewReader(c)
			for !strings.HasSuffix(question.String(), fail2banEnd) {
				x, err := b.ReadByte()
				if err != nil {
					break
				}
				question.WriteByte(x)
			}
			answer(question.String(), c)
			c.Close()
		}
	}()
	r.t.Cleanup(func() { l.Close(); <-done })
}

// TestFail2banQuestions: these, and no others, whatever is asked for.
func TestFail2banQuestions(t *testing.T) {
	r := newRig(t, nil)
	var heard []string
	r.daemon(func(question string, c net.Conn) {
		heard = append(heard, question)
		_, _ = io.WriteString(c, "answer"+fail2banEnd)
		_, _ = io.Copy(io.Discard, c)
	})
	for verb, want := range map[hostv1.Fail2BanVerb]string{
		hostv1.Fail2BanVerb_FAIL2BAN_VERB_STATUS:      "(lVstatus\na.",
		hostv1.Fail2BanVerb_FAIL2BAN_VERB_VERSION:     "(lVversion\na.",
		hostv1.Fail2BanVerb_FAIL2BAN_VERB_JAIL_STATUS: "(lVstatus\naVweb-1.x_y\na.",
		hostv1.Fail2BanVerb_FAIL2BAN_VERB_BANNED:      "(lVget\naVweb-1.x_y\naVbanip\naV--with-time\na.",
		hostv1.Fail2BanVerb_FAIL2BAN_VERB_IGNORE_IP:   "(lVget\naVweb-1.x_y\naVignoreip\na.",
	} {
		jail := ""
		if strings.Contains(want, "web-1") {
			jail = "web-1.x_y"
		}
		said, end := r.must(t.Context(), ask(verb, jail))
		if said != "answer" || end.GetOutcome() != hostv1.Outcome_OUTCOME_EXITED || heard[len(heard)-1] != want+fail2banEnd {
			t.Errorf("%v: asked %q, got %q, %v", verb, heard[len(heard)-1], said, end)
		}
	}
	n := len(heard)
	for _, jail := range append(hostile(), "web\na.", "x"+fail2banEnd, "a b", "a\\u000aq", strings.Repeat("a", 65), "dbfile", "loglevel", "logtarget", "syslogsocket", "dbpurgeage") {
		if jail == "ssh" || jail == "ssh.slice" || jail == "user.slice" || jail == "_UID=0" || jail != strings.ToValidUTF8(jail, "") {
			continue // Names like any other, or no string at all.
		}
		for _, verb := range []hostv1.Fail2BanVerb{hostv1.Fail2BanVerb_FAIL2BAN_VERB_JAIL_STATUS, hostv1.Fail2BanVerb_FAIL2BAN_VERB_BANNED} {
			if _, end, err := r.read(t.Context(), ask(verb, jail)); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%q: %v, %v", jail, end, err)
			}
		}
	}
	for _, req := range []*hostv1.ReadRequest{ask(hostv1.Fail2BanVerb_FAIL2BAN_VERB_STATUS, "sshd"), ask(0, ""), ask(99, "sshd")} {
		if _, end, err := r.read(t.Context(), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v, %v", req, end, err)
		}
	}
	if len(heard) != n {
		t.Errorf("it heard %q", heard[n:])
	}
	for verb, words := range questions {
		if words[0] != "status" && words[0] != "get" && words[0] != "version" {
			t.Errorf("%v asks %q, which may change something", verb, words)
		}
	}
}

// TestFail2banFaults: each has an outcome of its own.
func TestFail2banFaults(t *testing.T) {
	status := ask(hostv1.Fail2BanVerb_FAIL2BAN_VERB_STATUS, "")
	want := func(t *testing.T, r *rig, ctx context.Context, outcome hostv1.Outcome) {
		t.Helper()
		if _, end := r.must(ctx, status); end.GetOutcome() != outcome {
			t.Errorf("%v, want %v", end, outcome)
		}
	}
	t.Run("no socket", func(t *testing.T) { want(t, newRig(t, nil), t.Context(), hostv1.Outcome_OUTCOME_NO_SOCKET) })
	t.Run("nobody listens", func(t *testing.T) {
		r := newRig(t, nil)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.cfg.Fail2ban.Value, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
		want(t, r, t.Context(), hostv1.Outcome_OUTCOME_NOT_LISTENING)
	})
	t.Run("a file", func(t *testing.T) {
		r := newRig(t, nil)
		if err := os.WriteFile(r.cfg.Fail2ban.Value, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		want(t, r, t.Context(), hostv1.Outcome_OUTCOME_NOT_LISTENING)
	})
	t.Run("hangs up", func(t *testing.T) {
		r := newRig(t, nil)
		r.daemon(func(_ string, c net.Conn) { _, _ = io.WriteString(c, "half an answ") })
		want(t, r, t.Context(), hostv1.Outcome_OUTCOME_TRUNCATED)
	})
	t.Run("floods", func(t *testing.T) {
		r := newRig(t, nil)
		r.daemon(func(_ string, c net.Conn) {
			for piece := make([]byte, 1<<16); ; {
				if _, err := c.Write(piece); err != nil {
					return
				}
			}
		})
		want(t, r, t.Context(), hostv1.Outcome_OUTCOME_TOO_LARGE)
	})
	t.Run("hangs", func(t *testing.T) {
		r := newRig(t, nil)
		r.daemon(func(_ string, c net.Conn) { _, _ = io.Copy(io.Discard, c) })
		begun := time.Now()
		want(t, r, t.Context(), hostv1.Outcome_OUTCOME_TIMED_OUT)
		if took := time.Since(begun); took > fail2banWait+time.Second {
			t.Errorf("it took %v", took)
		}
	})
}
