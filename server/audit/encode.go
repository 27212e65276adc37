package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// The limits are chosen so that no record can pass maxLine: 17 text fields and a
// request at their limits leave 2 KiB for keys, numbers and hashes.
const (
	maxLine    = 64 << 10 // with its newline
	maxText    = 2 << 10  // one text field as written, without its quotes
	maxRequest = 28 << 10 // the request as written
)

// layout is the grammar of a line: the fields in the order in which they stand.
// The encoder writes by it and the parser accepts nothing else, so a key that is
// unknown, repeated or out of order cannot get through.
var layout = [...]struct {
	key      string
	required bool
	of       func(*Record) any
}{
	{`{"seq":`, true, func(r *Record) any { return &r.Seq }},
	{`,"time":`, true, func(r *Record) any { return &r.Time }},
	{`,"event":`, true, func(r *Record) any { return (*string)(&r.Event) }},
	{`,"call":`, false, func(r *Record) any { return &r.Call }},
	{`,"caller":`, false, func(r *Record) any { return &r.Caller }},
	{`,"serial":`, false, func(r *Record) any { return &r.Serial }},
	{`,"peer":`, false, func(r *Record) any { return &r.Peer }},
	{`,"method":`, false, func(r *Record) any { return &r.Method }},
	{`,"permission":`, false, func(r *Record) any { return &r.Permission }},
	{`,"effect":`, false, func(r *Record) any { return &r.Effect }},
	{`,"resource":`, false, func(r *Record) any { return &r.Resource }},
	{`,"request":`, false, func(r *Record) any { return &r.Request }},
	{`,"target":`, false, func(r *Record) any { return &r.Target }},
	{`,"rule":`, false, func(r *Record) any { return &r.Rule }},
	{`,"policy":`, false, func(r *Record) any { return &r.Policy }},
	{`,"code":`, false, func(r *Record) any { return &r.Code }},
	{`,"reason":`, false, func(r *Record) any { return &r.Reason }},
	{`,"detail":`, false, func(r *Record) any { return &r.Detail }},
	{`,"validate_only":`, false, func(r *Record) any { return &r.ValidateOnly }},
	{`,"duration_us":`, false, func(r *Record) any { return &r.DurationUS }},
	{`,"count":`, false, func(r *Record) any { return &r.Count }},
	{`,"torn_bytes":`, false, func(r *Record) any { return &r.TornBytes }},
	{`,"torn_sha256":`, false, func(r *Record) any { return &r.TornSHA256 }},
	{`,"through_seq":`, false, func(r *Record) any { return &r.ThroughSeq }},
	{`,"through_hash":`, false, func(r *Record) any { return &r.ThroughHash }},
	{`,"open_from":`, false, func(r *Record) any { return &r.OpenFrom }},
	{`,"cut":`, false, func(r *Record) any { return &r.Cut }},
	{prevKey, true, func(r *Record) any { return &r.Prev }},
	{hashKey, true, func(r *Record) any { return &r.Hash }},
}

const (
	prevKey = `,"prev":`
	hashKey = `,"hash":`
)

// appendRecord appends the line of r, newline included, to dst. r.Seq and r.Prev
// are given; the hash is computed and set.
func appendRecord(dst []byte, r *Record) []byte {
	start := len(dst)
	r.Cut, r.Hash = nil, ""
	for i := range layout {
		f := &layout[i]
		if f.key == hashKey {
			break // covers what stands before it
		}
		mark := len(dst)
		dst = append(dst, f.key...)
		var full, cut bool
		dst, full, cut = appendValue(dst, f.of(r))
		if !full && !f.required {
			dst = dst[:mark]
		}
		if cut {
			r.Cut = append(r.Cut, strings.Trim(f.key, `,":{`))
		}
	}
	sum := sha256.Sum256(dst[start:])
	var text [sha256.Size * 2]byte
	hex.Encode(text[:], sum[:])
	r.Hash = string(text[:])
	dst = append(dst, hashKey...)
	dst = append(dst, '"')
	dst = append(dst, text[:]...)
	return append(dst, '"', '}', '\n')
}

