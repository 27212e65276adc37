// Package termclean makes hostile text fit to be shown on a terminal.
//
// A container chooses what it logs, and an image or a label may hold any bytes.
// Written to a terminal as they are, such bytes move the cursor, rewrite lines
// that were already read, set the window's title, fill the clipboard, or show
// text in another order than it is stored. This package turns them into escapes
// that can be seen and do nothing: the byte 1b becomes the four characters \x1b.
//
// The rule is a list of what may pass, not of what may not: Unicode's graphic
// characters (letters, marks, numbers, punctuation, symbols, spaces), less those
// that are drawn as nothing. All else is escaped:
//
//	C0 controls and DEL   \x1b, \x7f, and \t \n \r
//	C1 controls           \u009b
//	bidi, zero width, BOM \u202e
//	line separators       \u2028
//	bytes outside UTF-8   \xff
//	tag characters        \U000e0041
//
// Promises, for every input: the output is valid UTF-8, every rune of it
// satisfies [Safe] (Line passes tabs as well), and clean text comes back
// unchanged. Cleaning is for reading and cannot be undone: a backslash in the
// input is not doubled. The package reads and writes nothing.
package termclean

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Safe reports whether a terminal shows r as one visible character or a space.
func Safe(r rune) bool {
	if r >= ' ' && r <= '~' {
		return true
	}
	return unicode.IsGraphic(r) && r != utf8.RuneError && !invisible(r)
}

// invisible reports the graphic characters that are drawn as nothing: hidden
// text in plain sight. U+FE0E and U+FE0F only choose how an emoji looks.
func invisible(r rune) bool {
	if r == 0xfe0e || r == 0xfe0f {
		return false
	}
	return unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) || r == 0x2800
}

// String cleans a name, a label, a message: text that belongs on one line, in
// one cell of a table.
func String(s string) string {
	return clean(s, false)
}

// Line cleans one line of a log. Tabs pass: they are common there, and move the
// cursor only forward.
func Line(b []byte) string {
	return clean(string(b), true)
}

func clean(s string, tabs bool) string {
	first := strings.IndexFunc(s, func(r rune) bool { return !passes(r, tabs) })
	if first < 0 {
		return s
	}
	var out strings.Builder
	out.Grow(len(s) + 16)
	out.WriteString(s[:first])
	for s = s[first:]; s != ""; {
		r, size := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && size == 1 {
			fmt.Fprintf(&out, `\x%02x`, s[0])
		} else if passes(r, tabs) {
			out.WriteRune(r)
		} else {
			out.WriteString(escape(r))
		}
		s = s[size:]
	}
	return out.String()
}

func passes(r rune, tabs bool) bool {
	return Safe(r) || tabs && r == '\t'
}

func escape(r rune) string {
	switch {
	case r == '\t':
		return `\t`
	case r == '\n':
		return `\n`
	case r == '\r':
		return `\r`
	case r <= 0x7f:
		return fmt.Sprintf(`\x%02x`, r)
	case r <= 0xffff:
		return fmt.Sprintf(`\u%04x`, r)
	default:
		return fmt.Sprintf(`\U%08x`, r)
	}
}
