package firewalltest

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// GenerateNft makes a rule set for nft -f, of which no rule needs another family's
// tools. Each begins with the flushing of the one before.
func GenerateNft(r *rand.Rand) string {
	g := &generator{Rand: r}
	var b strings.Builder
	b.WriteString("flush ruleset\n")
	for i, family := range []string{"inet", "ip", "ip6"} {
		g.ipv6 = family == "ip6"
		fmt.Fprintf(&b, "table %s t%d {\n", family, i)
		b.WriteString("set services { type inet_service; flags interval; elements = { 80, 443, 8000-8100 }; }\n")
		if family == "ip6" {
			b.WriteString("set people { type ipv6_addr; flags interval; elements = { fd00::/8, 2001:db8::1 }; }\n")
		} else {
			b.WriteString("set people { type ipv4_addr; flags interval; elements = { 198.51.100.0/24, 203.0.113.7 }; }\n")
		}
		b.WriteString("map acts { type inet_service : verdict; elements = { 25 : accept, 26 : drop }; }\n")
		b.WriteString("chain last {\n")
		g.nftRules(&b, family, "filter", "")
		b.WriteString("}\nchain user {\n")
		g.nftRules(&b, family, "filter", "last")
		b.WriteString("}\n")
		for _, c := range []struct{ name, kind, hook, prio string }{
			{"raw", "filter", "prerouting", "raw"}, {"in", "filter", "input", "filter"}, {"forw", "filter", "forward", "filter - 5"},
			{"dnats", "nat", "prerouting", "dstnat"}, {"snats", "nat", "postrouting", "srcnat"},
		} {
			policy := "accept"
			if c.kind == "filter" {
				policy = pick(g, "accept", "drop")
			}
			fmt.Fprintf(&b, "chain %s { type %s hook %s priority %s; policy %s;\n", c.name, c.kind, c.hook, c.prio, policy)
			kind := c.kind
			if kind == "nat" {
				kind = c.name
			}
			g.nftRules(&b, family, kind, "user")
			b.WriteString("}\n")
		}
		b.WriteString("}\n")
	}
	return b.String()
}

func (g *generator) nftRules(b *strings.Builder, family, kind, user string) {
	for range g.IntN(8) {
		var words []string
		layered, others := g.nftAsks(family)
		g.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
		words = append(words, others[:g.IntN(3)]...)
		does := g.nftDoes(family, kind, user)
		// Two conditions on protocols would contradict each other.
		if g.IntN(2) == 0 && !strings.Contains(does, "port") && !strings.Contains(does, "l4proto") && !strings.Contains(does, "nat ") {
			words = append(words, pick(g, layered...))
			g.Shuffle(len(words), func(i, j int) { words[i], words[j] = words[j], words[i] })
		}
		for _, w := range []string{"counter", fmt.Sprintf("log prefix \"%s\"", pick(g, "x: ", "a'b ", `back\slash `)), fmt.Sprintf("limit rate %d/%s", 1+g.IntN(9), pick(g, "second", "minute", "hour"))} {
			if g.IntN(4) == 0 {
				words = append(words, w)
			}
		}
		words = append(words, does)
		text := strings.TrimSpace(strings.Join(words, " "))
		if text == "" {
			text = "counter"
		}
		if g.IntN(4) == 0 {
			text += fmt.Sprintf(" comment \"%s\"", strings.NewReplacer(`"`, "", "\n", "").Replace(g.comment()))
		}
		b.WriteString(text + "\n")
	}
}

func (g *generator) ports4nft() string {
	a := 1 + g.IntN(60000)
	return pick(g, fmt.Sprint(a), fmt.Sprintf("%d-%d", a, a+1+g.IntN(1000)), fmt.Sprintf("{ %d, %d }", a, a+3), fmt.Sprintf("{ %d, %d-%d, 7 }", a, a+3, a+90), "@services",
		fmt.Sprintf("!= %d", a), fmt.Sprintf("!= { %d, %d }", a, a+9), fmt.Sprintf("< %d", a), fmt.Sprintf(">= %d", a))
}

