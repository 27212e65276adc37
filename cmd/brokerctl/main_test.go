package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/gortium/hermes-broker/certs"
	"github.com/gortium/hermes-broker/server/audit"
)

const (
	callerID = "spiffe://home.example/operator/ada"
	serverID = "spiffe://home.example/broker"
)

var update = flag.Bool("update", false, "write the scripts' golden output anew")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"brokerctl": main})
}

// TestScripts runs testdata/*.txtar. Each has a broker's address and a caller's
// certificate in BROKER_* variables, and an audit trail in $AUDIT.
func TestScripts(t *testing.T) {
	env := startBroker(t)
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: *update,
		Setup: func(e *testscript.Env) error {
			for k, v := range env {
				e.Setenv(k, v)
			}
			e.Setenv("TZ", "UTC")
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "config"))
			e.Setenv("AUDIT", filepath.Join(e.WorkDir, "audit"))
			return writeAudit(filepath.Join(e.WorkDir, "audit"))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"clean":  scriptClean,
			"damage": scriptDamage,
		},
	})
}

// scriptClean fails if a stream of the last command holds what acts on a
// terminal: every byte of it must be printable ASCII or a newline.
func scriptClean(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		for i, b := range []byte(ts.ReadFile(name)) {
			if (b < ' ' || b > '~') && b != '\n' {
				ts.Fatalf("%s has the byte %#02x at %d", name, b, i)
			}
		}
	}
}

func scriptDamage(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(damageAudit(ts.MkAbs(args[0])))
}

// damageAudit changes one letter in the middle of an audit trail.
func damageAudit(dir string) error {
	segments, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}
	for _, path := range segments {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if damaged := bytes.Replace(data, []byte("ollama"), []byte("Ollama"), 1); !bytes.Equal(data, damaged) {
			return os.WriteFile(path, damaged, 0o600)
		}
	}
	return errors.New("nothing to damage")
}

// startBroker runs a fake broker on a socket and returns the variables to reach
// it.
func startBroker(t *testing.T) map[string]string { return startFake(t, &fakeBroker{}) }

func startFake(t *testing.T, fake *fakeBroker) map[string]string {
	t.Helper()
	dir := t.TempDir()
	var o certs.Options
	check(o.TrustDomain.UnmarshalText([]byte("home.example")))
	ca, err := certs.Init(filepath.Join(dir, "ca"), o)
	check(err)
	issue := func(id string, role certs.Role) *certs.Leaf {
		r := certs.Request{Role: role}
		check(r.ID.UnmarshalText([]byte(id)))
		leaf, err := ca.Issue(r)
		check(err)
		return leaf
	}
	check(issue(callerID, certs.Operator).Write(filepath.Join(dir, "ada"), "ada"))
	socket := filepath.Join(dir, "broker.sock")
	lis, err := net.Listen("unix", socket)
	check(err)
	t.Cleanup(serveFake(fake, lis, ca, issue(serverID, certs.Server)))
	return map[string]string{
		"BROKER_ADDRESS":   "unix://" + socket,
		"BROKER_CERT":      filepath.Join(dir, "ada", "ada.crt"),
		"BROKER_KEY":       filepath.Join(dir, "ada", "ada.key"),
		"BROKER_BUNDLE":    filepath.Join(dir, "ada", "bundle.crt"),
		"BROKER_SERVER_ID": serverID,
	}
}

// writeAudit makes a trail of five records: a read, a change with its outcome, a
// denial with hostile text, an open intent.
func writeAudit(dir string) error {
	when := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	log, err := audit.Open(audit.Options{Dir: dir, Now: func() time.Time { return when }})
	if err != nil {
		return err
	}
	ctx := context.Background()
	const restart = "/hermes.broker.v1.ContainerService/Restart"
	for _, r := range []audit.Record{
		{Event: audit.EventCall, Call: "CALLONE", Caller: callerID, Method: "/hermes.broker.v1.ContainerService/ListContainers", Resource: "containers/*", Code: "OK"},
		{Event: audit.EventIntent, Call: "CALLTWO", Caller: callerID, Method: restart, Resource: "containers/ollama", Request: []byte(`{"container":"ollama"}`), Rule: "policy.yaml:12"},
		{Event: audit.EventOutcome, Call: "CALLTWO", Caller: callerID, Method: restart, Resource: "containers/ollama", Code: "OK", DurationUS: 1500},
		{Event: audit.EventCall, Call: "CALLTHREE", Caller: callerID, Method: restart, Resource: "containers/" + hostile, Code: "PERMISSION_DENIED", Reason: "PERMISSION_DENIED", Detail: hostile},
		{Event: audit.EventIntent, Call: "CALLFOUR", Caller: callerID, Method: restart, Resource: "containers/web"},
	} {
		if _, err := log.Sync(ctx, r); err != nil {
			return err
		}
	}
	return log.Close(ctx)
}
