package firewall

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

const open6 = "IPV6 tcp 1-65535 OPEN\nIPV6 udp 1-65535 OPEN\n"

// TestReachRecorded: what whole rule sets come to, as the real tools print them.
func TestReachRecorded(t *testing.T) {
	docker := `IPV4 tcp 22-22 OPEN filter/INPUT/3
IPV4 tcp 8080-8080 OPEN filter/DOCKER/1 to 172.17.0.2:80
IPV4 udp 53-53 OPEN filter/DOCKER/2 to 172.18.0.2:53
`
	ufw := `IPV4 tcp 22-22 CONDITIONAL filter/ufw-user-limit-accept/1
IPV4 tcp 80-80 OPEN filter/ufw-user-input/1
IPV4 tcp 443-443 OPEN filter/ufw-user-input/2
IPV4 tcp 5432-5432 CONDITIONAL filter/ufw-user-input/3
IPV4 tcp 8000-8010 OPEN filter/ufw-user-input/2
IPV4 udp 68-68 CONDITIONAL filter/ufw-before-input/7
IPV4 udp 51820-51820 OPEN filter/ufw-user-input/7
`
	host4 := `IPV4 tcp 22-22 CONDITIONAL filter/admin/1
IPV4 tcp 25-25 OPEN filter/input/7
IPV4 tcp 27-27 CONDITIONAL filter/limited/1
IPV4 tcp 80-80 OPEN filter/input/5
IPV4 tcp 443-443 OPEN filter/input/5
IPV4 tcp 5000-5000 OPEN filter/input/8
IPV4 tcp 5001-5003 CONDITIONAL filter/limited/1
IPV4 tcp 7000-7000 CONDITIONAL filter/input/11
IPV4 tcp 8000-8100 OPEN filter/input/5
IPV4 tcp 8443-8443 OPEN filter/forward/1 to 198.18.0.2:443
IPV4 tcp 8888-8888 CONDITIONAL filter/admin/1 to :22
IPV4 tcp 9000-9000 CONDITIONAL filter/input/9
IPV4 tcp 9999-9999 OPEN filter/input/12
IPV4 udp 53-53 OPEN filter/input/6
IPV4 udp 51820-51820 OPEN filter/input/6
`
	host6 := strings.NewReplacer("IPV4 tcp 22-22 CONDITIONAL filter/admin/1\n", "", "IPV4 tcp 7000", "IPV6 tcp 6000-6000 OPEN filter/input/10\nIPV6 tcp 7000",
		"IPV4 tcp 8443-8443 OPEN filter/forward/1 to 198.18.0.2:443\n", "", "IPV4 tcp 8888-8888 CONDITIONAL filter/admin/1 to :22\n", "",
		"IPV4 tcp 9000-9000 CONDITIONAL filter/input/9\n", "", "IPV4", "IPV6").Replace(host4)
	for name, c := range map[string]struct {
		said said
		want string
	}{
		"docker over nf_tables":    {said{nft4: recorded(t, "docker-nft.txt")}, docker + open6},
		"docker over the old one":  {said{legacy4: recorded(t, "docker-legacy.txt")}, docker + open6},
		"docker twice":             {said{nft4: errMissing, native: recorded(t, "docker-nft.json"), legacy4: recorded(t, "docker-legacy.txt")}, "IPV4 tcp 22-22 OPEN filter/INPUT/2\nIPV4 tcp 8080-8080 OPEN filter/FORWARD/3 to 172.17.0.2:80\nIPV4 udp 53-53 OPEN filter/FORWARD/7 to 172.18.0.2:53\n" + open6},
		"docker 28":                {said{nft4: recorded(t, "docker28-nft.txt")}, "IPV4 tcp 8080-8080 OPEN filter/DOCKER/2 to 172.17.0.2:80\n" + open6},
		"ufw":                      {said{nft4: recorded(t, "ufw-nft.txt")}, ufw + open6},
		"ufw for IPv6":             {said{legacy4: recorded(t, "ufw-legacy.txt"), legacy6: recorded(t, "ufw6-legacy.txt")}, ufw + "IPV6 tcp 80-80 OPEN filter/ufw6-user-input/1\nIPV6 udp 546-546 CONDITIONAL filter/ufw6-before-input/6\n"},
		"nftables":                 {said{native: recorded(t, "host.json")}, host4 + host6},
		"ufw and docker are apart": {said{nft4: recorded(t, "ufw-nft.txt"), legacy4: recorded(t, "docker-legacy.txt")}, "IPV4 tcp 22-22 CONDITIONAL filter/INPUT/3\n" + open6},
	} {
		t.Run(name, func(t *testing.T) {
			resp := status(t, c.said)
			if got := openPorts(resp.GetSummary()); got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
			holdsTogether(t, c.said, resp)
		})
	}
}

