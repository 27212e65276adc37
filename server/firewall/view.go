package firewall

import (
	"cmp"
	"strings"

	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

// View is what the rules come to.
type View struct {
	*atoms
	results [4]result // By isIPv6 and isUDP.
	tangled string
	holes   []string
}

const (
	isUDP  = 1
	isIPv6 = 2
)

const maxOpen = 1000

// Port is who can get to a port of the host's own addresses from outside, and the
// first rule that lets some of them; nil when that is the default.
func (v *View) Port(ipv6, udp bool, port uint16) (brokerv1.Reach, *brokerv1.FirewallRuleRef) {
	if v.tangled != "" {
		return brokerv1.Reach_REACH_UNSPECIFIED, nil
	}
	i := 0
	if ipv6 {
		i |= isIPv6
	}
	if udp {
		i |= isUDP
	}
	r, at := &v.results[i], int(v.of[port])
	reach := r.reach(at)
	if reach == brokerv1.Reach_REACH_BLOCKED {
		return reach, nil
	}
	return reach, ref(r.by[at])
}

func (r *result) reach(i int) brokerv1.Reach {
	switch {
	case !r.in.has(i):
		return brokerv1.Reach_REACH_BLOCKED
	case r.out.has(i):
		return brokerv1.Reach_REACH_CONDITIONAL
	}
	return brokerv1.Reach_REACH_OPEN
}

// Uncertain is why the view may be wrong, or "".
func (v *View) Uncertain() string {
	all := v.holes
	if v.tangled != "" {
		all = append([]string{v.tangled}, all...)
	}
	return strings.Join(all, "; ")
}

// open are the ports that a packet can get to; more means that there are others.
func (v *View) open() (all []*brokerv1.OpenPorts, more bool) {
	if v.tangled != "" {
		return nil, false
	}
	for n := range v.results {
		r := &v.results[n]
		var last *brokerv1.OpenPorts
		var by *brokerv1.FirewallRule
		for i := 1; i < len(v.first); i++ { // The first is port 0.
			reach := r.reach(i)
			switch {
			case reach == brokerv1.Reach_REACH_BLOCKED:
				last = nil
				continue
			case last != nil && last.GetReach() == reach && by == r.by[i] && last.GetForwardedTo() == r.to[i]:
				last.LastPort = uint32(v.last(i))
				continue
			case len(all) == maxOpen:
				return all, true
			}
			by = r.by[i]
			last = &brokerv1.OpenPorts{
				Family: familyIPv4, Protocol: "tcp", FirstPort: uint32(v.first[i]), LastPort: uint32(v.last(i)),
				Reach: reach, Rule: ref(by), ForwardedTo: r.to[i],
			}
			if n&isIPv6 != 0 {
				last.Family = familyIPv6
			}
			if n&isUDP != 0 {
				last.Protocol = "udp"
			}
			all = append(all, last)
		}
	}
	return all, false
}

const (
	maxChains     = 5000
	maxChainBytes = 2 << 20
	maxDefaults   = 256
	maxHitless    = 100
)

// summary is what the sources come to, beside their rules.
func (v *View) summary(sources []*source) (chains []*brokerv1.FirewallChain, sum *brokerv1.FirewallSummary) {
	sum = &brokerv1.FirewallSummary{}
	var notes []string
	size, cut := 0, false
	for _, s := range sources {
		for _, t := range s.tables {
			for _, c := range t.chains {
				if size += proto.Size(c.pb); len(chains) == maxChains || size > maxChainBytes {
					cut = true
				} else {
					chains = append(chains, c.pb)
				}
				if c.pb.GetHook() != "" && (t.name == "filter" || t.backend == ofNative) && len(sum.GetDefaults()) < maxDefaults {
					sum.Defaults = append(sum.Defaults, c.pb)
				}
				for _, r := range c.rules {
					if !r.pb.GetCounted() || r.pb.GetPackets() != 0 {
						continue
					}
					if sum.RulesWithoutHits++; len(sum.GetWithoutHits()) < maxHitless {
						sum.WithoutHits = append(sum.WithoutHits, ref(r.pb))
					}
				}
			}
		}
	}
	if cut {
		notes = append(notes, "there are more chains than are shown")
	}
	var more bool
	if sum.OpenPorts, more = v.open(); more {
		notes = append(notes, "there are more ranges of open ports than are shown")
	}
	sum.Uncertain = v.Uncertain()
	for _, n := range notes {
		sum.Uncertain = strings.TrimPrefix(cmp.Or(sum.Uncertain, "")+"; "+n, "; ")
	}
	return chains, sum
}
