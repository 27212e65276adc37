package client_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

// record is a container's log on the broker's side: line i is written at
// times[i] seconds.
var times = []int64{1, 2, 2, 2, 3, 4, 4, 5}

// sendLog sends lines from since on, one a message, at most limit of them.
func sendLog(req *brokerv1.ContainerLogsRequest, s grpc.ServerStreamingServer[brokerv1.ContainerLogsResponse], limit int) error {
	first := 0
	if tail := int(req.GetTail()); tail > 0 {
		first = max(0, len(times)-tail)
	}
	for i := first; i < len(times); i++ {
		if times[i] < req.GetSince().GetSeconds() {
			continue
		}
		if limit--; limit < 0 {
			return nil
		}
		entry := &brokerv1.LogEntry{
			LogTime: &timestamppb.Timestamp{Seconds: times[i]},
			Output:  &brokerv1.LogEntry_Stdout{Stdout: fmt.Appendf(nil, "line %d", i)},
		}
		if err := s.Send(&brokerv1.ContainerLogsResponse{Entries: []*brokerv1.LogEntry{entry}}); err != nil {
			return err
		}
	}
	return nil
}

func collect(ctx context.Context, c *client.Client, req *brokerv1.ContainerLogsRequest) (lines []string, err error) {
	for entry, e := range c.FollowLogs(ctx, req) {
		if e != nil {
			return lines, e
		}
		lines = append(lines, string(entry.GetStdout()))
	}
	return lines, nil
}

func allLines() (lines []string) {
	for i := range times {
		lines = append(lines, fmt.Sprintf("line %d", i))
	}
	return lines
}

// TestFollowLogsResumes drops the stream after every possible number of lines.
func TestFollowLogsResumes(t *testing.T) {
	drops := map[string]error{
		"expired":       refusal(codes.Aborted, "STREAM_EXPIRED", 0),
		"stopping":      refusal(codes.Unavailable, "SHUTTING_DOWN", 0),
		"lost":          status.Error(codes.Unavailable, "connection lost"),
		"engine is off": refusal(codes.Unavailable, "ENGINE_UNAVAILABLE", time.Millisecond),
	}
	for name, drop := range drops {
		t.Run(name, func(t *testing.T) {
			b := &broker{}
			c := pairUp(t, b)
			for cut := range len(times) + 1 {
				first := true
				b.logs = func(_ int, req *brokerv1.ContainerLogsRequest, s grpc.ServerStreamingServer[brokerv1.ContainerLogsResponse]) error {
					if !req.GetFollow() || !req.GetTimestamps() {
						return status.Error(codes.InvalidArgument, "follow and timestamps are not set")
					}
					if first {
						first = false
						if err := sendLog(req, s, cut); err != nil {
							return err
						}
						return drop
					}
					return sendLog(req, s, len(times))
				}
				lines, err := collect(within(t, 10*time.Second), c, &brokerv1.ContainerLogsRequest{Container: "ollama"})
				if err != nil || !slices.Equal(lines, allLines()) {
					t.Errorf("cut after %d: %q, %v", cut, lines, err)
				}
			}
		})
	}
}

// TestFollowLogsResumesEachLine drops after each new line, again and again, with
// a tail in the first request.
func TestFollowLogsResumesEachLine(t *testing.T) {
	b := &broker{}
	b.logs = func(n int, req *brokerv1.ContainerLogsRequest, s grpc.ServerStreamingServer[brokerv1.ContainerLogsResponse]) error {
		if req.GetSince() != nil && req.GetTail() != 0 {
			return status.Error(codes.InvalidArgument, "a tail would leave out lines after since")
		}
		repeated := 0 // lines of since's instant that were sent before
		for i := range min(n-1, len(times)) {
			if times[i] == req.GetSince().GetSeconds() {
				repeated++
			}
		}
		if err := sendLog(req, s, repeated+1); err != nil || n > len(times) {
			return err
		}
		return refusal(codes.Aborted, "STREAM_EXPIRED", 0)
	}
	req := &brokerv1.ContainerLogsRequest{Container: "ollama", Tail: int32(len(times))}
	lines, err := collect(within(t, 10*time.Second), pairUp(t, b), req)
	if err != nil || !slices.Equal(lines, allLines()) {
		t.Errorf("%q, %v", lines, err)
	}
	if req.GetFollow() || req.GetSince() != nil {
		t.Error("the caller's request was written to")
	}
}

func TestFollowLogsEnds(t *testing.T) {
	tests := []struct {
		name string
		drop error
	}{
		{"denied", refusal(codes.PermissionDenied, "PERMISSION_DENIED", -1)},
		{"revoked, same certificate", refusal(codes.PermissionDenied, "ACCESS_REVOKED", -1)},
		{"slow", refusal(codes.ResourceExhausted, "SLOW_READER", -1)},
		{"frozen", refusal(codes.FailedPrecondition, "FROZEN", -1)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := &broker{}
			b.logs = func(_ int, req *brokerv1.ContainerLogsRequest, s grpc.ServerStreamingServer[brokerv1.ContainerLogsResponse]) error {
				if err := sendLog(req, s, 1); err != nil {
					return err
				}
				return tt.drop
			}
			lines, err := collect(within(t, 5*time.Second), pairUp(t, b), &brokerv1.ContainerLogsRequest{})
			if calls, _ := b.count(); len(lines) != 1 || status.Code(err) != status.Code(tt.drop) || calls != 1 {
				t.Errorf("%q, %v, %d calls", lines, err, calls)
			}
		})
	}
}

