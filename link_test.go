// Package hermesbroker has the tests of the module as a whole: who may depend
// on whom, and what the release binary holds.
package hermesbroker

import (
	"bytes"
	"debug/elf"
	"debug/gosym"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// forbidden are functions that the release brokerd must not hold.
var forbidden = regexp.MustCompile(`^(` +
	`github\.com/docker/docker/client\.\(\*Client\)\.(ContainerExec\w*|ContainerAttach|CopyToContainer|CopyFromContainer|ContainerStatPath|ContainerCommit|ContainerExport|ContainerCreate|ContainerUpdate|` +
	`Image(Save|Load|Import|Push|Tag|Build|Create)|Plugin\w+|Swarm\w+|Service\w+|Secret\w+|Config\w+|Network(Create|Remove|Connect)|Volume(Create|Remove)|DialHijack|postHijacked|setupHijackConn)` +
	`|os/exec\..*|os\.StartProcess|os\.startProcess|syscall\.(forkExec|ForkExec|StartProcess|forkAndExecInChild1?|Exec)|plugin\..*|text/template\.\(\*Template\)\.Execute)$`)

// literals are parts of engine paths that the binary must not spell either.
var literals = []string{"fromSrc", "/tag", "/push", "/archive", "/commit?", "/export", "/attach/ws", "/images/load", "/images/get", "/containers/create", "/exec/"}

// TestReleaseBinaryCannotRunAnything builds brokerd as a release does and reads
// from the binary which functions the linker has kept.
func TestReleaseBinaryCannotRunAnything(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "brokerd")
	build := exec.Command("make", "build-brokerd", "OUT="+binary)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	f, err := elf.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names := functions(t, f)
	has := map[string]bool{}
	for _, n := range names {
		has[n] = true
		if forbidden.MatchString(n) {
			t.Errorf("brokerd holds %s", n)
		}
	}
	// What must be there, so that an unread table is no proof.
	for _, n := range []string{"main.main", "github.com/docker/docker/client.(*Client).ContainerRestart", "github.com/docker/docker/client.(*Client).ContainerRemove"} {
		if !has[n] {
			t.Errorf("brokerd does not hold %s: the function table was not read, or the SDK changed", n)
		}
	}
	rodata, err := f.Section(".rodata").Data()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range literals {
		if bytes.Contains(rodata, []byte(l)) {
			t.Errorf("brokerd spells %q", l)
		}
	}
	if !bytes.Contains(rodata, []byte("/restart")) {
		t.Error("brokerd does not spell /restart: the literals were not read")
	}
	st, err := os.Stat(binary)
	if err != nil {
		t.Fatal(err)
	}
	mib := float64(st.Size()) / (1 << 20)
	t.Logf("%d functions, %.1f MiB", len(names), mib)
	if mib > 22 {
		t.Errorf("brokerd has %.1f MiB; the budget is 22", mib)
	}
}

// functions reads the names out of the table that survives stripping.
func functions(t *testing.T, f *elf.File) []string {
	t.Helper()
	pcln := f.Section(".gopclntab")
	if pcln == nil {
		t.Fatal("no .gopclntab")
	}
	data, err := pcln.Data()
	if err != nil {
		t.Fatal(err)
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(data, f.Section(".text").Addr))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, fn := range table.Funcs {
		names = append(names, strings.TrimSuffix(fn.Name, "-fm"))
	}
	if len(names) < 5000 {
		t.Fatalf("only %d functions were read", len(names))
	}
	return names
}
