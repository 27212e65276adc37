package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

// TestFail2ban: a real fail2ban really bans, that of this machine and the current
// one, and the broker sees it.
func TestFail2ban(t *testing.T) {
	current, err := filepath.Abs("../.cache/fail2ban-current")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(current); err != nil {
		t.Fatalf("there is no other fail2ban to try; run scripts/fail2ban-current, as make test does: %v", err)
	}
	for name, root := range map[string]string{"installed": "", "current": current} {
		t.Run(name, func(t *testing.T) { fail2ban(t, name, root) })
	}
}

func fail2ban(t *testing.T, name, root string) {
	f, err := host.StartFail2ban(t.Context(), "fail2ban-"+name, root)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := newHost(t, "fail2ban: "+f.Socket+"\n")
	b := hostBroker(t, h)
	c := b.dial("hermes").Jails()
	s, err := c.Fail2BanStatus(within(t), &brokerv1.Fail2BanStatusRequest{})
	b.must(err)
	if v := s.GetVersion(); !strings.HasPrefix(v, "1.") || name == "current" && v < "1.1" {
		t.Errorf("version %q", v)
	}
	t.Logf("fail2ban %s", s.GetVersion())
	if len(s.GetJails()) != 2 || s.GetJails()[0].GetName() != "demo" || s.GetJails()[1].GetName() != "quiet" || s.GetJails()[0].GetTotalBanned() != 0 {
		t.Errorf("%v", s)
	}
	begun := time.Now()
	for _, address := range []string{"198.51.100.7", "198.51.100.20", "2001:db8::7"} {
		b.must(f.Fail(address))
	}
	var bans []*brokerv1.Ban
	eventually(t, "they are banned", func() bool {
		resp, err := c.ListBanned(within(t), &brokerv1.ListBannedRequest{Jail: "demo"})
		b.must(err)
		bans = resp.GetBans()
		return len(bans) == 3
	})
	var addresses []string
	for _, ban := range bans {
		addresses = append(addresses, ban.GetAddress())
		at, until := ban.GetBanTime().AsTime(), ban.GetExpireTime().AsTime()
		if at.Before(begun.Add(-2*time.Second)) || at.After(time.Now().Add(2*time.Second)) || until.Sub(at) != time.Hour {
			t.Errorf("banned at %s until %s", at, until)
		}
	}
	if want := []string{"198.51.100.7", "198.51.100.20", "2001:db8::7"}; !slices.Equal(addresses, want) {
		t.Errorf("%q, want %q", addresses, want)
	}
	page, err := c.ListBanned(within(t), &brokerv1.ListBannedRequest{Jail: "demo", PageSize: 2})
	b.must(err)
	rest, err := c.ListBanned(within(t), &brokerv1.ListBannedRequest{Jail: "demo", PageSize: 2, PageToken: page.GetNextPageToken()})
	if err != nil || len(page.GetBans()) != 2 || len(rest.GetBans()) != 1 || rest.GetNextPageToken() != "" {
		t.Errorf("in pages: %v, %v, %v", page, rest, err)
	}
	j, err := c.GetJail(within(t), &brokerv1.GetJailRequest{Jail: "demo"})
	b.must(err)
	if n := j.GetCounters(); n.GetCurrentlyBanned() != 3 || n.GetTotalBanned() != 3 || n.GetTotalFailed() < 9 || j.GetMaxRetry() != 3 || j.GetBanTime().AsDuration() != time.Hour ||
		j.GetFindTime().AsDuration() != 10*time.Minute || len(j.GetLogFiles()) != 1 || filepath.Base(j.GetLogFiles()[0]) != "watched.log" ||
		!slices.Equal(j.GetIgnoredAddresses(), []string{"127.0.0.0/8", "::1"}) {
		t.Errorf("%v", j)
	}
	if j, err = c.GetJail(within(t), &brokerv1.GetJailRequest{Jail: "quiet"}); err != nil || j.BanTime != nil {
		t.Errorf("a ban for ever: %v, %v", j, err)
	}
	// The rules that it made are in the firewall.
	fw, err := b.dial("hermes").Firewall().FirewallStatus(within(t), &brokerv1.FirewallStatusRequest{Chain: "f2b-demo", PageSize: 500})
	b.must(err)
	if !slices.ContainsFunc(fw.GetRules(), func(r *brokerv1.FirewallRule) bool {
		return r.GetSource() == "198.51.100.7/32" && r.GetTarget() == "REJECT"
	}) {
		t.Errorf("the ban is not in the firewall: %v", fw.GetRules())
	}
	for _, name := range []string{"nojail", "dbfile", "loglevel", "syslogsocket"} {
		_, err = c.GetJail(within(t), &brokerv1.GetJailRequest{Jail: name})
		want(t, err, brokerv1.ErrorReason_ERROR_REASON_JAIL_NOT_FOUND)
		_, err = c.ListBanned(within(t), &brokerv1.ListBannedRequest{Jail: name})
		want(t, err, brokerv1.ErrorReason_ERROR_REASON_JAIL_NOT_FOUND)
	}
	_, err = c.GetJail(within(t), &brokerv1.GetJailRequest{Jail: "hidden"})
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED)
	b.policy(strings.ReplaceAll(hostPolicy, "jails/hidden", "jails/demo"))
	eventually(t, "a jail that is denied is not listed", func() bool {
		s, err := c.Fail2BanStatus(within(t), &brokerv1.Fail2BanStatusRequest{})
		return err == nil && len(s.GetJails()) == 1 && s.GetJails()[0].GetName() == "quiet"
	})
	b.policy(hostPolicy)
	for _, args := range [][]string{{"status"}, {"jail", "quiet"}, {"banned", "quiet"}} {
		if out, code := b.ctl("hermes", append([]string{"fail2ban"}, args...)...); code != 0 {
			t.Errorf("brokerctl fail2ban %q: %d\n%s", args, code, out)
		}
	}
	// It dies and leaves its socket; then that is gone too.
	f.Kill()
	_, err = c.Fail2BanStatus(within(t), &brokerv1.Fail2BanStatusRequest{})
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_FAIL2BAN_STOPPED)
	b.must(os.Remove(f.Socket))
	_, err = c.Fail2BanStatus(within(t), &brokerv1.Fail2BanStatusRequest{})
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_FAIL2BAN_MISSING)
}
