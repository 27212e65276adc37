package testhost

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
)

// ErrUnavailable is wrapped by what [Enter] returns when this machine cannot
// raise a host at all, as opposed to failing at it.
var ErrUnavailable = errors.New("no test host can be raised here")

// Main is the body of a TestMain: os.Exit(testhost.Main(m)). Outside it enters
// a host with the same arguments and environment; inside it runs m. It returns
// the exit code of that run.
//
// m is a *testing.M, or a wrapper whose Run raises what all tests share first.
func Main(m interface{ Run() int }) int {
	if Inside() {
		return m.Run()
	}
	code, err := Enter()
	switch {
	case err == nil:
		return code
	case errors.Is(err, ErrUnavailable) && os.Getenv("E2E_REQUIRE") != "1":
		fmt.Fprintf(os.Stderr, "SKIP e2e: %v\n", err)
		return 0
	default:
		fmt.Fprintf(os.Stderr, "FAIL e2e: %v\n", err)
		return 1
	}
}

// available says why this machine cannot raise a host, or returns nil.
func available() error {
	if runtime.GOOS != "linux" {
		return fmt.Errorf("%w: it takes Linux, this is %s", ErrUnavailable, runtime.GOOS)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: it takes root (namespaces, mounts, dockerd)", ErrUnavailable)
	}
	// Where the engine and its tools live, and not every root's PATH leads.
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin"); err != nil {
		return err
	}
	needed := []string{"docker-registry", "dockerd"}
	if root := os.Getenv(engineRootEnv); root != "" {
		if _, err := os.Stat(root + engineInRoot); err != nil {
			return fmt.Errorf("%w: %s: %v", ErrUnavailable, engineRootEnv, err)
		}
		needed = needed[:1]
	}
	for _, program := range needed {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: there is no %s (scripts/install-test-deps)", ErrUnavailable, program)
		}
	}
	return nil
}
