package main

import (
	"bytes"
	"context"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/internal/termclean"
)

// terminalApp is brokerctl as it runs on a terminal.
func terminalApp(env map[string]string, stdin string) (a *app, stdout, stderr *bytes.Buffer) {
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	return &app{
		stdin: strings.NewReader(stdin), stdout: stdout, stderr: stderr, getenv: func(k string) string { return env[k] },
		terminal: true, interactive: true, colour: true, bars: true, format: formatTable,
		nextInterrupt: func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithCancel(context.WithoutCancel(ctx))
		},
	}, stdout, stderr
}

// own are the sequences that brokerctl itself writes.
var own = regexp.MustCompile(`\x1b\[(0|1|31|32|33)m|\x1b\[1A\x1b\[2K|\x1b\[\d+A\x1b\[J`)

// TestHostileTextOnATerminal runs every command that shows what others wrote.
func TestHostileTextOnATerminal(t *testing.T) {
	env := startBroker(t)
	dir := t.TempDir() + "/audit"
	check(writeAudit(dir))
	for _, line := range [][]string{
		{"containers", "ls"},
		{"containers", "ls", "-o", "wide"},
		{"containers", "ls", "-o", "name"},
		{"containers", "ls", "-o", "json"},
		{"containers", "ls", "-o", "yaml"},
		{"containers", "inspect", hostile},
		{"containers", "inspect", hostile, "-o", "yaml"},
		{"containers", "inspect", "secret"},
		{"containers", "inspect", "no\x1b[2Jne"},
		{"containers", "logs", "ollama"},
		{"containers", "logs", "ollama", "-f"},
		{"containers", "logs", "ollama", "--raw"},
		{"containers", "stats", hostile},
		{"containers", "restart", hostile, "frozen"},
		{"containers", "rm", hostile, "--yes"},
		{"containers", "wait", hostile},
		{"images", "ls", "-o", "wide"},
		{"images", "ls", "-o", "name"},
		{"images", "rm", hostile, "--yes"},
		{"images", "pull", hostile},
		{"images", "pull", hostile, "-o", "json"},
		{"images", "pull", hostile, "-o", "name"},
		{"images", "pull", hostile, "--detach"},
		{"images", "pull", hostile, "--dry-run"},
		{"images", "pull", "secret"},
		{"engine", "info"},
		{"engine", "version"},
		{"engine", "prune", "--images", "--yes"},
		{"engine", "prune", "--images", "--dry-run", "-o", "name"},
		{"engine", "events"},
		{"engine", "events", "-o", "name"},
		{"networks", "ls", "-o", "wide"},
		{"volumes", "ls"},
		{"firewall", "status", "-o", "wide"},
		{"firewall", "status", "-o", "json"},
		{"firewall", "rules", "-o", "wide"},
		{"firewall", "rules", "--table", "toolless"},
		{"firewall", "rules", "--backend", hostile},
		{"fail2ban", "status"},
		{"fail2ban", "status", "-o", "name"},
		{"fail2ban", "jail", hostile},
		{"fail2ban", "jail", "no" + hostile},
		{"fail2ban", "banned", hostile},
		{"fail2ban", "banned", "sshd", "-o", "name"},
		{"journal", "units/ssh.service"},
		{"journal", "units/ssh.service", "-o", "json"},
		{"journal", "units/flaky.service", "-f"},
		{"journal", "identifiers/trap", "--grep", hostile},
		{"journal", "identifiers/limit", "--grep", hostile},
		{"journal", hostile, "--priority", hostile},
		{"sshd", "config", "--all", "-o", "wide"},
		{"sockets", "-o", "wide"},
		{"ops", "ls", "-o", "wide"},
		{"ops", "show", "HOSTILE"},
		{"ops", "show", hostile},
		{"ops", "watch", "HOSTILE"},
		{"ops", "cancel", "HOSTILE"},
		{"can", "containers.restart", "containers/web"},
		{"freeze", "--reason", hostile},
		{"unfreeze"},
		{"unfreeze", "-o", "json"},
		{"call", "ContainerService/ListContainers"},
		{"call", "ContainerService/" + hostile},
		{"call", "--raw", hostile},
		{hostile},
		{"whoami", "--" + hostile},
		{"audit", "tail", "-o", "wide", "--dir", dir},
		{"audit", "show", "CALLTHREE", "--dir", dir},
		{"__complete", "containers", "inspect", ""},
		{"__complete", "images", "rm", ""},
		{"__complete", "ops", "watch", ""},
		{"__complete", "fail2ban", "jail", ""},
	} {
		t.Run(strings.Join(line, " "), func(t *testing.T) {
			a, stdout, stderr := terminalApp(env, "")
			a.execute(t.Context(), line)
			for name, out := range map[string]*bytes.Buffer{"stdout": stdout, "stderr": stderr} {
				text := own.ReplaceAllString(out.String(), "")
				for i, r := range text {
					if !termclean.Safe(r) && r != '\n' && r != '\t' {
						t.Fatalf("%s has %U at %d: %q", name, r, i, text[max(0, i-20):])
					}
				}
			}
		})
	}
}

