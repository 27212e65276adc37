package firewall

import (
	"net/netip"
	"slices"
	"strings"
)

// conditions are what a module of iptables asks.
func conditions(module string, options []option) (conds []cond) {
	switch module {
	case "rt", "frag", "hbh", "dst", "mh", "ah", "esp", "icmp", "icmp6", "ipv6header":
		return []cond{known(no)} // Even negated ones are about a header that is not there.
	}
	if len(options) == 0 {
		return []cond{known(maybe)}
	}
	for i := range options {
		o := &options[i]
		c := known(maybe)
		if len(o.values) == 1 {
			list := strings.Split(o.values[0], ",")
			switch module + " " + o.name {
			case "conntrack --ctstate", "state --state":
				c = states(list)
			case "conntrack --ctdir":
				c = known(certain(o.values[0] == "ORIGINAL"))
			case "addrtype --dst-type":
				c = toType(list)
			case "addrtype --src-type":
				c = fromType(list)
			}
		}
		if o.not {
			c.not = !c.not
		}
		conds = append(conds, c)
	}
	return conds
}

// states is a condition on what connection tracking says.
func states(list []string) cond {
	c := cond{kind: isState}
	changed := false
	for _, s := range list {
		switch strings.ToLower(s) {
		case "new":
			c.mask |= stateNew
		case "untracked":
			c.mask |= stateUntracked
		case "dnat":
			changed = true
		default: // For SNAT it is too early.
			c.mask |= stateOther
		}
	}
	if changed {
		return cond{kind: isAny, any: [][]cond{{c}, {{kind: isDiverted}}}}
	}
	return c
}

// toType is a condition on the kind of address that packets go to.
func toType(list []string) cond {
	local, unicast := slices.Contains(list, "LOCAL"), slices.Contains(list, "UNICAST")
	switch {
	case local && unicast:
		return known(yes)
	case local || unicast:
		return cond{kind: isLocal, not: unicast}
	case !slices.ContainsFunc(list, func(t string) bool { return t != "BROADCAST" && t != "MULTICAST" && t != "ANYCAST" }):
		return known(no)
	}
	return known(maybe)
}

// fromType is a condition on the kind of address that packets come from.
func fromType(list []string) cond {
	switch {
	case slices.Contains(list, "UNICAST"):
		return known(yes)
	case !slices.ContainsFunc(list, func(t string) bool { return t != "LOCAL" && t != "BROADCAST" && t != "MULTICAST" && t != "ANYCAST" }):
		return known(no)
	}
	return known(maybe)
}

// tcpFlags are the flags of TCP as bits.
var tcpFlags = map[string]uint8{"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ecn": 64, "ece": 64, "cwr": 128, "all": 63, "none": 0}

// syn is what a first packet has.
const syn = 2

// flags is the condition of "--tcp-flags FIN,SYN SYN".
func (o *option) flags() cond {
	if len(o.values) != 2 {
		return known(maybe)
	}
	var bits [2]uint8
	for i, v := range o.values {
		for f := range strings.SplitSeq(v, ",") {
			b, ok := tcpFlags[strings.ToLower(f)]
			if !ok {
				return known(maybe)
			}
			bits[i] |= b
		}
	}
	return cond{kind: isKnown, truth: certain(bits[0]&syn == bits[1]), not: o.not}
}

// passing are targets behind which a packet goes on.
var passing = map[string]bool{
	"LOG": true, "NFLOG": true, "ULOG": true, "MARK": true, "CONNMARK": true, "TCPMSS": true, "CT": true, "AUDIT": true, "TRACE": true, "SET": true,
	"TOS": true, "DSCP": true, "TTL": true, "HL": true, "CLASSIFY": true, "CONNSECMARK": true, "SECMARK": true, "ECN": true, "CHECKSUM": true,
	"IDLETIMER": true, "LED": true, "RATEEST": true, "TEE": true, "HMARK": true, "TCPOPTSTRIP": true,
}

// target reads "-j name" or "-g name" with the target's options.
func (p *saveRule) target() bool {
	away := p.words[p.at].value == "-g"
	if p.at++; p.at == len(p.words) {
		return false
	}
	name, words := p.words[p.at].value, p.words[p.at+1:]
	p.at = len(p.words)
	p.r.pb.Target, p.r.pb.GotoTarget = p.source.text(name), away
	if len(words) > 0 {
		p.r.pb.TargetOptions = p.source.text(p.text[words[0].begin:words[len(words)-1].end])
	}
	p.step.do = whoKnows
	switch {
	case away:
		p.step.do, p.step.chain = jumpAway, name
	case name == "ACCEPT", name == "SNAT", name == "MASQUERADE":
		p.step.do = accept
	case name == "DROP", name == "REJECT":
		p.step.do = drop
	case name == "RETURN":
		p.step.do = goBack
	case name == "NOTRACK", name == "CT" && slices.ContainsFunc(words, func(w word) bool { return w.value == "--notrack" }):
		p.step.do = untrack
	case passing[name]:
		p.step.do = goOn
	case name == "DNAT":
		p.step.do, p.step.to = divert, &target{any: true, text: p.r.pb.GetTargetOptions()}
		if len(words) > 1 && words[0].value == "--to-destination" {
			p.step.to = destination(words[1].value)
			p.step.to.text = p.source.text(p.step.to.text)
		}
	case name == "REDIRECT":
		p.step.do, p.step.to = divert, &target{host: true}
		if len(words) > 1 && words[0].value == "--to-ports" {
			p.step.to.setPorts(words[1].value)
			p.step.to.text = ":" + p.source.text(words[1].value)
		}
	case name == "NETMAP":
		p.step.do, p.step.to = divert, &target{text: p.r.pb.GetTargetOptions()}
	default:
		p.step.do, p.step.chain = jump, name // If there is such a chain.
	}
	p.r.steps = p.finish()
	return true
}

func (p *saveRule) finish() []step {
	p.step.conds = slices.Clip(p.step.conds)
	return []step{p.step}
}

// destination reads "198.18.0.2:80", "198.18.0.2-198.18.0.9:80-90", ":80",
// "[fd00::2]:80" and "fd00::2".
func destination(text string) *target {
	t := &target{text: text}
	address, port := text, ""
	if inside, ok := strings.CutPrefix(text, "["); ok {
		address, port, _ = strings.Cut(inside, "]")
		port = strings.TrimPrefix(port, ":")
	} else if strings.Count(text, ":") == 1 {
		address, port, _ = strings.Cut(text, ":")
	}
	t.setAddr(address)
	if port != "" {
		t.setPorts(port)
	}
	return t
}

// setAddr sets the address; one of several is not known, none is the host's own.
func (t *target) setAddr(text string) {
	t.host = text == ""
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		t.addr = a
		t.host = a.IsLoopback()
	}
}

// setPorts reads "80" and "80-90", and "80-90/1000" of a shifted range.
func (t *target) setPorts(text string) {
	text, _, shifted := strings.Cut(text, "/")
	first, last, isRange := strings.Cut(text, "-")
	if !isRange {
		last = first
	}
	a, ok := number(first)
	b, ok2 := number(last)
	if t.any = shifted || !ok || !ok2 || a > b; !t.any {
		t.ports = ports{{a, b}}
	}
}
