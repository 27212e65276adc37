package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/internal/hostv1"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/redact"
)

// cursor is that of the nth entry.
func cursor(n int) string { return fmt.Sprintf("s=%032x;i=%x;b=%032x;m=3;t=4;x=5", 1, n, 2) }

// line is the nth entry, as journalctl prints it.
func line(n int, message string) string {
	return fmt.Sprintf(`{"MESSAGE":%s,"__CURSOR":"%s","__REALTIME_TIMESTAMP":"%d","PRIORITY":"6","_PID":"7","_SYSTEMD_UNIT":"web.service","SYSLOG_IDENTIFIER":"web"}`+"\n", message, cursor(n), n)
}

// sink is a stream to a caller.
type sink struct {
	grpc.ServerStream
	ctx     context.Context
	entries []*brokerv1.JournalEntry
	end     *brokerv1.JournalEnd
	sends   int
	fail    error
}

func (s *sink) Context() context.Context { return s.ctx }

func (s *sink) Send(r *brokerv1.ReadJournalResponse) error {
	s.sends++
	if s.end != nil {
		return errors.New("something after the end")
	}
	s.entries, s.end = append(s.entries, r.GetEntries()...), r.GetEnd()
	if r.GetEnd() != nil && len(r.GetEntries()) > 0 {
		return errors.New("entries with the end")
	}
	return s.fail
}

func (s *sink) messages() []string {
	var all []string
	for _, e := range s.entries {
		all = append(all, string(e.GetMessage()))
	}
	return all
}

// scanned is what a call of these tests may look at.
const scanned = 8000

// ask makes a call to a journalctl that says text. It gives what was asked of it.
func ask(t *testing.T, req *brokerv1.ReadJournalRequest, r io.Reader) (*sink, *hostv1.Journal, error) {
	t.Helper()
	rules, err := redact.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	var asked *hostv1.Journal
	s := New(func(_ context.Context, req *hostv1.ReadRequest, use func(io.Reader) error) error {
		asked = req.GetJournal()
		return use(r)
	}, rules)
	s.most = scanned
	out := &sink{ctx: t.Context()}
	if req.Source == "" {
		req.Source = "kernel"
	}
	return out, asked, s.ReadJournal(req, out)
}

