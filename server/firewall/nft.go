package firewall

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

// families are nft's names of them.
var families = map[string]brokerv1.FirewallFamily{
	"ip": familyIPv4, "ip6": familyIPv6, "inet": familyInet, "netdev": familyNetdev,
	"arp": brokerv1.FirewallFamily_FIREWALL_FAMILY_ARP, "bridge": brokerv1.FirewallFamily_FIREWALL_FAMILY_BRIDGE,
}

// ruleset reads what nft -j list ruleset prints: a list of objects of one key, the
// object's kind. What holds others comes before them: a table before its sets and
// chains, all of these before its rules.
type ruleset struct {
	*source
	byName map[[2]string]*table
	wrong  int
}

// object is what is used of a table, chain, rule or set. No other kind of object
// decides about packets.
type object struct {
	Family  string            `json:"family"`
	Table   string            `json:"table"`
	Chain   string            `json:"chain"`
	Name    string            `json:"name"`
	Type    json.RawMessage   `json:"type"`
	Hook    string            `json:"hook"`
	Prio    json.Number       `json:"prio"`
	Policy  string            `json:"policy"`
	Comment string            `json:"comment"`
	Expr    []json.RawMessage `json:"expr"`
	Elem    json.RawMessage   `json:"elem"`
}

// set is a named set or map.
type set struct {
	raw   json.RawMessage
	elems []any
	read  bool
}

func (s *source) parseNft(tool string, data []byte) {
	p := &ruleset{source: s, byName: map[[2]string]*table{}}
	if !p.all(data) {
		s.lacks(tool + "'s output is not whole, or not JSON")
	}
	if p.wrong > 0 {
		s.lacks(fmt.Sprintf("%s said what is not understood: %d times", tool, p.wrong))
	}
	s.settle(tool)
}

// all reads everything, one object at a time.
func (p *ruleset) all(data []byte) bool {
	d := json.NewDecoder(bytes.NewReader(data))
	for _, want := range []json.Token{json.Delim('{'), "nftables", json.Delim('[')} {
		if got, err := d.Token(); err != nil || got != want {
			return false
		}
	}
	for d.More() {
		var one map[string]json.RawMessage
		if d.Decode(&one) != nil {
			return false
		}
		for kind, raw := range one {
			var o object
			switch kind {
			case "table", "chain", "rule", "set", "map":
				if json.Unmarshal(raw, &o) != nil || !p.object(kind, &o) {
					p.wrong++
				}
			}
		}
		if p.full {
			return true
		}
	}
	for _, want := range []json.Token{json.Delim(']'), json.Delim('}')} {
		if got, err := d.Token(); err != nil || got != want {
			return false
		}
	}
	return !d.More()
}

func (p *ruleset) object(kind string, o *object) bool {
	if kind == "table" {
		at := [2]string{o.Family, o.Name}
		if o.Name == "" || len(o.Name) > maxName || p.byName[at] != nil {
			return false
		}
		if len(p.tables) == maxAll {
			p.full = true
			return true
		}
		t := newTable(ofNative, families[o.Family], o.Name)
		p.tables, p.byName[at] = append(p.tables, t), t
		return families[o.Family] != 0
	}
	t := p.byName[[2]string{o.Family, o.Table}]
	if t == nil {
		return false
	}
	switch kind {
	case "chain":
		return p.chain(t, o)
	case "rule":
		return p.rule(t, o)
	}
	t.sets[o.Name] = &set{raw: o.Elem}
	return true
}

func (p *ruleset) chain(t *table, o *object) bool {
	prio, err := o.Prio.Int64()
	if o.Hook != "" && (err != nil || prio != int64(int32(prio))) || o.Name == "" {
		return false
	}
	c := p.addChain(t, o.Name, o.Hook, o.Policy)
	if c == nil {
		return p.full
	}
	c.prio, c.nat, c.some = int(prio), string(o.Type) == `"nat"`, o.Hook == "ingress"
	return o.Hook == "" || o.Policy == "accept" || o.Policy == "drop"
}

func (p *ruleset) rule(t *table, o *object) bool {
	c := t.byName[o.Chain]
	if c == nil {
		return false
	}
	r := p.addRule(c)
	if r == nil {
		return true
	}
	n := nftRule{source: p.source, t: t, r: r}
	return n.read(o.Expr, o.Comment)
}

const (
	maxSet      = 4 << 20 // Bytes of a named set whose elements are looked at.
	maxElements = 100_000
)

// elements are a named set's; known is false when they are not told.
func (t *table) elements(name string) (all []any, known bool) {
	s := t.sets[name]
	if s == nil || len(s.raw) > maxSet {
		return nil, false
	}
	if !s.read {
		s.read = true
		if v, ok := decode(s.raw).([]any); ok {
			s.elems = v
		}
	}
	return s.elems, true
}

// decode reads JSON with numbers as they are written; nil for what is none.
func decode(raw []byte) (v any) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if d.Decode(&v) != nil {
		return nil
	}
	return v
}

// only is the one key of an object, and its value.
func only(v any) (key string, value any, ok bool) {
	m, isMap := v.(map[string]any)
	if !isMap || len(m) != 1 {
		return "", nil, false
	}
	for key, value = range m {
	}
	return key, value, true
}

// at is a value in an object; nil when there is none.
func at(v any, key string) any {
	m, _ := v.(map[string]any)
	return m[key]
}

func str(v any) string {
	s, _ := v.(string)
	return s
}

// list is a list, or the one value that nft writes instead.
func list(v any) []any {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		return v
	}
	return []any{v}
}

func contains(v any, s string) bool {
	return slices.ContainsFunc(list(v), func(one any) bool { return str(one) == s })
}
