package redact

// prefilter finds in one pass where keys may begin in a text and which rules
// have a literal in it. It looks at every three bytes through a hash table, and
// ignores case.
type prefilter struct {
	// buckets holds for a hash the number of its bucket in literals. Nearly all
	// are 0, the bucket that is empty.
	buckets  [1 << hashBits]uint8
	literals [][]literal
}

type literal struct {
	folded string // at least 3 bytes
	rule   uint64 // its bit; 0 for the beginning of a key
}

const hashBits = 12

func newPrefilter(keys []string, rules []rule) *prefilter {
	p := &prefilter{literals: make([][]literal, 1)}
	for _, key := range keys {
		p.add(key, 0)
	}
	for i, r := range rules {
		for _, l := range r.literals {
			p.add(l, 1<<i)
		}
	}
	return p
}

func (p *prefilter) add(text string, rule uint64) {
	folded := []byte(text)
	for i, b := range folded {
		folded[i] = fold(b)
	}
	h := hash(uint32(folded[0])<<16 | uint32(folded[1])<<8 | uint32(folded[2]))
	if p.buckets[h] == 0 {
		p.buckets[h] = uint8(len(p.literals))
		p.literals = append(p.literals, nil)
	}
	bucket := &p.literals[p.buckets[h]]
	*bucket = append(*bucket, literal{folded: string(folded), rule: rule})
}

// scan returns the rules that have a literal in text, as bits, and appends to
// keys where keys may begin.
func (p *prefilter) scan(text []byte, keys []int) (rules uint64, _ []int) {
	var last3 uint32
	for i, b := range text {
		last3 = (last3<<8 | uint32(fold(b))) & 0xffffff
		bucket := p.buckets[hash(last3)]
		if bucket == 0 || i < 2 {
			continue
		}
		for _, l := range p.literals[bucket] {
			if !hasFoldedPrefix(text[i-2:], l.folded) {
				continue
			}
			if l.rule == 0 {
				keys = append(keys, i-2)
			}
			rules |= l.rule
		}
	}
	return rules, keys
}

func hasFoldedPrefix(text []byte, prefix string) bool {
	if len(text) < len(prefix) {
		return false
	}
	for i := range prefix {
		if fold(text[i]) != prefix[i] {
			return false
		}
	}
	return true
}

// fold maps the two cases of an ASCII letter to one byte. It also confuses some
// other characters, which costs no more than a regular expression run in vain.
func fold(b byte) byte { return b | 0x20 }

func hash(last3 uint32) uint32 { return last3 * 0x9e3779b1 >> (32 - hashBits) }
