package docker

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/redact"
)

const (
	maxTail    = 100_000
	pieceBytes = 16 << 10 // Of a line, in one entry.
	batchBytes = 32 << 10 // Of entries, in one message.
	batchCount = 256
)

// ContainerLogs implements brokerv1.ContainerServiceServer.
func (s *Containers) ContainerLogs(req *brokerv1.ContainerLogsRequest, stream brokerv1.ContainerService_ContainerLogsServer) error {
	q, err := logQueryOf(req)
	if err != nil {
		return err
	}
	ctx := stream.Context()
	c, err := s.find(ctx, req.GetContainer())
	if err != nil {
		return err
	}
	raw, err := s.engine.logs(ctx, c.id, q)
	if err != nil {
		return containerFault(ctx, err, req.GetContainer())
	}
	body := gather(raw)
	defer body.Close()
	b := newBatch(s.redact, stream.Send)
	if c.terminal {
		err = readLines(body, q.timestamps, b)
	} else {
		err = readFrames(body, q.timestamps, b)
	}
	// What came before a failure is the caller's all the same.
	if failed := b.flush(); err == nil {
		err = failed
	}
	if err != nil {
		return containerFault(ctx, err, req.GetContainer())
	}
	return nil
}

func logQueryOf(req *brokerv1.ContainerLogsRequest) (logQuery, error) {
	q := logQuery{follow: req.GetFollow(), timestamps: req.GetTimestamps(), tail: req.GetTail()}
	if q.tail < 0 || q.tail > maxTail {
		return q, fault.Invalid("tail", "give 1 to 100000 lines, or 0 for all")
	}
	if req.GetSince() != nil {
		if req.GetSince().CheckValid() != nil {
			return q, fault.Invalid("since", "give a valid timestamp")
		}
		q.since = req.GetSince().AsTime()
	}
	if req.GetUntil() != nil {
		if req.GetUntil().CheckValid() != nil || q.follow {
			return q, fault.Invalid("until", "give a valid timestamp, and not together with follow")
		}
		q.until = req.GetUntil().AsTime()
	}
	for _, s := range req.GetStreams() {
		switch s {
		case brokerv1.LogStream_LOG_STREAM_STDOUT:
			q.stdout = true
		case brokerv1.LogStream_LOG_STREAM_STDERR:
			q.stderr = true
		default:
			return q, fault.Invalid("streams", "give STDOUT, STDERR, or nothing for both")
		}
	}
	if !q.stdout && !q.stderr {
		q.stdout, q.stderr = true, true
	}
	return q, nil
}

// batch gathers entries and sends them. Messages and their bytes are used again
// after each Send, which has serialised them when it returns.
type batch struct {
	send    func(*brokerv1.ContainerLogsResponse) error
	message *brokerv1.ContainerLogsResponse
	bytes   []byte
	entries []entrySlot
	n       int
	redact  [2]*redact.Stream // Of standard output and standard error.
}

type entrySlot struct {
	entry  brokerv1.LogEntry
	stdout brokerv1.LogEntry_Stdout
	stderr brokerv1.LogEntry_Stderr
	time   timestamppb.Timestamp
}

func newBatch(rules *redact.Rules, send func(*brokerv1.ContainerLogsResponse) error) *batch {
	return &batch{
		send:    send,
		message: &brokerv1.ContainerLogsResponse{},
		bytes:   make([]byte, 0, batchBytes+2*pieceBytes),
		entries: make([]entrySlot, batchCount),
		redact:  [2]*redact.Stream{rules.Stream(), rules.Stream()},
	}
}