func TestQueries(t *testing.T) {
	at := timestamppb.New(time.Unix(5, 0))
	for _, c := range []struct {
		req  *brokerv1.ReadJournalRequest
		want string
	}{
		{&brokerv1.ReadJournalRequest{Source: "kernel"}, "kernel:true lines:100 reverse:true"},
		{&brokerv1.ReadJournalRequest{Source: "units/ssh.service", Since: at, Limit: 7}, `lines:7 since:{seconds:5} unit:"ssh.service"`},
		{&brokerv1.ReadJournalRequest{Source: "identifiers/postfix/smtpd", Until: at}, `identifier:"postfix/smtpd" lines:100 reverse:true until:{seconds:5}`},
		{&brokerv1.ReadJournalRequest{Source: "kernel", Cursor: cursor(1), Priority: brokerv1.JournalPriority_JOURNAL_PRIORITY_ERROR}, `cursor:"` + cursor(1) + `" kernel:true lines:100 priority:3`},
		{&brokerv1.ReadJournalRequest{Source: "kernel", Follow: true, Priority: brokerv1.JournalPriority_JOURNAL_PRIORITY_EMERGENCY}, "follow:true kernel:true lines:100 priority:0"},
	} {
		_, asked, err := ask(t, c.req, strings.NewReader(""))
		// The order of a message's text is not fixed.
		got := strings.Fields(strings.ReplaceAll(asked.String(), "  ", " "))
		slices.Sort(got)
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%v asks for %q, want %q: %v", c.req, strings.Join(got, " "), c.want, err)
		}
	}
	for field, reqs := range map[string][]*brokerv1.ReadJournalRequest{
		"source":   {{Source: "unit/x"}, {Source: "/etc"}},
		"since":    {{Since: &timestamppb.Timestamp{Seconds: -1}}, {Since: &timestamppb.Timestamp{Nanos: -1}}, {Since: at, Cursor: cursor(1)}},
		"until":    {{Until: &timestamppb.Timestamp{Seconds: 1 << 60}}, {Until: at, Follow: true}, {Since: at, Until: timestamppb.New(time.Unix(4, 0))}},
		"limit":    {{Limit: -1}, {Limit: 10_001}},
		"priority": {{Priority: 9}, {Priority: -1}},
		"cursor":   {{Cursor: "x"}, {Cursor: cursor(1) + "\n"}, {Cursor: "--rotate"}, {Cursor: cursor(1) + ";y=1"}, {Cursor: strings.Repeat("s=1;", 10000)}, {Cursor: "s=1;i=1;b=2;m=3;t=4;x=5"}},
		"contains": {{Pattern: &brokerv1.ReadJournalRequest_Contains{}}, {Pattern: &brokerv1.ReadJournalRequest_Contains{Contains: strings.Repeat("x", 257)}}},
		"matches": {{Pattern: &brokerv1.ReadJournalRequest_Matches{}}, {Pattern: &brokerv1.ReadJournalRequest_Matches{Matches: "("}}, {Pattern: &brokerv1.ReadJournalRequest_Matches{Matches: `(a)\1`}},
			{Pattern: &brokerv1.ReadJournalRequest_Matches{Matches: "(((a{1000}){1000}){1000})"}}, {Pattern: &brokerv1.ReadJournalRequest_Matches{Matches: "(?i)(a?b?){490}[^ab]"}}, {Pattern: &brokerv1.ReadJournalRequest_Matches{Matches: strings.Repeat("x", 257)}}},
	} {
		for _, req := range reqs {
			_, asked, err := ask(t, req, strings.NewReader(""))
			if fault.Reason(err) != "INVALID_ARGUMENT" || !strings.Contains(err.Error(), field+":") || asked != nil {
				t.Errorf("%v: %v, and asked %v", req, err, asked)
			}
		}
	}
}

// journalText is n entries, the newest first if reverse.
func journalText(n int, reverse bool, message func(int) string) io.Reader {
	var b strings.Builder
	for i := range n {
		if reverse {
			i = n - 1 - i
		}
		b.WriteString(line(i, message(i)))
	}
	return strings.NewReader(b.String())
}

func TestNewestAndOnward(t *testing.T) {
	number := func(i int) string { return fmt.Sprintf(`"m%d"`, i) }
	evens := &brokerv1.ReadJournalRequest_Matches{Matches: "^m[0-9]*[02468]$"}
	for name, c := range map[string]struct {
		req         *brokerv1.ReadJournalRequest
		entries     int
		reverse     bool
		first, last string
		n           int
		end         string
	}{
		"newest":                {&brokerv1.ReadJournalRequest{Limit: 3}, 10, true, "m7", "m9", 3, "LIMIT " + cursor(9)},
		"all there are":         {&brokerv1.ReadJournalRequest{Limit: 30}, 10, true, "m0", "m9", 10, "END " + cursor(9)},
		"none":                  {&brokerv1.ReadJournalRequest{Limit: 30}, 0, true, "", "", 0, "END "},
		"newest that match":     {&brokerv1.ReadJournalRequest{Limit: 2, Pattern: evens}, 10, true, "m6", "m8", 2, "LIMIT " + cursor(9)},
		"over several chunks":   {&brokerv1.ReadJournalRequest{Limit: 3000, Pattern: evens}, 7001, true, "m1002", "m7000", 3000, "LIMIT " + cursor(7000)},
		"onward":                {&brokerv1.ReadJournalRequest{Limit: 3, Cursor: cursor(99)}, 10, false, "m0", "m2", 3, "LIMIT " + cursor(2)},
		"onward to the end":     {&brokerv1.ReadJournalRequest{Limit: 300, Cursor: cursor(99)}, 270, false, "m0", "m269", 270, "END " + cursor(269)},
		"onward, match":         {&brokerv1.ReadJournalRequest{Limit: 30, Cursor: cursor(99), Pattern: evens}, 10, false, "m0", "m8", 5, "END " + cursor(9)},
		"onward, a rare match":  {&brokerv1.ReadJournalRequest{Cursor: cursor(99), Pattern: &brokerv1.ReadJournalRequest_Contains{Contains: "none"}}, scanned + 10, false, "", "", 0, "SCANNED " + cursor(scanned-1)},
		"newest, a rare match":  {&brokerv1.ReadJournalRequest{Pattern: &brokerv1.ReadJournalRequest_Contains{Contains: "none"}}, scanned + 10, true, "", "", 0, "SCANNED " + cursor(scanned+9)},
		"follow has no limit":   {&brokerv1.ReadJournalRequest{Follow: true, Limit: 1}, 600, false, "m0", "m599", 600, "END " + cursor(599)},
		"a pattern of the dots": {&brokerv1.ReadJournalRequest{Limit: 30, Pattern: &brokerv1.ReadJournalRequest_Contains{Contains: "."}}, 10, true, "", "", 0, "END " + cursor(9)},
	} {
		t.Run(name, func(t *testing.T) {
			out, _, err := ask(t, c.req, journalText(c.entries, c.reverse, number))
			if err != nil {
				t.Fatal(err)
			}
			got := out.messages()
			if len(got) != c.n || c.n > 0 && (got[0] != c.first || got[len(got)-1] != c.last) {
				t.Errorf("%d entries, %.60q", len(got), got)
			}
			if end := strings.TrimPrefix(out.end.GetReason().String(), "JOURNAL_END_REASON_") + " " + out.end.GetCursor(); end != c.end {
				t.Errorf("ended by %q, want %q", end, c.end)
			}
			if !slices.IsSortedFunc(out.entries, func(a, b *brokerv1.JournalEntry) int {
				return a.GetEntryTime().AsTime().Compare(b.GetEntryTime().AsTime())
			}) {
				t.Error("not in order")
			}
		})
	}
}

