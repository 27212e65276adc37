package firewall

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestNftTexts: what nft's JSON says is written as nft itself writes it, for
// everything that nft 1.0.6 can be brought to say of what a rule asks and does.
func TestNftTexts(t *testing.T) {
	// What the JSON says too little of, or what no host's filter has.
	unknown := map[string]string{
		"dup to 1.2.3.4":             `{"dup":{"addr":"1.2.3.4"}}`,
		"synproxy mss 1460 wscale 7": `{"synproxy":{"mss":1460,"wscale":7}}`,
		"icmp type 3-5 accept":       "icmp type destination-unreachable-redirect accept",
	}
	for _, name := range []string{"expressions", "expressions-ip", "expressions-ip6", "expressions-inet", "host"} {
		s := parse(4, []byte(recorded(t, name+".json")))
		var mine strings.Builder
		for _, tab := range s.tables {
			for _, c := range tab.chains {
				mine.WriteString("chain " + c.pb.GetName() + " {\n")
				for _, r := range c.rules {
					mine.WriteString(r.pb.GetText() + "\n")
				}
			}
		}
		want := chainsOf(recorded(t, name+".txt"))
		for text, json := range unknown {
			want = strings.Replace(want, text+"\n", json+"\n", 1)
		}
		if mine.String() != want {
			t.Errorf("%s: %v\n%s", name, s.pb, cmp.Diff(want, mine.String()))
		}
	}
}

// nftSet is a rule set of nftables' with one chain that drops.
func nftSet(exprs ...string) string {
	var b strings.Builder
	b.WriteString(`{"nftables": [{"table": {"family": "inet", "name": "t"}}, {"set": {"family": "inet", "table": "t", "name": "none", "type": "inet_service"}}, {"chain": {"family": "inet", "table": "t", "name": "u"}},
{"chain": {"family": "inet", "table": "t", "name": "in", "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}}`)
	for _, e := range exprs {
		b.WriteString(`,{"rule": {"family": "inet", "table": "t", "chain": "in", "expr": [` + e + `]}}`)
	}
	return b.String() + "]}"
}

