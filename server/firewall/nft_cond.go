package firewall

import (
	"math"
	"strings"
)

// these are the values that something is compared with; nil when they are not known.
func (n *nftRule) these(right any) []any {
	if name, ok := strings.CutPrefix(str(right), "@"); ok {
		all, known := n.t.elements(name)
		if !known {
			return nil
		}
		if all == nil {
			all = []any{}
		}
		return all
	}
	if set := at(right, "set"); set != nil {
		return list(set)
	}
	return []any{right}
}

// compare are the conditions that what is looked at is one of some values.
func (n *nftRule) compare(left any, op string, values []any) []cond {
	key, arg, _ := only(left)
	not := op == "!=" || op == "!"
	plain := op == "==" || op == "!=" || op == "in"
	unknown := []cond{known(maybe)}
	switch key {
	case "payload":
		return n.payload(str(at(arg, "protocol")), str(at(arg, "field")), op, values)
	case "&":
		if sides := list(arg); len(sides) == 2 {
			if k, a, _ := only(sides[0]); k == "payload" && str(at(a, "protocol")) == "tcp" && str(at(a, "field")) == "flags" {
				return []cond{{kind: isProtocol, mask: tcp}, tcpFlag(op, sides[1], values)}
			}
		}
	case "exthdr", "ip option", "tcp option", "sctp chunk":
		// A first packet of the usual kind has none of these, but for TCP's.
		if len(values) == 1 && values[0] == false {
			return []cond{known(yes)}
		} else if key != "tcp option" {
			return []cond{known(no)}
		}
	case "concat":
		return n.concat(list(arg), not, plain, values)
	case "meta", "ct", "fib":
		if c, ok := about(key, arg, op, values); ok && values != nil {
			if not {
				c.not = !c.not
			}
			if conds := []cond{c}; op == "==" || op == "!=" || op == "in" || op == "!" && key == "ct" {
				if key == "fib" && len(list(at(arg, "flags"))) > 1 && c.kind == isLocal {
					conds = append(conds, unknown...) // Of that device's addresses.
				}
				return conds
			}
		}
	}
	return unknown
}

// about is a condition on what is known of a packet beside its bytes.
func about(key string, arg any, op string, values []any) (cond, bool) {
	names := make([]string, 0, len(values))
	for _, v := range values {
		v = stripped(v)
		if l, ok := v.([]any); ok && op != "==" { // Flags, of which one is enough.
			for _, f := range l {
				names = append(names, str(f))
			}
			continue
		}
		if _, isText := v.(string); !isText && v != false && v != true {
			return cond{}, false
		}
		names = append(names, str(v))
	}
	what := str(at(arg, "key"))
	if key == "fib" {
		what = str(at(arg, "result"))
	}
	switch key + " " + what {
	case "meta l4proto":
		c := cond{kind: isProtocol}
		for _, n := range names {
			c.mask |= protocol(n)
		}
		return c, true
	case "meta nfproto", "meta protocol":
		c := cond{kind: isFamily}
		for _, n := range names {
			switch n {
			case "ipv4", "ip":
				c.mask |= ipv4
			case "ipv6", "ip6":
				c.mask |= ipv6
			}
		}
		return c, true
	case "meta iif", "meta iifname":
		return cond{kind: isFrom, names: names}, true
	case "meta oif", "meta oifname":
		return cond{kind: isOut, names: names}, true
	case "meta pkttype":
		for _, n := range names {
			if n == "host" || n == "other" {
				return known(certain(n == "host")), n == "host"
			}
		}
		return known(no), true
	case "ct state":
		return states(names), op != "==" || !multi(values)
	case "ct status":
		if len(names) == 1 && names[0] == "dnat" {
			return cond{kind: isDiverted}, true
		}
	case "ct direction":
		if at(arg, "dir") == nil && len(names) == 1 {
			return known(certain(names[0] == "original")), true
		}
	case "fib type":
		for i := range names {
			names[i] = strings.ToUpper(names[i])
		}
		if contains(at(arg, "flags"), "saddr") {
			return fromType(names), true
		}
		return toType(names), true
	case "fib oif", "fib oifname":
		// There is a way back to whoever gets an answer.
		if len(values) == 1 && contains(at(arg, "flags"), "saddr") {
			if b, isBool := values[0].(bool); isBool {
				return known(certain(b)), true
			}
		}
	}
	return cond{}, false
}

// multi reports whether flags are compared as a whole.
func multi(values []any) bool {
	for _, v := range values {
		if _, ok := v.(map[string]any); ok {
			return true
		}
	}
	return false
}

