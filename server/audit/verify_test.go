package audit

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// sample writes n records, in segments of about segmentBytes, and returns all
// lines.
func sample(t testing.TB, dir string, n int, segmentBytes int64) (lines [][]byte) {
	t.Helper()
	l := mustOpen(t, Options{Dir: dir, SegmentBytes: segmentBytes, Now: func() time.Time { return time.Unix(int64(n), 0) }})
	for i := range n {
		rec := Record{Event: EventCall, Caller: "spiffe://home.example/agent/hermes", Call: fmt.Sprint(i), Detail: hostile[i%len(hostile)]}
		switch i % 10 {
		case 0:
			rec.Event = EventIntent
		case 1:
			rec.Event, rec.Call = EventOutcome, fmt.Sprint(i-1)
		}
		l.Append(rec)
	}
	mustClose(t, l)
	firsts, err := listSegments(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, first := range firsts {
		data, err := os.ReadFile(filepath.Join(dir, segmentName(first)))
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, slices.Collect(bytes.Lines(data))...)
	}
	return lines
}

// rewrite makes lines the content of the first segment.
func rewrite(t testing.TB, dir string, lines [][]byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, segmentName(1)), bytes.Join(lines, nil), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestTampering damages 1,000 records in every way at random places; the first
// bad record must be named.
func TestTampering(t *testing.T) {
	dir := newDir(t)
	lines := sample(t, dir, 1000, 0)
	if len(lines) != 1000 {
		t.Fatalf("%d lines", len(lines))
	}
	r := mustVerify(t, dir)
	head := fmt.Sprintf("%d:%s", r.Last, r.Head)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	junk := encodeOne(Record{Seq: 7, Event: EventCall})

	for name, damage := range map[string]func(i int) (out [][]byte, bad int){
		"flipped": func(i int) ([][]byte, int) {
			out := slices.Clone(lines)
			out[i] = bytes.Clone(out[i])
			out[i][rng.IntN(len(out[i]))] ^= byte(1 + rng.IntN(255))
			return out, i
		},
		"dropped":    func(i int) ([][]byte, int) { return slices.Delete(slices.Clone(lines), i, i+1), i },
		"duplicated": func(i int) ([][]byte, int) { return slices.Insert(slices.Clone(lines), i+1, lines[i]), i + 1 },
		"inserted":   func(i int) ([][]byte, int) { return slices.Insert(slices.Clone(lines), i, junk), i },
		"inserted text": func(i int) ([][]byte, int) {
			return slices.Insert(slices.Clone(lines), i, []byte("{}\n")), i
		},
		"empty line": func(i int) ([][]byte, int) { return slices.Insert(slices.Clone(lines), i, []byte("\n")), i },
		"swapped": func(i int) ([][]byte, int) {
			i, j := min(i, len(lines)-2), i+1+rng.IntN(len(lines))
			j = min(j, len(lines)-1)
			out := slices.Clone(lines)
			out[i], out[j] = out[j], out[i]
			return out, i
		},
		"replaced by a forged record": func(i int) ([][]byte, int) {
			rec, err := parse(bytes.TrimSuffix(lines[i], []byte("\n")))
			if err != nil {
				t.Fatal(err)
			}
			rec.Caller = "spiffe://home.example/someone/else"
			out := slices.Clone(lines)
			out[i] = appendRecord(nil, &rec) // with a right hash: the next record gives it away
			return out, i + 1
		},
		"forged with another number": func(i int) ([][]byte, int) {
			i = max(i, 1)
			rec, err := parse(bytes.TrimSuffix(lines[i], []byte("\n")))
			if err != nil {
				t.Fatal(err)
			}
			rec.Seq--
			out := slices.Clone(lines)
			out[i] = appendRecord(nil, &rec) // with right hashes
			return out, i
		},
		"truncated": func(i int) ([][]byte, int) { return lines[:i], i },
		"truncated within a line": func(i int) ([][]byte, int) {
			out := slices.Clone(lines[:i+1])
			out[i] = out[i][:rng.IntN(len(out[i]))]
			return out, i
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for round := range 40 {
				i := rng.IntN(len(lines))
				switch round {
				case 0:
					i = 0
				case 1:
					i = len(lines) - 1
				}
				out, bad := damage(i)
				rewrite(t, dir, out)
				fault := wantFault(t, dir, head)
				if name == "replaced by a forged record" && i == len(lines)-1 {
					bad = i // there is no next record, but the head
				}
				if fault.Line != bad+1 || fault.Seq != uint64(bad+1) || fault.File != segmentName(1) {
					t.Fatalf("damage at line %d: reported %v", bad+1, fault)
				}
			}
		})
	}
}

// TestEveryFlip flips every byte of a small log without any expected head.
func TestEveryFlip(t *testing.T) {
	lines := sample(t, newDir(t), 4, 0)
	data := bytes.Join(lines, nil)
	for i := range data {
		for _, x := range []byte{0x01, 0x20, 0x80, data[i] ^ '\n', data[i] ^ '}'} {
			if x == 0 {
				continue
			}
			out := bytes.Clone(data)
			out[i] ^= x
			bad := bytes.Count(data[:i], []byte("\n")) + 1
			w := newWalker()
			rest, err := w.segment(1, bytes.NewReader(out))
			fault, _ := err.(*Fault)
			if err == nil {
				fault = rest.fault
			}
			if fault == nil || fault.Line != bad {
				t.Fatalf("byte %d (line %d) ^ %#x: %v", i, bad, x, fault)
			}
		}
	}
}