// TestNftRules: what single rules come to.
func TestNftRules(t *testing.T) {
	match := func(op, left, right string) string {
		return `{"match": {"op": "` + op + `", "left": ` + left + `, "right": ` + right + `}}`
	}
	const (
		dport, state, flags = `{"payload": {"protocol": "tcp", "field": "dport"}}`, `{"ct": {"key": "state"}}`, `{"payload": {"protocol": "tcp", "field": "flags"}}`
		iif, daddr, saddr   = `{"meta": {"key": "iifname"}}`, `{"payload": {"protocol": "ip", "field": "daddr"}}`, `{"payload": {"protocol": "ip", "field": "saddr"}}`
		ok                  = `, {"accept": null}`
		all                 = "1-65535 "
	)
	for _, c := range []struct{ expr, want string }{ // tcp's, of IPv4.
		{`{"accept": null}`, all + "OPEN"},
		{match("==", dport, "22") + ok, "22-22 OPEN"},
		{match("!=", dport, "22") + ok, "1-21 OPEN,23-65535 OPEN"},
		{match("<", dport, "22") + ok, "1-21 OPEN"},
		{match(">=", dport, "65535") + ok, "65535-65535 OPEN"},
		{match(">", dport, "65535") + ok, ""},
		{match("==", dport, `{"set": [22, {"range": [80, 81]}, {"elem": {"val": 443, "comment": "x"}}]}`) + ok, "22-22 OPEN,80-81 OPEN,443-443 OPEN"},
		{match("==", dport, `"@none"`) + ok, ""},
		{match("!=", dport, `"@none"`) + ok, all + "OPEN"},
		{match("==", dport, `"@gone"`) + ok, all + "CONDITIONAL"},
		{match("==", dport, `"ssh"`) + ok, all + "CONDITIONAL"},
		{match("==", dport, `99999`) + ok, all + "CONDITIONAL"},
		{match("in", state, `["new", "established"]`) + ok, all + "OPEN"},
		{match("in", state, `"established"`) + ok, ""},
		{match("!=", state, `"invalid"`) + ok, all + "OPEN"},
		{match("==", state, `{"set": ["new", "related"]}`) + ok, all + "OPEN"},
		{match("==", state, `{"|": ["new", "related"]}`) + ok, all + "CONDITIONAL"},
		{match("!", state, `"new"`) + ok, ""},
		{match("==", iif, `"lo"`) + ok, ""},
		{match("!=", iif, `"lo"`) + ok, all + "OPEN"},
		{match("==", iif, `{"set": ["lo", "docker0"]}`) + ok, ""},
		{match("==", iif, `{"set": ["lo", "eth0"]}`) + ok, all + "CONDITIONAL"},
		{match("==", iif, `"*"`) + ok, all + "OPEN"},
		{match("==", daddr, `"127.0.0.1"`) + ok, ""},
		{match("==", daddr, `{"prefix": {"addr": "0.0.0.0", "len": 0}}`) + ok, all + "OPEN"},
		{match("==", daddr, `"198.51.100.7"`) + ok, all + "CONDITIONAL"},
		{match("==", saddr, `{"prefix": {"addr": "127.0.0.0", "len": 8}}`) + ok, ""},
		{match("==", saddr, `"@gone"`) + ok, all + "CONDITIONAL"},
		{match("==", `{"payload": {"protocol": "ip6", "field": "saddr"}}`, `"fd00::1"`) + ok, ""},
		{match("==", `{"payload": {"protocol": "udp", "field": "dport"}}`, `22`) + ok, ""},
		{match("==", `{"payload": {"protocol": "th", "field": "dport"}}`, `22`) + ok, "22-22 OPEN"},
		{match("==", `{"meta": {"key": "l4proto"}}`, `{"set": ["tcp", "udp"]}`) + ok, all + "OPEN"},
		{match("!=", `{"meta": {"key": "l4proto"}}`, `"tcp"`) + ok, ""},
		{match("==", `{"meta": {"key": "nfproto"}}`, `"ipv6"`) + ok, ""},
		{match("==", `{"meta": {"key": "pkttype"}}`, `"broadcast"`) + ok, ""},
		{match("==", `{"fib": {"result": "type", "flags": ["daddr"]}}`, `"local"`) + ok, all + "OPEN"},
		{match("==", `{"fib": {"result": "type", "flags": ["daddr", "iif"]}}`, `"local"`) + ok, all + "CONDITIONAL"},
		{match("==", `{"fib": {"result": "oif", "flags": ["saddr", "iif"]}}`, `false`) + `, {"drop": null}`, ""},
		{match("==", `{"exthdr": {"name": "frag"}}`, `true`) + ok, ""},
		{match("==", `{"exthdr": {"name": "frag"}}`, `false`) + ok, all + "OPEN"},
		{match("==", `{"&": [`+flags+`, ["fin", "syn", "rst", "ack"]]}`, `"syn"`) + ok, all + "OPEN"},
		{match("==", `{"&": [`+flags+`, ["syn", "ack"]]}`, `["syn", "ack"]`) + ok, ""},
		{match("in", flags, `"syn"`) + ok, all + "OPEN"},
		{match("==", flags, `0`) + ok, ""},
		{match("!", flags, `"syn"`) + ok, ""},
		{match("==", `{"concat": [`+saddr+`, `+dport+`]}`, `{"set": [{"concat": ["198.51.100.7", 22]}, {"concat": [{"prefix": {"addr": "0.0.0.0", "len": 0}}, 23]}]}`) + ok, "22-22 CONDITIONAL,23-23 OPEN"},
		{match("==", `{"new thing": 1}`, `2`) + ok, all + "CONDITIONAL"},
		{`{"xt": {"type": "match", "name": "x"}}` + ok, all + "CONDITIONAL"},
		{`{"xt": {"type": "target", "name": "X"}}`, all + "CONDITIONAL"},
		{`{"something": {"new": 1}}`, all + "CONDITIONAL"},
		{`{"limit": {"rate": 5, "per": "second", "burst": 5}}` + ok, all + "CONDITIONAL"},
		{`{"log": null}, {"counter": {"packets": 1, "bytes": 2}}` + ok, all + "OPEN"},
		{`{"jump": {"target": "gone"}}`, all + "CONDITIONAL"},
		{`{"jump": {"target": "u"}}` + ok, all + "OPEN"},
		{`{"queue": null}`, all + "CONDITIONAL"},
		{`{"reject": null}` + ok, ""},
		{`{"vmap": {"key": ` + dport + `, "data": {"set": [[22, {"accept": null}], [{"range": [23, 25]}, {"drop": null}], ["*", {"accept": null}]]}}}`, "1-22 OPEN,26-65535 OPEN"},
		{`{"vmap": {"key": ` + iif + `, "data": {"set": [["lo", {"drop": null}], ["eth0", {"accept": null}]]}}}`, all + "CONDITIONAL"},
		{`{"vmap": {"key": ` + dport + `, "data": "@gone"}}`, all + "CONDITIONAL"},
	} {
		resp := status(t, said{native: nftSet(c.expr)})
		got := ""
		for l := range strings.Lines(openPorts(resp.GetSummary())) {
			if l, ok := strings.CutPrefix(l, "IPV4 tcp "); ok {
				words := strings.Fields(l)
				got += "," + words[0] + " " + words[1]
			}
		}
		if strings.TrimPrefix(got, ",") != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.expr, got, c.want)
		}
	}
}