// holdsTogether: the view says of every port what the ranges say.
func holdsTogether(t *testing.T, s said, resp *brokerv1.FirewallStatusResponse) {
	t.Helper()
	v, err := service(s).Reach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for n := range 4 {
		of := map[int]*brokerv1.OpenPorts{}
		for _, o := range resp.GetSummary().GetOpenPorts() {
			if (o.GetFamily() == familyIPv6) == (n&isIPv6 != 0) && (o.GetProtocol() == "udp") == (n&isUDP != 0) {
				for p := o.GetFirstPort(); p <= o.GetLastPort(); p++ {
					of[int(p)] = o
				}
			}
		}
		for p := range lastPort + 1 {
			reach, rule := v.Port(n&isIPv6 != 0, n&isUDP != 0, uint16(p))
			want, wantRule := brokerv1.Reach_REACH_BLOCKED, (*brokerv1.FirewallRuleRef)(nil)
			if o := of[p]; o != nil {
				want, wantRule = o.GetReach(), o.GetRule()
			}
			if reach != want || !proto.Equal(rule, wantRule) {
				t.Fatalf("port %d of %d: %v by %v, the ranges say %v by %s", p, n, reach, rule, want, wantRule)
			}
		}
	}
}

// filterSet is a set with an INPUT and a FORWARD chain that drop.
func filterSet(rules ...string) string {
	return "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:u - [0:0]\n:v - [0:0]\n[0:0] " + strings.Join(rules, "\n[0:0] ") + "\nCOMMIT\n"
}

