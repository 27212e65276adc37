package ssh

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/internal/hostv1"
	"github.com/gortium/hermes-broker/server/fault"
)

func ask(t *testing.T, text string) (*brokerv1.SshdConfigResponse, error) {
	t.Helper()
	return New(func(_ context.Context, req *hostv1.ReadRequest) ([]byte, error) {
		if req.GetSshdConfig() == nil {
			t.Errorf("asked for %v", req)
		}
		return []byte(text), nil
	}).SshdConfig(t.Context(), &brokerv1.SshdConfigRequest{})
}

// recorded is what OpenSSH 9.2 prints for an empty configuration.
func recorded(t *testing.T) string {
	data, err := os.ReadFile("testdata/sshd-T.txt")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// with is the recorded configuration with other values for some settings.
func with(t *testing.T, lines ...string) string {
	text := recorded(t)
	for _, l := range lines {
		key, _, _ := strings.Cut(l, " ")
		var kept strings.Builder
		for old := range strings.Lines(text) {
			if !strings.HasPrefix(old, key+" ") {
				kept.WriteString(old)
			}
		}
		text = kept.String()
	}
	return text + strings.Join(lines, "\n") + "\n"
}

func TestConfig(t *testing.T) {
	r, err := ask(t, recorded(t))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.GetPorts(), []uint32{22}) || !slices.Equal(r.GetListenAddresses(), []string{"[::]:22", "0.0.0.0:22"}) || r.GetPermitRootLogin() != "without-password" ||
		!r.GetPasswordAuthentication() || r.PubkeyAuthentication == nil || r.GetMaxAuthTries() != 6 || r.GetLoginGraceTime().AsDuration().Seconds() != 120 ||
		r.GetClientAliveInterval() == nil || !slices.Contains(r.GetCiphers(), "chacha20-poly1305@openssh.com") || r.GetAuthenticationMethods() != nil || r.GetLogLevel() != "INFO" ||
		len(r.GetKexAlgorithms()) < 5 || len(r.GetMacs()) < 5 || len(r.GetHostKeyAlgorithms()) < 5 || len(r.GetPubkeyAcceptedAlgorithms()) < 5 {
		t.Errorf("%v", r)
	}
	printed := strings.Count(recorded(t), "\n") - strings.Count(recorded(t), "\nhostkey ") - 1 // And hostkeyagent.
	if len(r.GetSettings()) != printed {
		t.Errorf("%d settings, sshd printed %d", len(r.GetSettings()), printed)
	}
	r, err = ask(t, with(t, "port 22\nport 2222", "allowusers alice\nallowusers bob@198.51.100.1", "authenticationmethods publickey,password publickey", "denygroups x"))
	if err != nil || !slices.Equal(r.GetPorts(), []uint32{22, 2222}) || !slices.Equal(r.GetAllowUsers(), []string{"alice", "bob@198.51.100.1"}) ||
		!slices.Equal(r.GetAuthenticationMethods(), []string{"publickey,password", "publickey"}) || !slices.Equal(r.GetDenyGroups(), []string{"x"}) {
		t.Errorf("%v, %v", r, err)
	}
}

// TestNoKeysNoCommands: where keys are, and what can hold a secret, stays inside.
func TestNoKeysNoCommands(t *testing.T) {
	r, err := ask(t, with(t, "hostkey /etc/ssh/canary", "hostcertificate /etc/ssh/canary", "hostkeyagent /run/canary", "forcecommand /bin/canary --token x", "authorizedkeyscommand /bin/canary %u",
		"authorizedprincipalscommand /bin/canary", "setenv TOKEN=canary", "subsystem sftp /bin/canary -l"))
	if err != nil {
		t.Fatal(err)
	}
	if text := protojson.Format(r); strings.Contains(text, "canary") || strings.Contains(text, "hostkey\"") || strings.Contains(text, "ssh_host_") {
		t.Errorf("a key or a command came out:\n%s", text)
	}
	n := 0
	for _, s := range r.GetSettings() {
		if s.GetHidden() {
			n++
		}
	}
	if n != 5 {
		t.Errorf("%d settings are hidden", n)
	}
}