// TestNftFields: what is known of nftables' rules.
func TestNftFields(t *testing.T) {
	want := strings.TrimSpace(`
limit{rate 5/minute} j=accept
j=drop
s=@trusted j=accept
j=vmap opts=ct state { invalid : drop, established : accept, related : accept }
i=lo j=accept
p={ icmp, ipv6-icmp } j=accept
p=tcp dport=22 j=admin
p=tcp dport=@open_ports j=accept comment=the web
p=udp dport={ 53, 51820 } j=accept
j=vmap opts=tcp dport @services
j=vmap opts=tcp dport { 5000 : accept, 5001-5003 : jump limited }
ip saddr . tcp dport{@pairs} j=accept
p=tcp dport=6000 meta nfproto{ipv6} j=accept
p=tcp i=eth1 dport=7000 j=accept
p=tcp dport=9999 tcp flags{syn / fin,syn,rst,ack} j=accept
limit{rate 3/minute burst 10 packets} j=log opts=prefix "dropped: " level info
j=reject opts=with icmpx admin-prohibited
ct status{dnat} j=accept
p=tcp dport=8443 fib daddr type{local} j=dnat opts=to 198.18.0.2:443
p=tcp dport=8888 j=redirect opts=to :22`)
	var got []string
	for _, r := range status(t, said{native: recorded(t, "host.json")}).GetRules() {
		got = append(got, fields(r))
	}
	if strings.Join(got, "\n") != want {
		t.Error(cmp.Diff(want, strings.Join(got, "\n")))
	}
	r := status(t, said{native: nftSet(`{"xt": {"type": "match", "name": "x"}}, {"new": {"a": 1}}, {"counter": {"packets": 7, "bytes": 8}}, {"drop": null}`)}).GetRules()[0]
	if r.GetText() != `{"xt":{"type":"match","name":"x"}} {"new":{"a":1}} counter drop` || fields(r) != `unknown{{"xt":{"type":"match","name":"x"}}} unknown{{"new":{"a":1}}} j=drop` || !r.GetCounted() || r.GetPackets() != 7 {
		t.Errorf("%v", r)
	}
}

// TestNftNotUnderstood: what is not as nft writes it makes the source unreadable.
func TestNftNotUnderstood(t *testing.T) {
	good := nftSet(`{"accept": null}`)
	for name, text := range map[string]string{
		"nothing":           "\x00",
		"no JSON":           "nft: not found",
		"something else":    `{"tables": []}`,
		"more behind":       good + "{}",
		"a list":            `[]`,
		"an object's shape": `{"nftables": [7]}`,
		"a table's shape":   `{"nftables": [{"table": 7}]}`,
		"a table twice":     strings.Replace(good, `{"set"`, `{"table": {"family": "inet", "name": "t"}}, {"set"`, 1),
		"a new family":      strings.ReplaceAll(good, "inet\"", "new\""),
		"no table":          strings.Replace(good, `"table": "t", "name": "in"`, `"table": "x", "name": "in"`, 1),
		"no chain":          strings.Replace(good, `"chain": "in", "expr"`, `"chain": "x", "expr"`, 1),
		"a chain twice":     strings.Replace(good, `"name": "u"`, `"name": "in"`, 1),
		"no priority":       strings.Replace(good, `"prio": 0, `, "", 1),
		"a policy":          strings.Replace(good, `"policy": "drop"`, `"policy": "maybe"`, 1),
		"a new statement":   nftSet(`{"new": null}`),
		"two in one":        nftSet(`{"accept": null, "drop": null}`),
		"not a statement":   nftSet(`7`),
		"a huge number":     strings.Replace(good, `"prio": 0`, `"prio": 1e99`, 1),
		"deep":              nftSet(strings.Repeat(`{"&": [`, 5000) + "1" + strings.Repeat(`, 1]}`, 5000)),
		"deep in a match":   nftSet(`{"match": {"op": "==", "left": ` + strings.Repeat(`{"&": [`, 500) + `{"meta": {"key": "mark"}}` + strings.Repeat(`, 1]}`, 500) + `, "right": 1}}`),
	} {
		resp := status(t, said{native: text})
		if src := resp.GetSources()[4]; src.GetState() != unreadable || src.GetProblem() == "" || !strings.Contains(resp.GetSummary().GetUncertain(), "nft") {
			t.Errorf("%s: %v, %q", name, src, resp.GetSummary().GetUncertain())
		}
	}
	text := recorded(t, "host.json")
	for n := range strings.TrimSpace(text) {
		if s := parse(4, []byte(text[:n])); s.pb.GetState() != unreadable {
			t.Fatalf("%v of %q", s.pb, text[:n])
		}
	}
	if resp := status(t, said{native: recorded(t, "empty.json")}); resp.GetSources()[4].GetState() != empty {
		t.Errorf("%v", resp.GetSources())
	}
}
