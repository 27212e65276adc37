package e2e

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

// TestSshd: the real sshd says what it would do, with a configuration of its own.
func TestSshd(t *testing.T) {
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // As its service does.
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(host.Dir, "s")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", dir+"/canary").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	config := dir + "/sshd_config"
	write := func(text string) {
		if err := os.WriteFile(config, []byte("HostKey "+dir+"/canary\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b := hostBroker(t, newHost(t, "sshd_config: "+config+"\n"))
	c := b.dial("hermes")
	ask := func() *brokerv1.SshdConfigResponse {
		t.Helper()
		r, err := c.SSH().SshdConfig(within(t), &brokerv1.SshdConfigRequest{})
		b.must(err)
		if text := protojson.Format(r); strings.Contains(text, "canary") {
			t.Errorf("a key or a command came out:\n%s", text)
		}
		return r
	}
	found := func(r *brokerv1.SshdConfigResponse) (ids []string) {
		for _, f := range r.GetFindings() {
			ids = append(ids, f.GetId())
		}
		return ids
	}
	write("Port 2222\nListenAddress 198.18.0.1\nPermitRootLogin yes\nPasswordAuthentication yes\nAllowUsers alice bob\nForceCommand /bin/canary\nSetEnv TOKEN=canary\nCiphers aes256-ctr,3des-cbc\nUsePAM no\n")
	r := ask()
	if !slices.Equal(r.GetPorts(), []uint32{2222}) || !slices.Equal(r.GetListenAddresses(), []string{"198.18.0.1:2222"}) || r.GetPermitRootLogin() != "yes" ||
		!slices.Equal(r.GetAllowUsers(), []string{"alice", "bob"}) || !slices.Equal(r.GetCiphers(), []string{"aes256-ctr", "3des-cbc"}) {
		t.Errorf("%v", r)
	}
	for _, id := range []string{"root-login", "password-authentication", "weak-ciphers"} {
		if !slices.Contains(found(r), id) {
			t.Errorf("no finding %s: %q", id, found(r))
		}
	}
	// sshd's own lines, less those that name keys, are the settings.
	out, err := exec.Command("/usr/sbin/sshd", "-T", "-f", config).Output()
	b.must(err)
	var lines []string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if key, _, _ := strings.Cut(line, " "); !slices.Contains([]string{"hostkey", "hostkeyagent", "forcecommand", "setenv", "subsystem"}, key) {
			lines = append(lines, line)
		}
	}
	var settings []string
	for _, s := range r.GetSettings() {
		if !s.GetHidden() && s.GetKey() != "subsystem" {
			settings = append(settings, strings.TrimSpace(s.GetKey()+" "+s.GetValue()))
		}
	}
	if !slices.Equal(lines, settings) {
		t.Errorf("sshd says\n%q\nthe answer has\n%q", lines, settings)
	}
	write("PermitRootLogin no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nAllowGroups admins\n")
	if r := ask(); slices.Contains(found(r), "root-login") || slices.Contains(found(r), "password-authentication") || !slices.Equal(r.GetAllowGroups(), []string{"admins"}) {
		t.Errorf("%v", r)
	}
	write("NoSuchOption canary\n")
	_, err = c.SSH().SshdConfig(within(t), &brokerv1.SshdConfigRequest{})
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_TOOL_FAILED)
	if strings.Contains(err.Error(), "canary") {
		t.Errorf("sshd's words came out: %v", err)
	}
	write("PermitRootLogin yes\n")
	if out, code := b.ctl("hermes", "sshd", "config"); code != 0 || !strings.Contains(out, "CIS Debian Linux 12 Benchmark") {
		t.Errorf("brokerctl sshd config: %d\n%s", code, out)
	}
	_, err = b.dial("ada").SSH().SshdConfig(within(t), &brokerv1.SshdConfigRequest{})
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED)
}
