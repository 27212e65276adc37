package journal

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/redact"
)

// pass is one way through the journal.
type pass struct {
	service *Service
	query   *query
	send    func(*brokerv1.ReadJournalResponse) error
	lines   *redact.Stream
	begun   time.Time

	scanned int64
	cursor  string // Of the last entry that was looked at.
	batch   []*brokerv1.JournalEntry
	bytes   int
}

// onward gives entries in their order, as they come.
func (p *pass) onward(s *scanner) error {
	given := 0
	for {
		if p.query.GetFollow() && s.idle() {
			if err := p.flush(); err != nil {
				return err
			}
		}
		e, err := s.next()
		if errors.Is(err, io.EOF) {
			return p.end(brokerv1.JournalEndReason_JOURNAL_END_REASON_END)
		}
		if err != nil {
			// What came before a failure is the caller's all the same.
			if failed := p.flush(); failed != nil {
				return failed
			}
			return err
		}
		p.scanned, p.cursor = p.scanned+1, e.GetCursor()
		if p.wanted(e) {
			if err := p.add(e); err != nil {
				return err
			}
			given++
		}
		switch {
		case p.query.GetFollow():
		case given == p.query.limit:
			return p.end(brokerv1.JournalEndReason_JOURNAL_END_REASON_LIMIT)
		case p.enough():
			return p.end(brokerv1.JournalEndReason_JOURNAL_END_REASON_SCANNED)
		}
	}
}

// newest gives the newest entries that are wanted, of a journal that is read
// backwards. It looks at a chunk at a time in the order in which it was written,
// since a secret may go on over entries.
func (p *pass) newest(s *scanner) error {
	var found []*brokerv1.JournalEntry
	held, first := 0, ""
	for {
		most := chunkEntries
		if p.query.match == nil {
			most = min(most, p.query.limit-len(found))
		}
		chunk, ended, err := read(s, most)
		if err != nil {
			return err
		}
		p.scanned += int64(len(chunk))
		if first == "" && len(chunk) > 0 {
			first = chunk[0].GetCursor()
		}
		slices.Reverse(chunk)
		chunk = slices.DeleteFunc(chunk, func(e *brokerv1.JournalEntry) bool { return !p.wanted(e) })
		chunk = chunk[max(0, len(chunk)-(p.query.limit-len(found))):]
		for _, e := range chunk {
			held += proto.Size(e)
		}
		found = append(chunk, found...)
		reason := brokerv1.JournalEndReason_JOURNAL_END_REASON_LIMIT
		switch {
		case len(found) == p.query.limit:
		case ended:
			reason = brokerv1.JournalEndReason_JOURNAL_END_REASON_END
		case p.enough() || held > chunkBytes:
			reason = brokerv1.JournalEndReason_JOURNAL_END_REASON_SCANNED
		default:
			continue
		}
		p.cursor = first
		for _, e := range found {
			if err := p.add(e); err != nil {
				return err
			}
		}
		return p.end(reason)
	}
}

// read reads a chunk.
func read(s *scanner, most int) (chunk []*brokerv1.JournalEntry, ended bool, err error) {
	for held := 0; len(chunk) < most && held < chunkBytes; {
		e, err := s.next()
		if errors.Is(err, io.EOF) {
			return chunk, true, nil
		}
		if err != nil {
			return nil, false, err
		}
		chunk, held = append(chunk, e), held+proto.Size(e)
	}
	return chunk, false, nil
}

// enough reports whether a call has looked at as much as it may.
func (p *pass) enough() bool {
	return p.scanned >= p.service.most || p.service.now().Sub(p.begun) > maxScanTime
}

// wanted takes secrets out of an entry, and reports whether it matches then: a
// pattern must not find out what is not shown.
func (p *pass) wanted(e *brokerv1.JournalEntry) bool {
	lines := bytes.Split(e.GetMessage(), []byte("\n"))
	for i, line := range lines {
		lines[i] = p.lines.Line(line, false)
	}
	e.Message = bytes.Join(lines, []byte("\n"))
	return p.query.match == nil || p.query.match(e.GetMessage())
}

func (p *pass) add(e *brokerv1.JournalEntry) error {
	p.batch, p.bytes = append(p.batch, e), p.bytes+proto.Size(e)
	if len(p.batch) == batchEntries || p.bytes >= batchBytes {
		return p.flush()
	}
	return nil
}

func (p *pass) flush() error {
	if len(p.batch) == 0 {
		return nil
	}
	err := p.send(&brokerv1.ReadJournalResponse{Entries: p.batch})
	p.batch, p.bytes = nil, 0
	return err
}

func (p *pass) end(why brokerv1.JournalEndReason) error {
	if err := p.flush(); err != nil {
		return err
	}
	return p.send(&brokerv1.ReadJournalResponse{End: &brokerv1.JournalEnd{Reason: why, Cursor: p.cursor, Scanned: p.scanned}})
}
