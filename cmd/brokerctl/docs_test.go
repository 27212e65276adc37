package main

import (
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestDocumentation compares docs/brokerctl.md with the command tree: each command
// has an example in its help, and stands in the document.
func TestDocumentation(t *testing.T) {
	data, err := os.ReadFile("../../docs/brokerctl.md")
	check(err)
	doc := string(data)
	a, _, _ := terminalApp(nil, "")
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
		if cmd.HasSubCommands() || !cmd.Runnable() {
			return
		}
		if !strings.Contains(cmd.Example, cmd.CommandPath()+" ") && !strings.Contains(cmd.Example, cmd.CommandPath()+"\n") {
			t.Errorf("%s: no example in its help", cmd.CommandPath())
		}
		if !strings.Contains(doc, "    "+cmd.CommandPath()) {
			t.Errorf("%s: no example in docs/brokerctl.md", cmd.CommandPath())
		}
	}
	walk(a.rootCommand())
	for name, text := range map[string]string{"exit-codes": exitCodesHelp, "contexts": contextsHelp} {
		for line := range strings.Lines(text) {
			if !strings.Contains(doc, strings.TrimSpace(line)) {
				t.Errorf("help %s: docs/brokerctl.md lacks %q", name, line)
			}
		}
	}
}
