package jail

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/internal/hostv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
)

// scope is a call that sees all but the hidden, and keeps its notes.
type scope struct {
	call.Scope
	hidden []string
	notes  []string
}

func (s *scope) Visible(resource string) bool { return !slices.Contains(s.hidden, resource) }
func (s *scope) Note(detail string)           { s.notes = append(s.notes, detail) }
func (*scope) ID() string                     { return "id-1" }

// daemon answers each question, by verb and jail, with a recorded answer or with
// the one that a test puts in its place.
type daemon struct {
	t       *testing.T
	answers map[string]string
	fails   map[string]error
	asked   []string
}

func (d *daemon) read(_ context.Context, req *hostv1.ReadRequest) ([]byte, error) {
	q := req.GetFail2Ban()
	verb := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(q.GetVerb().String(), "FAIL2BAN_VERB_"), "_", ""))
	if verb == "jailstatus" {
		verb = "status"
	}
	name := strings.TrimSuffix(verb+"-"+q.GetJail(), "-")
	d.asked = append(d.asked, name)
	if err := d.fails[name]; err != nil {
		return nil, err
	}
	if a, ok := d.answers[name]; ok {
		return []byte(a), nil
	}
	return recorded(d.t, name), nil
}

func setup(t *testing.T) (*daemon, brokerv1.JailServiceServer, *scope, context.Context) {
	d := &daemon{t: t, answers: map[string]string{"status-quiet.one": string(recorded(t, "status-demo"))}, fails: map[string]error{}}
	s := &scope{}
	return d, New(d.read), s, call.With(t.Context(), s)
}

// localAs sets the host's zone for a test.
func localAs(t *testing.T, zone *time.Location) {
	before := time.Local
	time.Local = zone
	t.Cleanup(func() { time.Local = before })
}

func textOf(m proto.Message) string {
	return strings.Join(strings.Fields(prototext.MarshalOptions{}.Format(m)), " ")
}

