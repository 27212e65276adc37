package docker

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/redact"
)

func frame(stream byte, text string) string {
	return string(binary.BigEndian.AppendUint32([]byte{stream, 0, 0, 0}, uint32(len(text)))) + text
}

// logsOf is a service whose engine gives this body for the log, to which its
// context belongs.
func logsOf(terminal bool, body func(ctx context.Context) io.Reader) *Containers {
	rules, err := redact.New(nil)
	if err != nil {
		panic(err)
	}
	s := service(func(e *engine) {
		e.inspect = func(_ context.Context, name string) (*inspected, error) {
			return &inspected{id: someID, name: name, terminal: terminal}, nil
		}
		e.logs = func(ctx context.Context, _ string, _ logQuery) (io.ReadCloser, error) {
			return io.NopCloser(body(ctx)), nil
		}
	})
	s.redact = rules
	return s
}

// receiver is the caller's end of a log stream.
type receiver struct {
	grpc.ServerStream
	ctx  context.Context
	got  []*brokerv1.ContainerLogsResponse
	sent func(*brokerv1.ContainerLogsResponse)
}

func (r *receiver) Context() context.Context { return r.ctx }

// Send copies, as serialising does: the message is used again.
func (r *receiver) Send(m *brokerv1.ContainerLogsResponse) error {
	m = proto.Clone(m).(*brokerv1.ContainerLogsResponse)
	r.got = append(r.got, m)
	if r.sent != nil {
		r.sent(m)
	}
	return nil
}

// lines are the entries in one line each: stream, "+" when it goes on, text.
func (r *receiver) lines() (out []string) {
	for _, m := range r.got {
		for _, e := range m.GetEntries() {
			name, text := "out", e.GetStdout()
			if _, ok := e.GetOutput().(*brokerv1.LogEntry_Stderr); ok {
				name, text = "err", e.GetStderr()
			}
			if e.GetPartial() {
				name += "+"
			}
			out = append(out, name+" "+string(text))
		}
	}
	return out
}

// notes is a scope that keeps what root may read.
type notes struct {
	leave
	text *string
}

func (n notes) Note(s string) { *n.text += s }

func readLogs(t *testing.T, s *Containers, req *brokerv1.ContainerLogsRequest) (*receiver, string, error) {
	t.Helper()
	var noted string
	r := &receiver{ctx: call.With(t.Context(), notes{text: &noted})}
	req.Container = "web"
	err := s.ContainerLogs(req, r)
	return r, noted, err
}

func wantLines(t *testing.T, got []string, want ...string) {
	t.Helper()
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("got  %.300q\nwant %.300q", got, want)
	}
}

// TestFramesOverReads: where the engine's writes end says nothing.
func TestFramesOverReads(t *testing.T) {
	text := frame(1, "one\n") + frame(2, "two\n") + frame(1, "") + frame(1, "th") + frame(1, "ree\n") + frame(2, "\n") + frame(1, "last")
	want := []string{"out one", "err two", "out+ ", "out+ th", "out ree", "err ", "out+ last"}
	for name, over := range map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader, "halves": iotest.HalfReader, "end with data": iotest.DataErrReader,
	} {
		t.Run(name, func(t *testing.T) {
			r, _, err := readLogs(t, logsOf(false, func(context.Context) io.Reader { return over(strings.NewReader(text)) }), &brokerv1.ContainerLogsRequest{})
			if err != nil {
				t.Fatal(err)
			}
			wantLines(t, r.lines(), want...)
		})
	}
}