// TestFollowIsPrompt: an entry is sent when the next one has to be waited for.
func TestFollowIsPrompt(t *testing.T) {
	r, w := io.Pipe()
	sent := make(chan int)
	rules, err := redact.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	s := New(func(_ context.Context, _ *hostv1.ReadRequest, use func(io.Reader) error) error { return use(r) }, rules)
	done := make(chan error)
	go func() {
		done <- s.ReadJournal(&brokerv1.ReadJournalRequest{Source: "kernel", Follow: true}, &prompt{sink: sink{ctx: t.Context()}, sent: sent})
	}()
	for n := range 3 {
		if _, err := io.WriteString(w, line(n, `"x"`)); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-sent:
			if got != 1 {
				t.Errorf("%d entries", got)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("it was not sent")
		}
	}
	w.CloseWithError(errors.New("brokerhost is gone"))
	if err := <-done; err == nil || err.Error() != "brokerhost is gone" {
		t.Error(err)
	}
}

type prompt struct {
	sink
	sent chan int
}

func (p *prompt) Send(r *brokerv1.ReadJournalResponse) error {
	p.sent <- len(r.GetEntries())
	return nil
}

// TestSecretsStayInside: a pattern does not find what is not shown, and a key that
// goes on over entries is found in both directions.
func TestSecretsStayInside(t *testing.T) {
	messages := []string{`"user bob logged in password=hunter2canary"`, `"-----BEGIN RSA PRIVATE KEY-----"`, `"MIICANARYCANARYCANARYCANARY"`, `"-----END RSA PRIVATE KEY-----"`, `"two\nlines token=canarycanary\nand three"`}
	for _, reverse := range []bool{false, true} {
		for _, pattern := range []string{"", "canary", "CANARY"} {
			req := &brokerv1.ReadJournalRequest{}
			if !reverse {
				req.Cursor = cursor(1)
			}
			if pattern != "" {
				req.Pattern = &brokerv1.ReadJournalRequest_Contains{Contains: pattern}
			}
			out, _, err := ask(t, req, journalText(len(messages), reverse, func(i int) string { return messages[i] }))
			if err != nil {
				t.Fatal(err)
			}
			all := strings.Join(out.messages(), "\n")
			if strings.Contains(strings.ToLower(all), "canary") || pattern != "" && len(out.entries) > 0 || pattern == "" && len(out.entries) != 5 {
				t.Errorf("reverse %v, %q: %q", reverse, pattern, all)
			}
			if pattern == "" && !strings.Contains(all, "two\nlines token=[redacted]\nand three") {
				t.Errorf("%q", all)
			}
		}
	}
}

