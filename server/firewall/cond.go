package firewall

import (
	"net/netip"
	"strings"
)

// truth is what is known of a condition, for the connections that are looked at.
type truth uint8

const (
	no    truth = iota // It holds for none.
	maybe              // For some, as far as the rules say.
	yes                // For all.
)

func (t truth) not() truth { return yes - t }

func certain(b bool) truth {
	if b {
		return yes
	}
	return no
}

// kind is what a condition is about.
type kind uint8

const (
	isKnown    kind = iota // Nothing: its truth is fixed.
	isProtocol             // One of protocols.
	isFamily               // One of families.
	isPort                 // The port it goes to is one of ports.
	isFrom                 // The device it came by is one of names.
	isOut                  // The device it goes out by is one of names.
	isTo                   // The address it goes to is in nets.
	isLocal                // It goes to an address of the host.
	isState                // Connection tracking says one of states.
	isDiverted             // Its address or port was changed.
	isAny                  // All of one of any.
)

// cond is a condition.
type cond struct {
	kind  kind
	not   bool
	truth truth
	mask  uint8 // Protocols, families or states.
	ports ports
	names []string
	nets  []net
	any   [][]cond
}

const (
	tcp uint8 = 1 << iota
	udp
	neither // A transport protocol that is not looked at.
)

const (
	ipv4 uint8 = 1 << iota
	ipv6
)

const (
	stateNew uint8 = 1 << iota
	stateUntracked
	stateOther
)

func known(t truth) cond { return cond{kind: isKnown, truth: t} }

// net is a range of addresses of one family.
type net struct{ first, last netip.Addr }

func (n net) single() bool { return n.first == n.last }

func (n net) has(a netip.Addr) bool { return n.first.Compare(a) <= 0 && a.Compare(n.last) <= 0 }

func (n net) within(p netip.Prefix) bool { return p.Contains(n.first) && p.Contains(n.last) }

// all reports whether it is all addresses of its family.
func (n net) all() bool { return n == prefixNet(netip.PrefixFrom(n.first, 0)) }

func prefixNet(p netip.Prefix) net {
	p = p.Masked()
	last := p.Addr().AsSlice()
	for i := range last {
		switch at := p.Bits() - i*8; {
		case at <= 0:
			last[i] = 0xff
		case at < 8:
			last[i] |= 0xff >> at
		}
	}
	a, _ := netip.AddrFromSlice(last)
	return net{p.Addr(), a}
}

// parseNet reads an address, a prefix, or a range "a-b".
func parseNet(text string) (net, bool) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return prefixNet(p), true
	}
	first, last, isRange := strings.Cut(text, "-")
	a, err := netip.ParseAddr(first)
	if err != nil || a.Zone() != "" {
		return net{}, false
	}
	if !isRange {
		return net{a, a}, true
	}
	b, err := netip.ParseAddr(last)
	return net{a, b}, err == nil && b.Zone() == "" && a.BitLen() == b.BitLen() && a.Compare(b) <= 0
}

// nobodys are addresses that a packet from outside cannot have and get anywhere:
// loopback, multicast, broadcast, and none.
var nobodys = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("255.255.255.255/32"), netip.MustParsePrefix("0.0.0.0/32"),
	netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("ff00::/8"), netip.MustParsePrefix("::/128"),
}

func (n net) nobody() bool {
	for _, p := range nobodys {
		if n.within(p) {
			return true
		}
	}
	return false
}

// inner reports whether a device is one behind which there are the host's own
// containers and virtual machines, or the host itself, going by its name.
func inner(name string) bool {
	switch name {
	case "lo", "docker0", "docker_gwbridge":
		return true
	}
	if hex, ok := strings.CutPrefix(name, "br-"); ok {
		return len(hex) == 12 && strings.Trim(hex, "0123456789abcdef") == ""
	}
	for _, p := range []string{"veth", "virbr", "cni", "podman"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// from is whether a packet came by the device: it came by one outside, whose name
// is not known. A name that ends in "*" is a pattern.
func from(name string) truth {
	stem, pattern := strings.CutSuffix(name, "*")
	switch {
	case pattern && stem == "":
		return yes
	case inner(stem) && (!pattern || stem != "lo" && stem != "docker0" && stem != "docker_gwbridge" && !strings.HasPrefix(stem, "br-")):
		return no
	}
	return maybe
}

// scene is what is known of the packets at one hook.
type scene struct {
	place
	// loose are the ports whose packets may go untracked.
	loose set64
	// done are the chains that were worked out.
	done map[*chain]*outcome
}

// place tells scenes apart.
type place struct {
	ipv6, udp bool
	hook      string
	tracked   bool       // Connection tracking has seen them.
	host      bool       // They go to an address of the host,
	addr      netip.Addr // or to this one; invalid when it is not known.
	out       string     // The device that they go out by, if it is known.
	diverted  bool
}

// protocol and family are the scene's, as bits.
func (s *scene) protocol() uint8 {
	if s.udp {
		return udp
	}
	return tcp
}

func (s *scene) family() uint8 {
	if s.ipv6 {
		return ipv6
	}
	return ipv4
}

// test is a condition's truth, of one that is the same for all ports.
func (e *evaluation) test(s *scene, c *cond) truth {
	t := maybe
	switch c.kind {
	case isKnown:
		t = c.truth
	case isProtocol:
		t = certain(c.mask&s.protocol() != 0)
	case isFamily:
		t = certain(c.mask&s.family() != 0)
	case isFrom:
		t = anyOf(c.names, func(n string) truth {
			if s.hook == "postrouting" {
				return maybe
			}
			return from(n)
		})
	case isOut:
		t = anyOf(c.names, s.goesBy)
	case isTo:
		t = anyOf(c.nets, func(n net) truth { return e.goesTo(s, n) })
	case isLocal:
		t = certain(s.host)
		if !s.host && !s.addr.IsValid() {
			t = maybe
		}
	case isState:
		if t = certain(c.mask&stateNew != 0); !s.tracked {
			t = maybe
		}
	case isDiverted:
		t = certain(s.diverted)
	}
	if c.not {
		return t.not()
	}
	return t
}

// anyOf is whether one of several holds.
func anyOf[T any](all []T, test func(T) truth) truth {
	t := no
	for _, a := range all {
		if t = max(t, test(a)); t == yes {
			break
		}
	}
	return t
}

func (s *scene) goesBy(name string) truth {
	stem, pattern := strings.CutSuffix(name, "*")
	switch {
	case pattern && stem == "":
		return yes
	case s.hook != "forward" && s.hook != "postrouting", s.out == "":
		if name == "lo" {
			return no
		}
		return maybe
	case pattern:
		return certain(strings.HasPrefix(s.out, stem))
	}
	return certain(s.out == name)
}

// goesTo is whether the packets go to one of some addresses.
func (e *evaluation) goesTo(s *scene, n net) truth {
	switch {
	case n.first.Is6() != s.ipv6:
		return no
	case n.all():
		return yes
	case s.addr.IsValid():
		return certain(n.has(s.addr))
	case s.host && (n.nobody() || n.single() && e.behind[n.first] != ""):
		return no
	}
	return maybe
}