// add takes one line, or a piece of one, without its newline.
func (b *batch) add(isStderr bool, at time.Time, line []byte, partial bool) error {
	output := 0
	if isStderr {
		output = 1
	}
	line = b.redact[output].Line(line, partial)
	start := len(b.bytes)
	b.bytes = append(b.bytes, line...)
	text := b.bytes[start:len(b.bytes):len(b.bytes)]
	s := &b.entries[b.n]
	b.n++
	s.entry.Partial = partial
	if isStderr {
		s.stderr.Stderr = text
		s.entry.Output = &s.stderr
	} else {
		s.stdout.Stdout = text
		s.entry.Output = &s.stdout
	}
	s.entry.LogTime = nil
	if !at.IsZero() {
		s.time.Seconds, s.time.Nanos = at.Unix(), int32(at.Nanosecond())
		s.entry.LogTime = &s.time
	}
	b.message.Entries = append(b.message.Entries, &s.entry)
	if b.n == batchCount || len(b.bytes) >= batchBytes {
		return b.flush()
	}
	return nil
}

func (b *batch) flush() error {
	if b.n == 0 {
		return nil
	}
	err := b.send(b.message)
	b.n, b.bytes, b.message.Entries = 0, b.bytes[:0], b.message.Entries[:0]
	return err
}

var errEngineLog = errors.New("the engine reported an error in the log stream")

// readFrames reads the engine's multiplexed form: a byte for the stream, three
// of padding, four for the length, and so many bytes: a line, or for a longer
// one 16 KiB of it.
func readFrames(body io.Reader, timestamps bool, b *batch) error {
	r := bufio.NewReaderSize(body, 64<<10)
	piece := make([]byte, pieceBytes+64)
	for {
		header, err := r.Peek(8)
		if errors.Is(err, io.EOF) && len(header) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		stream, left := header[0], int(binary.BigEndian.Uint32(header[4:]))
		_, _ = r.Discard(8)
		if stream != 1 && stream != 2 {
			text, _ := io.ReadAll(io.LimitReader(r, min(int64(left), 1024)))
			return errors.Join(errEngineLog, errors.New(string(text)))
		}
		var at time.Time
		for first := true; first || left > 0; first = false {
			p := piece[:min(left, len(piece))]
			if _, err := io.ReadFull(r, p); err != nil {
				return err
			}
			left -= len(p)
			if first && timestamps {
				at, p = cutTime(p)
			}
			line, whole := p, false
			if left == 0 {
				line, whole = bytes.CutSuffix(p, []byte("\n"))
			}
			if err := b.add(stream == 2, at, line, !whole); err != nil {
				return err
			}
		}
		// What is there is sent before more is waited for.
		if !ready(r) {
			if err := b.flush(); err != nil {
				return err
			}
		}
	}
}

// ready reports whether a whole frame is in the buffer already.
func ready(r *bufio.Reader) bool {
	if r.Buffered() < 8 {
		return false
	}
	header, _ := r.Peek(8)
	return r.Buffered()-8 >= int(binary.BigEndian.Uint32(header[4:]))
}

// readLines reads the form of a container with a terminal: its bytes.
func readLines(body io.Reader, timestamps bool, b *batch) error {
	r := bufio.NewReaderSize(body, pieceBytes)
	begins := true
	var at time.Time
	for {
		line, err := r.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) && !errors.Is(err, io.EOF) {
			return err
		}
		ended := errors.Is(err, io.EOF)
		if len(line) > 0 {
			if begins && timestamps {
				at, line = cutTime(line)
			}
			text, whole := bytes.CutSuffix(line, []byte("\n"))
			if err := b.add(false, at, bytes.TrimSuffix(text, []byte("\r")), !whole && !ended); err != nil {
				return err
			}
			begins = whole
		}
		if ended {
			return nil
		}
		if buffered, _ := r.Peek(r.Buffered()); !bytes.Contains(buffered, []byte("\n")) {
			if err := b.flush(); err != nil {
				return err
			}
		}
	}
}

// cutTime takes the engine's timestamp off the front of a line.
func cutTime(line []byte) (time.Time, []byte) {
	stamp, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok || len(stamp) > 40 {
		return time.Time{}, line
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return time.Time{}, line
	}
	return t, rest
}