// TestReachRules: what single rules come to.
func TestReachRules(t *testing.T) {
	const all = "1-65535"
	for _, c := range []struct{ rules, want string }{ // tcp's, of IPv4.
		{"-A INPUT -j ACCEPT", all + " OPEN"},
		{"-A INPUT -p all -j ACCEPT", all + " OPEN"},
		{"-A INPUT -p udp -j ACCEPT", ""},
		{"-A INPUT ! -p udp -j ACCEPT", all + " OPEN"},
		{"-A INPUT -p 6 -j ACCEPT", all + " OPEN"},
		{"-A INPUT -s 198.51.100.7/32 -j ACCEPT", all + " CONDITIONAL"},
		{"-A INPUT ! -s 198.51.100.7/32 -j ACCEPT", all + " CONDITIONAL"},
		{"-A INPUT -s 127.0.0.0/8 -j ACCEPT", ""},
		{"-A INPUT -d 127.0.0.1/32 -j ACCEPT", ""},
		{"-A INPUT ! -d 127.0.0.1/32 -j ACCEPT", all + " OPEN"},
		{"-A INPUT -d 198.51.100.7/32 -j ACCEPT", all + " CONDITIONAL"},
		{"-A INPUT -d 224.0.0.251/32 -j ACCEPT", ""},
		{"-A INPUT -i lo -j ACCEPT", ""},
		{"-A INPUT ! -i lo -j ACCEPT", all + " OPEN"},
		{"-A INPUT -i docker0 -j ACCEPT", ""},
		{"-A INPUT -i br-0123456789ab -j ACCEPT", ""},
		{"-A INPUT -i br-lan -j ACCEPT", all + " CONDITIONAL"},
		{"-A INPUT -i br-+ -j ACCEPT", all + " CONDITIONAL"},
		{"-A INPUT -i veth+ -j ACCEPT", ""},
		{"-A INPUT -i eth0 -j ACCEPT", all + " CONDITIONAL"},
		{"-A INPUT -f -j ACCEPT", ""},
		{"-A INPUT ! -f -j ACCEPT", all + " OPEN"},
		{"-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT", "22-22 OPEN"},
		{"-A INPUT -p tcp -m tcp ! --dport 22 -j ACCEPT", "1-21 OPEN\n23-65535 OPEN"},
		{"-A INPUT -p tcp -m tcp --dport 0:100 -j ACCEPT", "1-100 OPEN"},
		{"-A INPUT -p tcp -m tcp --dport 60000:65535 -j ACCEPT", "60000-65535 OPEN"},
		{"-A INPUT -p tcp -m tcp --sport 22 -j ACCEPT", all + " CONDITIONAL"},
		{"-A INPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT", all + " OPEN"},
		{"-A INPUT -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT", ""},
		{"-A INPUT -p tcp -m tcp --tcp-flags ALL NONE -j ACCEPT", ""},
		{"-A INPUT -p tcp -m multiport --dports 22,80:81,443 -j ACCEPT", "22-22 OPEN\n80-81 OPEN\n443-443 OPEN"},
		{"-A INPUT -p tcp -m multiport ! --dports 2:65535 -j ACCEPT", "1-1 OPEN"},
		{"-A INPUT -p tcp -m multiport --ports 22 -j ACCEPT", all + " CONDITIONAL"},
		{"-A INPUT -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT", all + " OPEN"},
		{"-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT", ""},
		{"-A INPUT -m conntrack ! --ctstate ESTABLISHED -j ACCEPT", all + " OPEN"},
		{"-A INPUT -m conntrack ! --ctstate INVALID -j ACCEPT", all + " OPEN"},
		{"-A INPUT -m state --state NEW -j ACCEPT", all + " OPEN"},
		{"-A INPUT -m conntrack --ctstate DNAT -j ACCEPT", ""},
		{"-A INPUT -m addrtype --dst-type LOCAL -j ACCEPT", all + " OPEN"},
		{"-A INPUT -m addrtype ! --dst-type LOCAL -j ACCEPT", ""},
		{"-A INPUT -m addrtype --dst-type LOCAL --limit-iface-in -j ACCEPT", all + " CONDITIONAL"},
		{"-A INPUT -m addrtype --src-type LOCAL -j ACCEPT", ""},
		{"-A INPUT -m set --match-set x src -j ACCEPT", all + " CONDITIONAL"},
		{"-A INPUT -m set ! --match-set x src -j ACCEPT", all + " CONDITIONAL"},
		{"-A INPUT -m limit --limit 5/min -j ACCEPT", all + " CONDITIONAL"},
		{"-A INPUT -m comment --comment x -j ACCEPT", all + " OPEN"},
		{"-A INPUT -j LOG --log-prefix x\n-A INPUT -j ACCEPT", all + " OPEN"},
		{"-A INPUT -j MARK --set-xmark 0x1/0x1", ""},
		{"-A INPUT", ""},
		{"-A INPUT -j NFQUEUE --queue-num 1", all + " CONDITIONAL"},
		{"-A INPUT -j HELLO --world", all + " CONDITIONAL"},
		{"-A INPUT -j HELLO\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT", all + " CONDITIONAL"},
		{"-A INPUT -j REJECT --reject-with icmp-port-unreachable\n-A INPUT -j ACCEPT", ""},
		{"-A INPUT -s 198.51.100.0/24 -j DROP\n-A INPUT -j ACCEPT", all + " CONDITIONAL"},
		{"-A INPUT -j RETURN\n-A INPUT -j ACCEPT", ""},
		{"-A INPUT -j u\n-A u -p tcp -m tcp --dport 22 -j ACCEPT", "22-22 OPEN"},
		{"-A INPUT -j u\n-A INPUT -j ACCEPT\n-A u -p tcp -m tcp --dport 22 -j RETURN\n-A u -j DROP", "22-22 OPEN"},
		{"-A INPUT -g u\n-A INPUT -j ACCEPT\n-A u -p tcp -m tcp --dport 22 -j ACCEPT", "22-22 OPEN"},
		{"-A INPUT -j u\n-A INPUT -j ACCEPT\n-A u -g v\n-A v -p tcp -m tcp --dport 22 -j RETURN\n-A v -j DROP", "22-22 OPEN"},
		{"-A INPUT -s 198.51.100.0/24 -j u\n-A u -p tcp -m tcp --dport 22 -j ACCEPT", "22-22 CONDITIONAL"},
		{"-A INPUT -p tcp -m tcp --dport 22 -j u\n-A u -p tcp -m tcp --dport 23 -j ACCEPT", ""},
		{"-A INPUT -j u\n-A INPUT -j u\n-A u -p tcp -m tcp --dport 1:100 -j v\n-A v -p tcp -m tcp --dport 50:200 -j ACCEPT", "50-100 OPEN"},
	} {
		resp := status(t, said{legacy4: filterSet(strings.Split(c.rules, "\n")...)})
		if s := resp.GetSources()[2]; s.GetProblem() != "" {
			t.Errorf("%s: %s", c.rules, s.GetProblem())
		}
		got := ""
		for _, o := range resp.GetSummary().GetOpenPorts() {
			if o.GetProtocol() == "tcp" && o.GetFamily() == familyIPv4 {
				got += fmt.Sprintf("%d-%d %s\n", o.GetFirstPort(), o.GetLastPort(), strings.TrimPrefix(o.GetReach().String(), "REACH_"))
			}
		}
		if strings.TrimSuffix(got, "\n") != c.want {
			t.Errorf("%s:\n%swant\n%s", c.rules, got, c.want)
		}
	}
}

