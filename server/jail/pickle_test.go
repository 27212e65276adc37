package jail

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	pickle "github.com/kisielk/og-rek"
)

// recorded is what fail2ban 1.0.2 answered, or 1.1.1 where the name says so.
func recorded(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".pickle"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRecordedAnswers(t *testing.T) {
	for name, want := range map[string]string{
		"version": `"1.0.2"`, "version-1.1.1": `"1.1.1"`, "dbfile": `"/tmp/f2b/db.sqlite"`,
		"status":          `jail.list{jail.tuple{"Number of jail", 4}, jail.tuple{"Jail list", "demo, forever, journal, quiet.one"}}`,
		"status-demo":     `jail.list{jail.tuple{"Filter", jail.list{jail.tuple{"Currently failed", 2}, jail.tuple{"Total failed", 5}, jail.tuple{"File list", jail.list{"/tmp/f2b/auth.log"}}}}, jail.tuple{"Actions", jail.list{jail.tuple{"Currently banned", 3}, jail.tuple{"Total banned", 3}, jail.tuple{"Banned IP list", jail.list{"198.51.100.7", "2001:db8::7", "203.0.113.0/24"}}}}}`,
		"status-journal":  `jail.list{jail.tuple{"Filter", jail.list{jail.tuple{"Currently failed", 0}, jail.tuple{"Total failed", 0}, jail.tuple{"Journal matches", jail.list{"_SYSTEMD_UNIT=ssh.service + _COMM=sshd"}}}}, jail.tuple{"Actions", jail.list{jail.tuple{"Currently banned", 0}, jail.tuple{"Total banned", 0}, jail.tuple{"Banned IP list", jail.list(nil)}}}}`,
		"banned-demo":     `jail.list{"198.51.100.7 \t2026-11-25 07:44:04 + 3600 = 2026-11-25 08:44:04", "2001:db8::7 \t2026-11-25 07:44:09 + 3600 = 2026-11-25 08:44:09", "203.0.113.0/24 \t2026-11-25 07:44:09 + 3600 = 2026-11-25 08:44:09"}`,
		"banned-forever":  `jail.list{"192.0.2.66 \t2026-11-25 07:44:09 + -1 = 9999-12-31 23:59:59"}`,
		"banned-journal":  `jail.list(nil)`,
		"bantime-demo":    `3600`,
		"bantime-forever": `-1`, "findtime-forever": `5400`, "maxretry-demo": `3`,
		"ignoreip-demo": `jail.list{"127.0.0.0/8", "192.0.2.0/24", "monitor.example.org", "2001:db8:1::/48", "::1"}`,
		// What was refused.
		"status-nojail": `it is fail2ban.exceptions.UnknownJailException: "nojail"`,
		"banned-nojail": `it is fail2ban.exceptions.UnknownJailException: "nojail"`,
		"invalid":       `it is builtins.Exception: "Invalid command (no get action or not yet implemented)"`,
		"short":         `it is builtins.IndexError: "list index out of range"`,
		// A set of addresses out of a file, an instance with a state, which 1.0.2 does
		// not have yet.
		"ignoreip-filed-1.1.1": `the class "fail2ban.server.ipdns.FileIPAddrSet"`,
	} {
		v, err := answer(recorded(t, name))
		got := fmt.Sprintf("%#v", v)
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %s\nwant %s", name, got, want)
		}
	}
	if v, _ := answer(recorded(t, "findtime-forever")); v != 5400.0 { // Not the integer.
		t.Errorf("%#v", v)
	}
}

// TestTruncatedAnswers: no part of an answer is one.
func TestTruncatedAnswers(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.pickle")
	if len(files) < 20 {
		t.Fatal("no recorded answers")
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for n := range b {
			v, err := answer(b[:n])
			if r := (*refusal)(nil); v != nil || err == nil || errors.As(err, &r) {
				t.Errorf("%s, %d bytes: %v, %v", f, n, v, err)
			}
		}
		for _, more := range []string{"\x00", ".", "\n", string(b), "<F2B_END_COMMAND>"} {
			if v, err := answer(append(slices.Clone(b), more...)); v != nil || err == nil {
				t.Errorf("%s and %q: %v", f, more, v)
			}
		}
	}
}