func TestFaults(t *testing.T) {
	gone := errors.New("gone")
	for name, c := range map[string]struct {
		text string
		want string
	}{
		"half an entry": {line(1, `"a"`) + `{"MESSAGE":"b`, "TOOL_OUTPUT_INVALID"},
		"no JSON":       {line(1, `"a"`) + "Segmentation fault\n", "TOOL_OUTPUT_INVALID"},
		"no cursor":     {line(1, `"a"`) + `{"MESSAGE":"b","__REALTIME_TIMESTAMP":"1"}`, "TOOL_OUTPUT_INVALID"},
		"an odd cursor": {line(1, `"a"`) + `{"MESSAGE":"b","__REALTIME_TIMESTAMP":"1","__CURSOR":"--rotate"}`, "TOOL_OUTPUT_INVALID"},
	} {
		out, _, err := ask(t, &brokerv1.ReadJournalRequest{Cursor: cursor(9)}, strings.NewReader(c.text))
		if fault.Reason(err) != c.want || !slices.Equal(out.messages(), []string{"a"}) || out.end != nil {
			t.Errorf("%s: %v, %q, %v", name, err, out.messages(), out.end)
		}
	}
	broken := io.MultiReader(strings.NewReader(line(1, `"a"`)+`{"MESSAGE":`), errorReader{gone})
	out, _, err := ask(t, &brokerv1.ReadJournalRequest{Cursor: cursor(9)}, broken)
	if !errors.Is(err, gone) || fault.Reason(err) != "" || len(out.entries) != 1 {
		t.Errorf("%v, %q", err, out.messages())
	}
}

// TestFailureKeepsWhatCame: also of a journal that is read backwards.
func TestFailureKeepsWhatCame(t *testing.T) {
	gone := errors.New("gone")
	out, _, err := ask(t, &brokerv1.ReadJournalRequest{}, io.MultiReader(journalText(3, true, func(i int) string { return fmt.Sprintf(`"m%d"`, i) }), errorReader{gone}))
	if !errors.Is(err, gone) || !slices.Equal(out.messages(), []string{"m0", "m1", "m2"}) || out.end != nil {
		t.Errorf("%v, %q, %v", err, out.messages(), out.end)
	}
}

// TestCursor: reading goes on behind the entry of the cursor, whether or not that
// is among those that match; with nothing new the cursor stays what it was.
func TestCursor(t *testing.T) {
	number := func(i int) string { return fmt.Sprintf(`"m%d"`, i) }
	for from, want := range map[string][]string{cursor(0): {"m1", "m2"}, cursor(77): {"m0", "m1", "m2"}} {
		out, _, err := ask(t, &brokerv1.ReadJournalRequest{Cursor: from}, journalText(3, false, number))
		if err != nil || !slices.Equal(out.messages(), want) || out.end.GetCursor() != cursor(2) {
			t.Errorf("%s: %q, %v, %v", from, out.messages(), out.end, err)
		}
	}
	out, _, err := ask(t, &brokerv1.ReadJournalRequest{Cursor: cursor(5)}, strings.NewReader(""))
	if err != nil || out.end.GetCursor() != cursor(5) {
		t.Errorf("%v, %v", out.end, err)
	}
}