// TestLongLines: the engine cuts lines at 16 KiB, other drivers might not.
func TestLongLines(t *testing.T) {
	x, y := strings.Repeat("x", pieceBytes), strings.Repeat("y", pieceBytes)
	stamp := "2026-01-02T03:04:05.678901234Z "
	r, _, err := readLogs(t, logsOf(false, func(context.Context) io.Reader {
		return strings.NewReader(frame(1, stamp+x) + frame(1, stamp+y) + frame(1, stamp+"z\n") + frame(2, stamp+x+y+"\nmore\n"))
	}), &brokerv1.ContainerLogsRequest{Timestamps: true})
	if err != nil {
		t.Fatal(err)
	}
	lines := r.lines()
	wantLines(t, lines[:3], "out+ "+x, "out+ "+y, "out z")
	var long string
	for i, l := range lines[3:] {
		name, text, _ := strings.Cut(l, " ")
		if long += text; name != "err+" && i < len(lines)-4 {
			t.Errorf("a piece in the middle is %q", name)
		}
	}
	if long != x+y+"\nmore" {
		t.Errorf("%d bytes of the long frame, want %d", len(long), len(x+y)+5)
	}
	for _, m := range r.got {
		for _, e := range m.GetEntries() {
			if e.GetLogTime().AsTime().Nanosecond() != 678901234 {
				t.Errorf("time %v", e.GetLogTime())
			}
		}
	}
}

// TestNewlineInAFrame: a frame that is more than a line loses none of its bytes,
// not even where a piece of it ends.
func TestNewlineInAFrame(t *testing.T) {
	begin := strings.Repeat("x", pieceBytes+63) + "\n"
	r, _, err := readLogs(t, logsOf(false, func(context.Context) io.Reader { return strings.NewReader(frame(1, begin+"more\n")) }), &brokerv1.ContainerLogsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, r.lines(), "out+ "+begin, "out more")
}

func TestTimestamps(t *testing.T) {
	text := frame(1, "2026-01-02T03:04:05.000000006Z 2026-01-02T03:04:05Z hi\n") + frame(1, "no time\n") + frame(1, "2026-01-02T03:04:05.000000006Z \n") +
		frame(1, strings.Repeat("9", 41)+" x\n")
	for _, terminal := range []bool{false, true} {
		body := text
		if terminal {
			body = "2026-01-02T03:04:05.000000006Z 2026-01-02T03:04:05Z hi\r\nno time\r\n2026-01-02T03:04:05.000000006Z \r\n" + strings.Repeat("9", 41) + " x\r\n"
		}
		s := logsOf(terminal, func(context.Context) io.Reader { return strings.NewReader(body) })
		r, _, err := readLogs(t, s, &brokerv1.ContainerLogsRequest{Timestamps: true})
		if err != nil {
			t.Fatal(err)
		}
		wantLines(t, r.lines(), "out 2026-01-02T03:04:05Z hi", "out no time", "out ", "out "+strings.Repeat("9", 41)+" x")
		at := timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC))
		entries := r.got[0].GetEntries()
		if !proto.Equal(entries[0].GetLogTime(), at) || entries[1].GetLogTime() != nil || !proto.Equal(entries[2].GetLogTime(), at) || entries[3].GetLogTime() != nil {
			t.Errorf("times %v", entries)
		}
		// Without asking, what looks like a time is the container's own.
		r, _, err = readLogs(t, logsOf(terminal, func(context.Context) io.Reader { return strings.NewReader(body) }), &brokerv1.ContainerLogsRequest{})
		if err != nil || !strings.Contains(r.lines()[0], "000006Z") || r.got[0].GetEntries()[0].GetLogTime() != nil {
			t.Errorf("not asked for: %q, %v", r.lines(), err)
		}
	}
}

func TestTerminal(t *testing.T) {
	long := strings.Repeat("x", pieceBytes)
	s := logsOf(true, func(context.Context) io.Reader {
		return iotest.HalfReader(strings.NewReader("one\r\ntwo\n\r\n10%\r20%\r\n" + long + "y\r\n\x01\x00\x00\x00\x00\x00\x00\x02no frame\nlast"))
	})
	r, _, err := readLogs(t, s, &brokerv1.ContainerLogsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, r.lines(), "out one", "out two", "out ", "out 10%\r20%", "out+ "+long, "out y", "out \x01\x00\x00\x00\x00\x00\x00\x02no frame", "out last")
}

