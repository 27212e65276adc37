package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/gortium/hermes-broker/certs"
	"github.com/gortium/hermes-broker/certs/certstest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"brokerd": main})
}

// TestScripts runs testdata/*.txtar, each in a folder that has the broker's
// certificate beside the files of the script.
func TestScripts(t *testing.T) {
	ca := certstest.NewCA(t, "home.example")
	leaf, err := ca.Issue(certs.Request{ID: spiffeid.RequireFromString("spiffe://home.example/broker"), Role: certs.Server, DNS: []string{"localhost"}})
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			if err := leaf.Write(e.WorkDir, "broker"); err != nil {
				return err
			}
			// A configuration holds absolute paths.
			all, err := filepath.Glob(filepath.Join(e.WorkDir, "*.yaml"))
			if err != nil {
				return err
			}
			for _, path := range all {
				text, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				text = []byte(os.Expand(string(text), func(string) string { return e.WorkDir }))
				if err := os.WriteFile(path, text, 0o600); err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"waitfor": waitFor},
	})
}

// waitFor waits until a path is there.
func waitFor(ts *testscript.TestScript, _ bool, args []string) {
	for range 500 {
		if _, err := os.Stat(args[0]); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("%s does not come", args[0])
}

func TestExitStatus(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none.yaml")
	for _, c := range []struct {
		args   []string
		status int
		stdout string
		stderr string
	}{
		{[]string{"version"}, 0, "brokerd devel\n", ""},
		{[]string{"-h"}, 0, "", "-config FILE"},
		{[]string{"check", "-h"}, 0, "", "-config FILE"},
		{[]string{"run"}, 2, "", `unknown command "run"; there are check and version`},
		{[]string{"check", "extra"}, 2, "", `unexpected argument "extra"`},
		{[]string{"version", "extra"}, 2, "", `unexpected argument "extra"`},
		{[]string{"-config", none, "check"}, 2, "", `unexpected argument "check"`},
		{[]string{""}, 2, "", `unexpected argument ""`},
		{[]string{"-port", "7443"}, 2, "", "not defined: -port"},
		{[]string{"check", "-config"}, 2, "", "needs an argument"},
		{[]string{"-config", none}, 1, "", none},
		{[]string{"serve", "-config", none}, 1, "", none},
		{[]string{"check", "-config", none}, 1, "", none},
	} {
		var stdout, stderr strings.Builder
		if got := run(c.args, &stdout, &stderr); got != c.status {
			t.Errorf("%q: status %d, want %d", c.args, got, c.status)
		}
		if stdout.String() != c.stdout {
			t.Errorf("%q: stdout %q", c.args, stdout.String())
		}
		if !strings.Contains(stderr.String(), c.stderr) || (c.status == 0 && c.stderr == "" && stderr.Len() > 0) {
			t.Errorf("%q: stderr %q", c.args, stderr.String())
		}
	}
}
