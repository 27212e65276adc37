package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

const cur = "s=00000000000000000000000000000001;i=1;b=00000000000000000000000000000002;m=3;t=4;x=5"

const head = `{"__CURSOR":"` + cur + `","__REALTIME_TIMESTAMP":"1500000000000001",`

func TestValues(t *testing.T) {
	for text, want := range map[string]string{
		`"plain"`:                          "plain",
		`""`:                               "",
		`null`:                             "",
		`[]`:                               "",
		`[104,105]`:                        "hi",
		`[ 104 , 105 ]`:                    "hi",
		`[255,0,27]`:                       "\xff\x00\x1b",
		`["first","second"]`:               "first",
		`[[104,105],"second"]`:             "hi",
		`[null,"second"]`:                  "second",
		`["a",[1,2]]`:                      "a",
		`"\"\\\/\b\f\n\r\t\u00e9\u20ac"`:   "\"\\/\b\f\n\r\té€",
		`"\ud83d\ude00"`:                   "😀",
		`"\ud83d"`:                         "\uFFFD",
		`"\ud83dx"`:                        "\uFFFDx",
		`"\ud83d\u0041"`:                   "\uFFFDA",
		`"\ud83d\ud83d\ude00"`:             "\uFFFD😀",
		`"raw é"`:                          "raw é",
		`"}\",\"__CURSOR\":\"forged\",\""`: `}","__CURSOR":"forged","`,
	} {
		for _, r := range []io.Reader{strings.NewReader(head + `"MESSAGE":` + text + "}\n"), iotest.OneByteReader(strings.NewReader(head + ` "MESSAGE" : ` + text + " } "))} {
			e, err := newScanner(r).next()
			if err != nil || string(e.GetMessage()) != want || e.GetCursor() != cur {
				t.Errorf("%s: %q, %v", text, e.GetMessage(), err)
			}
		}
	}
	for _, text := range []string{
		`plain`, `"open`, `[1,2`, `[256]`, `[-1]`, `[1.5]`, `[1,]`, `[1 2]`, `[1,"x"]`, `[,1]`, `{}`, `{"a":1}`, `true`, `12`, `[[[1]]]`, `nul`, `nulx`, `"\x"`, `"\u12"`, `"\uzzzz"`, "\"a\nb\"", "\"a\x00b\"", `"a" "b"`, `"a",`, `"a",,`, `[["a"`,
	} {
		if e, err := newScanner(strings.NewReader(head + `"MESSAGE":` + text)).next(); !errors.Is(err, errMalformed) {
			t.Errorf("%s: %v, %v", text, e, err)
		}
	}
}

func TestEntry(t *testing.T) {
	text := head + `"MESSAGE":"m","PRIORITY":"3","_PID":"42","SYSLOG_PID":"7","_COMM":"comm","SYSLOG_IDENTIFIER":"id","_SYSTEMD_UNIT":"a.service","OTHER":"x"}`
	e, err := newScanner(strings.NewReader(text)).next()
	want := &brokerv1.JournalEntry{Unit: "a.service", Identifier: "id", Pid: 42, Priority: brokerv1.JournalPriority_JOURNAL_PRIORITY_ERROR, Message: []byte("m"), Cursor: cur}
	want.EntryTime = e.GetEntryTime()
	if err != nil || !proto.Equal(e, want) || e.GetEntryTime().AsTime().UnixMicro() != 1500000000000001 {
		t.Errorf("%v, %v", e, err)
	}
	e, err = newScanner(strings.NewReader(head + `"PRIORITY":"x","_PID":"-4","SYSLOG_PID":"99999999999","_COMM":["k\u0001",[7]],"SYSLOG_IDENTIFIER":[255]}`)).next()
	if err != nil || e.GetPriority() != 0 || e.GetPid() != 0 || e.GetIdentifier() != "\uFFFD" {
		t.Errorf("%v, %v", e, err)
	}
	// The first of a name counts: journalctl writes its own first.
	e, err = newScanner(strings.NewReader(head + `"MESSAGE":"m","__CURSOR":"s=ffffffffffffffffffffffffffffffff;i=f;b=ffffffffffffffffffffffffffffffff;m=f;t=f;x=f","MESSAGE":"n"}`)).next()
	if err != nil || string(e.GetMessage()) != "m" || e.GetCursor() != cur {
		t.Errorf("%v, %v", e, err)
	}
}

