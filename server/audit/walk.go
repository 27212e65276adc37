package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// maxOpen bounds the memory that open intents take. The writer refuses intents
// before there are so many, so a log with more of them is not its work.
const maxOpen = 1 << 14

// walker follows the chain through the segments of a log.
type walker struct {
	// quick is how Open reads: records that are neither intents nor outcomes are
	// followed by their links alone, and hashes are computed only from hashFrom
	// on. Verify reads everything.
	quick    bool
	hashFrom int64

	started  bool
	seq      uint64 // of the last good record
	hash     string // its hash
	base     link   // seq and hash that the first record read continues
	covered  bool   // a pruned record accounts for everything up to base
	records  uint64
	gaps     uint64
	lost     uint64
	torn     int
	open     map[string]Record // intents without an outcome, by call
	expected link              // a head to be met on the way; seq 0 if none
}

func newWalker() *walker { return &walker{hash: zeroHash, open: map[string]Record{}} }

// leftover is what follows the last good record of a segment.
type leftover struct {
	from, to int64 // [from, to) in the segment
	line     int   // number of its first line
	ended    bool  // its last byte is a newline
	// fault is what its first line is to a verifier; nil if there is nothing, or
	// only the beginning of the next record, as a writer leaves it for a moment.
	fault *Fault
}

// segment reads one segment from its start. It returns a *Fault for damage that
// nothing can explain; bytes at the end that a crash may have left are for the
// caller to judge.
func (w *walker) segment(first uint64, src io.ReaderAt) (leftover, error) {
	name := segmentName(first)
	if !w.started {
		w.started, w.seq, w.base.seq = true, first-1, first-1
	}
	if first != w.seq+1 {
		return leftover{}, &Fault{FaultSegment, name, 1, w.seq + 1,
			fmt.Sprintf("the segment begins at record %d: what lies between is missing", first)}
	}
	lines := newLineReader(src, 0)
	var bad leftover // a run of lines that may turn out to be a torn write
	for n := 1; ; n++ {
		from := lines.off
		text, ended, err := lines.next()
		if err != nil {
			return leftover{}, fmt.Errorf("audit: %s: %w", name, err)
		}
		rec, fault := w.check(text, from)
		if fault != nil {
			fault.File, fault.Line = name, n
		}
		if !ended && !whole(text) {
			return w.rest(bad, leftover{from: from, to: lines.off, line: n}, name, text), nil
		}
		switch {
		case bad.fault != nil && fault == nil && rec.Event == EventTorn:
			if err := matchTorn(src, bad.from, from-1, rec); err != nil {
				bad.fault.What += fmt.Sprintf(" (a torn record follows, but %v)", err)
				return leftover{}, bad.fault
			}
			bad = leftover{}
		case bad.fault != nil && whole(text):
			return leftover{}, bad.fault
		case bad.fault != nil:
			bad.to = lines.off
			continue
		case fault != nil && whole(text):
			return leftover{}, fault // a crash cannot leave a whole record in a wrong place
		case fault != nil:
			bad = leftover{from: from, to: lines.off, line: n, ended: true, fault: fault}
			continue
		case rec.Event == EventTorn:
			return leftover{}, &Fault{FaultTorn, name, n, w.seq + 1, "the fragment that this torn record tells of is missing"}
		}
		if !ended { // the next record, but for its newline
			return leftover{from: from, to: lines.off, line: n}, nil
		}
		if fault := w.apply(rec); fault != nil {
			fault.File, fault.Line = name, n
			return leftover{}, fault
		}
	}
}

// rest describes the end of a segment: a run of bad lines and the bytes after
// the last newline.
func (w *walker) rest(bad, partial leftover, name string, text []byte) leftover {
	if bad.fault != nil {
		bad.to, bad.ended = partial.to, partial.from == partial.to
		return bad
	}
	partial.ended = partial.from == partial.to
	if !partial.ended && !w.begins(text) {
		partial.fault = &Fault{FaultUnparsable, name, partial.line, w.seq + 1, "the last line has no end and is not the beginning of a record"}
	}
	return partial
}

