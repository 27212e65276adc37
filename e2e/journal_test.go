package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
	"github.com/gortium/hermes-broker/e2e/testhost"
)

// journal reads a journal to its end.
func journal(ctx context.Context, c *client.Client, req *brokerv1.ReadJournalRequest) (all []*brokerv1.JournalEntry, end *brokerv1.JournalEnd, err error) {
	s, err := c.Journal().ReadJournal(ctx, req)
	for err == nil {
		var resp *brokerv1.ReadJournalResponse
		if resp, err = s.Recv(); err == nil {
			all, end = append(all, resp.GetEntries()...), resp.GetEnd()
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return all, end, err
}

func messages(all []*brokerv1.JournalEntry) []string {
	var texts []string
	for _, e := range all {
		texts = append(texts, string(e.GetMessage()))
	}
	return texts
}

// newJournal starts a journal with a brokerd and a brokerhost that read it.
func newJournal(t *testing.T) (*testhost.Journal, *broker) {
	t.Helper()
	j, err := host.StartJournal("journal-" + strings.ToLower(t.Name()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return j, hostBroker(t, newHost(t, "journal: "+j.Dir+"\n"))
}

// TestJournal reads real journal files: whose entries, since when, how severe, what
// is in them, in pieces, and what was never meant to be text.
func TestJournal(t *testing.T) {
	j, b := newJournal(t)
	c := b.dial("hermes")
	start := time.Now().Add(-time.Hour).Truncate(time.Second)
	at := func(n int) time.Time { return start.Add(time.Duration(n) * time.Second) }
	write := func(n int, fields map[string]string) {
		t.Helper()
		b.must(j.Write(at(n), fields))
	}
	for n := range 40 {
		write(n, map[string]string{"MESSAGE": fmt.Sprintf("web %d", n), "_SYSTEMD_UNIT": "web.service", "SYSLOG_IDENTIFIER": "nginx", "_PID": "42", "PRIORITY": fmt.Sprint(n % 8), "_TRANSPORT": "stdout"})
	}
	write(40, map[string]string{"MESSAGE": "Linux version", "_TRANSPORT": "kernel", "SYSLOG_IDENTIFIER": "kernel", "PRIORITY": "5"})
	write(41, map[string]string{"MESSAGE": "of a hidden unit", "_SYSTEMD_UNIT": "hidden.service", "SYSLOG_IDENTIFIER": "hidden"})
	write(42, map[string]string{"MESSAGE": "started", "_PID": "1", "UNIT": "web.service", "_SYSTEMD_UNIT": "init.scope", "SYSLOG_IDENTIFIER": "systemd"})
	write(43, map[string]string{"MESSAGE": "\x1b[31m\xff\x00 no text", "_SYSTEMD_UNIT": "odd.service", "SYSLOG_IDENTIFIER": "odd"})
	write(44, map[string]string{"MESSAGE": strings.Repeat("long ", 20<<10), "_SYSTEMD_UNIT": "odd.service", "SYSLOG_IDENTIFIER": "odd"})
	write(45, map[string]string{"MESSAGE": "login password=hunter2canary\nsecond line", "_SYSTEMD_UNIT": "odd.service", "SYSLOG_IDENTIFIER": "odd"})
	write(46, map[string]string{"MESSAGE": `"}{"__CURSOR":"forged"}`, "_SYSTEMD_UNIT": "odd.service", "SYSLOG_IDENTIFIER": "odd"})
	write(47, map[string]string{"MESSAGE": "sudo by nobody", "SYSLOG_IDENTIFIER": "sudo"})
	ask := func(req *brokerv1.ReadJournalRequest) ([]*brokerv1.JournalEntry, *brokerv1.JournalEnd) {
		t.Helper()
		all, end, err := journal(within(t), c, req)
		b.must(err)
		if end == nil {
			t.Fatalf("%v: no end", req)
		}
		return all, end
	}
	eventually(t, "the journal is written", func() bool {
		all, _ := ask(&brokerv1.ReadJournalRequest{Source: "identifiers/sudo"})
		return len(all) == 1
	})

	all, end := ask(&brokerv1.ReadJournalRequest{Source: "units/web.service", Limit: 3})
	if got := messages(all); !slices.Equal(got, []string{"web 38", "web 39", "started"}) || end.GetReason() != brokerv1.JournalEndReason_JOURNAL_END_REASON_LIMIT {
		t.Errorf("the newest: %q, %v", got, end)
	}
	e := all[0]
	if e.GetUnit() != "web.service" || e.GetIdentifier() != "nginx" || e.GetPid() != 42 || e.GetPriority() != brokerv1.JournalPriority_JOURNAL_PRIORITY_INFO || !e.GetEntryTime().AsTime().Equal(at(38)) || e.GetTruncated() {
		t.Errorf("%v", e)
	}
	// Onward from the beginning, page by page, each entry once.
	var got []string
	for cursor, n := "", 0; ; n++ {
		req := &brokerv1.ReadJournalRequest{Source: "units/web.service", Limit: 7, Cursor: cursor}
		if cursor == "" {
			req.Since = timestamppb.New(at(0))
		}
		part, end := ask(req)
		got = append(got, messages(part)...)
		if cursor = end.GetCursor(); end.GetReason() == brokerv1.JournalEndReason_JOURNAL_END_REASON_END {
			break
		}
		if n > 20 {
			t.Fatal("no end")
		}
	}
	if len(got) != 41 || got[0] != "web 0" || got[39] != "web 39" || got[40] != "started" {
		t.Errorf("page by page: %q", got)
	}
	for name, c := range map[string]struct {
		req  *brokerv1.ReadJournalRequest
		want []string
	}{
		"kernel":     {&brokerv1.ReadJournalRequest{Source: "kernel"}, []string{"Linux version"}},
		"identifier": {&brokerv1.ReadJournalRequest{Source: "identifiers/nginx", Limit: 1}, []string{"web 39"}},
		"since": {&brokerv1.ReadJournalRequest{Source: "units/web.service", Since: timestamppb.New(at(38).Add(500 * time.Millisecond))},
			[]string{"web 39", "started"}},
		"until": {&brokerv1.ReadJournalRequest{Source: "units/web.service", Until: timestamppb.New(at(1))}, []string{"web 0", "web 1"}},
		"both":  {&brokerv1.ReadJournalRequest{Source: "units/web.service", Since: timestamppb.New(at(5)), Until: timestamppb.New(at(6))}, []string{"web 5", "web 6"}},
		"priority": {&brokerv1.ReadJournalRequest{Source: "units/web.service", Priority: brokerv1.JournalPriority_JOURNAL_PRIORITY_EMERGENCY, Limit: 2},
			[]string{"web 24", "web 32"}},
		"contains": {&brokerv1.ReadJournalRequest{Source: "units/web.service", Pattern: &brokerv1.ReadJournalRequest_Contains{Contains: "b 3"}, Limit: 2}, []string{"web 38", "web 39"}},
		"matches":  {&brokerv1.ReadJournalRequest{Source: "units/web.service", Pattern: &brokerv1.ReadJournalRequest_Matches{Matches: `b [12]$`}}, []string{"web 1", "web 2"}},
		"no match": {&brokerv1.ReadJournalRequest{Source: "units/web.service", Pattern: &brokerv1.ReadJournalRequest_Contains{Contains: "[12]$"}}, nil},
		"no unit":  {&brokerv1.ReadJournalRequest{Source: "units/none.service"}, nil},
		"a secret": {&brokerv1.ReadJournalRequest{Source: "units/odd.service", Pattern: &brokerv1.ReadJournalRequest_Contains{Contains: "hunter2"}}, nil},
	} {
		if all, _ := ask(c.req); !slices.Equal(messages(all), c.want) {
			t.Errorf("%s: %q, want %q", name, messages(all), c.want)
		}
	}
	odd, _ := ask(&brokerv1.ReadJournalRequest{Source: "units/odd.service"})
	if texts := messages(odd); len(texts) != 4 || texts[0] != "\x1b[31m\xff\x00 no text" || !odd[1].GetTruncated() || len(texts[1]) != 16<<10 ||
		texts[2] != "login password=[redacted]\nsecond line" || texts[3] != `"}{"__CURSOR":"forged"}` || odd[2].GetTruncated() {
		t.Errorf("%.200q", texts)
	}
	_, _, err := journal(within(t), c, &brokerv1.ReadJournalRequest{Source: "units/hidden.service"})
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED)
	_, _, err = journal(within(t), b.dial("ada"), &brokerv1.ReadJournalRequest{Source: "kernel"})
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED)
	for _, source := range []string{"units/web", "units/user.slice", "unit/web.service", ""} {
		_, _, err := journal(within(t), c, &brokerv1.ReadJournalRequest{Source: source})
		want(t, err, brokerv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT)
	}
	if out, code := b.ctl("hermes", "journal", "units/odd.service"); code != 0 || !utf8.ValidString(out) || strings.ContainsAny(out, "\x1b\x00") || !strings.Contains(out, "[redacted]") {
		t.Errorf("brokerctl journal: %d\n%.400q", code, out)
	}
}

// TestJournalFollow: entries come as they are written, until the caller hangs up or
// may no longer; the tool ends with the stream.
func TestJournalFollow(t *testing.T) {
	j, b := newJournal(t)
	c := b.dial("hermes")
	n := 0
	write := func(unit string) {
		n++
		b.must(j.Write(time.Now(), map[string]string{"MESSAGE": fmt.Sprintf("%s %d", unit, n), "_SYSTEMD_UNIT": unit + ".service"}))
	}
	write("web")
	write("web")
	eventually(t, "the journal is written", func() bool {
		all, _, err := journal(within(t), c, &brokerv1.ReadJournalRequest{Source: "units/web.service"})
		b.must(err)
		return len(all) == 2
	})
	s, err := c.Journal().ReadJournal(within(t), &brokerv1.ReadJournalRequest{Source: "units/web.service", Follow: true, Limit: 1, Pattern: &brokerv1.ReadJournalRequest_Contains{Contains: "web"}})
	b.must(err)
	read := func(want ...string) (last *brokerv1.JournalEntry) {
		t.Helper()
		var got []string
		for len(got) < len(want) {
			resp, err := s.Recv()
			b.must(err)
			got = append(got, messages(resp.GetEntries())...)
			last = resp.GetEntries()[len(resp.GetEntries())-1]
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		return last
	}
	read("web 2")
	write("other")
	write("web")
	write("web")
	last := read("web 4", "web 5")
	// Another one goes on where this one is.
	write("web")
	read("web 6")
	s, err = c.Journal().ReadJournal(within(t), &brokerv1.ReadJournalRequest{Source: "units/web.service", Follow: true, Cursor: last.GetCursor()})
	b.must(err)
	read("web 6")
	write("web")
	read("web 7")
	b.policy(strings.Replace(hostPolicy, `"journal/units/*", `, "", 1))
	begun := time.Now()
	for err == nil {
		_, err = s.Recv()
	}
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_ACCESS_REVOKED)
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("cut after %s", took)
	}
	eventually(t, "journalctl has ended", func() bool { return !running("--directory=" + j.Dir) })
}