// TestKeyThatBeginsBefore: what is shown may begin in the middle of a key; the
// entries before are looked at for that, also over the edge of a chunk.
func TestKeyThatBeginsBefore(t *testing.T) {
	key := func(at int) func(int) string {
		return func(i int) string {
			switch {
			case i == at:
				return `"-----BEGIN RSA PRIVATE KEY-----"`
			case i > at && i <= at+20:
				return `"MIICANARYCANARYCANARYCANARYCANARY"`
			case i == at+21:
				return `"-----END RSA PRIVATE KEY-----"`
			}
			return fmt.Sprintf(`"m%d"`, i)
		}
	}
	none := &brokerv1.ReadJournalRequest_Matches{Matches: "."}
	for name, c := range map[string]struct {
		req     *brokerv1.ReadJournalRequest
		entries int
		at      int
	}{
		"limit":              {&brokerv1.ReadJournalRequest{Limit: 5}, 300, 290},
		"a chunk's edge":     {&brokerv1.ReadJournalRequest{Limit: 5000, Pattern: none}, 5000, 2990},
		"cursor in the key":  {&brokerv1.ReadJournalRequest{Cursor: cursor(0)}, 30, 0},
		"the whole of a key": {&brokerv1.ReadJournalRequest{Limit: 300}, 300, 100},
	} {
		out, _, err := ask(t, c.req, journalText(c.entries, c.req.Cursor == "", key(c.at)))
		if all := strings.Join(out.messages(), "\n"); err != nil || strings.Contains(all, "CANARY") || len(out.entries) == 0 {
			t.Errorf("%s: %v, %.300q", name, err, all)
		}
	}
}

// TestClockSetBack: since and until hold for every entry, whatever journalctl thinks.
func TestClockSetBack(t *testing.T) {
	times := []int{10, 11, 500, 12, 13, 5}
	text := ""
	for i, at := range slices.Backward(times) {
		text += strings.Replace(line(at, fmt.Sprintf(`"at %d"`, at)), cursor(at), cursor(i), 1)
	}
	until := timestamppb.New(time.UnixMicro(100))
	out, _, err := ask(t, &brokerv1.ReadJournalRequest{Until: until}, strings.NewReader(text))
	if err != nil || !slices.Equal(out.messages(), []string{"at 10", "at 11", "at 12", "at 13", "at 5"}) {
		t.Errorf("%q, %v", out.messages(), err)
	}
	out, _, err = ask(t, &brokerv1.ReadJournalRequest{Since: timestamppb.New(time.UnixMicro(10)), Until: until}, strings.NewReader(line(10, `"a"`)+line(5, `"b"`)+line(12, `"c"`)))
	if err != nil || !slices.Equal(out.messages(), []string{"a", "c"}) {
		t.Errorf("%q, %v", out.messages(), err)
	}
}

// TestPatternEndsWithItsCaller: a pattern that takes long takes no longer than the
// call, and none may take very long over one message.
func TestPatternEndsWithItsCaller(t *testing.T) {
	rules, err := redact.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("ab", messageBytes/2)
	for _, reverse := range []bool{false, true} {
		s := New(func(_ context.Context, _ *hostv1.ReadRequest, use func(io.Reader) error) error {
			return use(journalText(400, reverse, func(int) string { return `"` + long + `"` }))
		}, rules)
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("the caller left")
		time.AfterFunc(200*time.Millisecond, func() { cancel(why) })
		req := &brokerv1.ReadJournalRequest{Source: "kernel", Pattern: &brokerv1.ReadJournalRequest_Matches{Matches: "(?i)(a?b?){25}[^ab]"}}
		if !reverse {
			req.Cursor = cursor(999)
		}
		begun := time.Now()
		err := s.ReadJournal(req, &sink{ctx: ctx})
		if took := time.Since(begun); !errors.Is(err, why) || took > 3*time.Second {
			t.Errorf("reverse %v: after %v: %v", reverse, took, err)
		}
	}
}

// TestContainersAreNotTheEngine: what the engine's log driver writes for containers
// is under the engine's unit, and is left out.
func TestContainersAreNotTheEngine(t *testing.T) {
	of := strings.Replace(line(2, `"of a container"`), `{"MESSAGE"`, `{"CONTAINER_ID":"0123456789ab","MESSAGE"`, 1)
	out, _, err := ask(t, &brokerv1.ReadJournalRequest{Source: "units/docker.service", Cursor: cursor(9)}, strings.NewReader(line(1, `"a"`)+of+of+line(3, `"b"`)))
	if err != nil || !slices.Equal(out.messages(), []string{"a", "b"}) {
		t.Errorf("%q, %v", out.messages(), err)
	}
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }
