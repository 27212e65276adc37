package firewall

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// printer writes expressions of nft's JSON as nft itself writes them.
type printer struct {
	depth   int
	unknown bool // It met what it does not know.
}

const (
	maxNested = 32
	maxText   = 4 << 20 // Bytes of one text, of which maxField are kept.
)

// style is how values of a type are written.
type style struct {
	quoted, seconds bool
	hex             string  // A format.
	yes, no         string  // Of true and false.
	parts           []style // Of a concatenation.
}

// deeper reports whether nesting is still within its bound.
func (p *printer) deeper() bool {
	if p.depth++; p.depth > maxNested {
		p.unknown = true
	}
	return p.depth <= maxNested
}

func (p *printer) fail() string {
	p.unknown = true
	return ""
}

var metaStyles = map[string]style{
	"iif": {quoted: true}, "oif": {quoted: true}, "iifname": {quoted: true}, "oifname": {quoted: true}, "iifkind": {quoted: true}, "oifkind": {quoted: true},
	"ibrname": {quoted: true}, "obrname": {quoted: true}, "ibridgename": {quoted: true}, "obridgename": {quoted: true},
	"day": {quoted: true}, "hour": {quoted: true}, "time": {quoted: true}, "mark": {hex: "0x%08x"},
}

// bare are the keys of meta that nft writes without the word.
var bareMeta = map[string]bool{"iif": true, "oif": true, "iifname": true, "oifname": true, "iifgroup": true, "oifgroup": true}

// expr writes what is looked at, and tells how values of it are written.
func (p *printer) expr(v any) (text string, st style) {
	defer func() { p.depth-- }()
	key, arg, ok := only(v)
	if !p.deeper() || !ok {
		return p.fail(), st
	}
	switch key {
	case "payload":
		if base := str(at(arg, "base")); base != "" {
			return fmt.Sprintf("@%s,%s,%s", base, p.value(at(arg, "offset"), st), p.value(at(arg, "len"), st)), style{hex: "0x%x"}
		}
		protocol, field := str(at(arg, "protocol")), str(at(arg, "field"))
		switch {
		case protocol == "" || field == "":
			return p.fail(), st
		case field == "dscp":
			st.hex = "0x%02x"
		case field == "flags":
			st.hex = "0x%x"
		}
		return protocol + " " + field, st
	case "meta":
		name := str(at(arg, "key"))
		if name == "" {
			return p.fail(), st
		}
		if bareMeta[name] {
			return name, metaStyles[name]
		}
		return "meta " + name, metaStyles[name]
	case "ct":
		name := str(at(arg, "key"))
		switch name {
		case "":
			return p.fail(), st
		case "mark":
			st.hex = "0x%08x"
		case "expiration":
			st.seconds = true
		case "helper":
			st.quoted = true
		}
		return join("ct", str(at(arg, "dir")), name), st
	case "fib":
		var flags []string
		for _, f := range list(at(arg, "flags")) {
			flags = append(flags, str(f))
		}
		result := str(at(arg, "result"))
		return join("fib", strings.Join(flags, " . "), result), style{quoted: result != "type", yes: "exists", no: "missing"}
	case "exthdr", "tcp option", "ip option", "sctp chunk":
		name, field := str(at(arg, "name")), str(at(arg, "field"))
		if name == "" {
			return p.fail(), st
		}
		if key == "exthdr" && field != "" {
			key = ""
		}
		return join(key, name, field), style{yes: "exists", no: "missing"}
	case "socket":
		if name := str(at(arg, "key")); name == "mark" {
			return "socket mark", style{hex: "0x%08x"}
		}
		return join("socket", str(at(arg, "key"))), st
	case "rt":
		return join("rt", str(at(arg, "family")), str(at(arg, "key"))), st
	case "numgen":
		return join("numgen", str(at(arg, "mode")), "mod", p.value(at(arg, "mod"), st), p.offset(arg)), st
	case "jhash":
		inner, _ := p.expr(at(arg, "expr"))
		if at(arg, "seed") != nil {
			return p.fail(), st
		}
		return join("jhash", inner, "mod", p.value(at(arg, "mod"), st), p.offset(arg)), st
	case "symhash":
		return join("symhash mod", p.value(at(arg, "mod"), st), p.offset(arg)), st
	case "osf":
		return join("osf", str(at(arg, "key"))), style{quoted: true}
	case "concat":
		var texts []string
		for _, one := range list(arg) {
			t, part := p.expr(one)
			texts, st.parts = append(texts, t), append(st.parts, part)
		}
		return strings.Join(texts, " . "), st
	case "ipsec":
		return join("ipsec", str(at(arg, "dir")), str(at(arg, "key"))), st
	case "&", "|", "^", "<<", ">>":
		sides := list(arg)
		if len(sides) != 2 {
			return p.fail(), st
		}
		left, st := p.expr(sides[0])
		return left + " " + key + " " + p.value(sides[1], st), st
	}
	return p.fail(), st
}