func TestColours(t *testing.T) {
	env := startBroker(t)
	a, stdout, _ := terminalApp(env, "")
	a.execute(t.Context(), []string{"containers", "ls", "--name", "o*"})
	if !strings.Contains(stdout.String(), "\x1b[32mrunning\x1b[0m") {
		t.Errorf("no colour on a terminal: %q", stdout)
	}
	a, stdout, _ = terminalApp(env, "")
	a.colour = false
	a.execute(t.Context(), []string{"containers", "ls", "--name", "o*"})
	if strings.Contains(stdout.String(), "\x1b") {
		t.Errorf("colour although it is off: %q", stdout)
	}
	for _, tt := range []struct {
		env  map[string]string
		want bool
	}{{map[string]string{"TERM": "xterm"}, true}, {map[string]string{"NO_COLOR": "1"}, false}, {map[string]string{"TERM": "dumb"}, false}} {
		if got := wantsColour(func(k string) string { return tt.env[k] }); got != tt.want {
			t.Errorf("colour with %v: %t", tt.env, got)
		}
	}
	file, err := os.Create(t.TempDir() + "/out")
	check(err)
	defer file.Close()
	if newApp(file, file, file, func(string) string { return "" }).colour {
		t.Error("colour in a file")
	}
}

// TestStatsRedraw: one line per sample, in place.
func TestStatsRedraw(t *testing.T) {
	a, stdout, _ := terminalApp(startBroker(t), "")
	a.execute(t.Context(), []string{"containers", "stats", "ollama"})
	if n := strings.Count(stdout.String(), "\x1b[1A\x1b[2K"); n != 2 {
		t.Errorf("%d redraws, want 2: %q", n, stdout)
	}
}

func TestRemoveAsks(t *testing.T) {
	env := startBroker(t)
	for answer, want := range map[string]int{"y\n": exitOK, "YES\n": exitOK, "n\n": exitUsage, "\n": exitUsage, "": exitUsage, "yeah\n": exitUsage} {
		a, stdout, stderr := terminalApp(env, answer)
		code := a.execute(t.Context(), []string{"containers", "rm", "media-old"})
		if code != want || strings.Contains(stdout.String(), "removed") != (want == exitOK) || !strings.Contains(stderr.String(), "[y/N]") {
			t.Errorf("%q: code %d, %q, %q", answer, code, stdout, stderr)
		}
	}
}

// TestPruneAsksForEachBatch: a no keeps what was confirmed before, and is a failure
// only when that is nothing.
func TestPruneAsksForEachBatch(t *testing.T) {
	for _, tt := range []struct {
		answers            string
		code               int
		questions, batches int
	}{
		{"y\ny\n", exitOK, 2, 2},
		{"y\nn\n", exitOK, 2, 1},
		{"n\n", exitUsage, 1, 0},
	} {
		a, stdout, stderr := terminalApp(startBroker(t), tt.answers)
		code := a.execute(t.Context(), []string{"engine", "prune", "--containers", "--images"})
		if code != tt.code || strings.Count(stderr.String(), "[y/N]") != tt.questions || strings.Count(stdout.String(), "reclaimed") != tt.batches {
			t.Errorf("%q: code %d, %q, %q", tt.answers, code, stdout, stderr)
		}
		if strings.Contains(stderr.String(), "the rest stays") != (tt.batches == 1) || strings.Contains(stderr.String(), "nothing was done") != (tt.batches == 0) {
			t.Errorf("%q: %q", tt.answers, stderr)
		}
		// The table before the question is on stderr, which may be no terminal.
		if strings.Contains(stderr.String(), "\x1b") {
			t.Errorf("colour on stderr: %q", stderr)
		}
	}
}

