package host

import (
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gortium/hermes-broker/internal/hostv1"
)

// hostile are values that want to be something else. brokerd refuses them too;
// here it is as if it had not.
func hostile() []string {
	values := []string{
		"", "-", "--", "-f", "--file=/etc/shadow", "--root=/", "-D/etc", "--vacuum-time=1s", "--rotate", " ssh.service", "ssh.service ", "ssh.service\n--rotate", "\nssh.service",
		"ssh.service\x00--rotate", "\x00", "a\tb.service", "ssh*.service", "*", "?.service", "[a-z].service", "{a,b}.service", "$(id).service", "`id`", ";id", "a|b.service", "a&b.service",
		"../../etc/passwd", "/etc/passwd", "ssh", "ssh.slice", "-.slice", "user.slice", "-.mount", "ss\u04bb.service", "\u2010\u2010rotate", "\uff0d\uff0drotate", "ssh.servi\u0441e", "ssh.service\u200b",
		"\u202essh.service", "ssh\xff.service", "_UID=0", "MESSAGE=x", "%s.service", "ssh.service,sudo", "ssh.service --rotate", "'ssh.service'", "\"ssh.service\"", strings.Repeat("a", 244) + "a.service",
		"s=1;i=1;b=2;m=3;t=4;x=5", strings.Repeat("a", 64<<10), strings.Repeat("a", 64<<10-8) + ".service",
	}
	return values
}

// TestJournalValues: nothing that a caller says becomes an option or a second
// argument of journalctl's.
func TestJournalValues(t *testing.T) {
	r := newRig(t, func(r *rig) { r.cfg.Tools.Journalctl.Value = r.script("journalctl", "echo > "+r.dir+"/ran") })
	refused := func(q *hostv1.Journal) {
		t.Helper()
		_, end, err := r.read(t.Context(), journal(q))
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v, %v", q, end, err)
		}
		if _, err := os.Stat(r.dir + "/ran"); err == nil {
			t.Fatalf("%v: it ran", q)
		}
	}
	kernel := &hostv1.Journal_Kernel{Kernel: true}
	for _, v := range hostile() {
		if v != strings.ToValidUTF8(v, "") {
			continue // Protobuf has no such strings.
		}
		refused(&hostv1.Journal{Source: &hostv1.Journal_Unit{Unit: v}})
		if v != "ssh" && v != "ssh.slice" && v != "user.slice" { // These are identifiers.
			refused(&hostv1.Journal{Source: &hostv1.Journal_Identifier{Identifier: v}})
		}
		if v != "" {
			refused(&hostv1.Journal{Source: kernel, Cursor: v})
		}
	}
	refused(&hostv1.Journal{})
	refused(&hostv1.Journal{Source: kernel, Priority: proto.Int32(8)})
	refused(&hostv1.Journal{Source: kernel, Priority: proto.Int32(-1)})
	refused(&hostv1.Journal{Source: kernel, Follow: true, Lines: -1})
	refused(&hostv1.Journal{Source: kernel, Follow: true, Lines: maxLines + 1})
	refused(&hostv1.Journal{Source: kernel, Since: &timestamppb.Timestamp{Seconds: -1}})
	refused(&hostv1.Journal{Source: kernel, Until: &timestamppb.Timestamp{Seconds: 1 << 60}})
	for _, req := range []*hostv1.ReadRequest{{}, nil} {
		if _, _, err := r.read(t.Context(), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", req, err)
		}
	}
	// And every argument that a good one makes begins with what is written here.
	for _, q := range []*hostv1.Journal{
		{Source: &hostv1.Journal_Unit{Unit: `systemd-cryptsetup@dev-disk\x2dby.service`}, Since: &timestamppb.Timestamp{Seconds: 1, Nanos: 2000}, Until: &timestamppb.Timestamp{Seconds: 9}},
		{Source: &hostv1.Journal_Identifier{Identifier: "postfix/smtpd(x)"}, Priority: proto.Int32(3), Reverse: true},
		{Source: kernel, Cursor: "s=0123456789abcdef0123456789abcdef;i=1;b=0123456789abcdef0123456789abcdef;m=3;t=4;x=5", Follow: true, Lines: 5},
		{Source: kernel, Follow: true, Lines: 5},
	} {
		args, err := r.host.journalArgs(q)
		if err != nil {
			t.Errorf("%v: %v", q, err)
		}
		for _, a := range args {
			option, _, _ := strings.Cut(a, "=")
			if !slices.Contains([]string{"_TRANSPORT", "--unit", "--identifier", "--since", "--until", "--priority", "--cursor", "--reverse", "--follow", "--no-tail", "--lines"}, option) {
				t.Errorf("%v: the argument %q", q, a)
			}
		}
	}
	args, err := r.host.journalArgs(&hostv1.Journal{Source: kernel, Since: &timestamppb.Timestamp{Seconds: 1, Nanos: 2000}})
	if err != nil || !slices.Equal(args, []string{"_TRANSPORT=kernel", "--since=@1.000002"}) {
		t.Errorf("%q, %v", args, err)
	}
}