// concat are the conditions on several things at once.
func (n *nftRule) concat(parts []any, not, plain bool, values []any) []cond {
	if !plain || values == nil || len(values) > maxElements {
		return []cond{known(maybe)}
	}
	c := cond{kind: isAny, not: not}
	for _, v := range values {
		tuple := list(at(stripped(v), "concat"))
		if len(tuple) != len(parts) {
			return []cond{known(maybe)}
		}
		var all []cond
		for i, part := range parts {
			all = append(all, n.compare(part, "==", []any{tuple[i]})...)
		}
		c.any = append(c.any, all)
	}
	return []cond{c}
}

// payload are the conditions on a field of a packet.
func (n *nftRule) payload(protocolName, field, op string, values []any) (conds []cond) {
	not := op == "!="
	switch protocolName {
	case "tcp", "udp", "th":
		if protocolName != "th" {
			conds = append(conds, cond{kind: isProtocol, mask: protocol(protocolName)})
		}
		switch field {
		case "dport":
			set, ok := portValues(op, values)
			if !ok {
				return append(conds, known(maybe))
			}
			return append(conds, cond{kind: isPort, ports: set, not: not})
		case "flags":
			return append(conds, tcpFlag(op, nil, values))
		}
		return append(conds, known(maybe))
	case "ip", "ip6":
		c := cond{kind: isFamily, mask: ipv4}
		if protocolName == "ip6" {
			c.mask = ipv6
		}
		conds = append(conds, c)
		c = known(maybe)
		switch field {
		case "protocol", "nexthdr":
			if a, ok := about("meta", map[string]any{"key": "l4proto"}, op, values); ok && values != nil && (op == "==" || not) {
				c = a
				c.not = not
			}
		case "saddr", "daddr":
			c = address(field, op, values)
		}
		return append(conds, c)
	case "sctp", "dccp", "udplite", "icmp", "icmpv6", "igmp", "ah", "esp", "comp", "arp":
		return []cond{known(no)}
	}
	return []cond{known(maybe)}
}

// address is a condition on where packets come from or go to.
func address(field, op string, values []any) cond {
	if op != "==" && op != "!=" || values == nil {
		return known(maybe)
	}
	c := cond{kind: isTo, not: op == "!="}
	for _, v := range values {
		p := &printer{}
		parsed, ok := parseNet(p.value(stripped(v), style{}))
		if !ok {
			return known(maybe)
		}
		c.nets = append(c.nets, parsed)
	}
	if field == "daddr" {
		return c
	}
	t := anyOf(c.nets, func(n net) truth {
		switch {
		case n.all():
			return yes
		case n.nobody():
			return no
		}
		return maybe
	})
	return cond{kind: isKnown, truth: t, not: c.not}
}

// portValues are the ports that values stand for under an operator.
func portValues(op string, values []any) (all ports, ok bool) {
	if values == nil {
		return nil, false
	}
	for _, v := range values {
		v = stripped(v)
		ends := []any{v, v}
		if r := at(v, "range"); r != nil {
			ends = list(r)
		}
		if len(ends) != 2 {
			return nil, false
		}
		first, ok := count(ends[0])
		last, ok2 := count(ends[1])
		if !ok || !ok2 || first > last || last > lastPort {
			return nil, false
		}
		r := portRange{uint16(first), uint16(last)}
		switch op {
		case "==", "!=", "in":
		case "<", "<=":
			if op == "<" && last == 0 {
				continue
			} else if op == "<" {
				last--
			}
			r = portRange{0, uint16(last)}
		case ">", ">=":
			if op == ">" && first == math.MaxUint16 {
				continue
			} else if op == ">" {
				first++
			}
			r = portRange{uint16(first), lastPort}
		default:
			return nil, false
		}
		all = append(all, r)
	}
	return all, true
}

// tcpFlag is a condition on TCP's flags, of which a first packet has SYN alone.
func tcpFlag(op string, mask any, values []any) cond {
	bits, ok := uint8(syn), values != nil
	if mask != nil {
		m, known := flagBits(mask)
		bits, ok = bits&m, ok && known
	}
	holds := no
	for _, v := range values {
		f, known := flagBits(stripped(v))
		ok = ok && known
		if (op == "==" || op == "!=") && bits == f || (op == "in" || op == "!") && bits&f != 0 {
			holds = yes
		}
	}
	if !ok || op != "==" && op != "!=" && op != "in" && op != "!" {
		return known(maybe)
	}
	return cond{kind: isKnown, truth: holds, not: op == "!=" || op == "!"}
}

func flagBits(v any) (bits uint8, ok bool) {
	if n, isNumber := count(v); isNumber {
		return uint8(n), n <= math.MaxUint8
	}
	if pair := at(v, "|"); pair != nil {
		v = pair
	}
	for _, f := range list(v) {
		if at(f, "|") != nil {
			return 0, false
		}
		b, known := tcpFlags[str(f)]
		if !known {
			return 0, false
		}
		bits |= b
	}
	return bits, true
}