// TestEngineErrorInTheLog defends the engine's words, which may name host paths
// and secrets: they are for the audit trail alone.
func TestEngineErrorInTheLog(t *testing.T) {
	s := logsOf(false, func(context.Context) io.Reader {
		return strings.NewReader(frame(1, "before\n") + frame(3, "canary: /var/lib/docker/secret") + frame(1, "after\n"))
	})
	r, noted, err := readLogs(t, s, &brokerv1.ContainerLogsRequest{})
	if fault.Reason(err) != "ENGINE_ERROR" || strings.Contains(fmt.Sprint(err), "canary") {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(noted, "canary") {
		t.Errorf("the operator is told %q", noted)
	}
	wantLines(t, r.lines(), "out before")
	for name, text := range map[string]string{
		"stream 0": frame(0, "x\n"), "stream 4": frame(4, "x\n"), "half a header": "\x01\x00\x00", "half a frame": frame(1, "whole\n")[:10],
		"no frames": "HTTP/1.1 400 Bad Request\r\n",
	} {
		_, _, err := readLogs(t, logsOf(false, func(context.Context) io.Reader { return strings.NewReader(text) }), &brokerv1.ContainerLogsRequest{})
		if fault.Reason(err) != "ENGINE_ERROR" {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := func(context.Context) io.Reader { return iotest.ErrReader(errors.New("canary")) }
	for _, terminal := range []bool{false, true} {
		if _, _, err := readLogs(t, logsOf(terminal, broken), &brokerv1.ContainerLogsRequest{}); fault.Reason(err) != "ENGINE_ERROR" || strings.Contains(err.Error(), "canary") {
			t.Errorf("a broken body: %v", err)
		}
	}
}

// TestNothingIsHeldBack: when the engine pauses, all that it gave is out.
func TestNothingIsHeldBack(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		pr, pw := io.Pipe()
		s := logsOf(terminal, func(context.Context) io.Reader { return pr })
		out := make(chan int, 100)
		r := &receiver{ctx: call.With(t.Context(), leave{}), sent: func(m *brokerv1.ContainerLogsResponse) { out <- len(m.GetEntries()) }}
		done := make(chan error, 1)
		go func() { done <- s.ContainerLogs(&brokerv1.ContainerLogsRequest{Container: "web", Follow: true}, r) }()
		line := func(s string) string {
			if terminal {
				return s + "\r\n"
			}
			return frame(1, s+"\n")
		}
		for _, write := range []struct {
			text string
			want int
		}{
			{line("one"), 1}, {line("two") + line("three"), 2},
			{line("four") + line("five")[:3], 1}, // The rest of the next is late.
			{line("five")[3:] + line("six"), 2},
			{line("seven") + line("eight, which is long")[:12], 1}, // Its header is there, its text is not.
			{line("eight, which is long")[12:], 1},
		} {
			if _, err := io.WriteString(pw, write.text); err != nil {
				t.Fatal(err)
			}
			for n := 0; n < write.want; {
				select {
				case more := <-out:
					n += more
				case <-time.After(5 * time.Second):
					t.Fatalf("terminal %v: %q is held back", terminal, write.text)
				}
			}
		}
		pw.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
		wantLines(t, r.lines(), "out one", "out two", "out three", "out four", "out five", "out six", "out seven", "out eight, which is long")
	}
}

// TestBatches: what is there goes out in few messages, each within its bounds.
func TestBatches(t *testing.T) {
	short, long := strings.Repeat(frame(1, "x\n"), 10_000), strings.Repeat(frame(2, strings.Repeat("y", 5000)+"\n"), 100)
	r, _, err := readLogs(t, logsOf(false, func(context.Context) io.Reader { return strings.NewReader(short + long) }), &brokerv1.ContainerLogsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(r.lines()); n != 10_100 {
		t.Errorf("%d lines", n)
	}
	for _, m := range r.got {
		size := 0
		for _, e := range m.GetEntries() {
			size += len(e.GetStdout()) + len(e.GetStderr())
		}
		if len(m.GetEntries()) > batchCount || size > batchBytes+pieceBytes {
			t.Errorf("a message of %d entries, %d bytes", len(m.GetEntries()), size)
		}
	}
	if n := len(r.got); n > 10_000/batchCount+500_000/batchBytes+20 {
		t.Errorf("%d messages", n)
	}
}

// endless gives a frame's header and then bytes without end, up to a number.
type endless struct {
	header io.Reader
	left   int
}

func (e *endless) Read(p []byte) (int, error) {
	if n, err := e.header.Read(p); err == nil {
		return n, nil
	}
	if e.left <= 0 {
		return 0, io.ErrUnexpectedEOF
	}
	e.left -= len(p)
	return len(p), nil
}

// TestHugeFrame defends brokerd's memory against a length that the engine, or
// who stands in for it, only claims.
func TestHugeFrame(t *testing.T) {
	for _, stream := range []byte{1, 3} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		s := logsOf(false, func(context.Context) io.Reader {
			return &endless{header: bytes.NewReader([]byte{stream, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}), left: 64 << 20}
		})
		sent := 0
		r := &receiver{ctx: call.With(t.Context(), leave{})}
		r.sent = func(m *brokerv1.ContainerLogsResponse) { sent += proto.Size(m); r.got = nil }
		if err := s.ContainerLogs(&brokerv1.ContainerLogsRequest{Container: "web"}, r); fault.Reason(err) != "ENGINE_ERROR" {
			t.Errorf("stream %d: %v", stream, err)
		}
		runtime.ReadMemStats(&after)
		// The test copies what was sent; a claim of 4 GiB must cost nothing.
		if used := after.TotalAlloc - before.TotalAlloc; used > 3*uint64(sent)+8<<20 {
			t.Errorf("stream %d: %d bytes allocated to send %d", stream, used, sent)
		}
	}
}

func TestLogQuery(t *testing.T) {
	at := timestamppb.New(time.Unix(1, 2))
	bad := &timestamppb.Timestamp{Nanos: -1}
	for _, req := range []*brokerv1.ContainerLogsRequest{
		{Tail: -1}, {Tail: maxTail + 1}, {Since: bad}, {Until: bad}, {Until: at, Follow: true}, {Streams: []brokerv1.LogStream{0}}, {Streams: []brokerv1.LogStream{1, 9}},
	} {
		if _, _, err := readLogs(t, logsOf(false, nil), req); fault.Reason(err) != "INVALID_ARGUMENT" {
			t.Errorf("%v: %v", req, err)
		}
	}
	for _, c := range []struct {
		req  *brokerv1.ContainerLogsRequest
		want string
	}{
		{&brokerv1.ContainerLogsRequest{}, "{true true   false false all false}"},
		{&brokerv1.ContainerLogsRequest{Streams: []brokerv1.LogStream{2}, Tail: maxTail, Follow: true, Timestamps: true}, "{false true   true true 100000 false}"},
		{&brokerv1.ContainerLogsRequest{Since: at, Until: at}, "{true true 1.000000002 1.000000002 false false all false}"},
	} {
		q, err := logQueryOf(c.req)
		if o := logsOptions(q); err != nil || fmt.Sprint(o) != c.want {
			t.Errorf("%v: %v, %v; want %s", c.req, o, err, c.want)
		}
	}
}

// FuzzFrames: no bytes of an engine make it panic, and every byte of a line
// comes out once, in order and on its own stream.
func redacts(r *receiver) bool { return strings.Contains(strings.Join(r.lines(), ""), "[redacted]") }
