package host

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gortium/hermes-broker/internal/hostv1"
)

const (
	pieceBytes = 32 << 10 // Of output, in one message.
	wordsBytes = 4 << 10  // Of standard error, that are kept.
)

var (
	errTooSlow  = errors.New("the tool ran for too long")
	errTooLarge = errors.New("the tool wrote too much")
)

// run runs the tool and hands over what it writes. When the deadline passes, the
// bound is exceeded, the caller leaves or send fails, its whole process group is
// killed. In any case nothing of the group is left when run returns, and that is soon
// after, whatever the reader does.
func (t *tool) run(ctx context.Context, args []string, send send) *hostv1.End {
	target, err := t.target()
	if err != nil {
		return &hostv1.End{Outcome: hostv1.Outcome_OUTCOME_UNAVAILABLE, Words: []byte(err.Error())}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if t.timeout > 0 {
		late := time.AfterFunc(t.timeout, func() { cancel(errTooSlow) })
		defer late.Stop()
	}
	out, in, err := os.Pipe()
	if err != nil {
		return &hostv1.End{Outcome: hostv1.Outcome_OUTCOME_BUSY, Words: []byte(err.Error())}
	}
	defer out.Close()
	words := &tail{}
	cmd := &exec.Cmd{
		Path: target, Args: append(append([]string{filepath.Base(t.path)}, t.args...), args...),
		Env: []string{}, Dir: "/", Stdout: in, Stderr: words,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL},
		// A process that left the group may hold standard error open for ever.
		WaitDelay: time.Second,
	}
	// The kernel sends the death signal when the thread that forked ends, so the
	// thread is kept until the program has ended. It is for the death of brokerhost,
	// and reaches the program itself.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Start()
	_ = in.Close()
	if err != nil {
		return &hostv1.End{Outcome: hostv1.Outcome_OUTCOME_UNAVAILABLE, Words: []byte(err.Error())}
	}
	group := cmd.Process.Pid
	exited := make(chan struct{})
	go func() {
		// Without reaping it: while it is a zombie, its number is nobody else's.
		for unix.Waitid(unix.P_PID, group, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
		}
		close(exited)
	}()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		select {
		case <-exited: // What it has written can still be read.
		case <-ctx.Done():
		}
		_ = unix.Kill(-group, unix.SIGKILL)
		<-exited
		// Whoever was born between the two.
		_ = unix.Kill(-group, unix.SIGKILL)
	}()
	// A process that left the group may hold the pipe open.
	unblock := context.AfterFunc(ctx, func() { _ = out.SetReadDeadline(time.Now()) })
	defer unblock()
	if err := t.copy(ctx, out, send); err != nil {
		cancel(err)
	}
	<-gone
	_ = cmd.Wait()
	return t.end(context.Cause(ctx), cmd.ProcessState, words)
}

// copy hands over the output, until its end or its bound.
func (t *tool) copy(ctx context.Context, out io.Reader, send send) error {
	piece := make([]byte, pieceBytes)
	for left := t.most; ; {
		n, err := out.Read(piece)
		if left -= int64(n); t.most > 0 && left < 0 {
			return errTooLarge
		}
		if n > 0 {
			if err := send(ctx, piece[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return nil // Its end, or a deadline, whose cause is known.
		}
	}
}

func (t *tool) end(cause error, state *os.ProcessState, words *tail) *hostv1.End {
	end := &hostv1.End{Words: words.kept}
	st := state.Sys().(syscall.WaitStatus)
	switch {
	case errors.Is(cause, errTooSlow):
		end.Outcome = hostv1.Outcome_OUTCOME_TIMED_OUT
	case errors.Is(cause, errTooLarge):
		end.Outcome = hostv1.Outcome_OUTCOME_TOO_LARGE
	case st.Signaled():
		end.Outcome, end.Signal = hostv1.Outcome_OUTCOME_SIGNALLED, st.Signal().String()
	default:
		end.Outcome, end.ExitCode = hostv1.Outcome_OUTCOME_EXITED, int32(st.ExitStatus())
	}
	return end
}

// tail keeps the end of what is written to it.
type tail struct{ kept []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if more := len(t.kept) - wordsBytes; more > 0 {
		t.kept = append(t.kept[:0], t.kept[more:]...)
	}
	return len(p), nil
}
