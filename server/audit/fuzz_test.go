package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// oracle checks a whole log by the words of the package documentation alone, and
// shares no code with the package: every line is a record that continues the one
// before, or part of a fragment that the next torn record describes.
func oracle(data []byte) error {
	prev, seq := strings.Repeat("0", 64), uint64(0)
	fragment := -1
	for off := 0; off < len(data); {
		n := bytes.IndexByte(data[off:], '\n')
		if n < 0 {
			return errors.New("no newline at the end")
		}
		line := data[off : off+n]
		var rec struct {
			Seq        uint64
			Event      string
			Prev, Hash string
			Bytes      int    `json:"torn_bytes"`
			SHA        string `json:"torn_sha256"`
		}
		at := bytes.LastIndex(line, []byte(`,"hash":"`))
		good := at >= 0 && json.Unmarshal(line, &rec) == nil &&
			rec.Seq == seq+1 && rec.Prev == prev && rec.Hash == fmt.Sprintf("%x", sha256.Sum256(line[:at]))
		switch {
		case good && rec.Event == "torn":
			if fragment < 0 || rec.Bytes != off-1-fragment || rec.SHA != fmt.Sprintf("%x", sha256.Sum256(data[fragment:off-1])) {
				return errors.New("torn record without its fragment")
			}
			fragment = -1
		case good && fragment >= 0:
			return errors.New("fragment without its torn record")
		case !good && fragment < 0:
			fragment = off
		}
		if good {
			seq, prev = rec.Seq, rec.Hash
		}
		off += n + 1
	}
	if fragment >= 0 {
		return errors.New("fragment at the end")
	}
	return nil
}

// verifyBytes verifies a log of one segment. unfinished bytes at its end are not
// part of the answer.
func verifyBytes(data []byte) (unfinished int64, err error) {
	w := newWalker()
	rest, err := w.segment(1, bytes.NewReader(data))
	if err == nil && rest.fault != nil {
		err = rest.fault
	}
	return rest.to - rest.from, err
}

// FuzzReader: whatever a segment holds, nothing panics; Verify calls no chain
// whole that the oracle does not, nor one in which a byte was changed; the Reader
// ends, in bounds; and what Open makes of it verifies.
func FuzzReader(f *testing.F) {
	dir := newDir(f)
	lines := sample(f, dir, 4, 0)
	whole := bytes.Join(lines, nil)
	torn := newDir(f)
	sample(f, torn, 2, 0)
	appendBytes(f, filepath.Join(torn, segmentName(1)), "\x00{\nhalf")
	mustClose(f, mustOpen(f, Options{Dir: torn}))
	tornData, err := os.ReadFile(filepath.Join(torn, segmentName(1)))
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{
		nil, whole, tornData, whole[:len(whole)-1], whole[:len(whole)-40], bytes.Join(lines[1:], nil),
		append(bytes.Clone(whole), lines[3]...), append(bytes.Clone(lines[0]), lines[2]...),
		bytes.Repeat([]byte("a"), maxLine+1), []byte("\n\n"), []byte(`{"seq":1,"time":"`),
	} {
		f.Add(seed, uint32(len(seed)/2), byte(1))
		f.Add(seed, uint32(0), byte('\n'))
	}
	f.Fuzz(func(t *testing.T, data []byte, at uint32, flip byte) {
		unfinished, err := verifyBytes(data)
		if err == nil {
			sure := data[:len(data)-int(unfinished)]
			if err := oracle(sure); err != nil {
				t.Fatalf("verified, but: %v", err)
			}
			if len(sure) > 0 && flip != 0 {
				changed := bytes.Clone(sure)
				changed[int(at)%len(sure)] ^= flip
				if _, err := verifyBytes(changed); err == nil {
					t.Fatalf("byte %d changed and not noticed", int(at)%len(sure))
				}
			}
		}

		dir := t.TempDir()
		path := filepath.Join(dir, segmentName(1))
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := NewReader(dir, ReadOptions{Last: 3})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for n := 0; ; n++ {
			_, err := r.Next(t.Context())
			var bad *BadLine
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil && !errors.As(err, &bad) {
				t.Fatal(err)
			}
			if n > bytes.Count(data, []byte("\n")) {
				t.Fatal("more lines read than there are")
			}
		}

		before, _, _ := verify(dir, link{})
		l, err := Open(Options{Dir: dir})
		if err != nil {
			return
		}
		_ = l.Close(context.Background())
		after, _, err := verify(dir, link{})
		if err != nil {
			t.Fatalf("opened, and then: %v", err)
		}
		if after.Records < before.Records {
			t.Fatalf("%d records before Open, %d after", before.Records, after.Records)
		}
		now, err := os.ReadFile(path)
		if err != nil || !bytes.HasPrefix(now, data) {
			t.Fatalf("Open changed what was there (%v)", err)
		}
	})
}