// TestReachDiverted: where packets are sent elsewhere, the chains on that way decide.
func TestReachDiverted(t *testing.T) {
	nat := func(rules ...string) string {
		return "*nat\n:PREROUTING ACCEPT [0:0]\n:u - [0:0]\n[0:0] " + strings.Join(rules, "\n[0:0] ") + "\nCOMMIT\n"
	}
	const to = "-A PREROUTING -p tcp -m tcp --dport 8080 -j DNAT --to-destination 198.18.0.2:80"
	for name, c := range map[string]struct{ set, want string }{
		"let through by default":  {nat(to) + "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n", "8080-8080 OPEN nat/PREROUTING/1 to 198.18.0.2:80"},
		"not let through":         {nat(to) + filterSet("-A INPUT -j ACCEPT"), "1-8079 OPEN filter/INPUT/1,8081-65535 OPEN filter/INPUT/1"},
		"by the old port":         {nat(to) + filterSet("-A FORWARD -p tcp -m tcp --dport 8080 -j ACCEPT"), ""},
		"by the new port":         {nat(to) + filterSet("-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT"), "8080-8080 OPEN filter/FORWARD/1 to 198.18.0.2:80"},
		"by the new address":      {nat(to) + filterSet("-A FORWARD -d 198.18.0.0/24 -j ACCEPT"), "8080-8080 OPEN filter/FORWARD/1 to 198.18.0.2:80"},
		"by another address":      {nat(to) + filterSet("-A FORWARD -d 198.18.1.0/24 -j ACCEPT"), ""},
		"by a device":             {nat(to) + filterSet("-A FORWARD -o eth1 -j ACCEPT"), "8080-8080 CONDITIONAL filter/FORWARD/1 to 198.18.0.2:80"},
		"by its bridge":           {nat(to) + filterSet("-A FORWARD -o docker0 -j u", "-A u -d 198.18.0.2/32 -o docker0 -j ACCEPT"), "8080-8080 OPEN filter/u/1 to 198.18.0.2:80"},
		"by all but its bridge":   {nat(to) + filterSet("-A FORWARD ! -o docker0 -j ACCEPT", "-A u -d 198.18.0.2/32 -o docker0 -j ACCEPT"), ""},
		"because it was diverted": {nat(to) + filterSet("-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT"), "8080-8080 OPEN filter/FORWARD/1 to 198.18.0.2:80"},
		"local no more":           {nat(to) + filterSet("-A FORWARD -m addrtype --dst-type LOCAL -j ACCEPT"), ""},
		"for some":                {nat("-A PREROUTING -s 198.51.100.0/24 -p tcp -m tcp --dport 22 -j DNAT --to-destination 198.18.0.2") + filterSet("-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT", "-A FORWARD -j DROP"), "22-22 CONDITIONAL filter/INPUT/1"},
		"the same port":           {nat("-A PREROUTING -p tcp -m tcp --dport 21:23 -j DNAT --to-destination 198.18.0.2") + filterSet("-A FORWARD -p tcp -m tcp --dport 22 -j ACCEPT"), "22-22 OPEN filter/FORWARD/1 to 198.18.0.2"},
		"to some of several":      {nat("-A PREROUTING -p tcp -m tcp --dport 22 -j DNAT --to-destination 198.18.0.2-198.18.0.9:80-81") + filterSet("-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT"), "22-22 CONDITIONAL filter/FORWARD/1 to 198.18.0.2-198.18.0.9:80-81"},
		"to another port here":    {nat("-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080") + filterSet("-A INPUT -p tcp -m tcp --dport 8080 -j ACCEPT"), "80-80 OPEN filter/INPUT/1 to :8080,8080-8080 OPEN filter/INPUT/1"},
		"the first decides":       {nat(to, strings.Replace(to, "0.2:80", "0.3:81", 1)) + filterSet("-A FORWARD -p tcp -m tcp --dport 81 -j ACCEPT"), ""},
		"in a chain":              {nat("-A PREROUTING -m addrtype --dst-type LOCAL -j u", "-A u -i lo -j RETURN", strings.Replace(to, "PREROUTING", "u", 1)) + filterSet("-A FORWARD -j ACCEPT"), "8080-8080 OPEN filter/FORWARD/1 to 198.18.0.2:80"},
		"untracked":               {"*raw\n:PREROUTING ACCEPT [0:0]\n[0:0] -A PREROUTING -p tcp -m tcp --dport 8080 -j CT --notrack\nCOMMIT\n" + nat(to) + filterSet("-A INPUT -m conntrack --ctstate NEW -j ACCEPT"), "1-8079 OPEN filter/INPUT/1,8080-8080 CONDITIONAL filter/INPUT/1,8081-65535 OPEN filter/INPUT/1"},
		"untracked, at home":      {"*raw\n:PREROUTING ACCEPT [0:0]\n[0:0] -A PREROUTING -p tcp -m tcp --dport 22 -j CT --notrack\nCOMMIT\n" + filterSet("-A INPUT -p tcp -m tcp --dport 21:22 -m conntrack --ctstate NEW -j ACCEPT"), "21-21 OPEN filter/INPUT/1,22-22 CONDITIONAL filter/INPUT/1"},
		"dropped before":          {"*raw\n:PREROUTING ACCEPT [0:0]\n[0:0] -A PREROUTING -p tcp -m tcp --dport 8080 -j DROP\nCOMMIT\n" + nat(to) + filterSet("-A FORWARD -j ACCEPT"), ""},
		"its own address, direct": {"*raw\n:PREROUTING ACCEPT [0:0]\n[0:0] -A PREROUTING -d 198.18.0.2/32 ! -i docker0 -j DROP\nCOMMIT\n" + nat(to) + filterSet("-A FORWARD -j ACCEPT"), "8080-8080 OPEN filter/FORWARD/1 to 198.18.0.2:80"},
	} {
		resp := status(t, said{legacy4: c.set})
		if s := resp.GetSources()[2]; s.GetProblem() != "" {
			t.Errorf("%s: %s", name, s.GetProblem())
		}
		got := ""
		for l := range strings.Lines(openPorts(resp.GetSummary())) {
			if l, ok := strings.CutPrefix(l, "IPV4 tcp "); ok {
				got += "," + strings.TrimSuffix(l, "\n")
			}
		}
		if strings.TrimPrefix(got, ",") != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", name, strings.TrimPrefix(got, ","), c.want)
		}
	}
}

