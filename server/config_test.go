package server

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gortium/hermes-broker/certs/certstest"
	"github.com/gortium/hermes-broker/server/policy"
	"github.com/gortium/hermes-broker/server/strictyaml"
)

// smallest is a configuration of nothing but what has no default.
const smallest = `listen: [{unix: /run/b.sock}]
identity: {certificate: /c.crt, key: /c.key, bundle: /b.crt}
`

func TestFullConfig(t *testing.T) {
	text, err := os.ReadFile("testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got, problems := ParseConfig("full.yaml", text)
	if problems != nil {
		t.Fatal(problems)
	}
	// Every key is in the file, and none has the value of its default.
	blank := Defaults()
	walk(t, "", reflect.ValueOf(got).Elem(), reflect.ValueOf(blank).Elem())
	want := &Config{
		Listen:     []Listener{{TCP: at("198.18.0.1:7443")}, {Unix: at("/run/b/b.sock"), Mode: at("0600")}, {TCP: at("[::1]:7443")}},
		Identity:   Identity{Certificate: at("/etc/b/b.crt"), Key: at("/etc/b/b.key"), Bundle: at("/etc/b/bundle.crt"), MaxLifetime: at(time.Hour)},
		Policy:     at("/etc/b/policy.yaml"),
		State:      at("/srv/b"),
		Audit:      AuditConfig{Segment: at(strictyaml.Bytes(1 << 20)), Keep: at(9), Timeout: at(2 * time.Second)},
		Engine:     EngineConfig{Socket: at("/run/podman.sock")},
		Host:       HostConfig{Socket: at("/run/b/host.sock")},
		Containers: ContainersConfig{Labels: []strictyaml.At[string]{at("com.docker.compose.project")}},
		Registries: []RegistryConfig{{Host: at("127.0.0.1:5000")}, {Host: at("registry.example"), Username: at("robot"), PasswordFile: at("/etc/b/registry.password")}},
		Images:     ImagesConfig{MinFree: at(strictyaml.Bytes(23 << 30))},
		Operations: OperationsConfig{Retention: at(24 * time.Minute), Kept: at(25)},
		Logs:       LogsConfig{Redact: []strictyaml.At[string]{at("card-[0-9]{16}")}},
		Limits: LimitsConfig{
			Rate: at(2.5), Burst: at(5), Calls: at(6), Streams: at(7), Changes: at(policy.Budget{Count: 8, Per: time.Hour}),
			Connections: at(9), CallerConnections: at(10), Handshakes: at(11), ConnectionStreams: at(12),
			HandshakeTimeout: at(13 * time.Second), IdleTimeout: at(14 * time.Second), CallTimeout: at(15 * time.Second),
			StreamAge: at(16 * time.Second), SendTimeout: at(17 * time.Second), StopTimeout: at(18 * time.Second),
			Message: at(strictyaml.Bytes(19 << 10)), Header: at(strictyaml.Bytes(20 << 10)),
			Operations: at(26), OperationsPerKind: at(27), OperationAge: at(28 * time.Minute),
			RequestIDs: at(21), RequestIDRetention: at(22 * time.Second),
		},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b strictyaml.Pos) bool { return true })); diff != "" {
		t.Errorf("want(-) got(+):\n%s", diff)
	}
}

// walk says which keys of a file were not read from it.
func walk(t *testing.T, name string, got, blank reflect.Value) {
	for i := range got.NumField() {
		key := strings.Trim(name+"."+got.Type().Field(i).Tag.Get("yaml"), ".")
		switch v := got.Field(i); {
		case v.Kind() == reflect.Slice:
			if v.Len() == 0 {
				t.Errorf("%s is not in the file", key)
			}
		case v.FieldByName("Value").IsValid():
			if key == "identity.workload_api" { // In place of the others.
				continue
			}
			if v.FieldByName("Pos").IsZero() || reflect.DeepEqual(v.FieldByName("Value").Interface(), blank.Field(i).FieldByName("Value").Interface()) {
				t.Errorf("%s is not in the file, or has its default", key)
			}
		default:
			walk(t, key, v, blank.Field(i))
		}
	}
}

