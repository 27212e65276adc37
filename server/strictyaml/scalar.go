package strictyaml

import (
	"encoding"
	"errors"
	"math"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// Bytes is a size. In YAML it is a plain integer (bytes) or an integer directly
// followed by KiB, MiB, GiB or TiB; it is never negative.
type Bytes int64

// scalarKind is the YAML type of a scalar, worded for messages.
type scalarKind string

const (
	noScalar      scalarKind = ""
	stringScalar  scalarKind = "a string"
	integerScalar scalarKind = "an integer"
	floatScalar   scalarKind = "a number"
	boolScalar    scalarKind = "a boolean"
)

// Numbers of YAML's core schema. The parser takes some of them (1e3, integers
// over 64 bits) for strings.
var (
	integerPattern = regexp.MustCompile(`^[-+]?[0-9]+$`)
	floatPattern   = regexp.MustCompile(`^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$`)
)

// scalarOf returns the kind of n and its text, or noScalar for a collection.
func scalarOf(n ast.Node) (scalarKind, string) {
	switch n := n.(type) {
	case *ast.StringNode:
		plain := n.Token.Type == token.StringType
		switch {
		case plain && integerPattern.MatchString(n.Value):
			return integerScalar, n.Value
		case plain && floatPattern.MatchString(n.Value):
			return floatScalar, n.Value
		}
		return stringScalar, n.Value
	case *ast.LiteralNode:
		return stringScalar, n.Value.Value
	case *ast.IntegerNode:
		return integerScalar, n.Token.Value
	case *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return floatScalar, n.GetToken().Value
	case *ast.BoolNode:
		return boolScalar, n.Token.Value
	}
	return noScalar, ""
}

// describe says what n is. It shows no string: that could be a secret.
func describe(n ast.Node) string {
	switch kind, text := scalarOf(n); kind {
	case noScalar:
	case stringScalar:
		return string(kind)
	default:
		return string(kind) + " (" + oneLine(text) + ")"
	}
	switch n.(type) {
	case ast.MapNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	}
	return "something else"
}

// scalar decodes n into v, whose type is neither a collection nor a pointer.
func (d *decoder) scalar(name string, n ast.Node, v reflect.Value) {
	kind, text := scalarOf(n)
	switch {
	case v.Type() == durationType:
		d.duration(name, n, v)
	case v.Type() == bytesType:
		d.bytes(name, n, v)
	case reflect.PointerTo(v.Type()).Implements(textType):
		if d.wantString(name, n) {
			if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text)); err != nil {
				d.add(nodePos(n), "%s: %s", name, oneLine(err.Error()))
			}
		}
	case v.Kind() == reflect.String:
		if d.wantString(name, n) {
			v.SetString(text)
		}
	case v.Kind() == reflect.Bool:
		if kind != boolScalar {
			d.add(nodePos(n), "%s: want true or false, got %s", name, describe(n))
			return
		}
		v.SetBool(strings.EqualFold(text, "true"))
	case v.CanInt(), v.CanUint():
		d.integer(name, n, v)
	case v.CanFloat():
		d.float(name, n, v)
	default:
		d.addUnsupported(name, n, v.Type())
	}
}

func (d *decoder) wantString(name string, n ast.Node) bool {
	switch kind, text := scalarOf(n); kind {
	case stringScalar:
		return true
	case noScalar:
		d.add(nodePos(n), "%s: want a string, got %s", name, describe(n))
	default:
		d.add(nodePos(n), "%s: want a string, got %s: put it in quotes: %s", name, describe(n), quote(text))
	}
	return false
}

func (d *decoder) duration(name string, n ast.Node, v reflect.Value) {
	const want = "a duration with a unit, such as 30s, 5m or 1h30m"
	kind, text := scalarOf(n)
	if kind != stringScalar {
		d.add(nodePos(n), "%s: want %s, got %s", name, want, describe(n))
		return
	}
	duration, err := time.ParseDuration(text)
	if err != nil {
		d.add(nodePos(n), "%s: want %s", name, want)
		return
	}
	v.SetInt(int64(duration))
}

