package audit

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func appendBytes(t testing.TB, path, s string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(s); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestTornTail(t *testing.T) {
	for _, tt := range []struct {
		name string
		tail func(next string) string // what the crash left; next is the record that was being written
	}{
		{"half a record", func(next string) string { return next[:len(next)/2] }},
		{"one byte", func(next string) string { return "{" }},
		{"zeros", func(string) string { return strings.Repeat("\x00", 3*maxLine) }},
		{"a long run of text", func(string) string { return strings.Repeat("a", 3*maxLine) }},
		{"closed by a start that died", func(next string) string { return next[:30] + "\n" }},
		{"closed, and its torn record torn too", func(next string) string { return next[:30] + "\n" + next[:40] }},
		{"looks like a torn record", func(next string) string { return `{"seq":4,"time":"2031-01-01T00:00:00Z","event":"torn"}` }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := newDir(t)
			sample(t, dir, 3, 0)
			path := filepath.Join(dir, segmentName(1))
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			fragment := tt.tail(string(encodeOne(Record{Seq: 4, Event: EventCall})))
			appendBytes(t, path, fragment)

			l := mustOpen(t, Options{Dir: dir})
			if seq := mustSync(t, l, Record{Event: EventStart}); seq != 5 {
				t.Errorf("seq %d, want 5 after the torn record", seq)
			}
			mustClose(t, l)

			after, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.HasPrefix(after, append(before, fragment...)) {
				t.Error("what the crash left was changed")
			}
			fragment = strings.TrimSuffix(fragment, "\n")
			recs, _ := readAll(t, dir, ReadOptions{From: 4})
			if r := recs[0]; r.Event != EventTorn || r.TornBytes != uint64(len(fragment)) ||
				r.TornSHA256 != fmt.Sprintf("%x", sha256.Sum256([]byte(fragment))) {
				t.Errorf("torn record %+v", r)
			}
			if r := mustVerify(t, dir); r.Torn != 1 || r.Records != 5 {
				t.Errorf("report %+v", r)
			}
			mustClose(t, mustOpen(t, Options{Dir: dir})) // reads over it

			// The start that closed the fragment may itself die at any byte.
			begin := len(before) + len(fragment)
			end := begin + 1 + bytes.IndexByte(after[begin+1:], '\n')
			for _, n := range []int{begin + 1, begin + 2, (begin + end) / 2, end - 1, end, end + 1} {
				if err := os.WriteFile(path, after[:n], 0o600); err != nil {
					t.Fatal(err)
				}
				mustClose(t, mustOpen(t, Options{Dir: dir}))
				if r := mustVerify(t, dir); r.Torn != 1 || r.Last != 4 {
					t.Errorf("after a start that got %d bytes far: %+v", n-begin, r)
				}
			}

			tornLine := after[len(before)+len(fragment)+1:]
			tornLine = tornLine[:bytes.IndexByte(tornLine, '\n')]
			rec, err := parse(tornLine)
			if err != nil {
				t.Fatal(err)
			}
			rec.TornBytes++
			forged := appendRecord(bytes.Clone(after[:len(before)+len(fragment)+1]), &rec)

			// The fragment is covered by its torn record and no more than that.
			for name, changed := range map[string][]byte{
				"of another length": forged,
				"altered":           append(append(bytes.Clone(before), 'X'), after[len(before)+1:]...),
				"longer":            append(append(bytes.Clone(before), 'X'), after[len(before):]...),
				"removed":           append(bytes.Clone(before), after[len(before)+len(fragment)+1:]...),
				"emptied":           append(bytes.Clone(before), after[len(before)+len(fragment):]...),
			} {
				if err := os.WriteFile(path, changed, 0o600); err != nil {
					t.Fatal(err)
				}
				if fault := wantFault(t, dir, ""); fault.Line != 4 {
					t.Errorf("fragment %s: %v", name, fault)
				}
			}
		})
	}
}

// TestMissingNewline: a record that lacks nothing but its newline is a record.
func TestMissingNewline(t *testing.T) {
	dir := newDir(t)
	lines := sample(t, dir, 3, 0)
	rewrite(t, dir, [][]byte{lines[0], lines[1], bytes.TrimSuffix(lines[2], []byte("\n"))})
	l := mustOpen(t, Options{Dir: dir})
	if seq := mustSync(t, l, Record{Event: EventStart}); seq != 4 {
		t.Errorf("seq %d, want 4", seq)
	}
	mustClose(t, l)
	if r := mustVerify(t, dir); r.Torn != 0 || r.Records != 4 {
		t.Errorf("report %+v", r)
	}
}