func TestSmallestConfig(t *testing.T) {
	if _, problems := ParseConfig("c.yaml", []byte(smallest)); problems != nil {
		t.Error(problems)
	}
	api := "listen: [{tcp: 127.0.0.1:1}]\nidentity: {workload_api: unix:///run/spire/agent.sock}\n"
	if _, problems := ParseConfig("c.yaml", []byte(api)); problems != nil {
		t.Error(problems)
	}
}

// TestEveryFaultIsReported, at its place and in one go, the same each time.
func TestEveryFaultIsReported(t *testing.T) {
	text := `listen:
  - tcp: localhost:7443
  - tcp: 127.0.0.1:70000
  - tcp: 127.0.0.1:1
    mode: "0600"
  - unix: run/b.sock
  - unix: /run/b.sock
    mode: "0777"
  - tcp: 127.0.0.1:1
    unix: /run/b.sock
  - {}
identity:
  certificate: c.crt
  key: /a/../c.key
  max_lifetime: -1s
policy: policy.yaml
state: /var/lib/
enginee: {socket: /x}
engine: {socket: docker.sock}
audit: {segment: 1KiB, keep: 1, timeout: 0s}
logs: {redact: ["(", "x"]}
containers: {labels: web}
registries: [{host: Registry.example}, {host: a.example}, {host: a.example}, {host: docker.io/library}, {username: u}, {host: "b.example:443"}, {host: c.example, username: u}, {host: d.example, username: u, password_file: p}]
limits:
  rate: 0
  burst: zero
  changes: 6 per minute
  message: 1MB
  header: 1KiB
  call_timeout: 1ms
`
	want := []string{
		"2:10: listen.tcp:", "3:10: listen.tcp:", "5:11: listen.mode:", "6:11: listen.unix:", "8:11: listen.mode:", "9:5: listen:", "11:5: listen:",
		"13:16: identity.certificate:", "14:8: identity.key:", "15:17: identity.max_lifetime:", "16:9: policy:", "17:8: state:", "18:1: ", "19:18: engine.socket:",
		"20:18: audit.segment:", "20:30: audit.keep:", "20:42: audit.timeout:", "21:17: logs.redact:", "22:22: ",
		"23:21: registries.host:", "23:66: registries.host: a.example is there twice", "23:85: registries.host:", "23:105: registries.host:", "23:105: registries: give username", "23:127: registries.host:",
		"23:152: registries: give username", "23:223: registries.password_file:",
		"25:9: limits.rate:", "26:10: ", "27:12: ", "28:12: ", "29:11: limits.header:", "30:17: limits.call_timeout:",
	}
	_, problems := ParseConfig("c.yaml", []byte(text))
	got := problems.Error()
	for _, w := range want {
		if !strings.Contains(got, "c.yaml:"+w) {
			t.Errorf("not reported: %s", w)
		}
	}
	if !strings.Contains(got, "identity.bundle:") {
		t.Error("not reported: the missing bundle")
	}
	if len(problems) != len(want)+1 {
		t.Errorf("%d problems, want %d", len(problems), len(want)+1)
	}
	for range 20 {
		if _, again := ParseConfig("c.yaml", []byte(text)); again.Error() != got {
			t.Fatalf("another order:\n%s", again.Error())
		}
	}
	if t.Failed() {
		t.Log(got)
	}
}

