package firewall

import (
	"encoding/json"
	"strconv"
	"strings"
)

// count is a counter's value.
func count(v any) (uint64, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	u, err := strconv.ParseUint(n.String(), 10, 64)
	return u, err == nil
}

// bound writes a limit, a quota or a count of connections.
func bound(p *printer, key string, arg any) string {
	over := ""
	if at(arg, "inv") == true {
		over = "over"
	}
	plain := func(name string) string { return p.value(at(arg, name), style{}) }
	switch key {
	case "ct count":
		return join(over, plain("val"))
	case "quota":
		if name := str(arg); name != "" {
			return `name "` + name + `"`
		}
		return join(over, plain("val"), plain("val_unit"))
	case "last":
		return ""
	}
	if name := str(arg); name != "" {
		return `name "` + name + `"`
	}
	unit, burst := str(at(arg, "rate_unit")), at(arg, "burst")
	text := join("rate", over, plain("rate"))
	if unit != "" {
		text += " " + unit
	}
	text += "/" + plain("per")
	switch {
	case unit == "" && burst != nil && burst != json.Number("5"):
		text += " burst " + plain("burst") + " packets"
	case unit != "" && burst != nil && burst != json.Number("0"):
		text += " burst " + plain("burst") + " " + plain("burst_unit")
	}
	return text
}

// logging writes what is told of a packet, and to whom.
func logging(p *printer, arg any) string {
	var words []string
	if prefix, ok := at(arg, "prefix").(string); ok {
		words = append(words, `prefix "`+prefix+`"`)
	}
	for _, key := range []string{"group", "snaplen", "queue-threshold", "level"} {
		if v := at(arg, key); v != nil {
			words = append(words, key, p.value(v, style{}))
		}
	}
	protocol := ""
	for _, f := range list(at(arg, "flags")) {
		first, second, _ := strings.Cut(str(f), " ")
		switch {
		case second != "" && first == protocol:
			words[len(words)-1] += "," + second
		default:
			words = append(words, "flags", str(f))
		}
		protocol = first
	}
	return strings.Join(words, " ")
}

// updating writes what puts something into a set.
func updating(p *printer, arg any) string {
	elem, inside := at(arg, "elem"), ""
	extra := ""
	if key, inner, ok := only(elem); ok && key == "elem" {
		elem = at(inner, "val")
		if t := at(inner, "timeout"); t != nil {
			extra = "timeout " + p.value(t, style{seconds: true})
		}
		if c := str(at(inner, "comment")); c != "" {
			extra = join(extra, `comment "`+c+`"`)
		}
	}
	inside, _ = p.expr(elem)
	for _, s := range list(at(arg, "stmt")) {
		switch key, a, _ := only(s); key {
		case "counter":
			extra = join(extra, "counter")
		case "limit", "quota", "ct count", "last":
			extra = join(extra, key, bound(p, key, a))
		default:
			p.unknown = true
		}
	}
	op, set := str(at(arg, "op")), str(at(arg, "set"))
	if op == "" || set == "" {
		p.unknown = true
	}
	return join(op, set, "{", inside, extra, "}")
}

// natting writes "ip to 198.18.0.2:80 random".
func natting(p *printer, arg any) string {
	addr, port := at(arg, "addr"), at(arg, "port")
	text := str(at(arg, "family"))
	if addr != nil || port != nil {
		to := ""
		if addr != nil {
			to = p.value(addr, style{})
			if one, _, _ := strings.Cut(to, "-"); port != nil && strings.Contains(one, ":") && !strings.Contains(one, " ") {
				to = "[" + to + "]"
			}
		}
		if port != nil {
			to += ":" + p.value(port, style{})
		}
		text = join(text, "to", to)
	}
	var flags []string
	for _, f := range list(at(arg, "flags")) {
		flags = append(flags, str(f))
	}
	return join(text, strings.Join(flags, ","))
}

// towards is where a diversion leads to.
func (n *nftRule) towards(key string, arg any, text string) *target {
	t := &target{host: key == "redirect"}
	words := strings.Fields(text)
	for i, w := range words {
		if w == "to" && i+1 < len(words) {
			t.text = n.source.text(strings.Join(words[i+1:], " "))
		}
	}
	switch addr := at(arg, "addr").(type) {
	case nil:
		t.host = true
	case string:
		t.setAddr(addr)
	default:
		t.any = hasMap(addr)
	}
	p := &printer{}
	switch port := at(arg, "port").(type) {
	case nil:
	default:
		if text := p.value(port, style{}); !p.unknown && !hasMap(port) {
			t.setPorts(text)
		} else {
			t.any = true
		}
	}
	return t
}

// hasMap reports whether a value is looked up: an address and a port can come from
// one map.
func hasMap(v any) bool {
	key, _, ok := only(v)
	return ok && key != "range" && key != "prefix"
}
