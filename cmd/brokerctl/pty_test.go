package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// console is a brokerctl of its own on a terminal of its own, as a person has it.
type console struct {
	t    *testing.T
	keys *os.File
	cmd  *exec.Cmd

	mu     sync.Mutex
	screen strings.Builder // all that was ever written to it
	closed chan struct{}
}

var usualSize = &unix.Winsize{Row: 24, Col: 80}

// onTerminal runs a command line with all three streams on a terminal.
func onTerminal(t *testing.T, env map[string]string, args ...string) *console {
	t.Helper()
	return onTerminalOf(t, usualSize, env, args...)
}

func onTerminalOf(t *testing.T, size *unix.Winsize, env map[string]string, args ...string) *console {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	check(err)
	fd := int(keys.Fd())
	check(unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	check(unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, size))
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	check(err)
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	check(err)

	cmd := command(env, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	check(cmd.Start())
	check(tty.Close())
	s := &console{t: t, keys: keys, cmd: cmd, closed: make(chan struct{})}
	go func() {
		defer close(s.closed)
		buf := make([]byte, 4096)
		for {
			n, err := keys.Read(buf)
			s.mu.Lock()
			s.screen.Write(buf[:n])
			s.mu.Unlock()
			if err != nil {
				return // EIO: nobody has the terminal any more.
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // It has ended, unless the test failed.
		_ = keys.Close()
		<-s.closed
	})
	return s
}

// command is this binary as brokerctl: TestMain looks at its name.
func command(env map[string]string, args ...string) *exec.Cmd {
	self, err := os.Executable()
	check(err)
	cmd := exec.Command(self, args...)
	cmd.Args[0] = "brokerctl"
	cmd.Env = []string{"TERM=xterm", "TZ=UTC", "HOME=/nowhere"}
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	return cmd
}

func (s *console) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.screen.String()
}

// waitFor waits until a text was written so many times.
func (s *console) waitFor(text string, times int) {
	s.t.Helper()
	if !eventually(func() bool { return strings.Count(s.text(), text) >= times }) {
		s.t.Fatalf("%q did not come %d times: %q", text, times, s.text())
	}
}

// press writes keys; \x03 is Ctrl-C.
func (s *console) press(keys string) {
	_, err := io.WriteString(s.keys, keys)
	check(err)
}

// exitCode waits for the end.
func (s *console) exitCode() int {
	s.t.Helper()
	code := exitCode(s.t, s.cmd)
	<-s.closed // what it wrote has been read
	return code
}

func exitCode(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
	return cmd.ProcessState.ExitCode()
}

func eventually(ok func() bool) bool {
	for range 1000 {
		if ok() {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}
