package strictyaml

import (
	"encoding"
	"fmt"
	"reflect"
	"time"

	"github.com/goccy/go-yaml/ast"
)

var (
	placedType   = reflect.TypeFor[placed]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
	durationType = reflect.TypeFor[time.Duration]()
	bytesType    = reflect.TypeFor[Bytes]()
	posType      = reflect.TypeFor[Pos]()
)

// value decodes n into v, which is addressable. Name says in messages what is
// being read: a key, or an item of a list such as "allow[2]".
func (d *decoder) value(name string, n ast.Node, v reflect.Value) {
	if d.full() || wasRefused(n) {
		return
	}
	if n.Type() == ast.NullType {
		d.add(nodePos(n), "%s: has no value: remove it or give it a value", name)
		return
	}
	if reflect.PointerTo(v.Type()).Implements(placedType) {
		value, pos := v.Addr().Interface().(placed).parts()
		*pos = nodePos(n)
		d.value(name, n, reflect.ValueOf(value).Elem())
		return
	}
	switch {
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(name, n, v.Elem())
	case v.Type() == durationType, v.Type() == bytesType, reflect.PointerTo(v.Type()).Implements(textType):
		d.scalar(name, n, v)
	case v.Kind() == reflect.Struct:
		d.structure(name, n, v)
	case v.Kind() == reflect.Map:
		d.mapping(name, n, v)
	case v.Kind() == reflect.Slice:
		d.list(name, n, v)
	default:
		d.scalar(name, n, v)
	}
}

// wasRefused reports whether n was reported by checkTokens already.
func wasRefused(n ast.Node) bool {
	switch n.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode, *ast.MappingKeyNode:
		return true
	}
	return false
}

// pair is one key of a mapping with its value.
type pair struct {
	key   string
	pos   Pos // of the key
	value ast.Node
}

// pairs returns the keys of a mapping in the order of the file, without those it
// reports: keys given twice (the first is returned) and keys without a value.
func (d *decoder) pairs(name string, n ast.Node) (pairs []pair, ok bool) {
	mapping, ok := n.(ast.MapNode)
	if !ok {
		d.add(nodePos(n), "%s: want a mapping (\"key: value\"), got %s", name, describe(n))
		return nil, false
	}
	first := make(map[string]Pos)
	for it := mapping.MapRange(); it.Next(); {
		if wasRefused(it.Key()) {
			continue
		}
		key, pos := it.Key().GetToken().Value, nodePos(it.Key())
		if kind, _ := scalarOf(it.Key()); kind != stringScalar {
			d.add(pos, "the key %s is %s: put it in quotes", quote(key), kind)
			continue
		}
		if before, twice := first[key]; twice {
			d.add(pos, "duplicate key %s: already given on line %d", quote(key), before.Line)
			continue
		}
		first[key] = pos
		pairs = append(pairs, pair{key: key, pos: pos, value: it.Value()})
	}
	return pairs, true
}

// pairValue decodes the value of p into v.
func (d *decoder) pairValue(p pair, v reflect.Value) {
	if p.value.Type() == ast.NullType {
		// The place of a value that is not there is of no use: name the key's.
		d.add(p.pos, "%s: has no value: remove the key or give it a value", oneLine(p.key))
		return
	}
	d.value(oneLine(p.key), p.value, v)
}

func (d *decoder) structure(name string, n ast.Node, v reflect.Value) {
	pairs, ok := d.pairs(name, n)
	if !ok {
		return
	}
	fields := make(map[string]reflect.Value)
	var known []string
	for field, value := range v.Fields() {
		tag := field.Tag.Get("yaml")
		switch {
		case tag == "-,pos" && field.Type == posType:
			value.Set(reflect.ValueOf(nodePos(n)))
		case tag != "" && tag != "-":
			fields[tag] = value
			known = append(known, tag)
		}
	}
	for _, p := range pairs {
		field, ok := fields[p.key]
		if !ok {
			d.add(p.pos, "unknown key %s: %s", quote(p.key), suggest(p.key, known))
			continue
		}
		d.pairValue(p, field)
	}
}

func (d *decoder) mapping(name string, n ast.Node, v reflect.Value) {
	t := v.Type()
	if t.Key().Kind() != reflect.String {
		d.addUnsupported(name, n, t)
		return
	}
	pairs, ok := d.pairs(name, n)
	if !ok {
		return
	}
	v.Set(reflect.MakeMapWithSize(t, len(pairs)))
	for _, p := range pairs {
		value := reflect.New(t.Elem()).Elem()
		d.pairValue(p, value)
		v.SetMapIndex(reflect.ValueOf(p.key).Convert(t.Key()), value)
	}
}

func (d *decoder) list(name string, n ast.Node, v reflect.Value) {
	sequence, ok := n.(*ast.SequenceNode)
	if !ok {
		d.add(nodePos(n), "%s: want a list, got %s: write \"[a, b]\", or a line \"- a\" for each item", name, describe(n))
		return
	}
	items := reflect.MakeSlice(v.Type(), len(sequence.Values), len(sequence.Values))
	for i, item := range sequence.Values {
		d.value(fmt.Sprintf("%s[%d]", name, i), item, items.Index(i))
	}
	v.Set(items)
}

// addUnsupported reports a mistake in the program, not in the file.
func (d *decoder) addUnsupported(name string, n ast.Node, t reflect.Type) {
	d.add(nodePos(n), "%s: cannot be read into the Go type %s (a bug in this program)", name, t)
}
