package e2e

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

// netns is a network of its own, in which a brokerhost lives.
type netns struct {
	*brokerhost
	*broker
	t      testing.TB
	client *client.Client
}

func newNetns(t testing.TB) *netns {
	h := newHost(t, "", "unshare", "--net")
	b := hostBroker(t, h)
	return &netns{h, b, t, b.dial("hermes")}
}

// in runs a program there.
func (n *netns) in(input string, args ...string) string {
	n.t.Helper()
	cmd := exec.Command("nsenter", append([]string{"-t", fmt.Sprint(n.pid()), "-n"}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		n.t.Fatalf("%q: %v\n%s\n%s", args, err, out, input)
	}
	return string(out)
}

// status reads all pages.
func (n *netns) status(req *brokerv1.FirewallStatusRequest) *brokerv1.FirewallStatusResponse {
	n.t.Helper()
	c := n.client.Firewall()
	var all *brokerv1.FirewallStatusResponse
	for req.PageSize = 500; ; {
		resp, err := c.FirewallStatus(within(n.t), req)
		n.must(err)
		if all == nil {
			all = resp
		} else {
			all.Rules = append(all.Rules, resp.GetRules()...)
		}
		if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
			return all
		}
	}
}

func states(r *brokerv1.FirewallStatusResponse) (all []string) {
	short := func(s fmt.Stringer) string { return s.String()[strings.LastIndex(s.String(), "_")+1:] }
	for _, s := range r.GetSources() {
		all = append(all, short(s.GetBackend())+" "+short(s.GetFamily())+" "+short(s.GetState()))
	}
	return all
}

