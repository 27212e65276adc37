package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/gortium/hermes-broker/internal/termclean"
)

// The rules of output:
//
//   - Answers go to stdout, everything else to stderr.
//   - A table is aligned with spaces, the same on a terminal and in a pipe.
//     Colours are for terminals only, and never with NO_COLOR or TERM=dumb.
//   - Every cell of a table, every name, log line and message is cleaned by
//     termclean, wherever it goes: a pipe often ends in a terminal.
//   - JSON and YAML hold the data exactly. Characters that termclean would not
//     let pass stand in them as escapes, so they too can be shown.
//   - JSON is the API's message: names as in the .proto files, fields present
//     even when empty, 64-bit numbers as strings. A command with one answer
//     prints it indented; one that may print several prints one a line (JSON) or
//     one a document (YAML).

// format is the value of --output.
type format string

const (
	formatTable format = "table"
	formatWide  format = "wide"
	formatJSON  format = "json"
	formatYAML  format = "yaml"
	formatName  format = "name"
)

var formats = []string{string(formatTable), string(formatWide), string(formatJSON), string(formatYAML), string(formatName)}

// String, Set and Type implement pflag.Value.
func (f *format) String() string { return string(*f) }

func (f *format) Set(s string) error {
	if !slices.Contains(formats, s) {
		return fmt.Errorf("want one of %s", strings.Join(formats, ", "))
	}
	*f = format(s)
	return nil
}

func (f *format) Type() string { return "format" }

// view is one answer in all formats.
type view struct {
	value any // json and yaml: a proto.Message, or what encoding/json takes
	text  func(w io.Writer, wide bool) error
	names []string // nil when there is nothing to name
}

// line is the text of a view that is one line, cleaned.
func line(format string, args ...any) func(io.Writer, bool) error {
	return func(w io.Writer, _ bool) error {
		_, err := fmt.Fprintln(w, termclean.String(fmt.Sprintf(format, args...)))
		return err
	}
}

// note writes a line to stderr, cleaned.
func (a *app) note(format string, args ...any) {
	fmt.Fprintln(a.stderr, termclean.String(fmt.Sprintf(format, args...)))
}

// exact says that the answer is the data as it is, not text for people.
func (a *app) exact() bool { return a.format == formatJSON || a.format == formatYAML }

// show prints the only answer of a command.
func (a *app) show(v view) error { return a.print(v, false) }

// showNext prints one of several answers.
func (a *app) showNext(v view) error { return a.print(v, true) }

func (a *app) print(v view, several bool) error {
	switch a.format {
	case formatJSON:
		data, err := encodeJSON(v.value, !several)
		if err != nil {
			return err
		}
		_, err = a.stdout.Write(data)
		return err
	case formatYAML:
		data, err := encodeYAML(v.value)
		if err != nil {
			return err
		}
		if several {
			data = append([]byte("---\n"), data...)
		}
		_, err = a.stdout.Write(data)
		return err
	case formatName:
		if v.names == nil {
			return fail(exitUsage, "use -o table, json or yaml", "this command has no names to print")
		}
		for _, n := range v.names {
			if _, err := fmt.Fprintln(a.stdout, termclean.String(n)); err != nil {
				return err
			}
		}
		return nil
	default:
		return v.text(a.stdout, a.format == formatWide)
	}
}

// encodeJSON gives value as JSON with a newline. It is the same each time:
// protojson's own spacing is not.
func encodeJSON(value any, indent bool) ([]byte, error) {
	var data []byte
	var err error
	if m, ok := value.(proto.Message); ok {
		data, err = protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	} else {
		data, err = json.Marshal(value)
	}
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if indent {
		err = json.Indent(&out, data, "", "  ")
	} else {
		err = json.Compact(&out, data)
	}
	if err != nil {
		return nil, err
	}
	return append(escapeJSON(out.Bytes()), '\n'), nil
}

// escapeJSON writes what termclean would not let pass as \u escapes. In JSON such
// characters stand inside strings only; newlines between tokens stay.
func escapeJSON(data []byte) []byte {
	out := make([]byte, 0, len(data))
	for len(data) > 0 {
		r, size := utf8.DecodeRune(data)
		switch {
		case r == '\n' || termclean.Safe(r):
			out = append(out, data[:size]...)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		data = data[size:]
	}
	return out
}
