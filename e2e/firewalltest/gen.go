// Package firewalltest makes rule sets for iptables and nftables by chance, and
// prints rules out of their typed fields, to hold them against what the tools print.
package firewalltest

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// generator writes rule sets. The same seed gives the same ones.
type generator struct {
	*rand.Rand
	ipv6 bool
}

// Generate makes a rule set for iptables-restore, or for ip6tables-restore. It has
// the tables raw, mangle, nat and filter, so that loading it leaves nothing of the
// one before.
func Generate(r *rand.Rand, ipv6 bool) string {
	g := &generator{r, ipv6}
	var b strings.Builder
	for _, t := range []struct {
		name     string
		builtins []string
	}{
		{"raw", []string{"PREROUTING", "OUTPUT"}},
		{"mangle", []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}},
		{"nat", []string{"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"}},
		{"filter", []string{"INPUT", "FORWARD", "OUTPUT"}},
	} {
		fmt.Fprintf(&b, "*%s\n", t.name)
		for _, c := range t.builtins {
			policy := "ACCEPT"
			if t.name == "filter" {
				policy = pick(g, "ACCEPT", "DROP")
			}
			fmt.Fprintf(&b, ":%s %s [%d:%d]\n", c, policy, g.IntN(1000), g.Uint64N(1<<40))
		}
		users := []string{"one", "two-2", "Three_3", "f2b-sshd"}[:g.IntN(5)]
		for _, c := range users {
			fmt.Fprintf(&b, ":%s - [0:0]\n", c)
		}
		for _, c := range t.builtins {
			for range g.IntN(5) {
				fmt.Fprintf(&b, "[%d:%d] -A %s%s\n", g.IntN(1000), g.Uint64N(1<<40), c, g.rule(t.name, c, users))
			}
		}
		for i, c := range users {
			for range g.IntN(5) {
				// Only to later ones, so that none leads back.
				fmt.Fprintf(&b, "[%d:%d] -A %s%s\n", g.IntN(1000), g.Uint64N(1<<40), c, g.rule(t.name, c, users[i+1:]))
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

// pick is one of several.
func pick(g *generator, all ...string) string { return all[g.IntN(len(all))] }

// not is a negation, at times.
func (g *generator) not() string { return pick(g, "", "", "", "! ") }

func (g *generator) address() string {
	if g.ipv6 {
		return pick(g, "fd00::1", "fe80::/10", "2001:db8:1::/48", "fd00::7/128", "2001:db8::5")
	}
	return pick(g, "198.51.100.7", "10.0.0.0/8", "203.0.113.0/24", "192.168.1.1/32", "172.16.0.0/12")
}

func (g *generator) port() string {
	first := 1 + g.IntN(60000)
	if g.IntN(3) == 0 {
		return fmt.Sprintf("%d:%d", first, first+1+g.IntN(5000))
	}
	return fmt.Sprint(first)
}

func (g *generator) portList() string {
	all := []string{g.port()}
	for range g.IntN(4) {
		all = append(all, g.port())
	}
	return strings.Join(all, ",")
}

// comment has the characters that tools trip over.
func (g *generator) comment() string {
	var b strings.Builder
	for range 1 + g.IntN(12) {
		b.WriteString(pick(g, "a", "Z", "7", "-", "_", " ", "'", `"`, `\`, "$x", "`", "#", "!", "é", "-j", ":", ",", "[", "]", "{", "*", "COMMIT", "--dport"))
	}
	return strings.TrimSpace(b.String()) + "."
}

// prefix is a comment of at most 29 bytes.
func (g *generator) prefix() string {
	text := strings.ReplaceAll(g.comment(), "é", "e")
	return text[max(0, len(text)-29):]
}

// asks are a rule's conditions.
func (g *generator) asks(chain string) string {
	var b strings.Builder
	some := func(n int) bool { return g.IntN(n) == 0 }
	put := func(format string, args ...any) { fmt.Fprintf(&b, " "+format, args...) }
	if some(4) {
		put("%s-s %s", g.not(), g.address())
	}
	if some(5) {
		put("%s-d %s", g.not(), g.address())
	}
	if some(4) && chain != "OUTPUT" && chain != "POSTROUTING" {
		put("%s-i %s", g.not(), pick(g, "eth0", "eth+", "lo", "br-0123456789ab", "wg0.5"))
	}
	if some(6) && chain != "INPUT" && chain != "PREROUTING" {
		put("%s-o %s", g.not(), pick(g, "eth1", "docker0", "veth+"))
	}
	switch g.IntN(9) {
	case 0:
		put("-p tcp -m tcp%s%s", g.optional("sport"), g.optional("dport"))
		if some(3) {
			put("%s--tcp-flags %s", g.not(), pick(g, "FIN,SYN,RST,ACK SYN", "SYN,RST SYN", "FIN,SYN FIN,SYN"))
		}
	case 1:
		put("-p udp -m udp --dport %s", g.port())
	case 2:
		put("-p %s -m multiport %s--dports %s", pick(g, "tcp", "udp"), g.not(), g.portList())
	case 3:
		put("-p tcp -m multiport --sports %s -m tcp --dport %s", g.portList(), g.port())
	case 4:
		if g.ipv6 {
			put("-p ipv6-icmp -m icmp6 %s--icmpv6-type %s", g.not(), pick(g, "128", "135", "1/4"))
		} else {
			put("-p icmp -m icmp %s--icmp-type %s", g.not(), pick(g, "8", "3/1", "0"))
		}
	case 5:
		put("%s-p %s", g.not(), pick(g, "tcp", "udp", "gre", "esp", "47", "132", "200"))
	}
	for _, m := range g.modules() {
		if some(9) {
			put("%s", m)
		}
	}
	if some(4) {
		put("-m comment --comment %s", quote(g.comment()))
	}
	if some(12) {
		put("-m mark --mark 0x7")
	}
	return b.String()
}

func (g *generator) optional(name string) string {
	if g.IntN(2) == 0 {
		return ""
	}
	return fmt.Sprintf(" %s--%s %s", g.not(), name, g.port())
}

// modules are conditions that all chains take.
func (g *generator) modules() []string {
	all := []string{
		fmt.Sprintf("-m conntrack %s--ctstate %s", g.not(), pick(g, "NEW", "RELATED,ESTABLISHED", "INVALID,NEW,UNTRACKED", "DNAT")),
		"-m state --state " + pick(g, "NEW", "INVALID,RELATED"),
		fmt.Sprintf("-m limit --limit %d/%s --limit-burst %d", 1+g.IntN(9), pick(g, "sec", "min", "hour"), 6+g.IntN(9)),
		fmt.Sprintf("-m addrtype %s--dst-type %s", g.not(), pick(g, "LOCAL", map[bool]string{false: "BROADCAST,MULTICAST", true: "UNICAST,MULTICAST"}[g.ipv6])),
		fmt.Sprintf("-m mark %s--mark %s", g.not(), pick(g, "0x1", "0x10/0xff")),
		fmt.Sprintf("-m length --length %d:%d", g.IntN(100), 100+g.IntN(1000)),
		"-m recent --update --seconds 60 --hitcount 6 --name DEFAULT --mask " + pick(g, map[bool]string{false: "255.255.255.255", true: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}[g.ipv6]) + " --rsource",
		"-m string --string " + quote(g.comment()) + " --algo bm",
		"-m pkttype " + g.not() + "--pkt-type " + pick(g, "broadcast", "multicast", "unicast"),
	}
	if g.ipv6 {
		return append(all, "-m iprange "+g.not()+"--src-range fd00::1-fd00::9", "-m hl --hl-eq 255")
	}
	return append(all, "-m iprange "+g.not()+"--dst-range 198.51.100.1-198.51.100.9", "-m ttl --ttl-lt 5")
}

// rule is a rule behind its chain's name.
func (g *generator) rule(table, chain string, users []string) string {
	asks := g.asks(chain)
	does := g.does(table, chain, users)
	if strings.Contains(does, " -p ") && strings.Contains(asks, " -p ") {
		return asks // It is about another protocol: the rule counts.
	}
	return asks + does
}

// does is what a rule does.
func (g *generator) does(table, chain string, users []string) string {
	all := []string{" -j ACCEPT", " -j RETURN", "", " -j LOG --log-prefix " + quote(g.prefix()), " -j NFLOG --nflog-prefix " + quote(g.prefix()) + " --nflog-group 5"}
	for _, u := range users {
		all = append(all, " -j "+u, " -g "+u)
	}
	addr, nets := "198.18.0.2", "198.18.0.2-198.18.0.9"
	pair := addr
	if g.ipv6 {
		addr, nets = "fd00::2", "fd00::2-fd00::9"
		pair = "[" + addr + "]"
	}
	switch {
	case table == "filter":
		all = append(all, " -j DROP", " -j DROP", " -j REJECT --reject-with "+pick(g, map[bool]string{false: "icmp-port-unreachable", true: "icmp6-port-unreachable"}[g.ipv6], map[bool]string{false: "icmp-host-prohibited", true: "icmp6-adm-prohibited"}[g.ipv6]))
	case table == "mangle":
		all = append(all, " -j DROP", " -j MARK --set-xmark "+pick(g, "0x5/0xffffffff", "0x10/0xff"), " -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff")
	case table == "raw":
		all = append(all, " -j CT --notrack", " -j DROP")
	case chain == "PREROUTING" || chain == "OUTPUT":
		all = append(all, " -p tcp -j DNAT --to-destination "+pair+":"+fmt.Sprint(1+g.IntN(60000)), " -j DNAT --to-destination "+pick(g, addr, nets)+" --random", " -p udp -j REDIRECT --to-ports 5353", " -j REDIRECT")
	case chain == "POSTROUTING":
		all = append(all, " -j MASQUERADE"+pick(g, "", " --random"), " -j SNAT --to-source "+pick(g, addr, nets))
	}
	return pick(g, all...)
}