// nftAsks are conditions, at most one of each kind: those on a protocol or a
// family, and others.
func (g *generator) nftAsks(family string) (layered, others []string) {
	others = []string{
		"ct state " + pick(g, "new", "established,related", "{ established, related }", "!= new", "invalid"),
		pick(g, "iifname", "oifname") + " " + pick(g, `"eth0"`, `"eth*"`, `!= "lo"`, `{ "eth0", "lo" }`),
		"meta mark " + pick(g, "5", "1-9", "!= 0x10", "{ 1, 7 }", "& 0xff == 3"),
		"ct status " + pick(g, "dnat", "snat,dnat"),
		"ct mark " + pick(g, "7", "& 0xf0 != 0x10"),
		"meta pkttype " + pick(g, "broadcast", "{ broadcast, multicast }"),
		"fib daddr type " + pick(g, "local", "!= local", "{ local, multicast }"),
		"meta length " + pick(g, "> 100", "1-50"),
		"ct direction original",
		"meta skuid 1000",
	}
	layered = []string{
		pick(g, "tcp", "udp") + " dport " + g.ports4nft(), pick(g, "tcp", "udp") + " sport " + g.ports4nft(),
		"tcp dport " + g.ports4nft() + " tcp flags " + pick(g, "syn", "syn,ack", "& (fin|syn|rst|ack) == syn", "== syn", "! ack"),
		"meta l4proto " + pick(g, "tcp", "{ tcp, udp }", "!= udp", "47"),
		"meta l4proto { tcp, udp } th dport " + g.ports4nft(),
	}
	inet := []string{
		"ip saddr " + pick(g, "198.51.100.7", "10.0.0.0/8", "!= 10.0.0.0/8", "192.0.2.1-192.0.2.9", "{ 192.0.2.1, 10.0.0.0/8 }"),
		"ip saddr . tcp dport " + pick(g, "{ 192.0.2.1 . 22, 192.0.2.2 . 80 }", "{ 10.0.0.0/8 . 1-9 }"), "ip protocol " + pick(g, "icmp", "{ tcp, udp }"),
		"icmp type " + pick(g, "echo-request", "{ echo-reply, echo-request }"), "ip frag-off & 0x1fff != 0", "ip ttl < 5",
	}
	inet6 := []string{
		"ip6 saddr " + pick(g, "fd00::1-fd00::9", "fe80::/10", "!= { fd00::1, fd00::2 }"), "ip6 daddr ff00::/8", "icmpv6 type " + pick(g, "nd-router-advert", "echo-request"),
		"ip6 nexthdr " + pick(g, "tcp", "ipv6-icmp"), "ip6 hoplimit 255", "rt type 0", "exthdr frag exists",
	}
	switch family {
	case "inet":
		return append(append(append(layered, inet...), inet6...), "ip saddr @people", "meta nfproto "+pick(g, "ipv4", "ipv6")), others
	case "ip":
		return append(append(layered, inet...), "ip saddr @people", "ip daddr @people"), others
	}
	return append(append(layered, inet6...), "ip6 saddr @people"), others
}

func (g *generator) nftDoes(family, kind, user string) string {
	all := []string{"accept", "return", "", "continue"}
	if user != "" {
		all = append(all, "jump "+user, "goto "+user)
	}
	to, addr := "", "198.18.0.2"
	if family == "inet" {
		to = "ip "
	}
	pair := addr
	if g.ipv6 {
		addr, pair = "fd00::2", "[fd00::2]"
	}
	switch kind {
	case "filter":
		all = append(all, "drop", "drop", "tcp dport vmap { 22 : accept, 23-25 : drop }", "tcp dport vmap @acts", `iifname vmap { "lo" : accept, "eth0" : drop }`,
			"ct state vmap { established : accept, invalid : drop }", "meta mark set 0x7", "notrack")
		if user == "user" {
			all = append(all, "drop", "meta l4proto vmap { tcp : jump user, udp : accept }")
		}
	case "dnats":
		all = append(all, "dnat "+to+"to "+addr, "meta l4proto tcp dnat "+to+"to "+pair+":8080", "redirect", "meta l4proto udp redirect to :53")
	case "snats":
		all = append(all, "masquerade", "snat "+to+"to "+addr, "meta l4proto tcp masquerade to :1024-65535 random")
	}
	return pick(g, all...)
}
