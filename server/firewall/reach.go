package firewall

import (
	"cmp"
	"net/netip"
	"slices"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

// What the rules come to is worked out for sets of packets at once. Such a set is
// the first packets of connections that somebody outside begins, of one family and
// one transport protocol, to one of the host's own addresses, one for each port.
// They are of the usual kind: not fragments, without options or extension headers,
// and for TCP with the flag SYN alone. They came by a device that is none of the
// host's own inner ones.
//
// A condition holds for all, for some or for none of them. What holds for some
// parts the set, and both parts go on. So the outcome is what may happen to the
// packets of each port, and a port that both may be let in and may not is CONDITIONAL.

// Bounds of one evaluation; a rule set that needs more is too tangled.
const (
	maxSteps   = 60_000_000 // Words of sets that are looked at; a quarter of a second.
	maxKept    = 4 << 20    // Words of sets that are kept.
	maxDepth   = 100        // Chains in chains.
	maxDiverts = 4096
)

// outcome is what may become of a set of packets that enters a chain. It does not
// depend on what they did before, so a chain is worked out once for a scene.
type outcome struct {
	in, out, back set64 // Let in, dropped, and returned from the chain's end.
	loose         set64 // Left untracked.
	by            []*rule
	diverted      []diversion
}

// diversion is a set of packets that a rule sends elsewhere.
type diversion struct {
	to  *target
	by  *rule
	set set64
}

// evaluation is the working out of all rules.
type evaluation struct {
	*atoms
	bases   []*chain // Chains that packets enter, in the order in which they do.
	behind  map[netip.Addr]string
	steps   int
	kept    int
	tangled string
}

// evaluate works out what the sources' rules come to.
func evaluate(sources []*source) *View {
	e := &evaluation{steps: maxSteps, behind: map[netip.Addr]string{}}
	var edges []portRange
	for _, s := range sources {
		for _, t := range s.tables {
			for _, c := range t.chains {
				if hookOrder(c.pb.GetHook()) >= 0 && (t.family == familyIPv4 || t.family == familyIPv6 || t.family == familyInet || t.family == familyNetdev) {
					e.bases = append(e.bases, c)
				}
				for _, r := range c.rules {
					edges = e.look(r, edges)
				}
			}
		}
	}
	e.atoms = divide(edges)
	slices.SortStableFunc(e.bases, func(a, b *chain) int {
		return cmp.Or(cmp.Compare(hookOrder(a.pb.GetHook()), hookOrder(b.pb.GetHook())), cmp.Compare(a.prio, b.prio))
	})
	v := &View{atoms: e.atoms}
	for i := range v.results {
		v.results[i] = e.family(i&isIPv6 != 0, i&isUDP != 0)
	}
	v.tangled = e.tangled
	return v
}

// hookOrder is a hook's place on a packet's way in; -1 for those on other ways.
func hookOrder(hook string) int {
	return slices.Index([]string{"ingress", "prerouting", "input", "forward", "postrouting"}, hook)
}

// look collects what has to be known before: the edges of all sets of ports, and
// which addresses are behind an inner device. The engine's rules say the latter:
// they let packets to a container's address out by its bridge, or drop those that
// came by another one.
func (e *evaluation) look(r *rule, edges []portRange) []portRange {
	for i := range r.steps {
		st := &r.steps[i]
		edges = lookAt(st.conds, edges)
		if st.to != nil {
			edges = append(edges, st.to.ports...)
			if st.to.addr.IsValid() && !st.to.host && e.behind[st.to.addr] == "" {
				e.behind[st.to.addr] = elsewhere
			}
		}
		var to netip.Addr
		device := ""
		for _, c := range st.conds {
			switch {
			case c.kind == isTo && !c.not && len(c.nets) == 1 && c.nets[0].single():
				to = c.nets[0].first
			case (c.kind == isOut && !c.not || c.kind == isFrom && c.not) && len(c.names) == 1 && c.names[0] != "lo" && inner(c.names[0]):
				device = c.names[0]
			}
		}
		if to.IsValid() && device != "" {
			e.behind[to] = device
		}
	}
	return edges
}

// elsewhere is behind a device that no rule tells.
const elsewhere = "?"

func lookAt(conds []cond, edges []portRange) []portRange {
	for i := range conds {
		edges = append(edges, conds[i].ports...)
		for _, a := range conds[i].any {
			edges = lookAt(a, edges)
		}
	}
	return edges
}

// spend reports whether there is work left to do within the bound.
func (e *evaluation) spend(n int) bool {
	if e.steps -= n; e.steps < 0 && e.tangled == "" {
		e.tangled = "the rules are too tangled to be worked out"
	}
	return e.tangled == ""
}

// keep is spend for what is kept.
func (e *evaluation) keep(n int) bool {
	if e.kept += n; e.kept > maxKept {
		e.steps = -1
	}
	return e.spend(n)
}

// narrow leaves in can what may meet the conditions, and in must what does.
func (e *evaluation) narrow(s *scene, conds []cond, can, must set64) bool {
	for i := range conds {
		c := &conds[i]
		if !e.spend(len(can) + 1 + len(c.ports) + len(c.names) + len(c.nets)) {
			return false
		}
		switch c.kind {
		case isPort:
			set := make(set64, len(can))
			e.add(set, c.ports)
			if c.not {
				can.less(set)
				must.less(set)
			} else {
				can.and(set)
				must.and(set)
			}
		case isAny:
			some, all := make(set64, len(can)), make(set64, len(can))
			for _, conds := range c.any {
				a, b := can.copy(), must.copy()
				if e.narrow(s, conds, a, b) {
					some.or(a)
					all.or(b)
				}
			}
			if c.not {
				can.less(all)
				must.less(some)
			} else {
				can.and(some)
				must.and(all)
			}
		default:
			t := e.test(s, c)
			if c.kind == isState && s.loose != nil {
				// An untracked packet is of another state.
				if t == no {
					can.and(s.loose)
				}
				must.less(s.loose)
			} else if t == no {
				return false
			}
			if t != yes {
				clear(must)
			}
		}
		if can.empty() {
			return false
		}
	}
	return true
}

// run works out a chain.
func (e *evaluation) run(s *scene, c *chain, depth int) *outcome {
	if o, ok := s.done[c]; ok {
		if o == nil {
			e.tangled = cmp.Or(e.tangled, "the rules lead in a circle")
		}
		return o
	}
	o := &outcome{in: make(set64, e.words()), out: make(set64, e.words()), loose: make(set64, e.words())}
	if depth == maxDepth || !e.keep(4*e.words()+16) {
		e.steps = -1
		e.spend(0)
		return nil
	}
	s.done[c] = nil
	live := e.all()
	can, must := make(set64, len(live)), make(set64, len(live))
	for _, r := range c.rules {
		for i := range r.steps {
			copy(can, live)
			copy(must, live)
			if e.narrow(s, r.steps[i].conds, can, must) && !e.do(s, c, r, &r.steps[i], o, live, can, must, depth) {
				return nil
			}
			if e.tangled != "" {
				return nil
			}
		}
		if live.empty() {
			break
		}
	}
	if o.back == nil {
		o.back = live
	} else {
		o.back.or(live)
	}
	s.done[c] = o
	return o
}

// do does what a step says with the packets that meet its conditions.
func (e *evaluation) do(s *scene, c *chain, r *rule, st *step, o *outcome, live, can, must set64, depth int) bool {
	switch st.do {
	case accept:
		e.letIn(o, can, func(int) *rule { return r })
		live.less(must)
	case drop:
		o.out.or(can)
		live.less(must)
	case goBack:
		o.returns(can)
		live.less(must)
	case untrack:
		o.loose.or(can)
	case whoKnows:
		e.letIn(o, can, func(int) *rule { return r })
		o.out.or(can)
	case divert:
		o.diverted = append(o.diverted, diversion{st.to, r, can.copy()})
		if e.kept += len(can); s.loose != nil {
			// The packet of an unknown connection is not diverted.
			must.less(s.loose)
		}
		live.less(must)
	case jump, jumpAway:
		into := c.in.byName[st.chain]
		if into == nil || into.pb.GetHook() != "" {
			e.letIn(o, can, func(int) *rule { return r })
			o.out.or(can)
			break
		}
		sub := e.run(s, into, depth+1)
		if sub == nil {
			return false
		}
		e.letIn(o, both(can, sub.in), func(i int) *rule { return sub.by[i] })
		o.out.or(both(can, sub.out))
		o.loose.or(both(can, sub.loose))
		for _, d := range sub.diverted {
			if set := both(can, d.set); !set.empty() {
				o.diverted = append(o.diverted, diversion{d.to, d.by, set})
				e.kept += len(set)
			}
			if !e.spend(len(can)) || len(o.diverted) > maxDiverts {
				e.tangled = cmp.Or(e.tangled, "the rules send packets to too many places")
				return false
			}
		}
		live.less(must)
		if st.do == jump {
			live.or(both(can, sub.back))
		} else {
			o.returns(both(can, sub.back))
		}
	}
	return true
}

func (o *outcome) returns(set set64) {
	if o.back == nil {
		o.back = make(set64, len(set))
	}
	o.back.or(set)
}

// letIn lets packets in, and keeps for each port the first rule that did so.
func (e *evaluation) letIn(o *outcome, set set64, by func(int) *rule) {
	fresh := set.copy()
	fresh.less(o.in)
	if fresh.empty() {
		return
	}
	if o.by == nil {
		o.by = make([]*rule, len(e.first))
		e.keep(len(e.first))
	}
	fresh.each(func(i int) { o.by[i] = by(i) })
	o.in.or(fresh)
}

// enter works out a chain that packets enter, with what it does by default. Nil
// means that the rules are too tangled.
func (e *evaluation) enter(s *scene, c *chain) *outcome {
	o := e.run(s, c, 0)
	if o == nil {
		return nil
	}
	base := *o
	base.in, base.out = o.in.copy(), o.out.copy()
	switch c.pb.GetPolicy() {
	case "accept":
		base.in.or(o.back)
	case "drop":
		base.out.or(o.back)
	default:
		base.in.or(o.back)
		base.out.or(o.back)
	}
	if c.some { // Packets by other devices do not see it.
		base.in = e.all()
	}
	return &base
}

// sees reports whether a chain sees packets of a family.
func (c *chain) sees(v6 bool) bool {
	switch c.in.family {
	case familyIPv4:
		return !v6
	case familyIPv6:
		return v6
	}
	return true
}

// result is what becomes of the packets of a family and a protocol.
type result struct {
	in, out set64
	by      []*brokerv1.FirewallRule // The first that lets in, or sends elsewhere.
	to      []string                 // Where it sends them.
}
