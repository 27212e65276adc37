package audit

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

func encodeOne(rec Record) []byte {
	rec.Seq, rec.Prev = max(rec.Seq, 1), zeroHash
	return appendRecord(nil, &rec)
}

// full returns a record with every field set to s, or to something above zero.
func full(s string) Record {
	var rec Record
	v := reflect.ValueOf(&rec).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i).Addr().Interface().(type) {
		case *string:
			*f = s
		case *Event:
			*f = Event(s)
		case *uint64:
			*f = 1<<64 - 2
		case *int64:
			*f = -1 << 63
		case *bool:
			*f = true
		case *time.Time:
			*f = time.Date(2031, 2, 3, 4, 5, 6, 123456789, time.FixedZone("x", 3600))
		case *json.RawMessage:
			*f, _ = json.Marshal(map[string]string{s: s})
		}
	}
	return rec
}

// TestLayout holds the struct, its tags and the grammar of the line together.
func TestLayout(t *testing.T) {
	typ := reflect.TypeFor[Record]()
	if typ.NumField() != len(layout) {
		t.Fatalf("Record has %d fields, layout %d", typ.NumField(), len(layout))
	}
	var rec Record
	for i, f := range layout {
		tag, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		if got := strings.Trim(f.key, `,":{`); got != tag {
			t.Errorf("field %d: layout has %q, the tag %q", i, got, tag)
		}
		if f.of(&rec) != any(reflect.ValueOf(&rec).Elem().Field(i).Addr().Interface()) && tag != "event" {
			t.Errorf("layout of %q points to another field", tag)
		}
	}
}

func TestRecordRoundTrip(t *testing.T) {
	for _, rec := range []Record{full("text"), {Event: EventCall, Time: time.Unix(0, 0)}} {
		line := encodeOne(rec)
		got, err := parse(line[:len(line)-1])
		if err != nil {
			t.Fatalf("%v\n%s", err, line)
		}
		var std Record
		if err := json.Unmarshal(line, &std); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, std) {
			t.Errorf("parse and encoding/json differ:\n%+v\n%+v", got, std)
		}
		rec.Seq, rec.Prev, rec.Hash, rec.Cut = got.Seq, got.Prev, got.Hash, nil
		rec.Time = rec.Time.UTC()
		if !reflect.DeepEqual(got, rec) {
			t.Errorf("got\n%+v\nwant\n%+v", got, rec)
		}
	}
}

var hostile = []string{
	"a\nb\r\x00\x1b[31m\x7f\u0085",
	"\u2028\u2029\u202e\ufeff\U000e0001",
	"\xff\xfe\xc3(\xed\xa0\x80",
	`","hash":"` + zeroHash + `"}` + "\n" + `{"seq":2,"time":"`,
	`\"\\u000a`,
	"é 日本 🙂",
}

// TestHostileText: whatever the fields hold, a record is one line of printable
// JSON that reads back as the same text.
func TestHostileText(t *testing.T) {
	long := []string{
		strings.Repeat("\x01", 1<<20), strings.Repeat("a", 1<<20), strings.Repeat("\xff", 1<<20),
		strings.Repeat("\U000e0001", 1<<16), strings.Repeat("日", 1<<16), strings.Repeat(`"`, 1<<16),
	}
	for _, s := range append(hostile, long...) {
		rec := full(s)
		for _, raw := range []json.RawMessage{rec.Request, []byte(s), []byte(" {\n\t\"a b\" : [1 , 2 ] }\r"), []byte(`"` + s + `"`)} {
			rec.Request = raw
			line := encodeOne(rec)
			if len(line) > maxLine {
				t.Fatalf("line of %d bytes", len(line))
			}
			if bytes.IndexByte(line, '\n') != len(line)-1 {
				t.Fatalf("not one line: %q", line)
			}
			for i, r := range string(line[:len(line)-1]) {
				if !unicode.IsPrint(r) {
					t.Fatalf("%q at byte %d is not printable", r, i)
				}
			}
			if !utf8.Valid(line) || !json.Valid(line) || !whole(line[:len(line)-1]) {
				t.Fatalf("not a valid record: %.300q", line)
			}
			got, err := parse(line[:len(line)-1])
			if err != nil {
				t.Fatalf("%v: %.300q", err, line)
			}
			if len(got.Cut) == 0 && got.Detail != strings.ToValidUTF8(s, "\ufffd") && utf8.ValidString(s) {
				t.Errorf("detail: got %q, want %q", got.Detail, s)
			}
			if len(s) > maxText && len(got.Cut) == 0 {
				t.Errorf("a field of %d bytes was cut without saying so", len(s))
			}
		}
	}
}

