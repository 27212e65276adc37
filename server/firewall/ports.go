package firewall

import (
	"math/bits"
	"slices"
	"strconv"
)

// portRange is a range of ports, both ends in it.
type portRange struct{ first, last uint16 }

// ports is a set of ports.
type ports []portRange

const lastPort = 65535

// atoms is a division of all ports into ranges that no rule tells apart, so that a
// set of ports is a few bits and not 65536.
type atoms struct {
	first []uint16 // Of each; sorted.
	of    []uint16 // Of each port.
}

// divide makes the coarsest division that has an edge at every edge of every set.
// Port 0 is none that anybody can get to: it is apart from the others.
func divide(edges []portRange) *atoms {
	var begins [lastPort + 2]bool
	begins[0], begins[1] = true, true
	for _, r := range edges {
		begins[r.first], begins[int(r.last)+1] = true, true
	}
	a := &atoms{of: make([]uint16, lastPort+1)}
	for p := range lastPort + 1 {
		if begins[p] {
			a.first = append(a.first, uint16(p))
		}
		a.of[p] = uint16(len(a.first) - 1)
	}
	return a
}

// last is an atom's last port.
func (a *atoms) last(i int) uint16 {
	if i+1 < len(a.first) {
		return a.first[i+1] - 1
	}
	return lastPort
}

func (a *atoms) words() int { return (len(a.first) + 63) / 64 }

// all has every port but 0.
func (a *atoms) all() set64 {
	s := make(set64, a.words())
	s.add(1, len(a.first)-1)
	return s
}

// add puts ports into a set.
func (a *atoms) add(s set64, p ports) {
	for _, r := range p {
		s.add(int(a.of[r.first]), int(a.of[r.last]))
	}
}

// set64 is a set of atoms. Sets that meet are of the same division.
type set64 []uint64

func (s set64) add(first, last int) {
	for i := first; i <= last; {
		if i%64 == 0 && last-i >= 63 {
			s[i/64] = ^uint64(0)
			i += 64
			continue
		}
		s[i/64] |= 1 << (i % 64)
		i++
	}
}

func (s set64) has(i int) bool { return s[i/64]>>(i%64)&1 != 0 }

func (s set64) empty() bool {
	for _, w := range s {
		if w != 0 {
			return false
		}
	}
	return true
}

func (s set64) or(t set64) {
	for i, w := range t {
		s[i] |= w
	}
}

func (s set64) and(t set64) {
	for i, w := range t {
		s[i] &= w
	}
}

func (s set64) less(t set64) {
	for i, w := range t {
		s[i] &^= w
	}
}

func (s set64) copy() set64 { return slices.Clone(s) }

// both is what is in two sets.
func both(s, t set64) set64 {
	u := s.copy()
	u.and(t)
	return u
}

// each calls f with the members.
func (s set64) each(f func(int)) {
	for i, w := range s {
		for ; w != 0; w &= w - 1 {
			f(i*64 + bits.TrailingZeros64(w))
		}
	}
}

// number is a port as the tools write it.
func number(text string) (uint16, bool) {
	n, err := strconv.ParseUint(text, 10, 16)
	return uint16(n), err == nil
}