// says is the answer (0, value), the value in opcodes.
func says(value string) string { return "\x80\x05K\x00" + value + "\x86." }

// str is an opcode for a string.
func str(s string) string {
	return "X" + string(binary.LittleEndian.AppendUint32(nil, uint32(len(s)))) + s
}

// TestPython2 reads what a fail2ban under Python 2 writes.
func TestPython2(t *testing.T) {
	for in, want := range map[string]string{
		"\x80\x02K\x00]q\x00(c__builtin__\nstr\nq\x01U\x09192.0.2.1q\x02\x85q\x03Rq\x04h\x01U\x03::1q\x05\x85q\x06Rq\x07e\x86q\x08.": `jail.list{"192.0.2.1", "::1"}`,
		"\x80\x02K\x01cfail2ban.exceptions\nUnknownJailException\nq\x00U\x01xq\x01\x85q\x02Rq\x03\x86q\x04.":                         `it is fail2ban.exceptions.UnknownJailException: "x"`,
		"\x80\x02K\x01cexceptions\nKeyError\nq\x00U\x01xq\x01\x85q\x02Rq\x03\x86q\x04.":                                              `it is exceptions.KeyError: "x"`,
	} {
		v, err := answer([]byte(in))
		if got := fmt.Sprintf("%#v", v); got != want && (err == nil || err.Error() != want) {
			t.Errorf("%q: %s, %v", in, got, err)
		}
	}
}

func TestNumbers(t *testing.T) {
	for in, want := range map[string]any{
		"\x88": true, "\x89": false, "N": nil, "K\xff": int64(255), "M\x00\x80": int64(32768), "J\xff\xff\xff\xff": int64(-1),
		"\x8a\x00": int64(0), "\x8a\x01\x80": int64(-128), "\x8a\x05\x00\x00\x00\x00\x01": int64(1 << 32), "\x8a\x05\xff\xff\xff\xff\xfe": int64(-1<<32 - 1),
		"\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80": int64(-1 << 63), "G\xbf\xf8\x00\x00\x00\x00\x00\x00": -1.5,
	} {
		if v, err := answer([]byte(says(in))); err != nil || v != want {
			t.Errorf("%q: %#v, %v", in, v, err)
		}
	}
}

// hostile are answers that are none, and what is wrong with each.
var hostile = map[string]struct{ in, want string }{
	"os.system by GLOBAL":           {says("cos\nsystem\n" + str("id") + "\x85R"), `the class "os.system"`},
	"posix.system by STACK_GLOBAL":  {says(str("posix") + str("system") + "\x93" + str("id") + "\x85R"), `the class "posix.system"`},
	"by STACK_GLOBAL, remembered":   {says(str("posix") + "\x94" + str("system") + "\x94\x93" + str("id") + "\x85R"), `the class "posix.system"`},
	"by STACK_GLOBAL, repeated":     {says("(" + str("system") + "\x94" + str("posix") + "\x94h\x00\x93t"), `the class "posix.system"`},
	"by STACK_GLOBAL, hidden":       {says(str("posix") + str("system") + str("builtins") + str("str") + "\x85\x93\x86"), `the class "."`},
	"builtins.eval":                 {says(str("builtins") + str("eval") + "\x93" + str("1") + "\x85R"), `the class "builtins.eval"`},
	"builtins.getattr":              {says("cbuiltins\ngetattr\n" + str("1") + "\x85R"), `the class "builtins.getattr"`},
	"str of another":                {says("cposix\nstr\n" + str("1") + "\x85R"), `the class "posix.str"`},
	"an attribute of str":           {says("cbuiltins\nstr.join\n" + str("1") + "\x85R"), `the class "builtins.str.join"`},
	"_codecs.encode":                {says("c_codecs\nencode\n" + str("1") + str("latin1") + "\x86R"), `the class "_codecs.encode"`},
	"bytearray":                     {says("cbuiltins\nbytearray\n" + str("1") + str("latin-1") + "\x86R"), `the class "builtins.bytearray"`},
	"a class without end":           {says("c" + strings.Repeat("a", 300) + "\nb\n"), `the class "`},
	"a class in a line":             {says("cbuiltins\nstr"), `the class "builtins.str`},
	"str itself":                    {says("cbuiltins\nstr\n"), `the class "builtins.str"`},
	"str of nothing":                {says("cbuiltins\nstr\n)R"), `a call of "builtins.str" with 0 arguments`},
	"str of two":                    {says("cbuiltins\nstr\n" + str("a") + str("b") + "\x86R"), `a call of "builtins.str" with 2 arguments`},
	"str of a number":               {says("cbuiltins\nstr\nK\x01\x85R"), `a call of "builtins.str" with 1 arguments`},
	"str of str":                    {says("cbuiltins\nstr\ncbuiltins\nstr\n" + str("a") + "\x85R\x85R"), `a call of "builtins.str"`},
	"str of a list":                 {says("cbuiltins\nstr\n]R"), "invalid args"},
	"an exception as a value":       {says("cbuiltins\nException\n" + str("a") + "\x85R"), `a call of "builtins.Exception"`},
	"an exception within":           {says("]cbuiltins\nException\n" + str("a") + "\x85Ra"), `a call of "builtins.Exception"`},
	"no exception":                  {"\x80\x05K\x01" + str("a") + "\x86.", "its exception is a string"},
	"an exception's class":          {"\x80\x05K\x01cbuiltins\nException\n\x86.", "its exception is a ogórek.Class"},
	"str as an exception":           {"\x80\x05K\x01cbuiltins\nstr\n" + str("a") + "\x85R\x86.", `its exception is a "builtins.str"`},
	"an exception in an exception":  {"\x80\x05K\x01cbuiltins\nException\ncbuiltins\nException\n)R\x85R\x86.", `a call of "builtins.Exception"`},
	"SystemExit":                    {"\x80\x05K\x01cbuiltins\nSystemExit\n)R\x86.", `the class "builtins.SystemExit"`},
	"an exception of another":       {"\x80\x05K\x01cposix\nException\n)R\x86.", `the class "posix.Exception"`},
	"code 2":                        {"\x80\x05K\x02N\x86.", "its code"},
	"code -1":                       {"\x80\x05J\xff\xff\xff\xffN\x86.", "its code"},
	"code True":                     {"\x80\x05\x88N\x86.", "its code"},
	"code 0.0":                      {"\x80\x05G\x00\x00\x00\x00\x00\x00\x00\x00N\x86.", "its code"},
	"code '0'":                      {"\x80\x05U\x010N\x86.", "its code"},
	"code []":                       {"\x80\x05]N\x86.", "its code"},
	"code (0,)":                     {"\x80\x05K\x00\x85N\x86.", "its code"},
	"a tuple of one":                {"\x80\x05K\x00\x85.", "it is no pair"},
	"a tuple of three":              {"\x80\x05K\x00NN\x87.", "it is no pair"},
	"a list":                        {"\x80\x05](K\x00Ne.", "it is no pair"},
	"words":                         {"\x80\x05" + str("ERROR: x") + ".", `it is no pair but "ERROR: x"`},
	"an empty tuple":                {"\x80\x05).", "it is no pair"},
	"nothing":                       {"", "it ends"},
	"an end alone":                  {".", "stack underflow"},
	"a mark":                        {"\x80\x05K\x00(\x86.", "MARK"},
	"a mark alone":                  {"(.", "MARK"},
	"a mark in a tuple":             {says("((t"), "MARK"},
	"OBJ":                           {says("(cbuiltins\nstr\n" + str("a") + "o"), "opcode 0x6f"},
	"INST":                          {says("(" + str("a") + "ios\nsystem\n"), "opcode 0x69"},
	"NEWOBJ":                        {says("cbuiltins\nstr\n)\x81"), "opcode 0x81"},
	"NEWOBJ_EX":                     {says("cbuiltins\nstr\n)}\x92"), "opcode 0x7d"},
	"BUILD":                         {says("cbuiltins\nException\n)RNb"), "opcode 0x62"},
	"PERSID":                        {says("Pid\n"), "opcode 0x50"},
	"BINPERSID":                     {says("K\x01Q"), "opcode 0x51"},
	"EXT1":                          {says("\x82\x01"), "opcode 0x82"},
	"EXT2":                          {says("\x83\x01\x00"), "opcode 0x83"},
	"EXT4":                          {says("\x84\x01\x00\x00\x00"), "opcode 0x84"},
	"a dictionary":                  {says("}"), "opcode 0x7d"},
	"a set":                         {says("\x8f"), "opcode 0x8f"},
	"bytes":                         {says("C\x01a"), "opcode 0x43"},
	"a bytearray":                   {says("\x96\x01\x00\x00\x00\x00\x00\x00\x00a"), "opcode 0x96"},
	"a buffer":                      {says("\x97"), "opcode 0x97"},
	"a string of 2^64":              {says("\x8d\xff\xff\xff\xff\xff\xff\xff\xffa"), "opcode 0x8d"},
	"DUP":                           {says("N2\x86"), "opcode 0x32"},
	"POP":                           {says("NN0"), "opcode 0x30"},
	"POP_MARK":                      {says("N(1"), "opcode 0x31"},
	"text opcodes":                  {"(I0\nV1.0.2\nt.", "opcode 0x49"},
	"LONG4":                         {says("\x8b\x01\x00\x00\x00\x01"), "opcode 0x8b"},
	"LONG1 of 9":                    {says("\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01"), "an integer of 9 bytes"},
	"protocol 6":                    {"\x80\x06K\x00N\x86.", "version"},
	"a string that claims too much": {says("X\xff\xff\xff\xffa"), "claims 4294967295 bytes of the 3 left"},
	"a byte string that does":       {says("T\xff\xff\xff\x7fa"), "claims 2147483647"},
	"a short one that does":         {says("\x8c\xffa"), "claims 255"},
	"a frame that does":             {"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\xffK\x00N\x86.", "claims 18446744073709551615"},
	"a cyclic list":                 {says("]\x94h\x00a"), "repeats what it may not"},
	"a cyclic list in a tuple":      {says("]\x94(h\x00te"), "repeats what it may not"},
	"a list that is there twice":    {says("]\x94h\x00\x86"), "repeats what it may not"},
	"a list remembered later":       {says("](Ne\x94h\x00\x86"), "remembers what it may not"},
	"remembered twice":              {says("]\x94\x94h\x01\x86"), "remembers what it may not"},
	"remembered over another":       {says("U\x01a\x94]q\x00h\x00\x86"), "remembers what it may not"},
	"remembered far ahead":          {says("U\x01ar\xff\xff\xff\xffj\xff\xff\xff\xff\x86"), "remembers what it may not"},
	"nothing to remember":           {says("\x94"), "remembers what it may not"},
	"what is not there":             {says("h\x00"), "repeats what it may not"},
	"an append to nothing":          {"\x80\x05Na.", "stack underflow"},
	"an append to a tuple":          {says(")Na"), "expected a list"},
	"33 lists within each other":    {says(strings.Repeat("]", 34) + strings.Repeat("a", 33)), "too deep"},
}

