package jail

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // A machine may have none.

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/fault"
)

var nan, inf = math.NaN(), math.Inf(1)

func linesOf(lines ...string) string {
	s := "]("
	for _, l := range lines {
		s += str(l)
	}
	return says(s + "e")
}

func TestListBanned(t *testing.T) {
	localAs(t, time.UTC)
	d, svc, _, ctx := setup(t)
	for name, want := range map[string]string{
		"demo": `bans:{address:"198.51.100.7" ban_time:{seconds:1795592644} expire_time:{seconds:1795596244}} ` +
			`bans:{address:"203.0.113.0/24" ban_time:{seconds:1795592649} expire_time:{seconds:1795596249}} ` +
			`bans:{address:"2001:db8::7" ban_time:{seconds:1795592649} expire_time:{seconds:1795596249}}`,
		"forever":   `bans:{address:"192.0.2.66" ban_time:{seconds:1795592649}}`,
		"quiet.one": `bans:{address:"192.0.2.67" ban_time:{seconds:1795592649} expire_time:{seconds:2111168649}}`, // 2036-11-24 19:44:09.
		"journal":   ``,
	} {
		resp, err := svc.ListBanned(ctx, &brokerv1.ListBannedRequest{Jail: name})
		if got := textOf(resp); err != nil || got != want {
			t.Errorf("%s: %s, %v\nwant %s", name, got, err, want)
		}
	}
	localAs(t, time.FixedZone("", 3600))
	resp, err := svc.ListBanned(ctx, &brokerv1.ListBannedRequest{Jail: "forever"})
	if err != nil || resp.GetBans()[0].GetBanTime().GetSeconds() != 1795592649-3600 {
		t.Errorf("%v, %v", resp, err)
	}
	const line = "192.0.2.1 \t2026-11-25 07:00:00 + 60 = 2026-11-25 07:01:00"
	d.answers["banned-demo"] = says(str(line + "\n" + strings.Replace(line, "2.1", "2.2", 1) + "\n"))
	if resp, err := svc.ListBanned(ctx, &brokerv1.ListBannedRequest{Jail: "demo"}); err != nil || len(resp.GetBans()) != 2 {
		t.Errorf("%v, %v", resp, err)
	}
}