// TestReachTangled: what is too much to be worked out is said to be unknown.
func TestReachTangled(t *testing.T) {
	chains := func(n int, rules func(i int) string) string {
		var b strings.Builder
		b.WriteString("*filter\n:INPUT DROP [0:0]\n")
		for i := range n {
			fmt.Fprintf(&b, ":c%d - [0:0]\n", i)
		}
		b.WriteString("[0:0] -A INPUT -j c0\n")
		for i := range n {
			b.WriteString(rules(i))
		}
		b.WriteString("COMMIT\n")
		return b.String()
	}
	// Each chain leads to the next twice, but is worked out once.
	twice := chains(60, func(i int) string {
		if i == 59 {
			return "[0:0] -A c59 -p tcp -m tcp --dport 22 -j ACCEPT\n"
		}
		return fmt.Sprintf("[0:0] -A c%d -s 198.51.100.7/32 -j c%d\n[0:0] -A c%d -j c%d\n", i, i+1, i, i+1)
	})
	if got := openPorts(status(t, said{legacy4: twice}).GetSummary()); got != "IPV4 tcp 22-22 OPEN filter/c59/1\n"+open6 {
		t.Error(got)
	}
	// Each port goes to a container of its own, through rules about every port.
	var nat, forward strings.Builder
	nat.WriteString("*nat\n:PREROUTING ACCEPT [0:0]\n")
	for i := range 3000 {
		fmt.Fprintf(&nat, "[0:0] -A PREROUTING -p tcp -m tcp --dport %d -j DNAT --to-destination 10.%d.%d.1:80\n", i+1, i/200, i%200)
		fmt.Fprintf(&forward, "[0:0] -A INPUT -p tcp -m tcp --dport %d -j ACCEPT\n[0:0] -A FORWARD -s 10.0.%d.%d/32 -j ACCEPT\n", i+1, i/200, i%200)
	}
	wide := nat.String() + "COMMIT\n" + strings.Replace(filterSet("-A u"), "COMMIT\n", forward.String()+"COMMIT\n", 1)
	for name, c := range map[string]struct{ set, why string }{
		"a circle":          {chains(3, func(i int) string { return fmt.Sprintf("[0:0] -A c%d -j c%d\n", i, (i+1)%3) }), "circle"},
		"a chain in itself": {chains(1, func(int) string { return "[0:0] -A c0 -j c0\n" }), "circle"},
		"too deep":          {chains(5000, func(i int) string { return fmt.Sprintf("[0:0] -A c%d -j c%d\n", i, min(i+1, 4999)) }), "tangled"},
		"too wide":          {wide, "tangled"},
	} {
		s := said{legacy4: c.set}
		resp := status(t, s)
		if u := resp.GetSummary().GetUncertain(); !strings.Contains(u, c.why) || len(resp.GetSummary().GetOpenPorts()) != 0 {
			t.Errorf("%s: %q, %d ranges", name, u, len(resp.GetSummary().GetOpenPorts()))
		}
		v, err := service(s).Reach(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if reach, rule := v.Port(false, false, 22); reach != brokerv1.Reach_REACH_UNSPECIFIED || rule != nil || v.Uncertain() == "" {
			t.Errorf("%s: %v, %v", name, reach, rule)
		}
	}
}