// TestBounds tries each number on both sides of both of its bounds.
func TestBounds(t *testing.T) {
	const count, life = "0 1 1000000 1000001", "9ms 10ms 744h 745h"
	for key, values := range map[string]string{
		"limits.burst": count, "limits.calls": count, "limits.streams": count, "limits.connections": count, "limits.caller_connections": count,
		"limits.handshakes": count, "limits.connection_streams": count, "limits.request_ids": count,
		"limits.operations": count, "limits.operations_per_kind": count, "operations.kept": "9 10 100000 100001", "images.min_free": "-1 0 9TiB 1.5GiB",
		"limits.rate": "0 0.001 1000000 1000001", "limits.changes": "0/second 1/second 100000/day 100001/day",
		"limits.handshake_timeout": life, "limits.idle_timeout": life, "limits.call_timeout": life, "limits.stream_age": life,
		"limits.send_timeout": life, "limits.stop_timeout": life, "limits.request_id_retention": life, "limits.operation_age": life, "operations.retention": life, "audit.timeout": life,
		"limits.message": "4095 4KiB 1MiB 1048577", "limits.header": "4095 4KiB 1MiB 1048577", "audit.segment": "65535 64KiB 1GiB 1073741825",
		"audit.keep": "1 0 2 -1", "identity.max_lifetime": "-1s 0s 8760h -1ns",
	} {
		for i, v := range strings.Fields(values) {
			section, name, _ := strings.Cut(key, ".")
			text := smallest + fmt.Sprintf("%s: {%s: %s}\n", section, name, v)
			if section == "identity" {
				text = strings.Replace(smallest, "{cert", fmt.Sprintf("{%s: %s, cert", name, v), 1)
			}
			_, problems := ParseConfig("c.yaml", []byte(text))
			if good := i == 1 || i == 2; good != (problems == nil) {
				t.Errorf("%s: %s gives %v", key, v, problems)
			} else if !good && (len(problems) != 1 || problems[0].Pos.IsZero() || !strings.Contains(problems[0].Message, name)) {
				t.Errorf("%s: %s gives %v, which is not one problem of it", key, v, problems)
			}
		}
	}
}

func TestListeners(t *testing.T) {
	for text, good := range map[string]bool{
		`{tcp: "0.0.0.0:7443"}`: true, `{tcp: "[::]:7443"}`: true, `{tcp: ":7443"}`: false, `{tcp: "host:7443"}`: false, `{tcp: "127.0.0.1"}`: false,
		`{tcp: "127.0.0.1:65536"}`: false, `{tcp: "127.0.0.256:1"}`: false, `{tcp: "::1:1"}`: false, `{tcp: "127.0.0.1:-1"}`: false,
		`{unix: "/` + strings.Repeat("x", 106) + `"}`: true, `{unix: "/` + strings.Repeat("x", 107) + `"}`: false, `{unix: "@abstract"}`: false,
		`{unix: /s, mode: "0600"}`: true, `{unix: /s, mode: "0666"}`: true, `{unix: /s, mode: "0000"}`: true,
		// What would be read as another mode than is written.
		`{unix: /s, mode: "066x"}`: false, `{unix: /s, mode: "06 6"}`: false, `{unix: /s, mode: "0066 "}`: false, `{unix: /s, mode: "660"}`: false,
		`{unix: /s, mode: "00660"}`: false, `{unix: /s, mode: "0o66"}`: false, `{unix: /s, mode: "0770"}`: false, `{unix: /s, mode: 0660}`: false,
	} {
		_, problems := ParseConfig("c.yaml", []byte(strings.Replace(smallest, "{unix: /run/b.sock}", text, 1)))
		if good != (problems == nil) {
			t.Errorf("%s: %v", text, problems)
		}
	}
}

// inBounds is what must hold of a configuration without problems, written a
// second time and by kind.
func inBounds(c *Config) error {
	l := &c.Limits
	for i, n := range []int{l.Burst.Value, l.Calls.Value, l.Streams.Value, l.Connections.Value, l.CallerConnections.Value, l.Handshakes.Value,
		l.ConnectionStreams.Value, l.RequestIDs.Value, l.Changes.Value.Count} {
		if n < 1 || n > 1_000_000 {
			return fmt.Errorf("number %d is %d", i, n)
		}
	}
	for i, d := range []time.Duration{l.HandshakeTimeout.Value, l.IdleTimeout.Value, l.CallTimeout.Value, l.StreamAge.Value, l.SendTimeout.Value,
		l.StopTimeout.Value, l.RequestIDRetention.Value, c.Audit.Timeout.Value, l.Changes.Value.Per} {
		if d < 10*time.Millisecond || d > 744*time.Hour {
			return fmt.Errorf("duration %d is %s", i, d)
		}
	}
	for i, b := range []strictyaml.Bytes{l.Message.Value, l.Header.Value} {
		if b < 4<<10 || b > 1<<20 {
			return fmt.Errorf("size %d is %d", i, b)
		}
	}
	inRange := l.Rate.Value > 0 && l.Rate.Value <= 1e6 // False of NaN.
	if !inRange || c.Audit.Segment.Value < 64<<10 || c.Audit.Segment.Value > 1<<30 || c.Audit.Keep.Value < 0 || c.Audit.Keep.Value == 1 || c.Identity.MaxLifetime.Value < 0 {
		return fmt.Errorf("out of bounds: %+v", c)
	}
	for i, p := range []string{c.Policy.Value, c.State.Value, c.Engine.Socket.Value} {
		if !filepath.IsAbs(p) || filepath.Clean(p) != p {
			return fmt.Errorf("path %d is %q", i, p)
		}
	}
	if len(c.Listen) == 0 {
		return fmt.Errorf("no listener")
	}
	for _, one := range c.Listen {
		mode, err := one.mode()
		if (one.TCP.Value == "") == (one.Unix.Value == "") || err != nil || mode&^0o666 != 0 {
			return fmt.Errorf("listener %+v, mode %o, %v", one, mode, err)
		}
	}
	return nil
}

