package journal

import (
	"bytes"
	"context"
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
	ctx     context.Context
	service *Service
	query   *query
	send    func(*brokerv1.ReadJournalResponse) error
	lines   *redact.Stream
	begun   time.Time

	scanned int64
	cursor  string // Of the newest entry that was looked at.
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
		first := p.scanned == 0
		p.scanned, p.cursor = p.scanned+1, e.GetCursor()
		if first && e.GetCursor() == p.query.GetCursor() {
			p.redact(e) // A secret may begin in it.
			continue
		}
		if p.wanted(e) {
			if err := p.add(e); err != nil {
				return err
			}
			given++
		}
		switch {
		case p.ctx.Err() != nil:
			return context.Cause(p.ctx)
		case p.query.GetFollow():
		case given == p.query.limit:
			return p.end(brokerv1.JournalEndReason_JOURNAL_END_REASON_LIMIT)
		case p.enough():
			return p.end(brokerv1.JournalEndReason_JOURNAL_END_REASON_SCANNED)
		}
	}
}

// leadIn is how many entries before those that are shown are read for what they say
// about secrets that go on over entries: as many lines as a key may take.
const leadIn = 256

// newest gives the newest entries that are wanted, of a journal that is read
// backwards: a chunk at a time, each looked at in the order in which it was written.
func (p *pass) newest(s *scanner) error {
	var raw, found []*brokerv1.JournalEntry // The newest first.
	held, ended := 0, false
	var failed error
	for {
		most := chunkEntries
		if p.query.match == nil {
			most = min(most, p.query.limit-len(found))
		}
		for size := 0; failed == nil && !ended && len(raw) < most+leadIn && size < chunkBytes; {
			e, err := s.next()
			switch {
			case errors.Is(err, io.EOF):
				ended = true
			case err != nil:
				failed = err
			default:
				raw, size = append(raw, e), size+proto.Size(e)
			}
		}
		n := len(raw) // Of them, so many are looked at now.
		if !ended && failed == nil {
			n = max(min(n, 1), n-leadIn)
		}
		n = min(n, most)
		chunk := p.chunk(raw[:n], raw[n:min(len(raw), n+leadIn)], p.query.limit-len(found))
		raw = raw[n:]
		for _, e := range chunk {
			held += proto.Size(e)
		}
		found = append(found, chunk...)
		var reason brokerv1.JournalEndReason
		switch {
		case p.ctx.Err() != nil:
			return context.Cause(p.ctx)
		case len(found) == p.query.limit:
			reason = brokerv1.JournalEndReason_JOURNAL_END_REASON_LIMIT
		case ended && len(raw) == 0:
			reason = brokerv1.JournalEndReason_JOURNAL_END_REASON_END
		case p.enough() || held > chunkBytes:
			reason = brokerv1.JournalEndReason_JOURNAL_END_REASON_SCANNED
		case failed != nil && len(raw) == 0:
		default:
			continue
		}
		for _, e := range slices.Backward(found) {
			if err := p.add(e); err != nil {
				return err
			}
		}
		if reason == 0 {
			if err := p.flush(); err != nil {
				return err
			}
			return failed
		}
		return p.end(reason)
	}
}

// chunk gives the newest of some entries that are wanted, at most so many, the newest
// first as they are. before are the ones just older than these.
func (p *pass) chunk(entries, before []*brokerv1.JournalEntry, most int) (found []*brokerv1.JournalEntry) {
	p.lines = p.service.redact.Stream()
	for _, e := range slices.Backward(before) {
		p.redact(proto.CloneOf(e)) // It comes again, in the next chunk.
	}
	if p.cursor == "" && len(entries) > 0 {
		p.cursor = entries[0].GetCursor()
	}
	for _, e := range slices.Backward(entries) {
		if p.ctx.Err() != nil || p.enough() {
			break
		}
		p.scanned++
		if p.wanted(e) {
			found = append(found, e)
		}
	}
	slices.Reverse(found)
	return found[:min(len(found), most)]
}

// enough reports whether a call has looked at as much as it may.
func (p *pass) enough() bool {
	return p.scanned >= p.service.most || p.service.now().Sub(p.begun) > maxScanTime
}

// wanted takes secrets out of an entry, and reports whether it is asked for: a
// pattern must not find out what is not shown. The times are looked at once more,
// since journalctl does so only where it begins and ends: a clock may be set back.
func (p *pass) wanted(e *brokerv1.JournalEntry) bool {
	p.redact(e)
	at := e.GetEntryTime().AsTime()
	switch {
	case p.query.Since != nil && at.Before(p.query.GetSince().AsTime()), p.query.Until != nil && at.After(p.query.GetUntil().AsTime()):
		return false
	}
	return p.query.match == nil || p.query.match(e.GetMessage())
}

func (p *pass) redact(e *brokerv1.JournalEntry) {
	lines := bytes.Split(e.GetMessage(), []byte("\n"))
	for i, line := range lines {
		lines[i] = p.lines.Line(line, false)
	}
	e.Message = bytes.Join(lines, []byte("\n"))
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
