package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// encodeYAML gives value's JSON as YAML, keys in the same order. Every string but
// the plainest is double-quoted with escapes, which makes it exact, fit for a
// terminal, and never anything but a string to a reader.
func encodeYAML(value any) ([]byte, error) {
	data, err := encodeJSON(value, false)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	w := &yamlWriter{in: d}
	if err := w.value(0, "", ""); err != nil {
		return nil, err
	}
	return w.out.Bytes(), nil
}

type yamlWriter struct {
	in  *json.Decoder
	out bytes.Buffer
}

// value writes the next JSON value. same is what stands before it when it goes
// on in the line, own what ends the line when it needs lines of its own, at the
// given depth.
func (w *yamlWriter) value(depth int, same, own string) error {
	token, err := w.in.Token()
	if err != nil {
		return err
	}
	delim, ok := token.(json.Delim)
	if !ok {
		fmt.Fprintf(&w.out, "%s%s\n", same, yamlScalar(token))
		return nil
	}
	if !w.in.More() {
		empty := "{}"
		if delim == '[' {
			empty = "[]"
		}
		fmt.Fprintf(&w.out, "%s%s\n", same, empty)
	} else {
		w.out.WriteString(own)
		for first := true; w.in.More(); first = false {
			// The first line of a list's item follows its dash.
			if !first || !strings.HasSuffix(own, "- ") {
				w.out.WriteString(strings.Repeat("  ", depth))
			}
			if delim == '[' {
				if err := w.value(depth+1, "- ", "- "); err != nil {
					return err
				}
				continue
			}
			key, err := w.in.Token()
			if err != nil {
				return err
			}
			w.out.WriteString(yamlScalar(key) + ":")
			if err := w.value(depth+1, " ", "\n"); err != nil {
				return err
			}
		}
	}
	_, err = w.in.Token() // the closing bracket
	return err
}

// plainYAML is a word that no YAML reader takes for anything but a string.
var plainYAML = regexp.MustCompile(`^[A-Za-z_/][A-Za-z0-9_./-]*$`)

func yamlScalar(token json.Token) string {
	switch t := token.(type) {
	case nil:
		return "null"
	case string:
		switch strings.ToLower(t) {
		case "true", "false", "yes", "no", "on", "off", "null", "y", "n":
		default:
			if plainYAML.MatchString(t) {
				return t
			}
		}
		return quoteYAML(t)
	default:
		return fmt.Sprint(t)
	}
}

// quoteYAML is JSON's form, except that YAML has no surrogate pairs.
func quoteYAML(s string) string {
	var out strings.Builder
	for _, r := range s {
		var one string
		if r > 0xffff {
			one = string(escapeJSON([]byte(string(r))))
			if strings.HasPrefix(one, `\u`) {
				one = fmt.Sprintf(`\U%08x`, r)
			}
		} else {
			quoted, _ := json.Marshal(string(r)) // A rune always has a JSON form.
			one = string(escapeJSON(quoted[1 : len(quoted)-1]))
		}
		out.WriteString(one)
	}
	return `"` + out.String() + `"`
}
