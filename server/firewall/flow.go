package firewall

import (
	"cmp"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

// flow is a set of packets on its way. What the rules send elsewhere is a flow of
// its own: it goes through other chains, and at other ports.
type flow struct {
	place
	live   set64 // At the ports that they go to now.
	loose  set64
	origin set64         // The ports that they went to, when they are not the same: any of live.
	by     map[int]*rule // The rules that let it in, by atom.
	sender *rule         // Who sent it elsewhere,
	text   string        // and where.
}

// way is the way of all packets of a family and a protocol.
type way struct {
	*evaluation
	flows  []*flow
	result result
	scenes map[place]*scene
}

// family works out what becomes of the packets of a family and a protocol.
func (e *evaluation) family(v6, udp bool) result {
	w := &way{evaluation: e, scenes: map[place]*scene{}, result: result{
		in: make(set64, e.words()), out: make(set64, e.words()), by: make([]*brokerv1.FirewallRule, len(e.first)), to: make([]string, len(e.first)),
	}}
	w.flows = []*flow{{place: place{ipv6: v6, udp: udp, host: true}, live: e.all()}}
	for _, c := range e.bases {
		if !c.sees(v6) {
			continue
		}
		for _, f := range w.flows { // Those that this chain makes are not among them.
			if f.passes(c) && !f.live.empty() && !w.pass(f, c) {
				return w.result
			}
		}
	}
	for _, f := range w.flows {
		w.end(f)
	}
	e.kept = 0
	return w.result
}

// passes reports whether a flow comes through a chain.
func (f *flow) passes(c *chain) bool {
	if c.nat && f.diverted {
		return false // The first who sends it elsewhere decides.
	}
	switch c.pb.GetHook() {
	case "input":
		return f.host
	case "forward", "postrouting":
		return !f.host
	}
	return true
}

// pass takes a flow through a chain; false means that the rules are too tangled.
func (w *way) pass(f *flow, c *chain) bool {
	const tracking = -200 // The priority of connection tracking.
	at := f.place
	at.hook, at.tracked = c.pb.GetHook(), c.pb.GetHook() != "ingress" && c.prio > tracking
	s := w.scenes[at]
	if s == nil || f.loose != nil || s.loose != nil {
		s = &scene{place: at, loose: f.loose, done: map[*chain]*outcome{}}
		w.scenes[at] = s
	}
	o := w.enter(s, c)
	if o == nil {
		return false
	}
	if lost := both(f.live, o.out); !lost.empty() {
		w.lose(f, lost)
	}
	for _, d := range o.diverted {
		if set := both(f.live, d.set); !set.empty() {
			w.flows = append(w.flows, w.sent(f, d, set))
		}
		if !w.keep(2*len(f.live)) || len(w.flows) > maxDiverts {
			w.tangled = cmp.Or(w.tangled, "the rules send packets to too many places")
			return false
		}
	}
	if loose := both(f.live, o.loose); !loose.empty() && at.hook == "prerouting" && !at.tracked {
		if f.loose != nil {
			loose.or(f.loose)
		}
		f.loose = loose
	}
	f.live.and(o.in)
	if o.by != nil && (at.hook == "input" || at.hook == "forward") && !c.nat {
		// The last chain that a rule let it through is the one to name: those of
		// mangle come before those of filter.
		if f.by == nil {
			f.by = map[int]*rule{}
		}
		f.live.each(func(i int) {
			if o.by[i] != nil {
				f.by[i] = o.by[i]
			}
		})
		w.kept += 8 * len(f.by)
	}
	return w.keep(0)
}

// lose notes which packets of a flow are dropped, by the ports that they began at.
func (w *way) lose(f *flow, set set64) {
	if f.origin != nil {
		set = f.origin
	}
	w.result.out.or(set)
}

// sent is the flow that a rule makes of a part of another. What is not tracked is
// not sent anywhere.
func (w *way) sent(f *flow, d diversion, set set64) *flow {
	g := &flow{place: f.place, live: set, origin: f.origin, sender: d.by, text: d.to.text}
	g.diverted, g.host, g.addr, g.out = true, d.to.host, d.to.addr, ""
	if out := w.behind[g.addr]; out != elsewhere {
		g.out = out
	}
	if d.to.any || d.to.ports != nil {
		if g.origin == nil {
			g.origin = set
		}
		g.live = make(set64, len(set))
		if w.add(g.live, d.to.ports); d.to.any {
			g.live = w.all()
		}
	}
	return g
}

// end notes what of a flow got in.
func (w *way) end(f *flow) {
	if f.live.empty() {
		return
	}
	first := (*rule)(nil)
	f.live.each(func(i int) { first = cmp.Or(first, f.by[i]) })
	set := f.live
	if f.origin != nil {
		set = f.origin
	}
	w.result.in.or(set)
	set.each(func(i int) {
		by := cmp.Or(f.by[i], f.sender)
		if f.origin != nil {
			by = cmp.Or(first, f.sender)
		}
		if w.result.by[i] == nil && by != nil {
			w.result.by[i] = by.pb
		}
		w.result.to[i] = cmp.Or(w.result.to[i], f.text)
	})
}
