package firewall

import (
	"encoding/json"
	"strings"
)

// comparison reads a comparison and writes it as nft does. What is plain goes into
// the rule's fields, everything else into its conditions.
func (n *nftRule) comparison(p *printer, arg any) string {
	left, right, op := at(arg, "left"), at(arg, "right"), str(at(arg, "op"))
	name, st := p.expr(left)
	sign, value := op, p.value(right, st)
	key, sides, _ := only(left)
	operands := list(sides)
	masked := key == "&" || key == "|" || key == "^" || key == "<<" || key == ">>"
	switch mask, _ := at(left, "&").([]any); {
	case op == "in", op == "==" && !masked && !flagsAlone(name, right):
		sign = ""
	case len(mask) == 2 && isList(mask[1]):
		// A comparison of some of several flags.
		name, st = p.expr(operands[0])
		sign, value = strings.TrimPrefix(op, "=="), p.value(right, st)+" / "+p.value(mask[1], st)
	case op != "==" && op != "!=" && op != "<" && op != ">" && op != "<=" && op != ">=" && op != "!":
		p.unknown = true
	}
	if p.unknown {
		return ""
	}
	n.ask(n.compare(left, op, n.these(right))...)
	if !n.field(name, sign, value) {
		n.match(name, join(sign, value))
	}
	return join(name, sign, value)
}

func isList(v any) bool { _, ok := v.([]any); return ok }

// flagsAlone reports whether something is compared with exactly these flags, of a
// type of which a packet can have several. Then nft writes "==".
func flagsAlone(name string, right any) bool {
	switch name {
	case "tcp flags", "ct state", "ct status", "ct event", "ct label":
		switch r := right.(type) {
		case json.Number:
			return true
		case string:
			return !strings.HasPrefix(r, "@")
		}
	}
	return false
}

// field puts a plain comparison into the rule's field for it, if that is free.
func (n *nftRule) field(name, sign, value string) bool {
	if sign != "" && sign != "!=" {
		return false
	}
	protocol, what, _ := strings.Cut(name, " ")
	var field *string
	r := n.r.pb
	switch name {
	case "meta l4proto", "ip protocol", "ip6 nexthdr":
		field = &r.Protocol
	case "ip saddr", "ip6 saddr":
		field = &r.Source
	case "ip daddr", "ip6 daddr":
		field = &r.Destination
	case "iif", "iifname":
		field = &r.InInterface
	case "oif", "oifname":
		field = &r.OutInterface
	default:
		switch protocol {
		case "tcp", "udp", "sctp", "dccp", "udplite", "th":
		default:
			return false
		}
		if what == "sport" {
			field = &r.SourcePorts
		} else if what == "dport" {
			field = &r.DestinationPorts
		} else {
			return false
		}
		if protocol != "th" && r.GetProtocol() != "" && r.GetProtocol() != protocol {
			return false
		}
	}
	if *field != "" {
		return false
	}
	if field == &r.InInterface || field == &r.OutInterface {
		value = unquoted(value)
	}
	if *field = n.source.text(value); sign != "" {
		*field = "! " + *field
	}
	if (what == "sport" || what == "dport") && protocol != "th" {
		r.Protocol = protocol
	}
	return true
}

// unquoted is the name of a device that stands alone in quotes.
func unquoted(text string) string {
	if inside, ok := strings.CutPrefix(text, `"`); ok && strings.Count(text, `"`) == 2 {
		return strings.TrimSuffix(inside, `"`)
	}
	return text
}
