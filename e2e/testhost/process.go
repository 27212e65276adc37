package testhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

const (
	startTimeout = 60 * time.Second // an engine is ready in 3 to 5 s on an idle machine
	stopTimeout  = 40 * time.Second // beyond the engine's own patience with its containers
)

// A process is a daemon this package started and alone waits for.
type process struct {
	cmd  *exec.Cmd
	log  string        // the file it writes to, across its restarts
	done chan struct{} // closed once it was waited for
}

func startProcess(logFile string, cmd *exec.Cmd) (*process, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	// Its own session: a terminal's ^C is for the tests, which then stop it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd, logFile, make(chan struct{})}
	go func() {
		_ = p.cmd.Wait() // its status is in the log and in ProcessState
		close(p.done)
	}()
	return p, nil
}

// waitReady waits until ping succeeds.
func (p *process) waitReady(ctx context.Context, ping func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		err := ping(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("it ended: %s\n%s", p.cmd.ProcessState, p.logTail())
		case <-ctx.Done():
			return fmt.Errorf("%w\n%s", errors.Join(ctx.Err(), err), p.logTail())
		case <-poll.C:
		}
	}
}

// stop ends it in order, or kills it when it takes too long.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails only when it has ended
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("it did not stop within %v and was killed\n%s", stopTimeout, p.logTail())
	}
	if !p.cmd.ProcessState.Success() {
		return fmt.Errorf("%s\n%s", p.cmd.ProcessState, p.logTail())
	}
	return nil
}

// logTail is the end of its log, for an error message.
func (p *process) logTail() string {
	const most = 4 << 10
	log, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(log[max(0, len(log)-most):]))
}
