package firewall

import (
	"strings"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

// saveRule reads the words of a rule: options of its own, then "-m name" with the
// module's options, and "-j name" or "-g name" with the target's.
type saveRule struct {
	*source
	text  string // All of the output, up to the rule's end.
	words []word
	at    int
	r     *rule
	step  step
	// modules is how many modules were read.
	modules int
}

// option is an option of a module, with its values.
type option struct {
	not    bool
	name   string
	values []string
	text   string
}

func (p *saveRule) read() bool {
	for p.at < len(p.words) {
		w := p.words[p.at]
		switch {
		case w.quoted:
			return false
		case w.value == "-m":
			if !p.module() {
				return false
			}
		case w.value == "-j" || w.value == "-g":
			return p.target()
		default:
			if !p.own() {
				return false
			}
		}
	}
	p.r.steps = p.finish()
	return true
}

// own reads an option of the rule itself.
func (p *saveRule) own() bool {
	not, sign := false, ""
	begin := p.words[p.at].begin
	if p.words[p.at].value == "!" {
		not, sign = true, "! "
		p.at++
	}
	if p.at == len(p.words) {
		return false
	}
	name := p.words[p.at].value
	p.at++
	if name == "-f" { // A later fragment, which nobody's first packet is.
		p.match("fragment", p.text[begin:p.words[p.at-1].end])
		p.ask(cond{kind: isKnown, truth: no, not: not})
		return true
	}
	if p.at == len(p.words) || p.words[p.at].quoted {
		return false
	}
	value := p.words[p.at].value
	p.at++
	field := map[string]*string{
		"-s": &p.r.pb.Source, "-d": &p.r.pb.Destination, "-i": &p.r.pb.InInterface, "-o": &p.r.pb.OutInterface, "-p": &p.r.pb.Protocol,
	}[name]
	if field == nil || *field != "" {
		return false
	}
	*field = p.source.text(sign + value)
	c := known(maybe)
	switch name {
	case "-s":
		if n, ok := parseNet(value); ok && n.all() {
			c = known(yes)
		} else if ok && n.nobody() {
			c = known(no)
		}
	case "-d":
		if n, ok := parseNet(value); ok {
			c = cond{kind: isTo, nets: []net{n}}
		}
	case "-i", "-o":
		if c.kind = isFrom; name == "-o" {
			c.kind = isOut
		}
		if stem, ok := strings.CutSuffix(value, "+"); ok {
			value = stem + "*"
		}
		c.names = []string{value}
	case "-p":
		c = cond{kind: isProtocol, mask: protocol(value)}
	}
	c.not = not
	p.ask(c)
	return true
}

// protocol is a protocol by the name or the number that the tools print.
func protocol(name string) uint8 {
	switch name {
	case "tcp", "6":
		return tcp
	case "udp", "17":
		return udp
	case "all", "0":
		return tcp | udp | neither
	}
	return neither
}

func (p *saveRule) ask(c cond) { p.step.conds = append(p.step.conds, c) }

// module reads "-m name" with its options.
func (p *saveRule) module() bool {
	p.at++
	if p.at == len(p.words) || p.words[p.at].quoted {
		return false
	}
	name := p.words[p.at]
	p.at++
	first := p.at
	if p.modules++; name.value == "comment" {
		return p.comment()
	}
	for p.at < len(p.words) && (p.words[p.at].quoted || p.words[p.at].value != "-m" && p.words[p.at].value != "-j" && p.words[p.at].value != "-g") {
		p.at++
	}
	words := p.words[first:p.at]
	options, ok := p.options(words)
	if !ok {
		return false
	}
	text := ""
	if len(words) > 0 {
		text = p.text[words[0].begin:words[len(words)-1].end]
	}
	switch name.value {
	case "tcp", "udp", "sctp", "dccp", "udplite", "multiport":
		left, told, ok := p.ports(name.value, options, text)
		if !ok || told {
			return ok
		}
		text = left
	default:
		p.step.conds = append(p.step.conds, conditions(name.value, options)...)
	}
	p.match(name.value, text)
	return true
}

func (p *saveRule) match(name, text string) {
	p.r.pb.Matches = append(p.r.pb.GetMatches(), &brokerv1.FirewallMatch{Name: p.source.text(name), Text: p.source.text(text)})
}

// comment reads the module that asks nothing. Its value stands without quotes
// where it has only letters, digits, "_" and "-": "-j" can be one. A comment in its
// usual place, behind all other modules, is not said again among the conditions.
func (p *saveRule) comment() bool {
	at := p.at
	p.at += 2
	if p.at > len(p.words) || p.words[at].quoted || p.words[at].value != "--comment" {
		return false
	}
	text, last := p.words[at+1], p.at == len(p.words) || p.words[p.at].value != "-m"
	if p.r.pb.GetComment() == "" {
		p.r.pb.Comment = p.source.text(text.value)
		if last && text.value != "" {
			return true
		}
	}
	p.match("comment", p.text[p.words[at].begin:text.end])
	return true
}

// options cuts words into options.
func (p *saveRule) options(words []word) (all []option, ok bool) {
	for i := 0; i < len(words); {
		o, begin := option{}, words[i].begin
		if words[i].value == "!" && !words[i].quoted {
			o.not = true
			i++
		}
		if i == len(words) || words[i].quoted || !strings.HasPrefix(words[i].value, "-") {
			return nil, false
		}
		o.name = words[i].value
		for i++; i < len(words) && (words[i].quoted || !strings.HasPrefix(words[i].value, "--") && words[i].value != "!"); i++ {
			o.values = append(o.values, words[i].value)
		}
		o.text = p.text[begin:words[i-1].end]
		all = append(all, o)
	}
	return all, true
}

// ports reads a module that is about ports. What goes into fields of its own is
// not said again among the conditions: left is what remains, told means nothing.
func (p *saveRule) ports(module string, options []option, text string) (left string, told, ok bool) {
	first := p.modules == 1
	var rest []string
	for _, o := range options {
		var field *string
		switch o.name {
		case "--sport", "--sports":
			field = &p.r.pb.SourcePorts
		case "--dport", "--dports":
			field = &p.r.pb.DestinationPorts
		case "--ports":
		case "--tcp-flags":
			p.ask(o.flags())
		default:
			p.ask(known(maybe))
		}
		if strings.HasSuffix(o.name, "port") || strings.HasSuffix(o.name, "ports") {
			set, ok := parsePorts(o.values)
			if !ok {
				return "", false, false
			}
			c := known(maybe) // About where it comes from, or either end.
			if field == &p.r.pb.DestinationPorts {
				c = cond{kind: isPort, ports: set, not: o.not}
			}
			p.ask(c)
		}
		if field != nil && *field == "" {
			if *field = p.source.text(o.values[0]); o.not {
				*field = "! " + *field
			}
			// Of several ports it is plain that they were multiport's.
			if first && (module != "multiport" || strings.Contains(o.values[0], ",") && len(options) == 1) {
				continue
			}
		}
		rest = append(rest, o.text)
	}
	if first && len(rest) < len(options) {
		return strings.Join(rest, " "), len(rest) == 0, true
	}
	return text, false, true
}

// parsePorts reads "22", "8000:8100" and "80,443,8000:8100".
func parsePorts(values []string) (all ports, ok bool) {
	if len(values) != 1 {
		return nil, false
	}
	for one := range strings.SplitSeq(values[0], ",") {
		first, last, isRange := strings.Cut(one, ":")
		if !isRange {
			last = first
		}
		a, ok := number(first)
		b, ok2 := number(last)
		if !ok || !ok2 {
			return nil, false
		}
		if a <= b { // An empty range is one that nothing is in.
			all = append(all, portRange{a, b})
		}
	}
	return all, true
}