func TestRawIsRefusedOnATerminal(t *testing.T) {
	a, stdout, _ := terminalApp(startBroker(t), "")
	if code := a.execute(t.Context(), []string{"containers", "logs", "ollama", "--raw"}); code != exitUsage || stdout.Len() > 0 {
		t.Errorf("code %d, %q", code, stdout)
	}
}

// TestEveryReasonHasAdvice walks the schema.
func TestEveryReasonHasAdvice(t *testing.T) {
	for n, name := range brokerv1.ErrorReason_name {
		reason := brokerv1.ErrorReason(n)
		adv, ok := adviceFor[reason]
		if reason == brokerv1.ErrorReason_ERROR_REASON_UNSPECIFIED {
			if ok {
				t.Error("UNSPECIFIED has advice: errors without a reason would get it")
			}
			continue
		}
		if !ok || adv.hint == "" || adv.code == exitOK {
			t.Errorf("%s: code %d, hint %q", name, adv.code, adv.hint)
		}
		_, why, hint := classify(failed("x", refusal(codes.Internal, strings.TrimPrefix(name, "ERROR_REASON_"), "message", 0, nil)))
		if !strings.HasPrefix(why, "x: message [") || hint != adv.hint {
			t.Errorf("%s: %q, %q", name, why, hint)
		}
	}
}

func TestExitCodes(t *testing.T) {
	env := startBroker(t)
	for _, tt := range []struct {
		args string
		want int
	}{
		{"containers ls", exitOK},
		{"can p containers/ollama", exitOK},
		{"nonsense", exitUsage},
		{"containers nonsense", exitUsage},
		{"containers ls extra", exitUsage},
		{"containers inspect", exitUsage},
		{"containers ls --bad", exitUsage},
		{"whoami --context nope", exitUsage},
		{"containers stop ollama --grace 10m", exitUsage},
		{"containers inspect secret", exitDenied},
		{"can p containers/web", exitDenied},
		{"containers inspect nothere", exitNotFound},
		{"containers inspect engineless", exitUnavailable},
		{"whoami --address 127.0.0.1:1", exitUnavailable},
		{"containers restart budget", exitRefused},
		{"containers restart frozen", exitRefused},
		{"can p containers/frozen", exitRefused},
		{"containers restart ollama nothere secret", exitNotFound},
		{"containers restart lost", exitUnknown},
		{"containers wait ollama --timeout 1s", exitUnknown},
		{"doctor --server-id spiffe://home.example/other", exitFailure},
		{"call --raw hermes.broker.v1.ContainerService/Exec", exitFailure},
		{"images pull alpine:3.22", exitOK},
		{"images pull moved", exitOK},
		{"images pull nothere", exitNotFound},
		{"images pull away", exitUnavailable},
		{"images pull secret", exitRefused},
		{"images pull empty", exitFailure},
		{"images pull slow --timeout 100ms", exitUnknown},
		{"images rm used --yes", exitRefused},
		{"images rm moving --yes", exitRefused},
		{"engine prune --yes", exitUsage},
		{"engine prune --containers --images --yes", exitOK},
		{"engine prune --unused-images --yes", exitFailure},
		{"engine prune --containers --yes", exitFailure}, // nothing of a batch, and more
		{"engine events --kind plugin", exitUsage},
		{"ops show NONE", exitNotFound},
		{"ops watch BROKEN", exitUnavailable},
		{"ops cancel NONE RUNS", exitNotFound},
		{"firewall rules --table changed", exitOK},
		{"firewall rules --table restless", exitRefused},
		{"firewall rules --table toolless", exitRefused},
		{"firewall rules --table busy", exitRefused},
		{"firewall rules --table large", exitRefused},
		{"firewall rules --table slow", exitUnknown},
		{"firewall rules --table odd", exitFailure},
		{"firewall rules --family ipx", exitUsage},
		{"fail2ban jail nothere", exitNotFound},
		{"fail2ban jail fail2banless", exitRefused},
		{"fail2ban jail stopped", exitUnavailable},
		{"fail2ban jail half", exitUnavailable},
		{"fail2ban jail pickled", exitFailure},
		{"journal identifiers/limit", exitOK},
		{"journal units/secret.service", exitDenied},
		{"journal units/broken.service", exitFailure},
		{"journal units/hostless.service", exitUnavailable},
		{"journal kernel --cursor a --since 1m", exitUsage},
		{"sockets --tcp --udp", exitUsage},
	} {
		a, _, stderr := terminalApp(env, "")
		if got := a.execute(t.Context(), strings.Fields(tt.args)); got != tt.want {
			t.Errorf("%s: code %d, want %d: %s", tt.args, got, tt.want, stderr)
		}
	}
	dir := t.TempDir() + "/audit"
	check(writeAudit(dir))
	check(damageAudit(dir))
	a, _, stderr := terminalApp(env, "")
	if got := a.execute(t.Context(), []string{"audit", "verify", "--dir", dir}); got != exitDamaged {
		t.Errorf("damaged audit trail: code %d: %s", got, stderr)
	}
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		if got, _, _ := classify(status.Error(code, "")); got == exitOK {
			t.Errorf("%v gives exit code 0", code)
		}
	}
}