func TestRequestForms(t *testing.T) {
	big := `{"a":"` + strings.Repeat("x", maxRequest) + `"}`
	for _, tt := range []struct {
		name, raw, want string
		cut             bool
	}{
		{"object", `{"a":1}`, `{"a":1}`, false},
		{"space between tokens", "{ \"a b\" :\n[1,\t2] }", `{"a b":[1,2]}`, false},
		{"escapes stay", `{"a":"\"\\\n\u2028"}`, `{"a":"\"\\\n\u2028"}`, false},
		{"raw separators and controls", "{\"a\":\"\u2028\x7f\"}", `{"a":"\u2028\u007f"}`, false},
		{"invalid UTF-8", "{\"a\":\"\xff\"}", `{"a":"\ufffd"}`, false},
		{"not JSON", "{a\n", `"{a\u000a"`, false},
		{"two values", `{}{}`, `"{}{}"`, false},
		{"too long", big, `"` + `{\"a\":\"` + strings.Repeat("x", maxRequest-2-len(`{\"a\":\"`)) + `"`, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			line := encodeOne(Record{Event: EventCall, Request: json.RawMessage(tt.raw)})
			got, err := parse(line[:len(line)-1])
			if err != nil {
				t.Fatal(err)
			}
			if string(got.Request) != tt.want {
				t.Errorf("got %.100s\nwant %.100s", got.Request, tt.want)
			}
			if cut := len(got.Cut) == 1 && got.Cut[0] == "request"; cut != tt.cut {
				t.Errorf("cut: got %q", got.Cut)
			}
		})
	}
}

// TestParseRefuses: lines with a right hash that no writer wrote.
func TestParseRefuses(t *testing.T) {
	line := string(encodeOne(Record{Event: EventCall, Call: "c", Request: json.RawMessage(`{"a":1}`), Count: 3}))
	resign := func(s string) []byte {
		s = strings.TrimSuffix(s, "\n")
		h := hashOf([]byte(s))
		return []byte(s[:len(s)-hashLen-2] + h + `"}`)
	}
	if _, err := parse(resign(line)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, old, new string }{
		{"duplicate key", `,"call":"c"`, `,"call":"c","call":"c"`},
		{"duplicate in other case", `,"call":"c"`, `,"call":"c","Call":"d"`},
		{"duplicate seq", `,"count":3`, `,"count":3,"seq":1`},
		{"unknown key", `,"count":3`, `,"count":3,"extra":1`},
		{"key out of order", `,"call":"c","request":{"a":1}`, `,"request":{"a":1},"call":"c"`},
		{"two pairs of hashes", `,"prev":`, `,"prev":"` + zeroHash + `","hash":"` + zeroHash + `","prev":`},
		{"wrong type", `"count":3`, `"count":"3"`},
		{"number too big", `"count":3`, `"count":99999999999999999999`},
		{"negative", `"count":3`, `"count":-3`},
		{"space", `,"count":3`, `, "count":3`},
		{"request not JSON", `{"a":1}`, `{"a":}`},
		{"request unbalanced", `{"a":1}`, `{"a":1`},
		{"two requests", `{"a":1}`, `{"a":1}{"a":1}`},
		{"raw control character", `"call":"c"`, "\"call\":\"\x01\""},
		{"invalid UTF-8", `"call":"c"`, "\"call\":\"\xff\""},
		{"bad escape", `"call":"c"`, `"call":"\x"`},
		{"no time", `"time":"`, `"time":"x`},
		{"leading byte", `{"seq"`, ` {"seq"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bad := strings.Replace(line, tt.old, tt.new, 1)
			if bad == line {
				t.Fatal("the case changes nothing")
			}
			if rec, err := parse(resign(bad)); err == nil {
				t.Errorf("accepted: %+v", rec)
			}
		})
	}
	for _, tail := range []string{" ", "}", "\r", line} {
		if _, err := parse([]byte(strings.TrimSuffix(line, "\n") + tail)); err == nil {
			t.Errorf("accepted trailing %q", tail)
		}
	}
}

func TestNewCallID(t *testing.T) {
	seen := map[string]bool{}
	for range 10000 {
		id := NewCallID()
		if len(id) < 16 || seen[id] {
			t.Fatalf("id %q is short or repeated", id)
		}
		seen[id] = true
	}
}