func (d *decoder) bytes(name string, n ast.Node, v reflect.Value) {
	const want = "a size such as 64KiB, 64MiB or 1GiB, or an integer (bytes)"
	kind, text := scalarOf(n)
	unit := int64(1)
	switch kind {
	case integerScalar:
	case stringScalar:
		digits := strings.TrimRight(text, "KMGTiB")
		switch text[len(digits):] {
		case "KiB":
			unit = 1 << 10
		case "MiB":
			unit = 1 << 20
		case "GiB":
			unit = 1 << 30
		case "TiB":
			unit = 1 << 40
		default:
			d.add(nodePos(n), "%s: want %s", name, want)
			return
		}
		text = digits
	default:
		d.add(nodePos(n), "%s: want %s, got %s", name, want, describe(n))
		return
	}
	count, err := parseUint(text, 63)
	switch {
	case errors.Is(err, strconv.ErrRange), err == nil && int64(count) > math.MaxInt64/unit:
		d.add(nodePos(n), "%s: the size is out of range", name)
	case err != nil:
		d.add(nodePos(n), "%s: want %s", name, want)
	default:
		v.SetInt(int64(count) * unit)
	}
}

func (d *decoder) integer(name string, n ast.Node, v reflect.Value) {
	kind, text := scalarOf(n)
	if kind != integerScalar {
		d.add(nodePos(n), "%s: want an integer, got %s", name, describe(n))
		return
	}
	bits := v.Type().Bits()
	var err error
	if v.CanInt() {
		var i int64
		if i, err = parseInt(text, bits); err == nil {
			v.SetInt(i)
			return
		}
	} else {
		var u uint64
		if u, err = parseUint(text, bits); err == nil {
			v.SetUint(u)
			return
		}
	}
	if !errors.Is(err, strconv.ErrRange) {
		d.add(nodePos(n), "%s: write the integer in decimal digits without leading zeros, or with 0x or 0o", name)
		return
	}
	least, most := int64(0), uint64(math.MaxUint64)>>(64-bits)
	if v.CanInt() {
		least, most = int64(-1)<<(bits-1), most>>1
	}
	d.add(nodePos(n), "%s: want an integer from %d to %d", name, least, most)
}

func (d *decoder) float(name string, n ast.Node, v reflect.Value) {
	kind, text := scalarOf(n)
	if kind != integerScalar && kind != floatScalar || !floatPattern.MatchString(text) {
		d.add(nodePos(n), "%s: want a decimal number, got %s", name, describe(n))
		return
	}
	f, err := strconv.ParseFloat(text, v.Type().Bits())
	if err != nil {
		d.add(nodePos(n), "%s: the number is out of range", name)
		return
	}
	v.SetFloat(f)
}

// parseInt reads an integer in decimal, or with the prefix 0x, 0o or 0b.
// Underscores and leading zeros are errors: 010 is ten to some and eight to
// others.
func parseInt(s string, bits int) (int64, error) {
	if isAmbiguous(s) {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseInt(s, 0, bits)
}

// parseUint is parseInt for integers that are not negative; a negative one is
// out of range.
func parseUint(s string, bits int) (uint64, error) {
	if isAmbiguous(s) {
		return 0, strconv.ErrSyntax
	}
	digits, negative := strings.CutPrefix(s, "-")
	u, err := strconv.ParseUint(strings.TrimPrefix(digits, "+"), 0, bits)
	if err == nil && negative && u != 0 {
		return 0, strconv.ErrRange
	}
	return u, err
}

func isAmbiguous(s string) bool {
	digits := strings.TrimLeft(s, "+-")
	leadingZero := len(digits) > 1 && digits[0] == '0' && '0' <= digits[1] && digits[1] <= '9'
	return leadingZero || strings.Contains(s, "_") || len(s)-len(digits) > 1
}
