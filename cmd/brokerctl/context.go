package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/gortium/hermes-broker/client"
)

const contextsHelp = `Contexts say where the broker is and who is asking. They are in
$XDG_CONFIG_HOME/hermes-broker/config.yaml, or ~/.config/hermes-broker/config.yaml:

  current: home
  contexts:
    home:
      address: unix:///run/hermes-broker/broker.sock   # or host:port
      cert: operator.crt        # beside this file; absolute and ~/ work too
      key: operator.key
      bundle: bundle.crt
      server_id: spiffe://home.example/broker
    spire:
      address: broker.home.example:8443
      workload_api: unix:///run/spire/agent.sock       # instead of files
      server_id: spiffe://home.example/broker

Each value can be set for one shell or one call as well; the later wins:

  context         variable               flag
  -               BROKER_CONTEXT         --context
  address         BROKER_ADDRESS         --address
  cert            BROKER_CERT            --cert
  key             BROKER_KEY             --key
  bundle          BROKER_BUNDLE          --bundle
  server_id       BROKER_SERVER_ID       --server-id
  workload_api    BROKER_WORKLOAD_API    --workload-api

Certificate files given later take the place of a Workload API given earlier, and
the other way round.`

// maxConfigBytes is far above what a person writes.
const maxConfigBytes = 1 << 20

// target is where the broker is and who is asking.
type target struct {
	Address     string `yaml:"address"`
	Cert        string `yaml:"cert"`
	Key         string `yaml:"key"`
	Bundle      string `yaml:"bundle"`
	ServerID    string `yaml:"server_id"`
	WorkloadAPI string `yaml:"workload_api"`

	context string // name of the context, when there is one
}

// configFile is the file of contexts.
type configFile struct {
	Current  string            `yaml:"current"`
	Contexts map[string]target `yaml:"contexts"`
}

func (t target) config() client.Config {
	return client.Config{
		Address: t.Address, CertFile: t.Cert, KeyFile: t.Key, BundleFile: t.Bundle,
		WorkloadAPI: t.WorkloadAPI, ServerID: t.ServerID,
		UserAgent: "brokerctl/" + buildVersion(),
	}
}

// over lays t over base.
func (t target) over(base target) target {
	switch {
	case t.WorkloadAPI != "":
		base.Cert, base.Key, base.Bundle = "", "", ""
	case t.Cert != "" || t.Key != "" || t.Bundle != "":
		base.WorkloadAPI = ""
	}
	for _, field := range []struct{ to, from *string }{
		{&base.Address, &t.Address}, {&base.Cert, &t.Cert}, {&base.Key, &t.Key}, {&base.Bundle, &t.Bundle},
		{&base.ServerID, &t.ServerID}, {&base.WorkloadAPI, &t.WorkloadAPI},
	} {
		if *field.from != "" {
			*field.to = *field.from
		}
	}
	return base
}

// resolve puts context, variables and flags together, and says what is missing.
func (a *app) resolve() (target, error) {
	path := a.configPath()
	file, err := readConfig(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return target{}, fail(exitUsage, "brokerctl help contexts shows how the file is written", "configuration: %w", err)
	}
	name := firstOf(a.target.context, a.getenv("BROKER_CONTEXT"), file.Current)
	base, known := file.Contexts[name]
	if name != "" && !known {
		return target{}, fail(exitUsage, fmt.Sprintf("contexts in %s: %s", path, strings.Join(slices.Sorted(maps.Keys(file.Contexts)), ", ")),
			"no context %q", name)
	}
	for _, p := range []*string{&base.Cert, &base.Key, &base.Bundle} {
		*p = a.expand(*p, filepath.Dir(path))
	}
	t := a.target.over(target{
		Address: a.getenv("BROKER_ADDRESS"), Cert: a.getenv("BROKER_CERT"), Key: a.getenv("BROKER_KEY"),
		Bundle: a.getenv("BROKER_BUNDLE"), ServerID: a.getenv("BROKER_SERVER_ID"), WorkloadAPI: a.getenv("BROKER_WORKLOAD_API"),
	}.over(base))
	t.context = name
	var missing []string
	for _, m := range []struct{ flag, value string }{
		{"--address", t.Address}, {"--server-id", t.ServerID},
		{"--cert", t.Cert + t.WorkloadAPI}, {"--key", t.Key + t.WorkloadAPI}, {"--bundle", t.Bundle + t.WorkloadAPI},
	} {
		if m.value == "" {
			missing = append(missing, m.flag)
		}
	}
	if len(missing) > 0 {
		return t, fail(exitUsage, "write a context into "+path+" (brokerctl help contexts), or set the flags or their BROKER_* variables",
			"which broker? not set: %s", strings.Join(missing, ", "))
	}
	return t, nil
}

// firstOf returns the first value that is not zero.
func firstOf[T comparable](values ...T) (first T) {
	for _, v := range values {
		if v != first {
			return v
		}
	}
	return first
}

// contextNames are what completion offers; none when the file cannot be read.
func (a *app) contextNames() []string {
	file, _ := readConfig(a.configPath())
	return slices.Sorted(maps.Keys(file.Contexts))
}

// configPath is where the contexts are; "" without a home, never a path below the
// working directory, where someone else could have put one.
func (a *app) configPath() string {
	base := a.getenv("XDG_CONFIG_HOME")
	// The specification has relative values ignored.
	if !filepath.IsAbs(base) {
		home := a.getenv("HOME")
		if !filepath.IsAbs(home) {
			return ""
		}
		base = filepath.Join(home, ".config")
	}
	return filepath.Join(base, "hermes-broker", "config.yaml")
}

// expand makes a path of the configuration file absolute.
func (a *app) expand(path, dir string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		return filepath.Join(a.getenv("HOME"), rest)
	}
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// readConfig reads the file strictly: a misspelt key must not mean a default.
func readConfig(path string) (configFile, error) {
	var c configFile
	f, err := os.Open(path)
	if err != nil {
		return c, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return c, err
	}
	if len(data) > maxConfigBytes {
		return c, fmt.Errorf("%s: over %d bytes", path, maxConfigBytes)
	}
	d := yaml.NewDecoder(bytes.NewReader(data), yaml.Strict())
	if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return c, fmt.Errorf("%s:%s", path, firstLine(yaml.FormatError(err, false, false)))
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return c, fmt.Errorf("%s: more than one YAML document", path)
	}
	return c, nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
