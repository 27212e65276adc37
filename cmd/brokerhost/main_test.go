package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"brokerhost": main})
}

// TestScripts runs testdata/*.txtar in folders below root's own: a tool is run from
// no other.
func TestScripts(t *testing.T) {
	root, err := os.MkdirTemp("/run", "brokerhost-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	testscript.Run(t, testscript.Params{
		Dir: "testdata", WorkdirRoot: root,
		Setup: func(e *testscript.Env) error {
			// A configuration holds absolute paths.
			all, err := filepath.Glob(filepath.Join(e.WorkDir, "*.yaml"))
			for _, path := range all {
				text, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				if err := os.WriteFile(path, []byte(os.Expand(string(text), func(string) string { return e.WorkDir })), 0o600); err != nil {
					return err
				}
			}
			return err
		},
	})
}
