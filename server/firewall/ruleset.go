package firewall

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

// Shorter names for what every rule and every chain says.
const (
	ofNft    = brokerv1.FirewallBackend_FIREWALL_BACKEND_IPTABLES_NFT
	ofLegacy = brokerv1.FirewallBackend_FIREWALL_BACKEND_IPTABLES_LEGACY
	ofNative = brokerv1.FirewallBackend_FIREWALL_BACKEND_NFTABLES

	familyIPv4   = brokerv1.FirewallFamily_FIREWALL_FAMILY_IPV4
	familyIPv6   = brokerv1.FirewallFamily_FIREWALL_FAMILY_IPV6
	familyInet   = brokerv1.FirewallFamily_FIREWALL_FAMILY_INET
	familyNetdev = brokerv1.FirewallFamily_FIREWALL_FAMILY_NETDEV

	active     = brokerv1.FirewallSourceState_FIREWALL_SOURCE_STATE_ACTIVE
	empty      = brokerv1.FirewallSourceState_FIREWALL_SOURCE_STATE_EMPTY
	missing    = brokerv1.FirewallSourceState_FIREWALL_SOURCE_STATE_MISSING
	unreadable = brokerv1.FirewallSourceState_FIREWALL_SOURCE_STATE_UNREADABLE
)

const (
	maxRules = 50_000   // Of one source.
	maxAll   = 10_000   // Chains of one source.
	maxName  = 256      // Bytes of a table's or a chain's name; the kernel takes fewer.
	maxField = 64 << 10 // Bytes of one field of a rule.
)

// source is what one tool said.
type source struct {
	pb     *brokerv1.FirewallSource
	tables []*table
	// hole is why rules may be missing that nobody else shows, or "".
	hole string
	// rules and chains are counted as they are added; full means that there were
	// more than are kept, cut that a field was longer than is kept.
	rules, chains int
	full, cut     bool
}

// table is a table with its chains, in the tool's order.
type table struct {
	backend brokerv1.FirewallBackend
	family  brokerv1.FirewallFamily
	name    string
	chains  []*chain
	byName  map[string]*chain
	sets    map[string]*set
	// lacking: the tool says that it does not show all of it.
	lacking bool
}

// chain is a chain with its rules.
type chain struct {
	pb    *brokerv1.FirewallChain
	in    *table
	prio  int
	nat   bool
	some  bool // It sees the packets of one device only.
	rules []*rule
}

// rule is a rule as it is shown, and as it is worked out.
type rule struct {
	pb    *brokerv1.FirewallRule
	steps []step
}

// step is a part of a rule: what it asks, and what is done then. Most rules have
// one; a map of verdicts has one for each of its elements.
type step struct {
	conds []cond
	do    act
	chain string  // Of a jump.
	to    *target // Of a diversion.
}

// act is what a step does with a packet.
type act uint8

const (
	goOn     act = iota // To the next step.
	accept              // It passes this hook's chain.
	drop                // It is gone, with or without an answer.
	jump                // Into a chain, and back.
	jumpAway            // Into a chain, and from there to this one's caller.
	goBack              // To the caller.
	divert              // To another address or port.
	untrack             // On, without connection tracking.
	whoKnows            // Any of these.
)

// target is where a step diverts to.
type target struct {
	host  bool       // To the host itself, at another port.
	addr  netip.Addr // Invalid when it is not known, or one of several.
	ports ports      // None: the same port as before.
	any   bool       // To some port that is not known.
	text  string     // As people write it.
}

func newTable(backend brokerv1.FirewallBackend, family brokerv1.FirewallFamily, name string) *table {
	return &table{backend: backend, family: family, name: name, byName: map[string]*chain{}, sets: map[string]*set{}}
}

// addChain adds a chain to a table; nil when there are too many or it is there.
func (s *source) addChain(t *table, name, hook, policy string) *chain {
	switch {
	case s.chains == maxAll:
		s.full = true
		return nil
	case t.byName[name] != nil || len(name) > maxName:
		return nil
	}
	s.chains++
	c := &chain{in: t, pb: &brokerv1.FirewallChain{Backend: t.backend, Family: t.family, Table: s.text(t.name), Name: s.text(name), Hook: s.text(hook), Policy: s.text(policy)}}
	t.chains, t.byName[name] = append(t.chains, c), c
	return c
}

// addRule adds an empty rule to a chain; nil when there are too many.
func (s *source) addRule(c *chain) *rule {
	if s.rules == maxRules {
		s.full = true
		return nil
	}
	s.rules++
	c.pb.Rules++
	r := &rule{pb: &brokerv1.FirewallRule{
		Backend: c.pb.GetBackend(), Family: c.pb.GetFamily(), Table: c.pb.GetTable(), Chain: c.pb.GetName(), Number: c.pb.GetRules(),
	}}
	c.rules = append(c.rules, r)
	return r
}

// text is what can be sent: valid UTF-8 of a bounded length.
func (s *source) text(t string) string {
	if len(t) > maxField {
		s.cut = true
		end := maxField
		for end > maxField-utf8.UTFMax && !utf8.RuneStart(t[end]) {
			end--
		}
		t = t[:end] + "…"
	}
	return strings.ToValidUTF8(t, "\uFFFD")
}

// problem says what is wrong with a source.
func (s *source) problem(text string) {
	s.pb.State = unreadable
	s.pb.Problem = strings.TrimPrefix(s.pb.GetProblem()+"; "+s.text(text), "; ")
}

// lacks says that rules of a source are missing, or may be others.
func (s *source) lacks(text string) {
	s.problem(text)
	s.hole = strings.TrimPrefix(s.hole+"; "+s.text(text), "; ")
}

// settle ends the reading of a source.
func (s *source) settle(tool string) {
	if s.full {
		s.lacks(fmt.Sprintf("%s told of more than the broker takes: %d rules and %d chains were taken", tool, s.rules, s.chains))
	}
	if s.cut {
		s.problem("texts that are too long are cut")
	}
	s.count()
}

// count tells a source's state from what there is of it.
func (s *source) count() {
	s.pb.Rules = int32(s.rules)
	switch {
	case s.pb.GetState() == unreadable:
	case len(s.tables) == 0:
		s.pb.State = empty
	default:
		s.pb.State = active
	}
}

func ref(r *brokerv1.FirewallRule) *brokerv1.FirewallRuleRef {
	if r == nil {
		return nil
	}
	return &brokerv1.FirewallRuleRef{Backend: r.GetBackend(), Family: r.GetFamily(), Table: r.GetTable(), Chain: r.GetChain(), Number: r.GetNumber()}
}
