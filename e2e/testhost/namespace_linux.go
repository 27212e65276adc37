package testhost

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// stageEnv tells a process which part it plays: stageInit for the namespace's
// first process, afterwards the identity of the network namespace. Comparing
// that identity is what makes Inside safe to trust: a value left in a shell
// never matches the machine's own namespace.
const (
	stageEnv  = "HERMES_TESTHOST"
	stageInit = "init"
)

// runLockFD is where init finds the first of its ExtraFiles.
const runLockFD = 3

// forwarded are the signals that mean something to the program inside.
var forwarded = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT}

// Inside reports whether this process runs in a host's namespaces.
func Inside() bool {
	ns, err := os.Readlink("/proc/self/ns/net")
	return err == nil && os.Getenv(stageEnv) == ns
}

// Enter runs this program again inside the namespaces of a new host, with the
// same arguments, environment, working folder and standard streams, and
// forwards signals to it. It returns the exit code: that of the program, or
// 128 plus the signal that ended it. By then every process of the host has
// ended and its folder is gone.
//
// The program calls Enter when [Inside] is false, before it does anything else.
// The error wraps [ErrUnavailable] when this machine cannot raise a host.
func Enter() (code int, err error) {
	if os.Getenv(stageEnv) == stageInit {
		if os.Getpid() != 1 { // entering once more would never end
			return 1, fmt.Errorf("%s=%s outside of a new PID namespace", stageEnv, stageInit)
		}
		return runInit()
	}
	if err := available(); err != nil {
		return 1, err
	}
	sweepStaleRuns()
	run, err := newRunDir()
	if err != nil {
		return 1, err
	}
	defer func() {
		if err := run.remove(); err != nil {
			fmt.Fprintf(os.Stderr, "testhost: %v\n", err)
		}
	}()

	// Pdeathsig fires when the *thread* that forked ends, so this goroutine
	// keeps its thread until the host is gone.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	cmd, err := self(stageInit)
	if err != nil {
		return 1, err
	}
	cmd.Env = append(cmd.Env, runDirEnv+"="+run.path)
	cmd.ExtraFiles = []*os.File{run.lock} // a killed run stays locked until its init ends
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  unix.SIGKILL,
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, forwarded...)
	defer close(signals) // ends forward
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w: creating namespaces: %w", ErrUnavailable, err)
		}
		return 1, err
	}
	go forward(signals, cmd.Process)

	// The kernel reaps an init only after everything in its PID namespace.
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return 1, err
	}
	return exitCode(cmd.ProcessState.Sys().(syscall.WaitStatus)), nil
}

// self is this program, to be run again.
func self(stage string) (*exec.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageEnv+"="+stage)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd, nil
}

func forward(signals <-chan os.Signal, to *os.Process) {
	for s := range signals {
		_ = to.Signal(s)
	}
}

func exitCode(status syscall.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// runInit is the first process of the PID namespace. It furnishes the
// namespaces, runs the program once more and reaps orphans until that ends;
// its own end is the end of everything left.
func runInit() (code int, err error) {
	unix.CloseOnExec(runLockFD) // this process holds the lock, no daemon does
	if err := furnish(); err != nil {
		return 1, fmt.Errorf("furnishing the host: %w", err)
	}
	ns, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return 1, err
	}
	cmd, err := self(ns)
	if err != nil {
		return 1, err
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, forwarded...)
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	go forward(signals, cmd.Process)
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 1, fmt.Errorf("waiting for the program: %w", err)
		case pid == cmd.Process.Pid:
			return exitCode(syscall.WaitStatus(status)), nil
		}
	}
}

// furnish makes the fresh namespaces a place a host can live in.
func furnish() error {
	const upper = "/run/testhost-etc/upper"
	const work = "/run/testhost-etc/work"
	steps := []func() error{
		func() error { return mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return mount("proc", "/proc", "proc", 0, "") },
		func() error { return mount("tmpfs", "/run", "tmpfs", 0, "mode=0755") },
		func() error { return os.MkdirAll(upper, 0o755) },
		func() error { return os.MkdirAll(work, 0o755) },
		func() error {
			return mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir="+upper+",workdir="+work)
		},
		loopbackUp,
	}
	if root := os.Getenv(engineRootEnv); root != "" {
		steps = append(steps, func() error { return furnishRoot(root) })
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// furnishRoot prepares another root file system for an engine to enter. The
// run's folder keeps its path, so every path below it means the same to the
// engine and to the tests.
func furnishRoot(root string) error {
	// Only a mount point can become a root.
	if err := mount(root, root, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run", os.Getenv(runDirEnv)} {
		target := filepath.Join(root, dir)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := mount(dir, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return err
		}
	}
	return nil
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mounting %s: %w", target, err)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	return nil
}

// mountsBelow lists the mount points below dir, deepest first.
func mountsBelow(dir string) ([]string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			// The table has mounting order, so its reverse is safe to undo.
			found = append([]string{fields[4]}, found...)
		}
	}
	return found, nil
}

// unmountBelow detaches what an engine left mounted below dir.
func unmountBelow(dir string) error {
	mounts, err := mountsBelow(dir)
	for _, m := range mounts {
		if uerr := unix.Unmount(m, unix.MNT_DETACH); uerr != nil {
			err = errors.Join(err, fmt.Errorf("unmounting %s: %w", m, uerr))
		}
	}
	return err
}