// TestOpenRefusesDamage: what no crash explains is not continued.
func TestOpenRefusesDamage(t *testing.T) {
	lines := sample(t, newDir(t), 10, 0)
	for name, damaged := range map[string][][]byte{
		"altered":                      append(append(append([][]byte{}, lines[:4]...), bytes.Replace(lines[4], []byte("hermes"), []byte("Hermes"), 1)), lines[5:]...),
		"dropped":                      append(append([][]byte{}, lines[:4]...), lines[5:]...),
		"repeated":                     append(append([][]byte{}, lines...), lines[9]),
		"repeated without its newline": append(append([][]byte{}, lines...), bytes.TrimSuffix(lines[9], []byte("\n"))),
		"text, then a record without its newline": append(append([][]byte{}, lines[:8]...), []byte("x\n"), bytes.TrimSuffix(lines[8], []byte("\n"))),
		"misnamed": lines[1:],
	} {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			rewrite(t, dir, damaged)
			want := wantFault(t, dir, "")
			l, err := Open(Options{Dir: dir})
			var fault *Fault
			if err == nil {
				mustClose(t, l)
			}
			if !errors.As(err, &fault) || *fault != *want {
				t.Errorf("Open: %v, want %v", err, want)
			}
			// The lock was given back: the answer is the same the second time.
			if _, err := Open(Options{Dir: dir}); errors.Is(err, ErrLocked) {
				t.Error(err)
			}
		})
	}
}

// TestOrphans: intents that a dead process left open, in whatever segment, are
// closed once.
func TestOrphans(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(t *testing.T, dir string)
	}{
		{"in order", func(*testing.T, string) {}},
		{"torn", func(t *testing.T, dir string) {
			firsts, _ := listSegments(dir)
			appendBytes(t, filepath.Join(dir, segmentName(firsts[len(firsts)-1])), `{"seq":`)
		}},
		{"new segment empty", func(t *testing.T, dir string) {
			newSegment(t, dir, "")
		}},
		{"new segment torn", func(t *testing.T, dir string) {
			newSegment(t, dir, `{"seq":`)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := newDir(t)
			l := mustOpen(t, Options{Dir: dir, SegmentBytes: 4 << 10})
			old := mustSync(t, l, Record{Event: EventIntent, Call: "old", Method: "m", Request: []byte(`{"requestId":"r"}`)})
			mustSync(t, l, Record{Event: EventIntent, Call: "done"})
			for range 50 {
				mustSync(t, l, Record{Event: EventCall})
			}
			l.Append(Record{Event: EventOutcome, Call: "done"})
			young := mustSync(t, l, Record{Event: EventIntent, Call: "young"})
			mustClose(t, l) // leaves the intents open as a kill does
			if r := mustVerify(t, dir); len(r.Open) != 2 || r.Open[0].Call != "old" || r.Open[1].Call != "young" {
				t.Errorf("open before: %+v", r.Open)
			}
			tt.end(t, dir)

			l = mustOpen(t, Options{Dir: dir, SegmentBytes: 4 << 10})
			got := l.Orphans()
			if len(got) != 2 || got[0].Seq != old || got[1].Seq != young || string(got[0].Request) != `{"requestId":"r"}` {
				t.Fatalf("orphans %+v", got)
			}
			for range 50 { // so that the next Open cannot see the old segments
				mustSync(t, l, Record{Event: EventCall})
			}
			mustClose(t, l)
			recs, _ := readAll(t, dir, ReadOptions{From: young + 1})
			var calls []string
			for _, r := range recs {
				if r.Event == EventOrphan && r.Reason == ReasonOutcomeUnknown {
					calls = append(calls, r.Call)
				}
			}
			if strings.Join(calls, " ") != "old young" {
				t.Errorf("orphan records for %q", calls)
			}
			if r := mustVerify(t, dir); len(r.Open) != 0 {
				t.Errorf("open after: %+v", r.Open)
			}
			// Had this start died in turn, the next one would have to look as far back.
			if first, _ := readAll(t, dir, ReadOptions{From: young + 1}); strings.HasPrefix(tt.name, "new") && first[0].OpenFrom != old {
				t.Errorf("the new segment begins with %+v", first[0])
			}
			l = mustOpen(t, Options{Dir: dir})
			if len(l.Orphans()) != 0 {
				t.Errorf("orphans again: %+v", l.Orphans())
			}
		})
	}
}

func newSegment(t *testing.T, dir, content string) {
	t.Helper()
	path := filepath.Join(dir, segmentName(mustVerify(t, dir).Last+1))
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestOpenSyncs: what a dead process wrote may be in the page cache alone, and new
// records lean on it.
func TestOpenSyncs(t *testing.T) {
	dir, fs := newDir(t), &faults{}
	sample(t, dir, 3, 0)
	mustOpen(t, fs.options(Options{Dir: dir}))
	fs.set(func(f *faults) {
		if f.syncs == 0 {
			t.Error("the head was published without an fsync")
		}
	})
}

// TestOpenReadsLittle: damage in segments that Open has no need of does not
// matter to it, as it must start fast; Verify finds it.
func TestOpenReadsLittle(t *testing.T) {
	dir := newDir(t)
	l := mustOpen(t, Options{Dir: dir, SegmentBytes: 4 << 10})
	mustSync(t, l, Record{Event: EventIntent, Call: "done"})
	l.Append(Record{Event: EventOutcome, Call: "done"})
	for range 50 {
		mustSync(t, l, Record{Event: EventCall})
	}
	mustClose(t, l)
	if err := os.WriteFile(filepath.Join(dir, segmentName(1)), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	mustClose(t, mustOpen(t, Options{Dir: dir}))
	wantFault(t, dir, "")
}