func TestHostileAnswers(t *testing.T) {
	for name, c := range hostile {
		v, err := answer([]byte(c.in))
		if r := (*refusal)(nil); v != nil || err == nil || errors.As(err, &r) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v", name, v, err)
		}
	}
	if v, err := answer([]byte(says(strings.Repeat("]", 33) + strings.Repeat("a", 32)))); err != nil {
		t.Errorf("32 lists within each other: %v, %v", v, err)
	}
	if _, err := answer([]byte("\x80\x05]" + str("SHUTDOWN") + "a.")); !errors.Is(err, errStopping) {
		t.Error(err)
	}
}

// TestOnlyTheClosedSetIsCopied asks the second line behind scan.
func TestOnlyTheClosedSetIsCopied(t *testing.T) {
	cyclic := []any{nil}
	cyclic[0] = cyclic
	for _, raw := range []any{
		pickle.Class{Module: "os", Name: "system"}, pickle.Call{Callable: pickle.Class{Module: "os", Name: "system"}, Args: pickle.Tuple{"id"}},
		pickle.Call{Callable: pickle.Class{Module: "builtins", Name: "eval"}, Args: pickle.Tuple{"1"}}, pickle.Ref{Pid: "x"},
		pickle.Bytes("x"), pickle.ByteString("x"), []byte("x"), map[any]any{"a": "b"}, pickle.NewDict(), uint64(1), 1, nil, struct{}{}, new(big.Int).Lsh(big.NewInt(1), 64), cyclic,
	} {
		for _, v := range []any{raw, []any{raw}, pickle.Tuple{raw}, pickle.Call{Callable: pickle.Class{Module: "builtins", Name: "str"}, Args: pickle.Tuple{raw}}} {
			w := walk{left: maxWork}
			if got, err := w.value(v, 0); err == nil {
				t.Errorf("%T becomes %#v", raw, got)
			}
		}
	}
}