func (p *printer) offset(arg any) string {
	if o := at(arg, "offset"); o != nil && o != json.Number("0") {
		return "offset " + p.value(o, style{})
	}
	return ""
}

// join puts a blank between what there is.
func join(words ...string) string {
	var b strings.Builder
	for _, w := range words {
		if w != "" && b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(w)
	}
	return b.String()
}

// value writes what something is compared with, or set to.
func (p *printer) value(v any, st style) string {
	defer func() { p.depth-- }()
	if !p.deeper() {
		return ""
	}
	switch v := v.(type) {
	case json.Number:
		n, err := strconv.ParseUint(v.String(), 10, 64)
		switch {
		case err == nil && st.hex != "":
			return fmt.Sprintf(st.hex, n)
		case err == nil && st.seconds && n < 1<<32:
			return duration(n)
		}
		return v.String()
	case string:
		if st.quoted && !strings.HasPrefix(v, "@") && v != "*" {
			return `"` + v + `"`
		}
		return v
	case bool:
		if v && st.yes != "" {
			return st.yes
		} else if !v && st.no != "" {
			return st.no
		}
	case []any:
		return p.each(v, st, ",")
	case map[string]any:
		return p.special(v, st)
	}
	return p.fail()
}

// each writes several values.
func (p *printer) each(all []any, st style, between string) string {
	var b strings.Builder
	for i, one := range all {
		if i > 0 {
			b.WriteString(between)
		}
		b.WriteString(p.value(one, st))
		if b.Len() > maxText {
			return b.String()
		}
	}
	return b.String()
}

// special writes a value that has an object of its own.
func (p *printer) special(v map[string]any, st style) string {
	key, arg, ok := only(v)
	pair := list(arg)
	switch {
	case !ok:
		return p.fail()
	case key == "set":
		return "{ " + p.each(pair, st, ", ") + " }"
	case key == "range" && len(pair) == 2:
		return p.value(pair[0], st) + "-" + p.value(pair[1], st)
	case key == "prefix":
		return p.value(at(arg, "addr"), st) + "/" + p.value(at(arg, "len"), style{})
	case (key == "|" || key == "&" || key == "^") && len(pair) == 2 && str(pair[0]) != "":
		return p.value(pair[0], st) + " " + key + " " + p.value(pair[1], st)
	case key == "concat":
		var texts []string
		for i, one := range pair {
			var part style
			if i < len(st.parts) {
				part = st.parts[i]
			}
			texts = append(texts, p.value(one, part))
		}
		return strings.Join(texts, " . ")
	case key == "elem":
		return p.element(arg, st)
	case key == "map":
		of, keys := p.expr(at(arg, "key"))
		return join(of, "map", p.mapping(at(arg, "data"), keys, st, nil))
	}
	text, _ := p.expr(v)
	return text
}

// element writes an element of a set with what belongs to it.
func (p *printer) element(arg any, st style) string {
	text := p.value(at(arg, "val"), st)
	if at(arg, "counter") != nil {
		text += " counter"
	}
	if n, ok := at(arg, "timeout").(json.Number); ok {
		text += " timeout " + p.value(n, style{seconds: true})
	}
	if c := str(at(arg, "comment")); c != "" {
		text += ` comment "` + c + `"`
	}
	return text
}

// mapping writes a map: the name of one, or "{ key : value, ... }". Verdicts are
// written by verdict, other values in their style.
func (p *printer) mapping(data any, keys, values style, verdict func(any) string) string {
	if name := str(data); name != "" {
		return name
	}
	var b strings.Builder
	for i, one := range list(at(data, "set")) {
		pair := list(one)
		if len(pair) != 2 || b.Len() > maxText {
			return p.fail()
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(p.value(pair[0], keys) + " : ")
		if verdict != nil {
			b.WriteString(verdict(pair[1]))
		} else {
			b.WriteString(p.value(pair[1], values))
		}
	}
	return "{ " + b.String() + " }"
}

// duration writes seconds like "1h30m".
func duration(seconds uint64) string {
	if seconds == 0 {
		return "0s"
	}
	d := time.Duration(seconds) * time.Second
	days := d / (24 * time.Hour)
	d -= days * 24 * time.Hour
	text := ""
	for _, u := range []struct {
		n    time.Duration
		unit string
	}{{days, "d"}, {d / time.Hour, "h"}, {d / time.Minute % 60, "m"}, {d / time.Second % 60, "s"}} {
		if u.n > 0 {
			text += strconv.Itoa(int(u.n)) + u.unit
		}
	}
	return cmp.Or(text, "0s")
}