// TestFindings: each rule finds what it is about, and is silent about what is good.
func TestFindings(t *testing.T) {
	good := []string{"usepam yes", "permitrootlogin no", "passwordauthentication no", "kbdinteractiveauthentication no", "maxauthtries 4", "logingracetime 60", "x11forwarding no",
		"allowgroups admins", "macs hmac-sha2-256-etm@openssh.com", "kexalgorithms curve25519-sha256", "ciphers aes256-gcm@openssh.com"}
	r, err := ask(t, with(t, good...))
	if err != nil || len(r.GetFindings()) != 0 {
		t.Errorf("%v, %v", r.GetFindings(), err)
	}
	seen := map[string]bool{}
	for line, want := range map[string]string{
		"permitemptypasswords yes":                                    "empty-passwords permitemptypasswords yes",
		"permitrootlogin yes":                                         "root-login permitrootlogin yes",
		"permitrootlogin without-password":                            "root-login-by-key permitrootlogin without-password",
		"passwordauthentication yes":                                  "password-authentication passwordauthentication yes",
		"kbdinteractiveauthentication yes":                            "keyboard-interactive-authentication kbdinteractiveauthentication yes",
		"hostbasedauthentication yes":                                 "host-based-authentication hostbasedauthentication yes",
		"ignorerhosts no":                                             "rhosts ignorerhosts no",
		"permituserenvironment LANG,LC_*":                             "user-environment permituserenvironment LANG,LC_*",
		"strictmodes no":                                              "strict-modes strictmodes no",
		"maxauthtries 5":                                              "auth-tries maxauthtries 5",
		"logingracetime 0":                                            "login-grace-time logingracetime 0",
		"x11forwarding yes":                                           "x11-forwarding x11forwarding yes",
		"permittunnel point-to-point":                                 "tunnel permittunnel point-to-point",
		"loglevel QUIET":                                              "log-level loglevel QUIET",
		"ciphers aes256-ctr,aes128-cbc,3des-cbc":                      "weak-ciphers ciphers aes128-cbc,3des-cbc",
		"macs hmac-sha2-256,umac-64@openssh.com,hmac-md5":             "weak-macs macs umac-64@openssh.com,hmac-md5",
		"kexalgorithms curve25519-sha256,diffie-hellman-group14-sha1": "weak-key-exchange kexalgorithms diffie-hellman-group14-sha1",
		"hostkeyalgorithms ssh-ed25519,ssh-dss":                       "dsa-host-keys hostkeyalgorithms ssh-dss",
	} {
		key, _, _ := strings.Cut(line, " ")
		others := slices.DeleteFunc(slices.Clone(good), func(l string) bool { return strings.HasPrefix(l, key+" ") })
		r, err := ask(t, with(t, append(others, line)...))
		if err != nil || len(r.GetFindings()) != 1 {
			t.Errorf("%s: %v, %v", line, r.GetFindings(), err)
			continue
		}
		f := r.GetFindings()[0]
		seen[f.GetId()] = true
		if f.GetId()+" "+f.GetSetting() != want || f.GetAdvice() == "" || f.GetReference() == "" || f.GetSeverity() == 0 {
			t.Errorf("%s: %v", line, f)
		}
	}
	r, err = ask(t, strings.ReplaceAll(with(t, good...), "allowgroups admins\n", ""))
	if err != nil || len(r.GetFindings()) != 1 || r.GetFindings()[0].GetId() != "access" {
		t.Errorf("%v, %v", r.GetFindings(), err)
	}
	seen["access"] = true
	for _, rule := range rules {
		if !seen[rule.id] {
			t.Errorf("nothing was found by %s", rule.id)
		}
	}
	r, err = ask(t, with(t, "permitrootlogin yes", "maxauthtries 9", "permitemptypasswords yes"))
	if err != nil || !slices.IsSortedFunc(r.GetFindings(), func(a, b *brokerv1.SshdFinding) int { return int(b.GetSeverity() - a.GetSeverity()) }) {
		t.Errorf("not the worst first: %v, %v", r.GetFindings(), err)
	}
}

func TestNotUnderstood(t *testing.T) {
	for _, text := range []string{
		"", "\n", "port 22\n", recorded(t) + "\x1b[31mport 22\n", recorded(t) + "Missing privilege separation directory: /run/sshd\n", recorded(t) + "-x y\n",
		recorded(t) + "banner " + strings.Repeat("x", maxValue+1) + "\n", recorded(t) + strings.Repeat("acceptenv X\n", maxSettings),
	} {
		if r, err := ask(t, text); fault.Reason(err) != "TOOL_OUTPUT_INVALID" {
			t.Errorf("%.80q: %v, %v", text, r, err)
		}
	}
	r, err := ask(t, recorded(t)+"banner \xff\xfe\nnewsetting yes\nempty \nalone\n")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := proto.Marshal(r); err != nil {
		t.Error(err)
	}
}

// FuzzSshdConfig: whatever is understood can be sent.
func FuzzSshdConfig(f *testing.F) {
	data, err := os.ReadFile("testdata/sshd-T.txt")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("port 22\npermitrootlogin yes\npasswordauthentication yes\nmaxauthtries 99999999999\nlogingracetime -1\n"))
	f.Add([]byte("port \xff\npermitrootlogin\npasswordauthentication x\nhostkey /etc/canary\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse(data)
		if err != nil {
			return
		}
		r := c.response()
		if _, err := proto.Marshal(r); err != nil {
			t.Fatal(err)
		}
		for _, s := range r.GetSettings() {
			if left[s.GetKey()] || hidden[s.GetKey()] && s.GetValue() != "" && s.GetValue() != "none" {
				t.Fatalf("%v came out", s)
			}
		}
	})
}
