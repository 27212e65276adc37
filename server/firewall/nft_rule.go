package firewall

import (
	"bytes"
	"encoding/json"
	"strings"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

// nftRule reads a rule: statements in their order, of which some ask, some do and
// some only take notes.
type nftRule struct {
	*source
	t     *table
	r     *rule
	texts []string
	conds []cond
	size  int
	// decided: the target is a verdict, or as good as one. What is done on the way
	// to it stands in the text alone.
	decided bool
}

// read reads the statements, and reports whether all of them are understood.
func (n *nftRule) read(exprs []json.RawMessage, comment string) bool {
	known := true
	for _, raw := range exprs {
		key, arg, ok := only(decode(raw))
		p := &printer{}
		text := ""
		if ok {
			text = n.statement(p, key, arg)
		}
		if !ok || p.unknown {
			// It may ask and it may do anything. Only what iptables alone can say
			// is nothing that nft should have told.
			var b bytes.Buffer
			if json.Compact(&b, raw) != nil {
				return false
			}
			text = b.String()
			known = known && key == "xt"
			n.match("unknown", text)
			if key == "xt" && str(at(arg, "type")) == "match" || key == "match" {
				n.ask(cond{kind: isKnown, truth: maybe})
			} else {
				n.act(step{do: whoKnows})
				n.ask(cond{kind: isKnown, truth: maybe})
			}
		}
		n.add(text)
	}
	if n.r.pb.Comment = n.source.text(comment); comment != "" {
		n.add(`comment "` + comment + `"`)
	}
	n.r.pb.Text = n.source.text(strings.Join(n.texts, " "))
	return known
}

// add adds to the rule's text, up to a bound.
func (n *nftRule) add(text string) {
	if n.size > maxField {
		return
	}
	if n.size += len(text) + 1; len(text) > maxField {
		text = text[:maxField+1] // So that it is seen to be cut.
	}
	n.texts = append(n.texts, text)
}

func (n *nftRule) match(name, text string) {
	n.r.pb.Matches = append(n.r.pb.GetMatches(), &brokerv1.FirewallMatch{Name: n.source.text(name), Text: n.source.text(text)})
}

func (n *nftRule) ask(conds ...cond) { n.conds = append(n.conds, conds...) }

// act ends a step of the rule: what was asked so far leads to it.
func (n *nftRule) act(s step) {
	s.conds = append(n.conds[:len(n.conds):len(n.conds)], s.conds...)
	n.r.steps = append(n.r.steps, s)
}

// target notes what is done, a verdict before all else.
func (n *nftRule) target(verdict bool, name, options string) {
	if n.decided || !verdict && n.r.pb.GetTarget() != "" {
		return
	}
	n.r.pb.Target, n.r.pb.TargetOptions, n.decided = n.source.text(name), n.source.text(options), verdict
}

// statement reads a statement, and writes it as nft does.
func (n *nftRule) statement(p *printer, key string, arg any) string {
	switch key {
	case "match":
		return n.comparison(p, arg)
	case "counter":
		if name := str(arg); name != "" {
			return `counter name "` + name + `"`
		}
		return n.counter(arg)
	case "limit", "quota", "ct count", "last":
		text := bound(p, key, arg)
		if p.unknown {
			return ""
		}
		if key != "last" {
			n.match(key, text)
			n.ask(known(maybe))
		}
		return join(key, text)
	case "log":
		text := logging(p, arg)
		n.target(false, "log", text)
		return join("log", text)
	case "mangle":
		left, st := p.expr(at(arg, "key"))
		text := "set " + p.value(at(arg, "value"), st)
		if !p.unknown {
			n.target(false, left, text)
		}
		return left + " " + text
	case "set":
		text := updating(p, arg)
		if !p.unknown { // It holds for no packet when the set is full.
			n.target(false, "set", text)
			n.ask(known(maybe))
		}
		return text
	case "flow":
		text := join(str(at(arg, "op")), str(at(arg, "flowtable")))
		n.target(false, "flow", text)
		return "flow " + text
	case "notrack":
		n.target(false, "notrack", "")
		n.act(step{do: untrack})
		return "notrack"
	case "vmap":
		return n.verdicts(p, arg)
	}
	text, st, away := n.verdict(p, key, arg)
	if p.unknown {
		return ""
	}
	name, options, _ := strings.Cut(text, " ")
	switch {
	case st.chain != "":
		name, options = st.chain, ""
		n.r.pb.GotoTarget = away && !n.decided
	case key == "continue":
		return text
	}
	n.target(true, name, options)
	n.act(st)
	return text
}

// counter is the rule's own.
func (n *nftRule) counter(arg any) string {
	packets, ok := count(at(arg, "packets"))
	bytes, ok2 := count(at(arg, "bytes"))
	if arg != nil && ok && ok2 {
		n.r.pb.Counted, n.r.pb.Packets, n.r.pb.Bytes = true, packets, bytes
	}
	return "counter"
}

// verdict reads what ends a rule, and writes it as nft does.
func (n *nftRule) verdict(p *printer, key string, arg any) (text string, st step, away bool) {
	switch key {
	case "accept":
		st.do = accept
	case "drop":
		st.do = drop
	case "return":
		st.do = goBack
	case "continue":
	case "jump", "goto":
		if st.do = jump; key == "goto" {
			st.do = jumpAway
		}
		if st.chain = str(at(arg, "target")); st.chain == "" {
			return p.fail(), st, false
		}
		return key + " " + st.chain, st, key == "goto"
	case "reject":
		st.do = drop
		return join("reject", n.rejecting(arg)), st, false
	case "snat", "masquerade":
		st.do = accept
		return join(key, natting(p, arg)), st, false
	case "dnat", "redirect":
		text := natting(p, arg)
		st.do, st.to = divert, n.towards(key, arg, text)
		return join(key, text), st, false
	case "queue":
		st.do = whoKnows
		text := ""
		if flags := at(arg, "flags"); flags != nil {
			text = "flags " + p.value(flags, style{})
		}
		if num := at(arg, "num"); num != nil {
			text = join(text, "to", p.value(num, style{}))
		}
		return join("queue", text), st, false
	case "tproxy":
		st.do = whoKnows
		return join("tproxy", natting(p, arg)), st, false
	default:
		return p.fail(), st, false
	}
	return key, st, false
}

// rejecting writes how it is answered, where that is not the family's usual way.
func (n *nftRule) rejecting(arg any) string {
	usual := map[brokerv1.FirewallFamily]string{familyIPv4: "icmp", familyIPv6: "icmpv6"}[n.t.family]
	if usual == "" {
		usual = "icmpx"
	}
	how, code := str(at(arg, "type")), str(at(arg, "expr"))
	if how == "" || how == usual && code == "port-unreachable" {
		return ""
	}
	return join("with", how, code)
}

// verdicts reads a map from what packets have to what is done with them. Each of
// its elements is a step. An element for all others comes last.
func (n *nftRule) verdicts(p *printer, arg any) string {
	key, st := p.expr(at(arg, "key"))
	data := at(arg, "data")
	text := join("vmap", p.mapping(data, st, style{}, func(v any) string {
		k, a, ok := only(v)
		if !ok {
			return p.fail()
		}
		t, _, _ := n.verdict(p, k, a)
		return t
	}))
	if p.unknown {
		return ""
	}
	n.target(true, "vmap", key+strings.TrimPrefix(text, "vmap"))
	elements := list(at(data, "set"))
	if name, ok := strings.CutPrefix(str(data), "@"); ok {
		var told bool
		if elements, told = n.t.elements(name); !told {
			n.act(step{do: whoKnows})
			return key + " " + text
		}
	}
	var last []step
	for i, e := range elements {
		pair := list(e)
		if len(pair) != 2 || i == maxElements {
			n.act(step{do: whoKnows})
			break
		}
		k, a, _ := only(pair[1])
		_, s, _ := n.verdict(&printer{}, k, a)
		if str(pair[0]) == "*" {
			last = append(last, s)
			continue
		}
		s.conds = n.compare(at(arg, "key"), "==", []any{stripped(pair[0])})
		if s.do != goOn {
			n.act(s)
		}
	}
	for _, s := range last {
		n.act(s)
	}
	return key + " " + text
}

// stripped is an element of a set without what belongs to it.
func stripped(v any) any {
	if key, arg, ok := only(v); ok && key == "elem" {
		return at(arg, "val")
	}
	return v
}