// TestLongLines: what is over the cap is cut and marked, in bounded memory, and the
// stream goes on.
func TestLongLines(t *testing.T) {
	const size = 12 << 20
	for name, value := range map[string]io.Reader{
		"text":    io.MultiReader(strings.NewReader(`"`), io.LimitReader(repeat("a"), size), strings.NewReader(`"`)),
		"escapes": io.MultiReader(strings.NewReader(`"`), io.LimitReader(repeat(`\u00e9`), size/6*6), strings.NewReader(`"`)),
		"bytes":   io.MultiReader(strings.NewReader(`[1`), io.LimitReader(repeat(",1"), size), strings.NewReader(`]`)),
		"values":  io.MultiReader(strings.NewReader(`["a"`), io.LimitReader(repeat(`,"a"`), size), strings.NewReader(`]`)),
	} {
		t.Run(name, func(t *testing.T) {
			s := newScanner(io.MultiReader(strings.NewReader(head+`"MESSAGE":`), value, strings.NewReader("}\n"+head+`"MESSAGE":"next"}`)))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			e, err := s.next()
			runtime.ReadMemStats(&after)
			if err != nil || e.GetTruncated() == (name == "values") || name != "values" && (len(e.GetMessage()) > messageBytes || len(e.GetMessage()) < messageBytes-1) {
				t.Errorf("%d bytes, truncated %v, %v", len(e.GetMessage()), e.GetTruncated(), err)
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<20 {
				t.Errorf("%d bytes were allocated", grown)
			}
			if next, err := s.next(); err != nil || string(next.GetMessage()) != "next" {
				t.Errorf("next: %v, %v", next, err)
			}
		})
	}
	exact := strings.Repeat("a", messageBytes)
	for text, cut := range map[string]bool{exact: false, exact + "b": true} {
		e, err := newScanner(strings.NewReader(head + `"MESSAGE":"` + text + `"}`)).next()
		if err != nil || e.GetTruncated() != cut || string(e.GetMessage()) != exact {
			t.Errorf("%d bytes: truncated %v, %v", len(text), e.GetTruncated(), err)
		}
	}
}

type repeat string

func (r repeat) Read(p []byte) (int, error) {
	n := 0
	for n+len(r) <= len(p) {
		n += copy(p[n:], r)
	}
	return n, nil
}

// FuzzJournal: what encoding/json reads as an entry is read alike, and nothing
// else is read as one.
func FuzzJournal(f *testing.F) {
	for _, v := range []string{`"plain"`, `null`, `[104,105]`, `["a","b"]`, `[[1,2],"b"]`, `"\ud83d\ude00\n"`, `[]`, `[256]`, `"open`, `{}`} {
		f.Add([]byte(head + `"MESSAGE":` + v + "}\n"))
	}
	f.Add([]byte(line(1, `"a"`) + line(2, `"b"`)))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := newScanner(bytes.NewReader(data))
		e, err := s.next()
		if err != nil {
			if !errors.Is(err, errMalformed) && !errors.Is(err, io.EOF) {
				t.Fatalf("%v", err)
			}
			return
		}
		if len(e.GetMessage()) > messageBytes || !utf8.ValidString(e.GetUnit()+e.GetIdentifier()+e.GetCursor()) || !cursorSyntax.MatchString(e.GetCursor()) {
			t.Fatalf("%v", e)
		}
		if _, err := proto.Marshal(e); err != nil {
			t.Fatal(err)
		}
		var fields map[string]json.RawMessage
		if json.NewDecoder(bytes.NewReader(data)).Decode(&fields) != nil {
			return // It lets a little more through, such as a number with zeros before it.
		}
		var text string
		if raw := fields["MESSAGE"]; bytes.Count(data, []byte("MESSAGE")) == 1 && utf8.Valid(data) && len(raw) > 0 && raw[0] == '"' && !e.GetTruncated() {
			if err := json.Unmarshal(raw, &text); err == nil && text != string(e.GetMessage()) {
				t.Fatalf("%q, want %q", e.GetMessage(), text)
			}
		}
	})
}