func TestSegmentDamage(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(dir string, firsts []uint64) error
		kind   FaultKind
		at     int // index of the segment named
	}{
		{"first missing", func(dir string, f []uint64) error { return os.Remove(filepath.Join(dir, segmentName(f[0]))) }, FaultSegment, 1},
		{"middle missing", func(dir string, f []uint64) error { return os.Remove(filepath.Join(dir, segmentName(f[2]))) }, FaultSegment, 3},
		{"last missing", func(dir string, f []uint64) error {
			return os.Remove(filepath.Join(dir, segmentName(f[len(f)-1])))
		}, FaultHead, -2},
		{"all missing", func(dir string, f []uint64) error {
			var err error
			for _, first := range f {
				err = os.Remove(filepath.Join(dir, segmentName(first)))
			}
			return err
		}, FaultHead, -100},
		{"all but an empty one", func(dir string, f []uint64) error {
			for _, first := range f[:len(f)-1] {
				_ = os.Remove(filepath.Join(dir, segmentName(first)))
			}
			return os.Truncate(filepath.Join(dir, segmentName(f[len(f)-1])), 0)
		}, FaultHead, -1},
		{"renamed", func(dir string, f []uint64) error {
			return os.Rename(filepath.Join(dir, segmentName(f[1])), filepath.Join(dir, segmentName(f[1]+1)))
		}, FaultSegment, 1},
		{"middle cut", func(dir string, f []uint64) error {
			path := filepath.Join(dir, segmentName(f[1]))
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			return os.Truncate(path, info.Size()-1)
		}, FaultSegment, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := newDir(t)
			sample(t, dir, 100, 4<<10)
			r := mustVerify(t, dir)
			firsts, _ := listSegments(dir)
			if len(firsts) < 5 {
				t.Fatalf("only %d segments", len(firsts))
			}
			if err := tt.damage(dir, firsts); err != nil {
				t.Fatal(err)
			}
			fault := wantFault(t, dir, fmt.Sprintf("%d:%s", r.Last, r.Head))
			want := ""
			switch left, _ := listSegments(dir); {
			case tt.name == "renamed":
				want = segmentName(firsts[1] + 1)
			case tt.at >= 0:
				want = segmentName(firsts[tt.at])
			case len(left) > 0:
				want = segmentName(left[len(left)-1])
			}
			if fault.Kind != tt.kind || fault.File != want {
				t.Errorf("got %+v, want %s in %q", fault, tt.kind, want)
			}
		})
	}
	t.Run("nothing but an empty segment, no head known", func(t *testing.T) {
		dir := newDir(t)
		sample(t, dir, 100, 4<<10)
		firsts, _ := listSegments(dir)
		for i, first := range firsts {
			path := filepath.Join(dir, segmentName(first))
			if i < len(firsts)-1 {
				_ = os.Remove(path)
			} else {
				_ = os.Truncate(path, 0)
			}
		}
		if fault := wantFault(t, dir, ""); fault.Kind != FaultSegment {
			t.Errorf("got %+v", fault)
		}
	})
}

func TestHeadOfAnotherLog(t *testing.T) {
	a, b := newDir(t), newDir(t)
	sample(t, a, 10, 0)
	sample(t, b, 20, 0) // the clock in it makes it another chain
	r := mustVerify(t, a)
	fault := wantFault(t, b, fmt.Sprintf("%d:%s", r.Last, r.Head))
	if fault.Kind != FaultHead || fault.Line != 10 {
		t.Errorf("got %+v", fault)
	}
	if _, err := Verify(b, VerifyOptions{Head: fmt.Sprintf("%d:%s", r.Last, r.Head)}); err == nil || err.Error() != fault.Error() {
		t.Errorf("Verify: %v, want %v", err, fault)
	}
	if _, err := Verify(b, VerifyOptions{Head: "0:" + zeroHash}); err != nil {
		t.Error(err)
	}
}

// TestUnfinishedLine: only the beginning of the very next record is taken for a
// write in progress.
func TestUnfinishedLine(t *testing.T) {
	dir := newDir(t)
	lines := sample(t, dir, 3, 0)
	last := lines[2]
	for n := range len(last) {
		rewrite(t, dir, [][]byte{lines[0], lines[1], last[:n]})
		r, err := Verify(dir, VerifyOptions{})
		if err != nil || r.Unfinished != int64(n) || r.Last != 2 {
			t.Fatalf("first %d bytes: %+v, %v", n, r, err)
		}
	}
	for _, tail := range []string{
		"x", "\x00\x00", string(last[:len(last)-1]) + "x", string(lines[1][:20]), `{"seq":3,"time":"x"}`, `{"seq":3,"time":"2031",]`,
		strings.Repeat("a", 2*maxLine), `{"seq":3,"time":"` + strings.Repeat("a", 2*maxLine),
	} {
		rewrite(t, dir, [][]byte{lines[0], lines[1], []byte(tail)})
		if fault := wantFault(t, dir, ""); fault.Line != 3 || fault.Kind != FaultUnparsable {
			t.Errorf("tail %.40q: %v", tail, fault)
		}
	}
}