func TestFail2banStatus(t *testing.T) {
	d, svc, s, ctx := setup(t)
	s.hidden = []string{"jails/forever"}
	d.answers["status-quiet.one"] = string(recorded(t, "status-nojail")) // It goes meanwhile.
	resp, err := svc.Fail2BanStatus(ctx, &brokerv1.Fail2BanStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	const want = `version:"1.0.2" jails:{name:"demo" currently_failed:2 total_failed:5 currently_banned:3 total_banned:3} jails:{name:"journal"}`
	if got := textOf(resp); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if got := fmt.Sprint(d.asked, s.notes); got != "[version status status-demo status-journal status-quiet.one] []" {
		t.Error(got) // Nobody asks about a hidden one.
	}
	if resp, err := svc.Fail2BanStatus(t.Context(), &brokerv1.Fail2BanStatusRequest{}); err != nil || len(resp.GetJails()) != 0 {
		t.Errorf("without a scope: %v, %v", resp, err)
	}
	var many []string
	for i := range 300 {
		many = append(many, fmt.Sprintf("j%03d", i))
		d.answers["status-"+many[i]] = string(recorded(t, "status-demo"))
	}
	d.answers["status"] = jailList(300, strings.Join(many, ", "))
	if resp, err := svc.Fail2BanStatus(ctx, &brokerv1.Fail2BanStatusRequest{}); err != nil || len(resp.GetJails()) != maxJails {
		t.Errorf("of 300: %d, %v", len(resp.GetJails()), err)
	}
}

func jailList(n int, names string) string {
	return says("](" + str("Number of jail") + number4(n) + "\x86" + str("Jail list") + str(names) + "\x86e")
}

// number4 is an opcode for a number.
func number4(n int) string {
	return "J" + string(binary.LittleEndian.AppendUint32(nil, uint32(int32(n))))
}

func TestNames(t *testing.T) {
	d, svc, _, ctx := setup(t)
	d.answers["version"] = string(recorded(t, "version"))
	for in, want := range map[string]string{
		jailList(0, ""): "", jailList(1, "demo"): "demo", jailList(2, "journal, demo"): "demo journal",
		jailList(2, "demo, --all"): "demo", jailList(2, "demo, a b"): "demo", jailList(2, "demo, x\x00"): "demo", jailList(2, "demo, x\n"): "demo",
		jailList(2, "demo, \x1b[31m"): "demo", jailList(2, "demo, \xff"): "demo", jailList(2, "demo, é"): "demo", jailList(2, "demo, "+strings.Repeat("x", 65)): "demo",
		jailList(2, "demo, ../x"): "demo", jailList(2, "demo, demo\n"): "demo", jailList(3, "demo, , .x"): "demo",
		jailList(1, "x, dbfile"): "FAIL2BAN_ANSWER_INVALID", jailList(2, "demo"): "FAIL2BAN_ANSWER_INVALID", jailList(-1, ""): "FAIL2BAN_ANSWER_INVALID", jailList(1, ""): "FAIL2BAN_ANSWER_INVALID",
		says("]"): "FAIL2BAN_ANSWER_INVALID", says("N"): "FAIL2BAN_ANSWER_INVALID", says("](K\x01N\x86e"): "FAIL2BAN_ANSWER_INVALID",
		says("](" + str("Number of jail") + "K\x00\x86" + str("Jail list") + "]\x86e"):                               "FAIL2BAN_ANSWER_INVALID",
		says("](" + str("Number of jail") + "\x88\x86" + str("Jail list") + str("demo") + "\x86e"):                   "FAIL2BAN_ANSWER_INVALID",
		says("](" + strings.Repeat(str("Number of jail")+"K\x01\x86", 2) + str("Jail list") + str("demo") + "\x86e"): "FAIL2BAN_ANSWER_INVALID",
	} {
		d.answers["status"] = in
		resp, err := svc.Fail2BanStatus(ctx, &brokerv1.Fail2BanStatusRequest{})
		var names []string
		for _, j := range resp.GetJails() {
			names = append(names, j.GetName())
		}
		if got := strings.Join(names, " ") + fault.Reason(err); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestGetJail(t *testing.T) {
	d, svc, s, ctx := setup(t)
	for name, want := range map[string]string{
		"demo": `counters:{name:"demo" currently_failed:2 total_failed:5 currently_banned:3 total_banned:3} log_files:"/tmp/f2b/auth.log" ban_time:{seconds:3600} find_time:{seconds:600} max_retry:3 ` +
			`ignored_addresses:"127.0.0.0/8" ignored_addresses:"192.0.2.0/24" ignored_addresses:"2001:db8:1::/48" ignored_addresses:"::1" ignored_addresses:"monitor.example.org"`,
		"forever": `counters:{name:"forever" currently_banned:1 total_banned:1} log_files:"/tmp/f2b/other.log" log_files:"/tmp/f2b/béa.log" find_time:{seconds:5400} max_retry:5`,
		"journal": `counters:{name:"journal"} journal_matches:"_SYSTEMD_UNIT=ssh.service + _COMM=sshd" ban_time:{seconds:600} find_time:{seconds:600} max_retry:5`,
	} {
		resp, err := svc.GetJail(ctx, &brokerv1.GetJailRequest{Jail: name})
		if got := textOf(resp); err != nil || got != want {
			t.Errorf("%s, %v\nwant %s", got, err, want)
		}
	}
	if len(s.notes) != 0 {
		t.Error(s.notes)
	}
	// What is not fit to be shown is left out, and root is told.
	d.answers["status-demo"] = says("](" + str("Filter") + "](" + str("Currently failed") + "K\x00\x86" + str("Total failed") + "K\x00\x86" +
		str("File list") + "](" + str("/a") + str("/b\x1b[2J") + str("/c\xff") + str("/d\x00") + str("/e\u202e") + str(strings.Repeat("x", maxText+1)) + str("/é b") + "e\x86e\x86" +
		str("Actions") + "](" + str("Currently banned") + "K\x00\x86" + str("Total banned") + "K\x00\x86e\x86e")
	d.answers["ignoreip-demo"] = says("](" + str("10.0.0.0/8") + str("a b") + str("\x1b[2J") + str("") + str(strings.Repeat("x", 256)) + "e")
	resp, err := svc.GetJail(ctx, &brokerv1.GetJailRequest{Jail: "demo"})
	if got := fmt.Sprintf("%q %q %v %q", resp.GetLogFiles(), resp.GetIgnoredAddresses(), err, s.notes); got != `["/a" "/é b"] ["10.0.0.0/8"] <nil> ["left out of fail2ban's log files: 5" "left out of fail2ban's ignored addresses: 4"]` {
		t.Error(got)
	}
	d.answers["ignoreip-demo"] = says("](" + strings.Repeat(str("10.0.0.1"), 1200) + "e")
	if resp, err := svc.GetJail(ctx, &brokerv1.GetJailRequest{Jail: "demo"}); err != nil || len(resp.GetIgnoredAddresses()) != maxIgnored {
		t.Errorf("%d, %v", len(resp.GetIgnoredAddresses()), err)
	}
}

// TestWhatIsNotFound: absent and hidden jails get the same words, and neither they
// nor settings' names reach fail2ban.
func TestWhatIsNotFound(t *testing.T) {
	d, svc, s, ctx := setup(t)
	s.hidden = []string{"jails/forever"}
	for _, ask := range []func(string) error{
		func(n string) error { _, err := svc.GetJail(ctx, &brokerv1.GetJailRequest{Jail: n}); return err },
		func(n string) error { _, err := svc.ListBanned(ctx, &brokerv1.ListBannedRequest{Jail: n}); return err },
	} {
		for _, name := range []string{"forever", "nojail", "dbfile", "loglevel", "DEMO", "demo.", "d"} {
			d.asked = nil
			err := ask(name)
			if want := fmt.Sprintf("no jail is named %q;", name); fault.Reason(err) != "JAIL_NOT_FOUND" || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", name, err)
			}
			if fmt.Sprint(d.asked) != "[status]" {
				t.Errorf("%s: asked %v", name, d.asked)
			}
		}
		for _, name := range []string{"", "-", "--all", ".x", "a b", "a/b", "a\n", "a\x00", "é", strings.Repeat("x", 65), "demo, forever"} {
			d.asked = nil
			if err := ask(name); fault.Reason(err) != "INVALID_ARGUMENT" || d.asked != nil {
				t.Errorf("%q: %v, asked %v", name, err, d.asked)
			}
		}
	}
	for _, gone := range []string{"status-demo", "bantime-demo", "findtime-demo", "maxretry-demo", "ignoreip-demo"} {
		d.answers = map[string]string{gone: string(recorded(t, "status-nojail"))} // It goes meanwhile.
		if _, err := svc.GetJail(ctx, &brokerv1.GetJailRequest{Jail: "demo"}); fault.Reason(err) != "JAIL_NOT_FOUND" {
			t.Errorf("%s: %v", gone, err)
		}
	}
	d.answers = map[string]string{"banned-demo": string(recorded(t, "status-nojail"))}
	if _, err := svc.ListBanned(ctx, &brokerv1.ListBannedRequest{Jail: "demo"}); fault.Reason(err) != "JAIL_NOT_FOUND" {
		t.Error(err)
	}
}

// TestIgnoredByFile: addresses that fail2ban has in a file are not known, and the
// rest of the jail is.
func TestIgnoredByFile(t *testing.T) {
	d, svc, _, ctx := setup(t)
	d.answers["ignoreip-demo"] = string(recorded(t, "ignoreip-filed-1.1.1"))
	j, err := svc.GetJail(ctx, &brokerv1.GetJailRequest{Jail: "demo"})
	if err != nil || !j.GetIgnoredAddressesUnknown() || len(j.GetIgnoredAddresses()) != 0 || j.GetMaxRetry() == 0 {
		t.Errorf("%v, %v", j, err)
	}
	d.answers["bantime-demo"] = d.answers["ignoreip-demo"]
	if _, err := svc.GetJail(ctx, &brokerv1.GetJailRequest{Jail: "demo"}); fault.Reason(err) != "FAIL2BAN_ANSWER_INVALID" {
		t.Error(err)
	}
}

// TestErrors: those of the way to fail2ban pass unchanged; of what fail2ban itself
// says, the caller gets no word.
func TestErrors(t *testing.T) {
	all := func(ctx context.Context, svc brokerv1.JailServiceServer) map[string]error {
		errs := map[string]error{}
		_, errs["status"] = svc.Fail2BanStatus(ctx, &brokerv1.Fail2BanStatusRequest{})
		_, errs["get"] = svc.GetJail(ctx, &brokerv1.GetJailRequest{Jail: "demo"})
		_, errs["banned"] = svc.ListBanned(ctx, &brokerv1.ListBannedRequest{Jail: "demo"})
		return errs
	}
	down := fault.New(brokerv1.ErrorReason_ERROR_REASON_FAIL2BAN_STOPPED, "down")
	for _, at := range []string{"version", "status", "status-demo", "bantime-demo", "findtime-demo", "maxretry-demo", "ignoreip-demo", "banned-demo"} {
		d, svc, _, ctx := setup(t)
		d.fails[at] = down
		if errs := all(ctx, svc); !slices.Contains(slices.Collect(maps.Values(errs)), down) {
			t.Errorf("%s: %v", at, errs)
		}
		for in, want := range map[string]string{
			string(recorded(t, "invalid")): "FAIL2BAN_ANSWER_INVALID", says("cos\nsystem\n" + str("canary") + "\x85R"): "FAIL2BAN_ANSWER_INVALID", says("\x89"): "FAIL2BAN_ANSWER_INVALID",
			"": "FAIL2BAN_ANSWER_INVALID", "\x80\x05" + str("ERROR: canary") + ".": "FAIL2BAN_ANSWER_INVALID", "\x80\x05]" + str("SHUTDOWN") + "a.": "FAIL2BAN_STOPPED",
		} {
			d, svc, s, ctx := setup(t)
			d.answers[at] = in
			found := false
			for _, err := range all(ctx, svc) {
				found = found || fault.Reason(err) == want
				if err != nil && (strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "Invalid command")) {
					t.Errorf("%s, %q: %v", at, in, err)
				}
			}
			if !found || want == "FAIL2BAN_ANSWER_INVALID" && len(s.notes) == 0 {
				t.Errorf("%s, %q: no %s; notes %q", at, in, want, s.notes)
			}
		}
	}
}
