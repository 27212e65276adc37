package jail

import (
	"bytes"
	"errors"
	"fmt"
)

// What an answer may cost.
const (
	maxAnswer = 4 << 20 // Its bytes.
	maxSteps  = 1 << 20 // Its opcodes: enough for 150,000 banned addresses.
	maxLines  = 256     // The names of a module and of a class.
)

// kind is how an opcode's argument is measured, and what the opcode does.
type kind int

const (
	plain    kind = iota
	value         // Makes a value that nothing changes any more.
	text          // The same, of as many bytes as the argument says.
	long          // An integer, of as many bytes as the argument says.
	lines         // A class that two lines name.
	class         // A class that the two strings before name.
	open          // Makes a list that can still grow.
	put           // Remembers the value made last, under the number in the argument.
	memoize       // Remembers it under the next number.
	get           // Repeats what was remembered under that number.
	envelope      // Says how many bytes belong together.
	stop
)

type opcode struct {
	argument int // Its bytes.
	kind     kind
}

// opcodes are what Python's pickler writes, in the protocols that fail2ban asks
// it for (2, and 4 and 5), for tuples, lists, strings and numbers, and for calls
// in the way of str('192.0.2.1'). Neither instances (BUILD, NEWOBJ, OBJ, INST),
// persistent IDs, the extension registry, sets, bytes and dictionaries nor what
// only a hand writes (DUP, POP) is among them.
var opcodes = map[byte]opcode{
	0x80: {1, plain},    // PROTO
	0x95: {8, envelope}, // FRAME
	'.':  {0, stop},
	'(':  {0, plain}, // MARK
	'N':  {0, plain}, // NONE
	0x88: {0, plain}, // NEWTRUE
	0x89: {0, plain}, // NEWFALSE
	'K':  {1, plain}, // BININT1
	'M':  {2, plain}, // BININT2
	'J':  {4, plain}, // BININT
	0x8a: {1, long},  // LONG1
	'G':  {8, plain}, // BINFLOAT
	'U':  {1, text},  // SHORT_BINSTRING
	'T':  {4, text},  // BINSTRING
	0x8c: {1, text},  // SHORT_BINUNICODE
	'X':  {4, text},  // BINUNICODE
	')':  {0, plain}, // EMPTY_TUPLE
	0x85: {0, value}, // TUPLE1
	0x86: {0, value}, // TUPLE2
	0x87: {0, value}, // TUPLE3
	't':  {0, value}, // TUPLE
	']':  {0, open},  // EMPTY_LIST
	'a':  {0, plain}, // APPEND
	'e':  {0, plain}, // APPENDS
	'c':  {0, lines}, // GLOBAL
	0x93: {0, class}, // STACK_GLOBAL
	'R':  {0, value}, // REDUCE
	'q':  {1, put},   // BINPUT
	'r':  {4, put},   // LONG_BINPUT
	0x94: {0, memoize},
	'h':  {1, get}, // BINGET
	'j':  {4, get}, // LONG_BINGET
}

// entry is something remembered.
type entry struct {
	repeatable bool
	from, to   int32 // Where a string lies in the answer.
}

// scan refuses an answer before it is decoded, when decoding it could cost more
// than its length lets expect or yield what is not meant: an opcode that is not
// in the table, a class that is not allowed, a length that it does not keep,
// bytes behind its end, and a list that is there twice. The decoder knows some
// calls and executes them, copies a repeated list for each item that is added to
// it, and gives a list that contains itself as another one.
func scan(b []byte) error {
	var (
		memo []entry
		last = plain   // What the opcode before was, and
		top  [2][]byte // the strings that it left on the stack, the upper one last.
	)
	for at, steps := 0, 0; ; steps++ {
		if at == len(b) {
			return errors.New("it ends without an end mark")
		}
		code := b[at]
		op, known := opcodes[code]
		switch at++; {
		case !known:
			return fmt.Errorf("opcode %#02x at byte %d", code, at-1)
		case steps == maxSteps:
			return fmt.Errorf("more than %d opcodes", maxSteps)
		case op.argument > len(b)-at:
			return fmt.Errorf("it ends within opcode %#02x", code)
		}
		n := number(b[at : at+op.argument])
		at += op.argument
		rest := b[at:]
		if claims := op.kind == text || op.kind == long || op.kind == envelope; claims && n > uint64(len(rest)) {
			return fmt.Errorf("opcode %#02x claims %d bytes of the %d left", code, n, len(rest))
		}
		was := top
		if op.kind != put && op.kind != memoize {
			top = [2][]byte{}
		}
		switch op.kind {
		case stop:
			if len(rest) > 0 {
				return fmt.Errorf("%d bytes behind its end", len(rest))
			}
			return nil
		case text:
			top = [2][]byte{was[1], rest[:n]}
			at += int(n)
		case long:
			if n > 8 { // The decoder takes quadratic time for these.
				return fmt.Errorf("an integer of %d bytes", n)
			}
			at += int(n)
		case lines:
			module, rest, _ := bytes.Cut(rest[:min(maxLines, len(rest))], []byte("\n"))
			name, _, ended := bytes.Cut(rest, []byte("\n"))
			if named := string(module) + "." + string(name); !ended || !isAllowed(named) {
				return unknownClass(named)
			}
			at += len(module) + len(name) + 2
		case class:
			if named := bytes.Join(was[:], []byte(".")); len(named) > maxLines || !isAllowed(string(named)) {
				return unknownClass(named)
			}
		case put, memoize:
			made := last == value || last == text || last == lines || last == class
			if !made && last != open || op.kind == put && n != uint64(len(memo)) {
				return fmt.Errorf("opcode %#02x at byte %d remembers what it may not", code, at)
			}
			e := entry{repeatable: made}
			if last == text { // Which ended right before this opcode.
				e.to = int32(at - op.argument - 1)
				e.from = e.to - int32(len(top[1]))
			}
			memo = append(memo, e)
		case get:
			if n >= uint64(len(memo)) || !memo[n].repeatable {
				return fmt.Errorf("opcode %#02x at byte %d repeats what it may not", code, at)
			}
			top = [2][]byte{was[1], b[memo[n].from:memo[n].to]}
		}
		last = op.kind
	}
}

// number is the little-endian one of up to eight bytes.
func number(b []byte) (n uint64) {
	for i, c := range b {
		n |= uint64(c) << (8 * i)
	}
	return n
}

// unknownClass is a class that no answer may hold.
type unknownClass string

func (c unknownClass) Error() string { return fmt.Sprintf("the class %.200q", string(c)) }