func TestFollowLogsGivesUp(t *testing.T) {
	b := &broker{logs: func(int, *brokerv1.ContainerLogsRequest, grpc.ServerStreamingServer[brokerv1.ContainerLogsResponse]) error {
		return refusal(codes.Unavailable, "ENGINE_UNAVAILABLE", 0)
	}}
	_, err := collect(within(t, 10*time.Second), pairUp(t, b), &brokerv1.ContainerLogsRequest{})
	if calls, _ := b.count(); status.Code(err) != codes.Unavailable || calls != 11 {
		t.Errorf("%v after %d calls, want UNAVAILABLE after 11", err, calls)
	}
}

// TestFollowLogsWithRenewedCertificate: the stream ends with the certificate it
// was opened with and goes on under the next one.
func TestFollowLogsWithRenewedCertificate(t *testing.T) {
	a := newAuthority()
	b := &broker{}
	b.serve(t, a, a.issue(leaf{ids: []string{serverID}}))
	f := writeFiles(t.TempDir(), a, a.issue(leaf{ids: []string{callerID}}))
	b.logs = func(n int, req *brokerv1.ContainerLogsRequest, s grpc.ServerStreamingServer[brokerv1.ContainerLogsResponse]) error {
		if n > 1 {
			return sendLog(req, s, len(times))
		}
		if err := sendLog(req, s, 3); err != nil {
			return err
		}
		next := a.issue(leaf{ids: []string{callerID}})
		f.write(f.cert, "CERTIFICATE", next.Certificate[0])
		f.write(f.key, "PRIVATE KEY", keyDER(next))
		return refusal(codes.PermissionDenied, "ACCESS_REVOKED", -1)
	}
	lines, err := collect(within(t, 5*time.Second), dial(t, f.config(b.address)), &brokerv1.ContainerLogsRequest{})
	if err != nil || !slices.Equal(lines, allLines()) {
		t.Errorf("%q, %v", lines, err)
	}
	if _, serials := b.count(); serials != 2 {
		t.Errorf("%d certificates seen, want 2", serials)
	}
}

func TestFollowLogsBreakHangsUp(t *testing.T) {
	hungUp := make(chan struct{})
	b := &broker{logs: func(_ int, req *brokerv1.ContainerLogsRequest, s grpc.ServerStreamingServer[brokerv1.ContainerLogsResponse]) error {
		if err := sendLog(req, s, 2); err != nil {
			return err
		}
		<-s.Context().Done()
		close(hungUp)
		return nil
	}}
	for range pairUp(t, b).FollowLogs(t.Context(), &brokerv1.ContainerLogsRequest{}) {
		break
	}
	select {
	case <-hungUp:
	case <-time.After(5 * time.Second):
		t.Fatal("the stream is still open")
	}
}

// TestFollowEventsResumes: as logs do, by the time of what was seen. The first
// request has no since, or one of its own.
func TestFollowEventsResumes(t *testing.T) {
	for _, since := range []*timestamppb.Timestamp{nil, {Seconds: 2}} {
		for cut := range len(times) + 1 {
			b := &broker{events: func(n int, req *brokerv1.EventsRequest, s grpc.ServerStreamingServer[brokerv1.EventsResponse]) error {
				left := cut
				for i, sec := range times {
					if sec < req.GetSince().GetSeconds() {
						continue
					}
					if n == 1 && left == 0 {
						break
					}
					left--
					if err := s.Send(&brokerv1.EventsResponse{EventTime: &timestamppb.Timestamp{Seconds: sec}, Name: fmt.Sprintf("line %d", i)}); err != nil {
						return err
					}
				}
				if n == 1 {
					return refusal(codes.Aborted, "STREAM_EXPIRED", 0)
				}
				return nil
			}}
			var names []string
			for e, err := range pairUp(t, b).FollowEvents(within(t, 5*time.Second), &brokerv1.EventsRequest{Since: since}) {
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, e.GetName())
			}
			want := allLines()
			if since != nil {
				want = want[1:]
			}
			if !slices.Equal(names, want) {
				t.Errorf("since %v, cut after %d: %q", since, cut, names)
			}
		}
	}
}

// TestFollowJournalResumes: by the cursor of what was seen, wherever it was cut.
func TestFollowJournalResumes(t *testing.T) {
	for cut := range len(times) + 1 {
		since := &timestamppb.Timestamp{Seconds: 1}
		b := &broker{journal: func(n int, req *brokerv1.ReadJournalRequest, s grpc.ServerStreamingServer[brokerv1.ReadJournalResponse]) error {
			first := 0
			if cursor := req.GetCursor(); cursor != "" {
				if _, err := fmt.Sscanf(cursor, "line %d", &first); err != nil || req.GetSince() != nil {
					return status.Error(codes.InvalidArgument, "cursor and since")
				}
				first++
			}
			for i := first; i < len(times); i++ {
				if n == 1 && i == cut {
					break
				}
				line := fmt.Sprintf("line %d", i)
				if err := s.Send(&brokerv1.ReadJournalResponse{Entries: []*brokerv1.JournalEntry{{Message: []byte(line), Cursor: line}}}); err != nil {
					return err
				}
			}
			if !req.GetFollow() || n > 1 {
				return nil
			}
			return refusal(codes.Unavailable, "HOST_UNAVAILABLE", 0)
		}}
		var lines []string
		req := &brokerv1.ReadJournalRequest{Source: "kernel", Since: since}
		for e, err := range pairUp(t, b).FollowJournal(within(t, 5*time.Second), req) {
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, string(e.GetMessage()))
		}
		if !slices.Equal(lines, allLines()) || req.GetCursor() != "" || req.GetFollow() || req.GetSince() != since {
			t.Errorf("cut after %d: %q, %v", cut, lines, req)
		}
	}
}