func FuzzConfig(f *testing.F) {
	full, err := os.ReadFile("testdata/full.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(full)
	for _, more := range []string{"", "limits: {rate: .nan}\n", "limits: {rate: .inf, changes: 6/minute}\n", "limits:\n", "audit: {keep: -0}\n", "limits: {rate: 1e-400}\n"} {
		f.Add([]byte(smallest + more))
	}
	f.Add([]byte("listen: [{unix: /s, mode: \"066x\"}]\nidentity: {workload_api: unix:///s}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, problems := ParseConfig("c.yaml", data)
		if problems != nil {
			return
		}
		if err := inBounds(c); err != nil {
			t.Error(err)
		}
	})
}

// TestCheckReportsEveryFile: the configuration, the policy and the certificates
// are broken, and one run of check says all of it.
func TestCheckReportsEveryFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pair := (&rig{t: t, ca: certstest.NewCA(t, "home.example")}).pair(hermes)
	policyPath := write("policy.yaml", "trust_domain: home.example\ncallers:\n  - id: hermes\n  - id: "+hermes+"\n    grants:\n      - allow: [containers.lst]\n        on: [containers/web]\n", 0o600)
	text := fmt.Sprintf("listen: [{unix: b.sock}]\npolicy: %s\nstate: state\nidentity: {certificate: %s, key: %s, bundle: %s}\n",
		policyPath, pair.CertFile, pair.KeyFile, pair.BundleFile)
	config := write("brokerd.yaml", text, 0o600)
	problems := Check(config)
	for _, want := range []string{
		config + ":1:17: listen.unix", config + ":3:8: state", policyPath + ":3:9: ", policyPath + ":6:", pair.CertFile + ": ", "server authentication",
	} {
		if !strings.Contains(problems.Error(), want) {
			t.Errorf("not reported: %s", want)
		}
	}
	if t.Failed() {
		t.Log(problems)
	}

	t.Run("fine", func(t *testing.T) {
		r := newRig(t, nothing, nil)
		good := write("good.yaml", fmt.Sprintf("listen: [{unix: %s}]\npolicy: %s\nidentity: {certificate: %s, key: %s, bundle: %s}\n",
			r.socket, r.path("policy.yaml"), r.path("server.crt"), r.path("server.key"), r.path("bundle.crt")), 0o600)
		if problems := Check(good); problems != nil {
			t.Error(problems)
		}
		r.writePolicy("trust_domain: other.example\ncallers:\n  - id: spiffe://other.example/a\n")
		if problems := Check(good); len(problems) != 1 || !strings.Contains(problems.Error(), "trust domain home.example, the policy of other.example") {
			t.Errorf("two trust domains: %v", problems)
		}
		if err := os.Chmod(good, 0o666); err != nil {
			t.Fatal(err)
		}
		if problems := Check(good); len(problems) != 1 || !strings.Contains(problems.Error(), good) {
			t.Errorf("a configuration that others may write: %v", problems)
		}
	})
	if problems := Check(filepath.Join(dir, "none.yaml")); len(problems) != 1 || !strings.Contains(problems.Error(), "none.yaml") {
		t.Errorf("no file: %v", problems)
	}
}