// begins reports whether text, which is not a whole record, is what a writer in
// the middle of its write would have left.
func (w *walker) begins(text []byte) bool {
	head := []byte(fmt.Sprintf(`{"seq":%d,"time":"`, w.seq+1))
	n := min(len(head), len(text))
	if n == 0 || !bytes.Equal(text[:n], head[:n]) {
		return false
	}
	var object json.RawMessage
	err := json.NewDecoder(bytes.NewReader(text)).Decode(&object)
	return errors.Is(err, io.ErrUnexpectedEOF)
}

// check reads the line that should be the next record. It changes nothing.
func (w *walker) check(line []byte, from int64) (Record, *Fault) {
	next := w.seq + 1
	l, ok := split(line)
	if !ok {
		what := "not a record: it does not have the shape of one"
		if len(line) == 0 {
			what = "not a record: the line is empty or longer than any record"
		}
		return Record{}, &Fault{Kind: FaultUnparsable, Seq: next, What: what}
	}
	if (!w.quick || from >= w.hashFrom) && l.hash != hashOf(line) {
		return Record{}, &Fault{Kind: FaultAltered, Seq: next, What: "the record was altered: its hash does not match its bytes"}
	}
	rec := Record{Seq: l.seq, Event: Event(l.event), Prev: l.prev, Hash: l.hash}
	if !w.quick || slices.Contains([]Event{EventIntent, EventOutcome, EventOrphan, EventTorn}, rec.Event) {
		var err error
		if rec, err = parse(line); err != nil {
			return rec, &Fault{Kind: FaultUnparsable, Seq: next, What: err.Error()}
		}
	}
	switch {
	case l.seq > next:
		return rec, &Fault{Kind: FaultSequence, Seq: next, What: fmt.Sprintf("record %d stands here: records were dropped or moved", l.seq)}
	case l.seq < next:
		return rec, &Fault{Kind: FaultSequence, Seq: next, What: fmt.Sprintf("record %d stands here: a record was repeated, moved or put in", l.seq)}
	case (w.records > 0 || next == 1) && l.prev != w.hash:
		return rec, &Fault{Kind: FaultLink, Seq: next, What: "the record does not continue the one before it: one of the two was replaced"}
	case next == math.MaxUint64:
		return rec, &Fault{Kind: FaultSequence, Seq: next, What: "the sequence numbers have come to their end"}
	}
	return rec, nil
}

// apply takes a record that check accepted into the chain.
func (w *walker) apply(rec Record) *Fault {
	if w.records == 0 {
		w.base.hash = rec.Prev
	}
	w.records++
	w.seq, w.hash = rec.Seq, rec.Hash
	if w.expected.seq == rec.Seq && w.expected.hash != rec.Hash {
		return &Fault{Kind: FaultHead, Seq: rec.Seq, What: "the record is not the one of the expected head: the log was rewritten"}
	}
	switch rec.Event {
	case EventIntent:
		if len(w.open) == maxOpen {
			return &Fault{Kind: FaultSequence, Seq: rec.Seq, What: fmt.Sprintf("more than %d intents are open", maxOpen)}
		}
		if !w.quick {
			rec.Request = nil
		}
		w.open[rec.Call] = rec
	case EventOutcome, EventOrphan:
		delete(w.open, rec.Call)
	case EventGap:
		w.gaps++
		w.lost += rec.Count
	case EventTorn:
		w.torn++
	case EventPruned:
		if rec.ThroughSeq == w.base.seq && rec.ThroughHash == w.base.hash {
			w.covered = true
		}
	}
	return nil
}

// openIntents returns the intents that have no outcome, oldest first.
func (w *walker) openIntents() []Record {
	var recs []Record
	for _, rec := range w.open {
		recs = append(recs, rec)
	}
	slices.SortFunc(recs, func(a, b Record) int {
		if a.Seq < b.Seq {
			return -1
		}
		return 1
	})
	return recs
}

// matchTorn checks a torn record against the fragment [from, to) before it.
func matchTorn(src io.ReaderAt, from, to int64, rec Record) error {
	if rec.TornBytes != uint64(to-from) {
		return fmt.Errorf("it tells of %d bytes, not %d", rec.TornBytes, to-from)
	}
	sum, err := hashRange(src, from, to)
	if err == nil && sum != rec.TornSHA256 {
		err = errors.New("it tells of other bytes")
	}
	return err
}

func hashRange(src io.ReaderAt, from, to int64) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(src, from, to-from)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
