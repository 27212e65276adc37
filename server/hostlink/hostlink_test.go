package hostlink

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gortium/hermes-broker/internal/hostv1"
	"github.com/gortium/hermes-broker/internal/peercred"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is a brokerhost that says what the test wants.
type host struct {
	hostv1.UnimplementedHostServiceServer
	read func(hostv1.HostService_ReadServer) error
	list func(hostv1.HostService_ListSocketsServer) error
}

func (h *host) Read(_ *hostv1.ReadRequest, s hostv1.HostService_ReadServer) error { return h.read(s) }

func (h *host) ListSockets(_ *hostv1.ListSocketsRequest, s hostv1.HostService_ListSocketsServer) error {
	return h.list(s)
}

// serve serves on a socket until stop is called.
func serve(t *testing.T, socket string, h *host) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(peercred.New(func(uint32) bool { return true }, nil)))
	hostv1.RegisterHostServiceServer(s, h)
	var done sync.WaitGroup
	done.Go(func() { _ = s.Serve(l) })
	stop = sync.OnceFunc(func() { s.Stop(); done.Wait() })
	t.Cleanup(stop)
	return stop
}

func link(t *testing.T, socket string) *Link {
	t.Helper()
	l, err := New(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// notes are what root is told.
type notes struct {
	call.Scope
	mu   sync.Mutex
	text string
}

func (n *notes) Note(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.text += text + "\n"
}

func (*notes) ID() string          { return "C1" }
func (*notes) Caller() call.Caller { return call.Caller{} }

func data(s string) *hostv1.ReadResponse {
	return &hostv1.ReadResponse{Event: &hostv1.ReadResponse_Data{Data: []byte(s)}}
}

func end(e *hostv1.End) *hostv1.ReadResponse {
	e.Tool = "nft"
	return &hostv1.ReadResponse{Event: &hostv1.ReadResponse_End{End: e}}
}

// TestEnds: each way in which a tool can end has its own reason; its words are for
// root alone.
func TestEnds(t *testing.T) {
	h := &host{}
	socket := t.TempDir() + "/h.sock"
	serve(t, socket, h)
	l := link(t, socket)
	for _, c := range []struct {
		end    *hostv1.End
		reason string
		code   codes.Code
	}{
		{&hostv1.End{Outcome: hostv1.Outcome_OUTCOME_EXITED}, "", codes.OK},
		{&hostv1.End{Outcome: hostv1.Outcome_OUTCOME_EXITED, ExitCode: 3}, "TOOL_FAILED", codes.Internal},
		{&hostv1.End{Outcome: hostv1.Outcome_OUTCOME_SIGNALLED, Signal: "killed"}, "TOOL_FAILED", codes.Internal},
		{&hostv1.End{Outcome: hostv1.Outcome_OUTCOME_TIMED_OUT}, "TOOL_TIMEOUT", codes.DeadlineExceeded},
		{&hostv1.End{Outcome: hostv1.Outcome_OUTCOME_TOO_LARGE}, "TOOL_OUTPUT_TOO_LARGE", codes.ResourceExhausted},
		{&hostv1.End{Outcome: hostv1.Outcome_OUTCOME_UNAVAILABLE}, "TOOL_MISSING", codes.FailedPrecondition},
		{&hostv1.End{Outcome: hostv1.Outcome_OUTCOME_NO_SOCKET}, "FAIL2BAN_MISSING", codes.FailedPrecondition},
		{&hostv1.End{Outcome: hostv1.Outcome_OUTCOME_NOT_LISTENING}, "FAIL2BAN_STOPPED", codes.Unavailable},
		{&hostv1.End{Outcome: hostv1.Outcome_OUTCOME_TRUNCATED}, "FAIL2BAN_ANSWER_TRUNCATED", codes.Unavailable},
		{&hostv1.End{Outcome: hostv1.Outcome_OUTCOME_BUSY}, "HOST_BUSY", codes.ResourceExhausted},
		{&hostv1.End{}, "INTERNAL", codes.Internal},
	} {
		c.end.Words = []byte("canary words")
		h.read = func(s hostv1.HostService_ReadServer) error {
			return errors.Join(s.Send(data("some ")), s.Send(data("")), s.Send(data("text")), s.Send(end(c.end)))
		}
		n := &notes{}
		said, err := l.ReadAll(call.With(t.Context(), n), &hostv1.ReadRequest{})
		if fault.Reason(err) != c.reason || status.Code(err) != c.code || strings.Contains(status.Convert(err).String(), "canary") {
			t.Errorf("%v: %v", c.end, err)
		}
		if (c.reason == "") != (string(said) == "some text") {
			t.Errorf("%v: %q", c.end, said)
		}
		if c.code != codes.OK && !strings.Contains(n.text, "nft: canary words") {
			t.Errorf("%v: root is told %q", c.end, n.text)
		}
	}
	for name, read := range map[string]func(hostv1.HostService_ReadServer) error{
		"without an end": func(s hostv1.HostService_ReadServer) error { return s.Send(data("x")) },
		"refused":        func(hostv1.HostService_ReadServer) error { return status.Error(codes.InvalidArgument, "canary") },
	} {
		h.read = read
		if said, err := l.ReadAll(t.Context(), &hostv1.ReadRequest{}); fault.Reason(err) != "INTERNAL" || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %q, %v", name, said, err)
		}
	}
}

// TestHostComesAndGoes: without brokerhost the reason says so at once, and it works
// again soon after brokerhost is back.
func TestHostComesAndGoes(t *testing.T) {
	socket := t.TempDir() + "/h.sock"
	l := link(t, socket)
	for range 5 {
		begun := time.Now()
		if _, err := l.ReadAll(t.Context(), &hostv1.ReadRequest{}); fault.Reason(err) != "HOST_UNAVAILABLE" || time.Since(begun) > time.Second {
			t.Fatalf("after %v: %v", time.Since(begun), err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	if _, err := l.Describe(t.Context()); fault.Reason(err) != "HOST_UNAVAILABLE" {
		t.Error(err)
	}
	if _, err := l.ListSockets(t.Context(), true); fault.Reason(err) != "HOST_UNAVAILABLE" {
		t.Error(err)
	}
	begun := make(chan struct{})
	h := &host{read: func(s hostv1.HostService_ReadServer) error {
		close(begun)
		_ = s.Send(data("some"))
		<-s.Context().Done()
		return nil
	}}
	stop := serve(t, socket, h)
	back := time.Now()
	var err error
	for err = errors.New("not yet"); err != nil && time.Since(back) < 10*time.Second; time.Sleep(50 * time.Millisecond) {
		h.list = func(s hostv1.HostService_ListSocketsServer) error {
			return errors.Join(s.Send(&hostv1.ListSocketsResponse{Sockets: []*hostv1.Socket{{}}, HoldersMissing: true}), s.Send(&hostv1.ListSocketsResponse{SocketsMissing: true}))
		}
		var found Sockets
		if found, err = l.ListSockets(t.Context(), false); err == nil && (len(found.All) != 1 || !found.HoldersMissing || !found.SocketsMissing) {
			t.Errorf("%v", found)
		}
	}
	if took := time.Since(back); err != nil || took > 3*time.Second {
		t.Errorf("back after %v: %v", took, err)
	}
	// It is killed while it speaks.
	go func() { <-begun; stop() }()
	if _, err := l.ReadAll(t.Context(), &hostv1.ReadRequest{}); fault.Reason(err) != "HOST_UNAVAILABLE" {
		t.Error(err)
	}
}

// TestCallerLeaves: with the caller, and with who has read enough, goes the tool.
func TestCallerLeaves(t *testing.T) {
	gone := make(chan struct{}, 1)
	h := &host{read: func(s hostv1.HostService_ReadServer) error {
		for s.Send(data("x")) == nil {
			time.Sleep(time.Millisecond)
		}
		gone <- struct{}{}
		return nil
	}}
	socket := t.TempDir() + "/h.sock"
	serve(t, socket, h)
	l := link(t, socket)
	enough := errors.New("enough")
	err := l.Read(t.Context(), &hostv1.ReadRequest{}, func(r io.Reader) error {
		_, err := io.ReadFull(r, make([]byte, 3))
		return errors.Join(err, enough)
	})
	if !errors.Is(err, enough) {
		t.Error(err)
	}
	<-gone
	why := errors.New("the reason")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(100*time.Millisecond, func() { cancel(why) })
	if _, err := l.ReadAll(ctx, &hostv1.ReadRequest{}); !errors.Is(err, why) {
		t.Error(err)
	}
	<-gone
}