// allocated is how many bytes a function asks for.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestHostileAnswersCostLittle(t *testing.T) {
	for name, c := range hostile {
		if n := allocated(func() { _, _ = answer([]byte(c.in)) }); n > 1<<20 {
			t.Errorf("%s: %d bytes", name, n)
		}
	}
	fill := func(head, body, tail string) string {
		return says(head + strings.Repeat(body, (maxAnswer-len(head)-len(tail)-10)/len(body)) + tail)
	}
	laughs := "U\x01a\x94"
	for i := range byte(31) {
		laughs += "h" + string([]byte{i}) + "h" + string([]byte{i}) + "\x86\x94"
	}
	mega := strings.Repeat("a", 1<<20)
	for name, c := range map[string]struct{ in, want string }{
		"billion laughs":             {"\x80\x05" + laughs + "K\x00h\x1f\x86.", "too much"},
		"a long string for ever":     {fill("("+str(mega)+"\x94", "h\x00", "t"), "opcodes"},
		"a long string often":        {says("(" + str(mega) + "\x94" + strings.Repeat("h\x00", 100) + "t"), "too much"},
		"a copy of a list each":      {fill("](", "N", "e\x94"), "opcodes"},
		"a list that grows twice":    {says("](" + strings.Repeat("N", 100_000) + "e\x94" + strings.Repeat("h\x00Na", 1000)), "remembers"},
		"a long string, encoded":     {says("(" + str(mega) + "\x94c_codecs\nencode\n\x94" + str("latin1") + "\x94" + strings.Repeat("h\x01h\x00h\x02\x86R", 1000) + "t"), `the class "_codecs.encode"`},
		"lists within each other":    {says(strings.Repeat("]", 100_000) + strings.Repeat("a", 99_999)), "too deep"},
		"tuples within each other":   {says(")" + strings.Repeat("\x85", 100_000)), "too deep"},
		"values, all remembered":     {fill("(", "U\x00\x94", "t"), "opcodes"},
		"values, as many as may":     {says("(" + strings.Repeat("U\x00\x94", maxSteps/2-10) + "t"), ""},
		"tuples, as many as may":     {says("(" + strings.Repeat(")\x85\x94", maxSteps/3-10) + "t"), ""},
		"140,000 banned addresses":   {says("](cbuiltins\nstr\n\x94U\x03::1\x85R" + strings.Repeat("h\x00U\x0d198.51.100.77\x94\x85\x94R\x94", 140_000) + "e"), ""},
		"marks":                      {fill("", "(", ""), "opcodes"},
		"integers of 255 bytes":      {fill("(", "\x8a\xff"+strings.Repeat("\x7f", 255), "t"), "an integer of 255 bytes"},
		"an answer of more than 4 M": {says(str(strings.Repeat("a", maxAnswer))), "longer"},
		"an answer of 4 M":           {says(str(strings.Repeat("a", maxAnswer-20))), ""},
	} {
		b := []byte(c.in)
		var err error
		n := allocated(func() { _, err = answer(b) })
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if most := uint64(len(b))*192 + 1<<20; n > min(most, 256<<20) {
			t.Errorf("%s: %d MiB for %d bytes", name, n>>20, len(b))
		}
	}
}

func TestScanAndDecoderAgree(t *testing.T) {
	for name, c := range hostile {
		if scan([]byte(c.in)) != nil {
			continue
		}
		d := pickle.NewDecoder(bytes.NewReader([]byte(c.in)))
		func() {
			defer func() {
				if r := recover(); r != nil {
					t.Errorf("%s: %v", name, r)
				}
			}()
			_, _ = d.Decode()
		}()
	}
}