func TestConfigPath(t *testing.T) {
	for _, tt := range []struct{ xdg, home, want string }{
		{"/x", "/h", "/x/hermes-broker/config.yaml"},
		{"", "/h", "/h/.config/hermes-broker/config.yaml"},
		{"x", "/h", "/h/.config/hermes-broker/config.yaml"},
		{"", "", ""},
		{"", "h", ""},
	} {
		a, _, _ := terminalApp(map[string]string{"XDG_CONFIG_HOME": tt.xdg, "HOME": tt.home}, "")
		if got := a.configPath(); got != tt.want {
			t.Errorf("XDG_CONFIG_HOME=%q HOME=%q: %q, want %q", tt.xdg, tt.home, got, tt.want)
		}
	}
}

func TestInterrupt(t *testing.T) {
	env := startBroker(t)
	for line, hint := range map[string]bool{"whoami": false, "containers restart ollama web": true, "freeze --reason x": true, "freeze --reason x --dry-run": false,
		"ops cancel RUNS": true, "ops cancel RUNS --dry-run": false, "engine prune --images --yes": false, "call ImageService/Pull {}": true} {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		a, _, stderr := terminalApp(env, "")
		got := a.execute(ctx, strings.Fields(line))
		if got != exitInterrupted || !strings.HasPrefix(stderr.String(), "brokerctl: interrupted\n") || strings.Contains(stderr.String(), "may have happened") != hint {
			t.Errorf("%s: code %d, %q", line, got, stderr)
		}
	}
}

// TestYAMLIsExact reads back what encodeYAML wrote.
func TestYAMLIsExact(t *testing.T) {
	for _, s := range []string{hostile, "", "yes", "null", "1e3", "0x1f", "~", "- a", "a: b", "#x", "\U0001f600", "\U000e0041", "\u2028", "\\", "\"", "a\nb", "[", "2026-01-02"} {
		in := map[string]any{s: []any{s, map[string]any{"k": s, "l": []any{[]any{s}, map[string]any{}}}}}
		data, err := encodeYAML(in)
		check(err)
		// YAML has no surrogate pairs, although some readers join them.
		if bytes.Contains(data, []byte(`\ud`)) {
			t.Errorf("%q: surrogates in %s", s, data)
		}
		var got map[string]any
		if err := yaml.Unmarshal(data, &got); err != nil {
			t.Fatalf("%q: %v\n%s", s, err, data)
		}
		list, _ := got[s].([]any)
		if len(list) != 2 || list[0] != s || list[1].(map[string]any)["k"] != s {
			t.Errorf("%q became %v\n%s", s, got, data)
		}
	}
}

// TestYAMLQuotesWords: readers of YAML 1.1 take these for something else.
func TestYAMLQuotesWords(t *testing.T) {
	for _, s := range []string{"yes", "No", "on", "OFF", "y", "n", "true", "null", "0o17", "1_000", "12:30", ".inf", "~"} {
		if data, err := encodeYAML(s); err != nil || string(data) != `"`+s+"\"\n" {
			t.Errorf("%s is written as %s, %v", s, data, err)
		}
	}
}

func TestEncodeJSONIsStable(t *testing.T) {
	m := &brokerv1.CanResponse{Allowed: true, Rule: "r"}
	first, err := encodeJSON(m, false)
	check(err)
	for range 50 {
		if again, _ := encodeJSON(m, false); !bytes.Equal(first, again) {
			t.Fatalf("%s, then %s", first, again)
		}
	}
}
