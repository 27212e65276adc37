// Package strictyaml reads YAML configuration into Go structs and reports every
// problem it finds, each with file, line and column, instead of the first one.
//
// It promises that what an operator wrote is what the program reads, or that
// Decode says so:
//
//   - every key is known, given once, and has a value of the right type; a
//     number is never taken for a string, a string never for a number, a single
//     value never for a list, and null for nothing;
//   - there is one document, in UTF-8, without anchors, aliases, merge keys,
//     tags, directives or complex keys: the text means what it shows;
//   - the input is bounded: at most [MaxSize] bytes, [MaxLines] lines,
//     [MaxDepth] levels, [MaxEntries] entries and [MaxProblems] problems;
//   - no input makes it panic.
//
// Messages name keys, and show numbers and booleans. They never show a string
// value, since an operator may have pasted a secret in the wrong place and
// messages end up in a log. An encoding.TextUnmarshaler writes its own message.
//
// Targets are described with the tag `yaml:"name"`. A field without that tag, or
// with "-", is left alone. These types are read: string, bool, every integer and
// float type, [time.Duration] ("30s"), [Bytes] ("64MiB"), structs, slices, maps
// with string keys, pointers (nil when the key is absent), [At], and any
// encoding.TextUnmarshaler from a string. A field of type [Pos] with the tag
// `yaml:"-,pos"` gets the place of the mapping that its struct was read from.
// A key that is absent leaves its field as it was, so defaults can be set first.
package strictyaml

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Bounds of an input.
const (
	MaxSize     = 1 << 20 // bytes in a file
	MaxLines    = 20_000  // lines in a file; the parser is quadratic in some
	MaxDepth    = 32      // collections inside each other
	MaxEntries  = 10_000  // keys and items in a file, counted by ":", "-" and ","
	MaxProblems = 100     // problems reported; reading stops there
)

// Pos is a place in a file. Line and Column count from 1, Column in characters.
// The zero Pos means that there is no such place.
type Pos struct{ Line, Column int }

// IsZero reports whether p names no place.
func (p Pos) IsZero() bool { return p == Pos{} }

// Problem is one thing that is wrong with a file.
type Problem struct {
	File    string
	Pos     Pos // zero when the problem is the file as a whole
	Message string
}

// Error returns "file:line:column: message", or "file: message" without a place.
func (p Problem) Error() string {
	if p.Pos.IsZero() {
		return p.File + ": " + p.Message
	}
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Pos.Line, p.Pos.Column, p.Message)
}

// Problems are the things that are wrong with one or more files.
type Problems []Problem

// Add appends a problem with a message formatted as by [fmt.Sprintf].
func (ps *Problems) Add(file string, pos Pos, format string, args ...any) {
	*ps = append(*ps, Problem{File: file, Pos: pos, Message: fmt.Sprintf(format, args...)})
}

// Error returns the problems, one per line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Err returns ps as an error, or nil when there are no problems.
func (ps Problems) Err() error {
	if len(ps) == 0 {
		return nil
	}
	return ps
}

// At is a value together with its place, for checks that come after decoding.
// When the key is absent Pos is zero and Value is left as it was.
type At[T any] struct {
	Value T
	Pos   Pos
}

func (a *At[T]) parts() (value any, pos *Pos) { return &a.Value, &a.Pos }

// placed is implemented by *At[T] for every T.
type placed interface {
	parts() (value any, pos *Pos)
}

// Decode reads the YAML document in data into the struct or map that into points
// to. File is used in messages only. The problems are in the order of the file.
// When there are any, into holds what could be read: enough for the caller to go
// on and report more problems, never enough to act on.
func Decode(file string, data []byte, into any) (problems Problems) {
	d := &decoder{file: file}
	defer func() {
		// The parser is known to panic on some malformed input.
		if r := recover(); r != nil {
			d.add(Pos{}, "not readable as YAML (%s)", oneLine(fmt.Sprint(r)))
		}
		slices.SortStableFunc(d.problems, func(a, b Problem) int {
			return cmp.Or(cmp.Compare(a.Pos.Line, b.Pos.Line), cmp.Compare(a.Pos.Column, b.Pos.Column))
		})
		problems = d.problems
	}()
	target := reflect.ValueOf(into)
	if target.Kind() != reflect.Pointer || target.IsNil() {
		d.add(Pos{}, "cannot decode into %T: want a non-nil pointer", into)
		return nil
	}
	if body := d.parse(data); body != nil {
		d.value("the document", body, target.Elem())
	}
	return nil
}

// decoder gathers the problems of one file.
type decoder struct {
	file     string
	problems Problems
}

// add records a problem, unless there are enough of them already.
func (d *decoder) add(pos Pos, format string, args ...any) {
	if !d.full() {
		d.problems.Add(d.file, pos, format, args...)
	}
}

// full reports whether reading should stop for the number of problems found.
func (d *decoder) full() bool { return len(d.problems) >= MaxProblems }