// appendValue reports whether the value is other than zero and whether it had to
// be cut.
func appendValue(dst []byte, v any) (_ []byte, full, cut bool) {
	switch v := v.(type) {
	case *uint64:
		return strconv.AppendUint(dst, *v, 10), *v != 0, false
	case *int64:
		return strconv.AppendInt(dst, *v, 10), *v != 0, false
	case *bool:
		return strconv.AppendBool(dst, *v), *v, false
	case *time.Time:
		dst = append(dst, '"')
		dst = v.UTC().AppendFormat(dst, time.RFC3339Nano)
		return append(dst, '"'), true, false
	case *string:
		dst, cut = appendText(dst, *v, maxText)
		return dst, *v != "", cut
	case *[]string:
		sep := byte('[')
		for _, s := range *v {
			dst, _ = appendText(append(dst, sep), s, maxText)
			sep = ','
		}
		return append(dst, ']'), len(*v) != 0, false
	case *json.RawMessage:
		dst, cut = appendRequest(dst, *v)
		return dst, len(*v) != 0, cut
	default:
		panic("audit: layout holds a type that has no encoding")
	}
}

// appendText appends s as a JSON string whose content takes at most limit bytes
// and reports whether s had to be cut for that.
func appendText(dst []byte, s string, limit int) ([]byte, bool) {
	dst = append(dst, '"')
	limit += len(dst)
	for i := 0; i < len(s); {
		mark, size := len(dst), 1
		switch c := s[i]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < utf8.RuneSelf:
			dst = appendRune(dst, rune(c))
		default:
			var r rune
			r, size = utf8.DecodeRuneInString(s[i:])
			dst = appendRune(dst, r)
		}
		if len(dst) > limit {
			return append(dst[:mark], '"'), true
		}
		i += size
	}
	return append(dst, '"'), false
}

// appendRune appends what is printable as it is and the rest as escapes, so that
// no line separator, terminal sequence or direction mark stands in the file.
func appendRune(dst []byte, r rune) []byte {
	switch {
	case r == utf8.RuneError:
		return append(dst, `\ufffd`...)
	case unicode.IsPrint(r):
		return utf8.AppendRune(dst, r)
	case r > 0xffff:
		hi, lo := utf16.EncodeRune(r)
		return appendEscape(appendEscape(dst, hi), lo)
	default:
		return appendEscape(dst, r)
	}
}

func appendEscape(dst []byte, r rune) []byte {
	const digits = "0123456789abcdef"
	return append(dst, '\\', 'u', digits[r>>12&15], digits[r>>8&15], digits[r>>4&15], digits[r&15])
}

// appendRequest appends raw on one line. Valid JSON keeps its form, less the
// space between its tokens; all else is written as a string.
func appendRequest(dst []byte, raw []byte) ([]byte, bool) {
	mark := len(dst)
	if len(raw) <= maxRequest && json.Valid(raw) {
		inString := false
		for i := 0; i < len(raw); {
			size := 1
			switch c := raw[i]; {
			case !inString && (c == ' ' || c == '\t' || c == '\n' || c == '\r'):
			case c == '\\': // only within a string: takes the next byte with it
				dst, size = append(dst, c, raw[i+1]), 2
			case c == '"':
				inString = !inString
				dst = append(dst, c)
			case c < utf8.RuneSelf:
				dst = appendRune(dst, rune(c))
			default:
				var r rune
				r, size = utf8.DecodeRune(raw[i:])
				dst = appendRune(dst, r)
			}
			i += size
		}
		if len(dst)-mark <= maxRequest {
			return dst, false
		}
		dst = dst[:mark]
	}
	return appendText(dst, string(raw[:min(len(raw), maxRequest)]), maxRequest-2)
}
