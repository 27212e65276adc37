package testhost_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gortium/hermes-broker/e2e/testhost"
)

// A test that looks at a whole run from outside makes this program play one
// inside, by naming the part.
const partEnv = "TESTHOST_PART"

var parts = map[string]func() int{
	"exit-7": func() int { return 7 },
	"kill-self": func() int {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	},
	"exit-5-on-term": func() int {
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		announce()
		<-term
		return 5
	},
	"orphan": func() int { // a daemon that its parent forgets
		exec.Command("sleep", "1000").Start()
		return announce()
	},
	"hold": func() int { // an engine with a container that will not end
		h, err := testhost.Start(context.Background())
		if err == nil {
			_, err = h.Run(context.Background(), testhost.ContainerSpec{Cmd: []string{"ignore-term"}})
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		announce()
		select {}
	},
	"write-etc": func() int {
		if os.WriteFile("/etc/testhost-was-here", nil, 0o600) != nil ||
			os.WriteFile("/run/testhost-was-here", nil, 0o600) != nil {
			return 1
		}
		return 0
	},
}

// announce tells the outside which network namespace to look for.
func announce() int {
	ns, _ := os.Readlink("/proc/self/ns/net")
	fmt.Println(ns, os.Getenv("HERMES_TESTHOST_DIR"))
	return 0
}

func TestMain(m *testing.M) {
	if part := os.Getenv(partEnv); part != "" {
		if testhost.Inside() {
			os.Exit(parts[part]())
		}
		code, err := testhost.Enter()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(code)
	}
	os.Exit(testhost.Main(m))
}

// play runs this program as one that has yet to enter a host.
func play(t *testing.T, part string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), partEnv+"="+part, "HERMES_TESTHOST=")
	cmd.Stderr = os.Stderr
	return cmd
}

// inNamespace lists the processes of a network namespace. PID namespaces nest,
// so this one sees those of the runs it started.
func inNamespace(ns string) []string {
	var found []string
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, link := range links {
		if to, _ := os.Readlink(link); to == ns {
			found = append(found, strings.Split(link, "/")[2])
		}
	}
	return found
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func TestNamespaceIsItsOwn(t *testing.T) {
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		if i.Name != "lo" && i.Name != "docker0" {
			t.Errorf("interface %s of the machine is visible", i.Name)
		}
	}
	if lo, err := net.InterfaceByName("lo"); err != nil || lo.Flags&net.FlagUp == 0 {
		t.Errorf("lo is not up: %v, %v", lo, err)
	}
	files, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range files {
		if to, _ := os.Readlink(fd); to == os.Getenv("HERMES_TESTHOST_DIR") {
			t.Errorf("%s, the lock of the run, was inherited", fd)
		}
	}
	if err := play(t, "write-etc").Run(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"/etc/testhost-was-here", "/run/testhost-was-here"} {
		if _, err := os.Stat(f); err == nil {
			t.Errorf("%s, written inside, is visible outside", f)
		}
	}
}

func TestExitCodePassesThrough(t *testing.T) {
	for part, want := range map[string]int{"exit-7": 7, "kill-self": 128 + 9} {
		cmd := play(t, part)
		_ = cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("%s: exit code %d, want %d", part, got, want)
		}
	}
}

func TestSignalPassesThrough(t *testing.T) {
	cmd := play(t, "exit-5-on-term")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() }).Stop()
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 5 {
		t.Errorf("exit code %d, want 5", got)
	}
}

func TestStartRefusesOutside(t *testing.T) {
	for _, marker := range []string{"", "init", "net:[1]"} {
		t.Setenv("HERMES_TESTHOST", marker)
		if h, err := testhost.Start(t.Context()); err == nil {
			h.Close()
			t.Errorf("with marker %q an engine started outside", marker)
		}
	}
}

func TestNothingOutlivesARun(t *testing.T) {
	out, err := play(t, "orphan").Output()
	if err != nil {
		t.Fatal(err)
	}
	ns, dir, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	if left := inNamespace(ns); len(left) > 0 {
		t.Errorf("processes %v outlive their run", left)
	}
	if _, err := os.Stat(dir); err == nil || dir == "" {
		t.Errorf("folder %q outlives its run", dir)
	}
}

func TestKilledRunLeavesNothing(t *testing.T) {
	run := play(t, "hold")
	out, err := run.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	ns, dir, _ := strings.Cut(strings.TrimSpace(line), " ")
	containers, _ := filepath.Glob(dir + "/*/data/containers/*")
	if len(inNamespace(ns)) < 4 || len(containers) != 1 { // init, program, engine, containerd
		t.Fatalf("no run to kill in %q", ns)
	}
	cgroups := func() []string {
		id := filepath.Base(containers[0])
		v1, _ := filepath.Glob("/sys/fs/cgroup/*/docker/" + id)
		v2, _ := filepath.Glob("/sys/fs/cgroup/docker/" + id)
		return append(v1, v2...)
	}
	if len(cgroups()) == 0 {
		t.Fatal("the container has no cgroup where one is looked for")
	}
	// Another run's sweep must leave a live one alone.
	if err := play(t, "exit-7").Run(); err == nil {
		t.Fatal("exit-7 did not")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("the folder of a live run was removed: %v", err)
	}

	run.Process.Kill()
	run.Wait()
	eventually(t, "every process of the killed run ends", func() bool { return len(inNamespace(ns)) == 0 })
	eventually(t, "a later run removes folder and cgroups", func() bool {
		_ = play(t, "exit-7").Run()
		_, err := os.Stat(dir)
		return err != nil && len(cgroups()) == 0
	})
}

func TestSkipsOrFailsWithoutAnEngine(t *testing.T) {
	for _, tc := range []struct {
		require string
		code    int
		says    string
	}{{"", 0, "SKIP e2e: "}, {"1", 1, "FAIL e2e: "}} {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^$")
		cmd.Env = append(os.Environ(), "HERMES_TESTHOST=", "E2E_ENGINE_ROOT=/nowhere", "E2E_REQUIRE="+tc.require)
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != tc.code || !strings.HasPrefix(string(out), tc.says) {
			t.Errorf("E2E_REQUIRE=%q: exit code %d, %q", tc.require, cmd.ProcessState.ExitCode(), out)
		}
	}
}
