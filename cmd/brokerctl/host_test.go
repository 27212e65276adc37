package main

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
)

// onHost runs a command line on a terminal against a host.
func onHost(t *testing.T, fake *fakeBroker, line string) (code int, stdout, stderr string) {
	t.Helper()
	a, out, notes := terminalApp(startFake(t, fake), "")
	code = a.execute(t.Context(), strings.Fields(line))
	return code, out.String(), notes.String()
}

// TestDoctorAsksForTheHost: silence is for those who may not know, and for brokers
// that do not.
func TestDoctorAsksForTheHost(t *testing.T) {
	for _, tt := range []struct {
		name string
		host *fakeBroker
		code int
		want string // "" is no line
	}{
		{"answers", &fakeBroker{}, exitOK, "\x1b[32mOK\x1b[0m  host           brokerhost answers\n"},
		{"away", &fakeBroker{host: fakeHost{away: true}}, exitOK, "\x1b[33mWARN\x1b[0m  host           the host's own state: brokerhost does not answer; start it"},
		{"denied", &fakeBroker{host: fakeHost{health: refusal(codes.PermissionDenied, "PERMISSION_DENIED", "no", 0, nil)}}, exitOK, ""},
		{"older", &fakeBroker{host: fakeHost{health: refusal(codes.NotFound, "", "unknown service", 0, nil)}}, exitOK, ""},
		{"broken", &fakeBroker{host: fakeHost{health: refusal(codes.Internal, "INTERNAL", hostile, 0, nil)}}, exitFailure, "\x1b[31mFAIL\x1b[0m  host           evil\\x1b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, out, _ := onHost(t, tt.host, "doctor")
			if code != tt.code || !strings.Contains(out, tt.want) || strings.Contains(out, "  host  ") != (tt.want != "") {
				t.Errorf("code %d: %q", code, out)
			}
		})
	}
}

// TestStatusReadsOnePage, of one rule, unless the rules are shown.
func TestStatusReadsOnePage(t *testing.T) {
	for line, want := range map[string]int{"firewall status": 1, "firewall status -o wide": 1, "firewall status -o json": 4, "firewall rules": 4} {
		fake := &fakeBroker{}
		onHost(t, fake, line)
		if got := len(fake.host.asked.pages); got != want {
			t.Errorf("%s: %d pages, want %d", line, got, want)
		}
	}
}

// TestRulesBeginAgain as often as said, and not for ever.
func TestRulesBeginAgain(t *testing.T) {
	fake := &fakeBroker{}
	onHost(t, fake, "firewall rules --table restless")
	if got, want := fake.host.asked.pages, slices.Repeat([]string{"restless", "restlessx"}, 1+beginAgain); !slices.Equal(got, want) {
		t.Errorf("asked for %q", got)
	}
}

func TestJournalGoesOn(t *testing.T) {
	fake := &fakeBroker{}
	code, _, _ := onHost(t, fake, "journal units/flaky.service -f --since 1h")
	want := []string{"flaky", "flaky " + testCursor(1), "flaky " + testCursor(2), "flaky " + testCursor(3)}
	if got := fake.host.asked.streams; code != exitOK || !slices.Equal(got, want) {
		t.Errorf("code %d, streams %q", code, got)
	}
	// A grant that is gone is not asked for again, a broker that is gone for a while.
	fake = &fakeBroker{}
	code, _, _ = onHost(t, fake, "journal units/revoked.service -f")
	if got := fake.host.asked.streams; code != exitDenied || !slices.Equal(got, []string{"revoked"}) {
		t.Errorf("code %d, streams %q", code, got)
	}
	fake = &fakeBroker{}
	code, _, stderr := onHost(t, fake, "journal units/away.service -f")
	if got := len(fake.host.asked.streams); code != exitUnavailable || got != 11 || !strings.Contains(stderr, "[HOST_UNAVAILABLE]") {
		t.Errorf("code %d, %d streams, %q", code, got, stderr)
	}
}

// TestInexactCommandIsNotShown: what had to be cleaned is not what was asked.
func TestInexactCommandIsNotShown(t *testing.T) {
	a, _, stderr := terminalApp(startBroker(t), "")
	a.execute(t.Context(), []string{"journal", "identifiers/limit", "--grep", hostile})
	if want := "\nto go on: the same command with --cursor='" + testCursor(4) + "'\n"; !strings.Contains(stderr.String(), want) {
		t.Errorf("%q", stderr)
	}
}

func TestHostColours(t *testing.T) {
	for line, want := range map[string][]string{
		"firewall status": {"\x1b[33mUNCERTAIN: ", "\x1b[33mopen\x1b[0m", "\x1b[31munreadable\x1b[0m", "\x1b[33mmissing\x1b[0m", "\x1b[32mactive\x1b[0m"},
		"firewall rules":  {"\x1b[32mACCEPT\x1b[0m", "\x1b[31mDROP\x1b[0m"},
		"fail2ban status": {"\x1b[33m2\x1b[0m"},
		"journal units/ssh.service": {
			"\n\x1b[31m2026-", "no auth\x1b[0m \x1b[1m[cut]\x1b[0m\n", "\n\x1b[33m2026-", "I am no unit\x1b[0m\n", "port 22.\n", "logged in\\xff\\xc3\n",
		},
		"sshd config --all": {"\x1b[31mhigh\x1b[0m", "\x1b[33mmedium\x1b[0m", "\x1b[33m(left out)\x1b[0m"},
		"sockets":           {"\x1b[33mopen\x1b[0m", "\x1b[32mlocal\x1b[0m"},
	} {
		_, out, _ := onHost(t, &fakeBroker{}, line)
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%s: no %q in %q", line, w, out)
			}
		}
	}
}

// TestQuietHost: nothing to say is said.
func TestQuietHost(t *testing.T) {
	for line, want := range map[string]string{
		"firewall status": "\nno open ports\n\nevery rule that counts has matched something\n",
		"sshd config":     "nothing that an auditor would point at",
	} {
		code, out, _ := onHost(t, &fakeBroker{host: fakeHost{quiet: true}}, line)
		if code != exitOK || !strings.Contains(out, want) || strings.Contains(out, "UNCERTAIN") {
			t.Errorf("%s: code %d, %q", line, code, out)
		}
	}
	for _, line := range []string{"fail2ban status", "sshd config", "sockets"} {
		code, out, stderr := onHost(t, &fakeBroker{host: fakeHost{away: true}}, line)
		if code != exitUnavailable || out != "" || !strings.Contains(stderr, "[HOST_UNAVAILABLE]") {
			t.Errorf("%s: code %d, %q, %q", line, code, out, stderr)
		}
	}
}

// TestCompletionSurvivesTheHost: a jail is not completed when nobody answers.
func TestCompletionSurvivesTheHost(t *testing.T) {
	code, out, _ := onHost(t, &fakeBroker{host: fakeHost{away: true}}, "__complete fail2ban jail s")
	if code != exitOK || strings.Contains(out, "sshd") {
		t.Errorf("code %d, %q", code, out)
	}
}

func TestQuoteShell(t *testing.T) {
	for in, want := range map[string]string{
		"units/ssh.service": "units/ssh.service", "": "''", "a b": "'a b'", "$(x)": "'$(x)'", "it's": `'it'\''s'`, "~": "'~'", "a;b": "'a;b'", "*": "'*'", "`x`": "'`x`'",
	} {
		if got := quoteShell(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}