// TestBansGoByAddress, on all pages.
func TestBansGoByAddress(t *testing.T) {
	d, svc, _, ctx := setup(t)
	sorted := []string{"9.0.0.1", "10.0.0.0/8", "10.0.0.0/16", "10.0.0.0", "10.0.0.2", "10.0.0.10", "192.0.2.255", "::1", "2001:db8::/32", "2001:db8::9", "2001:db8::10", "fe80::1"}
	var lines []string
	for _, i := range []int{7, 3, 0, 11, 5, 1, 10, 2, 8, 4, 9, 6} {
		lines = append(lines, sorted[i]+" \t2026-11-25 07:00:00 + 60 = 2026-11-25 07:01:00")
	}
	d.answers["banned-demo"] = linesOf(lines...)
	for _, size := range []int32{1, 5, 12, 0} {
		var got []string
		req := &brokerv1.ListBannedRequest{Jail: "demo", PageSize: size}
		for {
			resp, err := svc.ListBanned(ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range resp.GetBans() {
				got = append(got, b.GetAddress())
			}
			if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
				break
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(sorted) {
			t.Errorf("pages of %d: %v\nwant %v", size, got, sorted)
		}
	}
	first, err := svc.ListBanned(ctx, &brokerv1.ListBannedRequest{Jail: "demo", PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, req := range []*brokerv1.ListBannedRequest{
		{Jail: "demo", PageSize: -1}, {Jail: "demo", PageToken: "x"}, {Jail: "forever", PageToken: first.GetNextPageToken()},
	} {
		if _, err := svc.ListBanned(ctx, req); fault.Reason(err) != "INVALID_ARGUMENT" {
			t.Errorf("%v: %v", req, err)
		}
	}
}

func TestBanLines(t *testing.T) {
	localAs(t, time.UTC)
	for line, want := range map[string]string{
		"192.0.2.1 \t2026-11-25 07:00:00 + 60 = 2026-11-25 07:01:00":               "192.0.2.1 1795590000 +60",
		"192.0.2.1 \t2026-11-25 07:00:00 + 0 = 2026-11-25 07:00:00":                "192.0.2.1 1795590000 +0",
		"192.0.2.1 \t2026-11-25 07:00:00 + -1 = 9999-12-31 23:59:59":               "192.0.2.1 1795590000 for ever",
		"192.0.2.1 \t2026-11-25 07:00:00 + 999999999999999 = 9999-12-31 23:59:59":  "192.0.2.1 1795590000 for ever",
		"2001:DB8:0::7 \t2026-11-25 07:00:00 + 60 = 2026-11-25 07:01:00":           "2001:db8::7 1795590000 +60",
		"192.0.2.1 \t2026-11-25 07:00:00 + 9999999999999999 = 9999-12-31 23:59:59": "",
		"192.0.2.1 \t2026-11-25 07:00:00 + 60 = 2026-11-25 07:01:00\n":             "",
		"192.0.2.1 \t2026-11-25 07:00:00 + 60 = 2026-13-25 07:01:00":               "",
		"192.0.2.1 \t2026-02-30 07:00:00 + 60 = 2026-11-25 07:01:00":               "",
		"192.0.2.1 \t0000-01-01 07:00:00 + 60 = 2026-11-25 07:01:00":               "",
		"192.0.2.1 \t2026-11-25 07:00:00 + x = 2026-11-25 07:01:00":                "",
		"192.0.2.1 2026-11-25 07:00:00 + 60 = 2026-11-25 07:01:00":                 "",
		"root \t2026-11-25 07:00:00 + 60 = 2026-11-25 07:01:00":                    "",
		"192.0.2.01 \t2026-11-25 07:00:00 + 60 = 2026-11-25 07:01:00":              "",
		"192.0.2.1/33 \t2026-11-25 07:00:00 + 60 = 2026-11-25 07:01:00":            "",
		"fe80::1%\x1b[2J \t2026-11-25 07:00:00 + 60 = 2026-11-25 07:01:00":         "",
		"fe80::1%eth0 \t2026-11-25 07:00:00 + 60 = 2026-11-25 07:01:00":            "",
		"192.0.2.1\x00 \t2026-11-25 07:00:00 + 60 = 2026-11-25 07:01:00":           "",
		"192.0.2.1\xff \t2026-11-25 07:00:00 + 60 = 2026-11-25 07:01:00":           "",
		"192.0.2.1": "", "": "",
	} {
		item, err := banOf(line)
		got := ""
		if b := item.Value; err == nil {
			got = fmt.Sprintf("%s %d for ever", b.GetAddress(), b.GetBanTime().GetSeconds())
			if b.ExpireTime != nil {
				got = fmt.Sprintf("%s %d +%d", b.GetAddress(), b.GetBanTime().GetSeconds(), b.GetExpireTime().GetSeconds()-b.GetBanTime().GetSeconds())
			}
		}
		if got != want {
			t.Errorf("%q: %q, %v", line, got, err)
		}
	}
	const line = "192.0.2.1 \t2026-11-25 07:00:00 + 60 = 2026-11-25 07:01:00"
	for _, v := range []any{nil, int64(1), "x", tuple{line}, list{line, int64(1)}, list{line, "x"}, list{line, line}} {
		if got, err := bansOf(v); err == nil {
			t.Errorf("%v: %v", v, got)
		}
	}
	if got, err := bansOf(""); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}

// TestSummerTime: an end is as far from the start as the ban is long.
func TestSummerTime(t *testing.T) {
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	localAs(t, zone)
	item, err := banOf("192.0.2.1 \t2026-10-24 12:00:00 + 172800 = 2026-10-26 11:00:00")
	if b := item.Value; err != nil || b.GetBanTime().AsTime().Hour() != 10 || b.GetExpireTime().AsTime().Sub(b.GetBanTime().AsTime()) != 48*time.Hour {
		t.Errorf("%v, %v", b, err)
	}
}

func TestDurations(t *testing.T) {
	for _, c := range []struct {
		in   any
		want string
	}{
		{int64(0), "0s"}, {int64(3600), "1h0m0s"}, {5400.0, "1h30m0s"}, {1.5, "1.5s"}, {0.0, "0s"}, {int64(-1), "ever"}, {-1.0, "ever"}, {-0.5, "ever"}, {int64(-1 << 63), "ever"},
		{int64(maxSeconds) + 1, ""}, {int64(1<<63 - 1), ""}, {1e300, ""}, {nan, ""}, {inf, ""}, {-inf, "ever"}, {"1", ""}, {nil, ""}, {true, ""}, {list{int64(1)}, ""},
	} {
		d, err := durationOf(c.in)
		got := ""
		if err == nil {
			if got = "ever"; d != nil {
				got = d.AsDuration().String()
			}
			if d != nil && d.CheckValid() != nil {
				t.Errorf("%v: %v", c.in, d.CheckValid())
			}
		}
		if got != c.want {
			t.Errorf("%v: %q, want %q; %v", c.in, got, c.want, err)
		}
	}
	if d, err := durationOf(int64(maxSeconds)); err != nil || d.CheckValid() != nil {
		t.Error(d, err)
	}
}