// TestFirewall: what the kernel has comes back, of each back end, and nothing is
// said to be empty that could not be read.
func TestFirewall(t *testing.T) {
	n := newNetns(t)
	empty := n.status(&brokerv1.FirewallStatusRequest{})
	if got := states(empty); !slices.Equal(got, []string{"NFT IPV4 EMPTY", "NFT IPV6 EMPTY", "LEGACY IPV4 EMPTY", "LEGACY IPV6 EMPTY", "NFTABLES UNSPECIFIED EMPTY"}) || len(empty.GetRules()) != 0 {
		t.Errorf("%q, %v", got, empty.GetRules())
	}
	if o := empty.GetSummary().GetOpenPorts(); len(o) != 4 || o[0].GetFirstPort() > 1 || o[0].GetLastPort() != 65535 || o[0].GetReach() != brokerv1.Reach_REACH_OPEN {
		t.Errorf("without rules all is open: %v", o)
	}
	n.in(`*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:mine - [0:0]
[3:180] -A INPUT -i lo -j ACCEPT
[0:0] -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
[7:420] -A INPUT -p tcp -m tcp --dport 22 -m comment --comment "the \"door\"\\ of ssh" -j ACCEPT
[0:0] -A INPUT -p tcp -m tcp --dport 80 -j mine
[0:0] -A mine -s 198.51.100.0/24 -j ACCEPT
COMMIT
`, "iptables-nft-restore", "--counters")
	n.in("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p udp -m udp --dport 53 -j DROP\nCOMMIT\n", "iptables-legacy-restore")
	n.in("table inet own {\n chain in {\n type filter hook input priority 10; policy accept;\n tcp dport 22 counter accept\n tcp dport { 23, 2323 } drop\n }\n}\n", "nft", "-f", "-")
	r := n.status(&brokerv1.FirewallStatusRequest{})
	if got := states(r); !slices.Equal(got, []string{"NFT IPV4 ACTIVE", "NFT IPV6 EMPTY", "LEGACY IPV4 ACTIVE", "LEGACY IPV6 EMPTY", "NFTABLES UNSPECIFIED ACTIVE"}) {
		t.Errorf("%q: %v", got, r.GetSources())
	}
	var texts []string
	for _, rule := range r.GetRules() {
		texts = append(texts, rule.GetText())
	}
	rules := []string{
		"-A INPUT -i lo -j ACCEPT", "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		`-A INPUT -p tcp -m tcp --dport 22 -m comment --comment "the \"door\"\\ of ssh" -j ACCEPT`, "-A INPUT -p tcp -m tcp --dport 80 -j mine", "-A mine -s 198.51.100.0/24 -j ACCEPT",
		"-A INPUT -p udp -m udp --dport 53 -j DROP", "tcp dport 22 counter accept", "tcp dport { 23, 2323 } drop",
	}
	if !slices.Equal(texts, rules) {
		t.Errorf("rules\n%q\nwant\n%q", texts, rules)
	}
	ssh := r.GetRules()[2]
	if ssh.GetPackets() != 7 || ssh.GetBytes() != 420 || ssh.GetComment() != `the "door"\ of ssh` || ssh.GetDestinationPorts() != "22" || ssh.GetProtocol() != "tcp" || ssh.GetTarget() != "ACCEPT" || ssh.GetNumber() != 3 {
		t.Errorf("%v", ssh)
	}
	var open []string
	for _, o := range r.GetSummary().GetOpenPorts() {
		if o.GetFamily() == brokerv1.FirewallFamily_FIREWALL_FAMILY_IPV4 && o.GetProtocol() == "tcp" {
			open = append(open, fmt.Sprintf("%d-%d %s", o.GetFirstPort(), o.GetLastPort(), o.GetReach()))
		}
	}
	if !slices.Equal(open, []string{"22-22 REACH_OPEN", "80-80 REACH_CONDITIONAL"}) || r.GetSummary().GetUncertain() != "" {
		t.Errorf("open: %q, %q", open, r.GetSummary().GetUncertain())
	}
	some := n.status(&brokerv1.FirewallStatusRequest{Backend: brokerv1.FirewallBackend_FIREWALL_BACKEND_IPTABLES_LEGACY})
	if len(some.GetRules()) != 1 || len(some.GetChains()) != len(r.GetChains()) {
		t.Errorf("%v", some)
	}
	for _, args := range [][]string{{"status"}, {"rules"}} {
		if out, code := n.ctl("hermes", append([]string{"firewall"}, args...)...); code != 0 || !strings.Contains(out, "22") {
			t.Errorf("brokerctl firewall %q: %d\n%s", args, code, out)
		}
	}
	// The rules change between two pages.
	c := n.client.Firewall()
	first, err := c.FirewallStatus(within(t), &brokerv1.FirewallStatusRequest{PageSize: 2})
	n.must(err)
	second, err := c.FirewallStatus(within(t), &brokerv1.FirewallStatusRequest{PageSize: 2, PageToken: first.GetNextPageToken()})
	if err != nil || second.GetRules()[0].GetNumber() != 3 {
		t.Errorf("%v, %v", second, err)
	}
	n.in("", "iptables-nft", "-I", "INPUT", "-p", "tcp", "--dport", "443", "-j", "ACCEPT")
	_, err = c.FirewallStatus(within(t), &brokerv1.FirewallStatusRequest{PageSize: 2, PageToken: second.GetNextPageToken()})
	want(t, err, brokerv1.ErrorReason_ERROR_REASON_RULES_CHANGED)
}

// TestReachIsTrue asks the kernel: for rule sets of every kind somebody outside
// tries every port, and gets to those that the summary says are open and to none
// that it says are not.
func TestReachIsTrue(t *testing.T) {
	n := newNetns(t)
	outside := exec.Command("unshare", "--net", "sleep", "600")
	n.must(outside.Start())
	t.Cleanup(func() { _ = outside.Process.Kill(); _ = outside.Wait() })
	eventually(t, "the outside", func() bool {
		a, errA := exec.Command("readlink", fmt.Sprintf("/proc/%d/ns/net", outside.Process.Pid)).Output()
		b, errB := exec.Command("readlink", "/proc/self/ns/net").Output()
		return errA == nil && errB == nil && string(a) != string(b)
	})
	enter := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("nsenter", append([]string{"-t", fmt.Sprint(outside.Process.Pid), "-n"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	n.in("", "ip", "link", "add", "wan0", "type", "veth", "peer", "name", "wan1", "netns", fmt.Sprint(outside.Process.Pid))
	n.in("", "ip", "addr", "add", "198.51.100.1/24", "dev", "wan0")
	n.in("", "ip", "link", "set", "wan0", "up")
	n.in("", "ip", "link", "set", "lo", "up")
	enter("ip", "addr", "add", "198.51.100.2/24", "dev", "wan1")
	enter("ip", "link", "set", "wan1", "up")
	ports := []int{22, 80, 81, 443, 1000, 8080, 8443}
	var dial []string
	for _, port := range ports {
		p := exec.Command("nsenter", "-t", fmt.Sprint(n.pid()), "-n", host.Dir+"/guest", "listen", "tcp", fmt.Sprintf("198.51.100.1:%d", port))
		n.must(p.Start())
		t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
		dial = append(dial, fmt.Sprintf("198.51.100.1:%d", port))
	}
	reached := func() (open []int) {
		answered := strings.Fields(enter(append([]string{host.Dir + "/guest", "dial"}, dial...)...))
		for i, port := range ports {
			if slices.Contains(answered, dial[i]) {
				open = append(open, port)
			}
		}
		return open
	}
	eventually(t, "all listen", func() bool { return len(reached()) == len(ports) })
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	open, blocked, conditional := 0, 0, 0
	for round := range 40 {
		restore, text := "iptables-nft-restore", randomFilter(rng)
		if round%2 == 1 {
			restore = "iptables-legacy-restore"
		}
		nft := ""
		if round%4 >= 2 {
			nft = randomNft(rng)
		}
		n.in("", "nft", "flush", "ruleset")
		n.in("*filter\nCOMMIT\n*nat\nCOMMIT\n", "iptables-legacy-restore")
		n.in(text, restore)
		if nft != "" {
			n.in(nft, "nft", "-f", "-")
		}
		got := reached()
		summary := n.status(&brokerv1.FirewallStatusRequest{}).GetSummary()
		if summary.GetUncertain() != "" {
			t.Fatalf("seed %d, round %d: %s", seed, round, summary.GetUncertain())
		}
		for _, port := range ports {
			reach := brokerv1.Reach_REACH_BLOCKED
			for _, o := range summary.GetOpenPorts() {
				if o.GetFamily() == brokerv1.FirewallFamily_FIREWALL_FAMILY_IPV4 && o.GetProtocol() == "tcp" && int(o.GetFirstPort()) <= port && port <= int(o.GetLastPort()) {
					reach = o.GetReach()
				}
			}
			through := slices.Contains(got, port)
			switch {
			case reach == brokerv1.Reach_REACH_OPEN && through:
				open++
			case reach == brokerv1.Reach_REACH_BLOCKED && !through:
				blocked++
			case reach == brokerv1.Reach_REACH_CONDITIONAL:
				conditional++
			default:
				t.Errorf("seed %d, round %d, port %d: said to be %v, got through: %v\n%s\n%s", seed, round, port, reach, through, text, nft)
			}
		}
	}
	t.Logf("%d open, %d blocked, %d conditional", open, blocked, conditional)
	if open < 20 || blocked < 20 {
		t.Errorf("%d open, %d blocked: the rule sets are too much alike", open, blocked)
	}
}

func pick[T any](rng *rand.Rand, all ...T) T { return all[rng.IntN(len(all))] }

// randomFilter is a rule set of iptables's, with chains that lead to chains.
func randomFilter(rng *rand.Rand) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*filter\n:INPUT %s [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:one - [0:0]\n:two - [0:0]\n", pick(rng, "ACCEPT", "DROP"))
	fmt.Fprintf(&b, "-A INPUT -i lo -j ACCEPT\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n")
	for _, chain := range []string{"two", "one", "INPUT"} {
		targets := []string{"-j ACCEPT", "-j DROP", "-j REJECT --reject-with icmp-port-unreachable", "-j RETURN"}
		switch chain {
		case "INPUT":
			targets = append(targets, "-j one", "-g one", "-j two")
		case "one":
			targets = append(targets, "-j two", "-g two")
		}
		for range 1 + rng.IntN(5) {
			fmt.Fprintf(&b, "-A %s %s %s\n", chain, pick(rng,
				"-p tcp -m tcp --dport 22", "-p tcp -m tcp --dport 80:1000", "-p tcp -m tcp ! --dport 443", "-p tcp -m multiport --dports 22,443,8000:9000", "-p tcp -m multiport ! --dports 22,80",
				"-p udp -m udp --dport 22", "-p tcp", "! -p udp", "-p tcp -m tcp --dport 8080 -m conntrack --ctstate NEW", "-m conntrack --ctstate INVALID", "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN --dport 81",
				"-p tcp -m tcp --dport 443 -m comment --comment \"a -j DROP in words\"", "-s 198.51.100.2/32 -p tcp -m tcp --dport 80", "-s 203.0.113.0/24 -p tcp", "-i wan0 -p tcp -m tcp --dport 8443", "",
			), pick(rng, targets...))
		}
	}
	b.WriteString("COMMIT\n")
	if rng.IntN(3) == 0 {
		fmt.Fprintf(&b, "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -m tcp --dport %d -j REDIRECT --to-ports %d\nCOMMIT\n", pick(rng, 80, 81, 443), pick(rng, 8080, 22))
	}
	return b.String()
}

// randomNft is a rule set of nftables's, with a chain and sets.
func randomNft(rng *rand.Rand) string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet own {\n set ports { type inet_service; flags interval; elements = { 22, 8000-8500 } }\n chain sub {\n tcp dport %d %s\n }\n chain in {\n type filter hook input priority %d; policy %s;\n ct state established,related accept\n",
		pick(rng, 80, 443), pick(rng, "accept", "drop", "return"), pick(rng, -10, 10), pick(rng, "accept", "drop"))
	for range 1 + rng.IntN(5) {
		fmt.Fprintf(&b, " %s\n", pick(rng,
			"tcp dport 22 accept", "tcp dport { 80, 81, 8443 } accept", "tcp dport 1000-9000 drop", "tcp dport @ports accept", "tcp dport != 443 jump sub", "jump sub", "meta l4proto tcp tcp dport 8080 accept",
			"tcp dport vmap { 22 : accept, 80 : drop, 443 : jump sub }", "udp dport 22 drop", "ct state new tcp dport 81 accept", "ip saddr 203.0.113.9 drop", "meta nfproto ipv4 tcp dport 1000 accept", "tcp dport >= 8000 accept", "counter", "log prefix \"x\"",
		))
	}
	return b.String() + " }\n}\n"
}
