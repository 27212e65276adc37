package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	hashLen = sha256.Size * 2
	// Every line ends in the same shape, so prev and hash are found by counting
	// from the end: nothing in the fields before them can pose as them.
	hashTail = len(hashKey) + 1 + hashLen + 2
	prevTail = len(prevKey) + 1 + hashLen + 1 + hashTail
)

// zeroHash is what the first record has for prev.
var zeroHash = strings.Repeat("0", hashLen)

// link is what the chain needs of a line.
type link struct {
	seq        uint64
	event      string
	prev, hash string
}

// split reads the link of a line (without its newline) by position alone. It is
// the quick look that Open takes at lines it need not understand.
func split(line []byte) (link, bool) {
	var l link
	if len(line) < prevTail {
		return l, false
	}
	head, tail := line[:len(line)-prevTail], line[len(line)-prevTail:]
	prev, tail := cutQuoted(tail, prevKey)
	hash, tail := cutQuoted(tail, hashKey)
	if !isHash(prev) || !isHash(hash) || string(tail) != "}" {
		return l, false
	}
	number, head, _ := bytes.Cut(bytes.TrimPrefix(head, []byte(layout[0].key)), []byte(`,"time":"`))
	_, head, _ = bytes.Cut(head, []byte(`","event":"`))
	event, _, ok := bytes.Cut(head, []byte(`"`))
	seq, err := strconv.ParseUint(string(number), 10, 64)
	if !ok || err != nil {
		return l, false
	}
	return link{seq: seq, event: string(event), prev: string(prev), hash: string(hash)}, true
}

// cutQuoted takes key and a quoted string without escapes off the front of b. It
// returns a nil string if b does not begin so.
func cutQuoted(b []byte, key string) (text, rest []byte) {
	b, ok := bytes.CutPrefix(b, []byte(key+`"`))
	if !ok {
		return nil, b
	}
	text, rest, _ = bytes.Cut(b, []byte(`"`))
	return text, rest
}

func isHash(b []byte) bool {
	if len(b) != hashLen {
		return false
	}
	for _, c := range b {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// hashOf computes the hash that a line that split accepted should hold.
func hashOf(line []byte) string {
	sum := sha256.Sum256(line[:len(line)-hashTail])
	return hex.EncodeToString(sum[:])
}

// whole reports whether a line is a record that agrees with its own hash,
// wherever it stands.
func whole(line []byte) bool {
	l, ok := split(line)
	return ok && l.hash == hashOf(line)
}

// parse reads a line (without its newline) by the grammar of layout. It checks
// no hash.
func parse(line []byte) (Record, error) {
	var rec Record
	if _, ok := split(line); !ok {
		return rec, errors.New("not a record: it does not have the shape of one")
	}
	rest := line
	for i := range layout {
		f := &layout[i]
		after, ok := bytes.CutPrefix(rest, []byte(f.key))
		if !ok {
			if f.required {
				return rec, fmt.Errorf("not a record: unknown, repeated or missing key at byte %d", len(line)-len(rest))
			}
			continue
		}
		n, err := parseValue(after, f.of(&rec))
		if err != nil {
			return rec, fmt.Errorf("not a record: %s: %w", strings.Trim(f.key, `,":{`), err)
		}
		rest = after[n:]
	}
	if string(rest) != "}" {
		return rec, errors.New("not a record: bytes after its end")
	}
	return rec, nil
}

// parseValue reads the value at the front of b into v and returns its length.
func parseValue(b []byte, v any) (int, error) {
	n := valueLen(b)
	b = b[:n]
	var err error
	switch v := v.(type) {
	case *uint64:
		if *v, err = strconv.ParseUint(string(b), 10, 64); err != nil {
			err = errors.New("not a number in range")
		}
	case *int64:
		if *v, err = strconv.ParseInt(string(b), 10, 64); err != nil {
			err = errors.New("not a number in range")
		}
	case *bool:
		if *v = string(b) == "true"; !*v {
			err = errors.New("not true")
		}
	case *string:
		*v, err = parseText(b)
	case *time.Time:
		var s string
		if s, err = parseText(b); err == nil {
			*v, err = time.Parse(time.RFC3339Nano, s)
		}
		if err != nil || !strings.HasSuffix(s, "Z") {
			err = errors.New("not a time in UTC")
		}
	case *[]string:
		if err = json.Unmarshal(b, v); err != nil {
			err = errors.New("not a list of strings")
		}
	case *json.RawMessage:
		if !json.Valid(b) {
			err = errors.New("not valid JSON")
		}
		*v = bytes.Clone(b)
	default:
		panic("audit: layout holds a type that has no encoding")
	}
	return n, err
}

// parseText unquotes a JSON string. Unlike encoding/json it does not repair
// invalid UTF-8.
func parseText(b []byte) (string, error) {
	if len(b) < 2 || b[0] != '"' || b[len(b)-1] != '"' || !utf8.Valid(b) {
		return "", errors.New("not a string")
	}
	for _, c := range b {
		if c == '\\' || c < ' ' {
			var s string
			if json.Unmarshal(b, &s) != nil {
				return "", errors.New("not a string")
			}
			return s, nil
		}
	}
	return string(b[1 : len(b)-1]), nil
}

// valueLen finds the end of the JSON value at the front of b. It need not be
// exact for bytes that are not valid JSON: what it cuts off is checked after.
func valueLen(b []byte) int {
	depth, inString := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
			if !inString && depth == 0 {
				return i + 1
			}
		case inString:
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			depth--
			if depth < 0 {
				return i
			}
			if depth == 0 {
				return i + 1
			}
		case c == ',' && depth == 0:
			return i
		}
	}
	return len(b)
}

// parseHead reads a head as Log.Head gives it, in the form "seq:hash".
func parseHead(s string) (seq uint64, hash string, err error) {
	number, hash, _ := strings.Cut(s, ":")
	seq, err = strconv.ParseUint(number, 10, 64)
	if err != nil || !isHash([]byte(hash)) || seq == math.MaxUint64 {
		return 0, "", fmt.Errorf("audit: head %q is not of the form seq:hash with a hash of %d lowercase hex digits", s, hashLen)
	}
	return seq, hash, nil
}
