package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// VerifyOptions says what a log is held against.
type VerifyOptions struct {
	// Head is a head of this log that was kept elsewhere, in the form "seq:hash".
	// Without it, records cut off the end cannot be missed. Empty: none.
	Head string
}

// Report is what Verify found. With an error it covers the records before it.
type Report struct {
	Segments   int
	Records    uint64
	First      uint64   // sequence number of the first record, above 1 if older ones were pruned
	Last       uint64   // sequence number of the last record, 0 for an empty log
	Head       string   // hash of the last record
	Torn       int      // fragments that crashes left, each covered by its torn record
	Gaps       uint64   // gap records
	Lost       uint64   // records that the gap records stand for
	Open       []Record // intents without an outcome, oldest first, without their requests
	Unfinished int64    // bytes of a last line that was being written
}

// Verify reads the whole log in dir and checks it. It returns a *[Fault] that
// names the first bad record if the log is damaged, and another error if it
// cannot be read. It changes nothing and takes no lock.
//
// It may run while the log is being written. Bytes after the last newline of the
// newest segment are taken for a write in progress, and reported as Unfinished,
// as long as they are the beginning of the very record that must come next. A
// writer that takes back a failed write can make a reader see lines of both
// attempts, so a fault in the newest segment counts only when it stays.
func Verify(dir string, opts VerifyOptions) (Report, error) {
	var expected link
	if opts.Head != "" {
		var err error
		if expected.seq, expected.hash, err = parseHead(opts.Head); err != nil {
			return Report{}, err
		}
	}
	const attempts, pause = 3, 50 * time.Millisecond
	for attempt := 1; ; attempt++ {
		report, moving, err := verify(dir, expected)
		if err == nil || !moving || attempt == attempts {
			return report, err
		}
		time.Sleep(pause)
	}
}

// verify walks the log once. moving says that an error may come from the log
// having changed during the walk.
func verify(dir string, expected link) (report Report, moving bool, err error) {
	firsts, err := listSegments(dir)
	if err != nil {
		return Report{}, false, fmt.Errorf("audit: %w", err)
	}
	w := newWalker()
	w.expected = expected
	var rest leftover
	for i, first := range firsts {
		newest := i == len(firsts)-1
		rest, err = verifySegment(w, dir, first, newest)
		if err != nil {
			return w.report(i), newest || errors.Is(err, fs.ErrNotExist), err
		}
	}
	report = w.report(len(firsts))
	report.Unfinished = rest.to - rest.from
	if w.expected.seq > w.seq {
		fault := &Fault{Kind: FaultHead, Line: rest.line, Seq: w.seq + 1,
			What: fmt.Sprintf("the log ends before record %d of the expected head: it was cut off", w.expected.seq)}
		if len(firsts) > 0 {
			fault.File = segmentName(firsts[len(firsts)-1])
		}
		return report, true, fault
	}
	if fault := w.begin(); fault != nil {
		fault.File, fault.Line = segmentName(firsts[0]), 1
		return report, true, fault
	}
	return report, false, nil
}

func verifySegment(w *walker, dir string, first uint64, newest bool) (leftover, error) {
	f, err := openSegment(dir, first)
	if err != nil {
		return leftover{}, fmt.Errorf("audit: %w", err)
	}
	defer f.Close()
	rest, err := w.segment(first, f)
	if err != nil {
		return rest, err
	}
	if rest.fault != nil {
		return rest, rest.fault
	}
	if !newest && !rest.ended {
		return rest, &Fault{FaultSegment, segmentName(first), rest.line, w.seq + 1, "the segment was cut off within a record"}
	}
	return rest, nil
}

// begin judges whether the log may begin where it does, which only shows when all
// of it was read.
func (w *walker) begin() *Fault {
	switch base := w.base; {
	case base.seq > 0 && !w.covered:
		return &Fault{Kind: FaultSegment, Seq: 1, What: fmt.Sprintf("the log begins at record %d, and no pruned record accounts for those before it", base.seq+1)}
	case w.expected.seq > 0 && w.expected.seq < base.seq:
		return &Fault{Kind: FaultHead, Seq: w.expected.seq, What: "the record of the expected head was pruned: it cannot be compared"}
	case w.expected.seq > 0 && w.expected.seq == base.seq && w.expected.hash != base.hash:
		return &Fault{Kind: FaultHead, Seq: w.expected.seq, What: "the log does not continue the expected head"}
	}
	return nil
}

func (w *walker) report(segments int) Report {
	r := Report{
		Segments: segments, Records: w.records, Last: w.seq, Head: w.hash,
		Torn: w.torn, Gaps: w.gaps, Lost: w.lost, Open: w.openIntents(),
	}
	if w.records > 0 {
		r.First = w.base.seq + 1
	} else {
		r.Last, r.Head = 0, ""
	}
	return r
}
