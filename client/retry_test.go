package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

// refusal is an error as the broker makes it; retry < 0 is without RetryInfo.
func refusal(code codes.Code, reason string, retry time.Duration, metadata ...string) error {
	info := &errdetails.ErrorInfo{Domain: "broker.hermes.v1", Reason: reason}
	for i := 0; i+1 < len(metadata); i += 2 {
		info.Metadata = map[string]string{metadata[i]: metadata[i+1]}
	}
	details := []protoadapt.MessageV1{info}
	if retry >= 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(retry)})
	}
	s, err := status.New(code, "refused").WithDetails(details...)
	check(err)
	return s.Err()
}

func TestReadsAreRepeated(t *testing.T) {
	tests := []struct {
		name     string
		err      error
		failures int // how often err is the answer
		calls    int // how often the broker is asked
		ok       bool
	}{
		{"away once", refusal(codes.Unavailable, "ENGINE_UNAVAILABLE", time.Millisecond), 1, 2, true},
		{"away without a word", status.Error(codes.Unavailable, ""), 1, 2, true},
		{"away thrice", refusal(codes.Unavailable, "SHUTTING_DOWN", 0), 3, 4, true},
		{"away for good", refusal(codes.Unavailable, "SHUTTING_DOWN", 0), 99, 4, false},
		{"rate", refusal(codes.ResourceExhausted, "RATE_LIMITED", time.Millisecond), 1, 2, true},
		{"concurrency says no time", refusal(codes.ResourceExhausted, "CONCURRENCY_LIMITED", -1), 1, 1, false},
		{"pause longer than a caller waits", refusal(codes.Unavailable, "ENGINE_UNAVAILABLE", time.Hour), 1, 1, false},
		{"pause beyond the deadline", refusal(codes.Unavailable, "ENGINE_UNAVAILABLE", 20*time.Second), 1, 1, false},
		{"denied", refusal(codes.PermissionDenied, "PERMISSION_DENIED", -1), 1, 1, false},
		{"defect", refusal(codes.Internal, "INTERNAL", -1), 1, 1, false},
		{"deadline", refusal(codes.DeadlineExceeded, "DEADLINE_EXCEEDED", -1), 1, 1, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := &broker{}
			answer := func(n int) error {
				if n <= tt.failures {
					return tt.err
				}
				return nil
			}
			b.whoami = answer
			c := pairUp(t, b)
			start := time.Now()
			_, err := c.Broker().WhoAmI(within(t, 10*time.Second), &brokerv1.WhoAmIRequest{})
			if calls, _ := b.count(); calls != tt.calls || (err == nil) != tt.ok {
				t.Errorf("unary: %d calls, err %v; want %d, ok %t", calls, err, tt.calls, tt.ok)
			}
			if !tt.ok && time.Since(start) > 5*time.Second {
				t.Errorf("waited %v for nothing", time.Since(start))
			}

			b = &broker{}
			b.logs = func(n int, _ *brokerv1.ContainerLogsRequest, s grpc.ServerStreamingServer[brokerv1.ContainerLogsResponse]) error {
				if err := answer(n); err != nil {
					return err
				}
				return s.Send(&brokerv1.ContainerLogsResponse{})
			}
			c = pairUp(t, b)
			stream, err := c.Containers().ContainerLogs(within(t, 10*time.Second), &brokerv1.ContainerLogsRequest{})
			if err == nil {
				_, err = stream.Recv()
			}
			if calls, _ := b.count(); calls != tt.calls || (err == nil) != tt.ok {
				t.Errorf("stream: %d calls, err %v; want %d, ok %t", calls, err, tt.calls, tt.ok)
			}
		})
	}
}

func TestStreamIsNotRepeatedAfterItsFirstMessage(t *testing.T) {
	b := &broker{logs: func(_ int, _ *brokerv1.ContainerLogsRequest, s grpc.ServerStreamingServer[brokerv1.ContainerLogsResponse]) error {
		if err := s.Send(&brokerv1.ContainerLogsResponse{}); err != nil {
			return err
		}
		return status.Error(codes.Unavailable, "gone")
	}}
	stream, err := pairUp(t, b).Containers().ContainerLogs(t.Context(), &brokerv1.ContainerLogsRequest{})
	check(err)
	_, first := stream.Recv()
	_, second := stream.Recv()
	if calls, _ := b.count(); first != nil || status.Code(second) != codes.Unavailable || calls != 1 {
		t.Fatalf("%v, %v after %d calls", first, second, calls)
	}
}

// TestChangesAreSentOnce covers every code a retry could be tempted by.
func TestChangesAreSentOnce(t *testing.T) {
	for _, err := range []error{
		refusal(codes.Unavailable, "AUDIT_UNAVAILABLE", 0),
		refusal(codes.ResourceExhausted, "CHANGE_BUDGET_EXHAUSTED", 0),
		refusal(codes.Aborted, "OUTCOME_UNKNOWN", 0),
		status.Error(codes.Unavailable, "connection lost"),
	} {
		for _, validate := range []bool{false, true} {
			b := &broker{restart: func(*brokerv1.RestartRequest) error { return err }}
			_, got := pairUp(t, b).Containers().Restart(t.Context(), &brokerv1.RestartRequest{Container: "ollama", ValidateOnly: validate})
			if calls, _ := b.count(); calls != 1 || status.Code(got) != status.Code(err) {
				t.Errorf("%v, validate_only %t: %d calls, %v", err, validate, calls, got)
			}
		}
	}
}

// TestPullIsSentOnce: a change that streams is a change, before its first message
// and after.
func TestPullIsSentOnce(t *testing.T) {
	for _, err := range []error{
		refusal(codes.Unavailable, "REGISTRY_UNAVAILABLE", 0, "operation", "operations/A"),
		refusal(codes.ResourceExhausted, "CHANGE_BUDGET_EXHAUSTED", 0),
		refusal(codes.Aborted, "STREAM_EXPIRED", 0),
		status.Error(codes.Unavailable, "connection lost"),
	} {
		for _, validate := range []bool{false, true} {
			for messages := range 2 {
				b := &broker{pull: func(_ *brokerv1.PullRequest, s grpc.ServerStreamingServer[brokerv1.PullResponse]) error {
					for range messages {
						if err := s.Send(&brokerv1.PullResponse{Sequence: 1}); err != nil {
							return err
						}
					}
					return err
				}}
				stream, got := pairUp(t, b).Images().Pull(t.Context(), &brokerv1.PullRequest{Image: "alpine", ValidateOnly: validate})
				for got == nil {
					_, got = stream.Recv()
				}
				if calls, _ := b.count(); calls != 1 || status.Code(got) != status.Code(err) {
					t.Errorf("%v after %d messages, validate_only %t: %d calls, %v", err, messages, validate, calls, got)
				}
			}
		}
	}
}

// TestUnknownMessageIsSentOnce: what the client cannot tell from a change is
// treated as one.
func TestUnknownMessageIsSentOnce(t *testing.T) {
	b := &broker{whoami: func(int) error { return status.Error(codes.Unavailable, "") }}
	c := pairUp(t, b)
	err := c.Conn().Invoke(t.Context(), brokerv1.BrokerService_WhoAmI_FullMethodName, &emptypb.Empty{}, &emptypb.Empty{})
	if calls, _ := b.count(); calls != 1 || err == nil {
		t.Fatalf("%d calls, %v", calls, err)
	}
}

func TestRequestID(t *testing.T) {
	b := &broker{}
	c := pairUp(t, b)
	const own = "0b6ee0c3-9f9e-4c0f-8a3e-6a1f3b6a4a10"
	req := &brokerv1.RestartRequest{Container: "ollama"}
	for _, r := range []*brokerv1.RestartRequest{req, req, {RequestId: own}, {ValidateOnly: true}} {
		if _, err := c.Containers().Restart(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	checkRequestIDs(t, b.requests, own)
	if req.GetRequestId() != "" {
		t.Error("the caller's message was written to")
	}
}

// TestPullRequestID: a change that streams gets its ID like any other.
func TestPullRequestID(t *testing.T) {
	b := &broker{pull: func(*brokerv1.PullRequest, grpc.ServerStreamingServer[brokerv1.PullResponse]) error { return nil }}
	c := pairUp(t, b)
	const own = "0b6ee0c3-9f9e-4c0f-8a3e-6a1f3b6a4a10"
	req := &brokerv1.PullRequest{Image: "alpine"}
	for _, r := range []*brokerv1.PullRequest{req, req, {RequestId: own, Detach: true}, {ValidateOnly: true}} {
		stream, err := c.Images().Pull(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	checkRequestIDs(t, b.requests, own)
	if req.GetRequestId() != "" {
		t.Error("the caller's message was written to")
	}
}

// checkRequestIDs looks at the IDs of two requests without one, one with own, and
// one that is validate_only.
func checkRequestIDs(t *testing.T, got []string, own string) {
	t.Helper()
	for _, id := range got[:2] {
		if uuid.Validate(id) != nil {
			t.Errorf("request_id %q is no UUID", id)
		}
	}
	if got[0] == got[1] {
		t.Error("two changes have one ID")
	}
	if got[2] != own {
		t.Errorf("the caller's ID became %q", got[2])
	}
	if got[3] != "" {
		t.Errorf("validate_only has the ID %q", got[3])
	}
}

func TestErrors(t *testing.T) {
	denied := refusal(codes.PermissionDenied, "PERMISSION_DENIED", -1)
	foreign, err := status.New(codes.Internal, "").WithDetails(&errdetails.ErrorInfo{Domain: "example.com", Reason: "FROZEN"})
	check(err)
	tests := []struct {
		name   string
		err    error
		reason brokerv1.ErrorReason
		field  string
		after  time.Duration
		ok     bool
	}{
		{"nil", nil, 0, "", 0, false},
		{"plain", io.EOF, 0, "", 0, false},
		{"no details", status.Error(codes.Unavailable, ""), 0, "", 0, false},
		{"denied", denied, brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED, "", 0, false},
		{"wrapped", fmt.Errorf("restart: %w", errors.Join(io.EOF, denied)), brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED, "", 0, false},
		{"metadata", refusal(codes.InvalidArgument, "INVALID_ARGUMENT", -1, "field", "grace"), brokerv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, "grace", 0, false},
		{"retry", refusal(codes.ResourceExhausted, "RATE_LIMITED", 1500*time.Millisecond), brokerv1.ErrorReason_ERROR_REASON_RATE_LIMITED, "", 1500 * time.Millisecond, true},
		{"another domain", foreign.Err(), 0, "", 0, false},
		{"a newer reason", refusal(codes.Internal, "NEWER", -1), 0, "", 0, false},
		{"negative delay", func() error {
			s, err := status.New(codes.Unavailable, "").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(-time.Hour)})
			check(err)
			return s.Err()
		}(), 0, "", 0, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := client.Reason(tt.err); got != tt.reason {
				t.Errorf("Reason = %v", got)
			}
			if got := client.ErrorMetadata(tt.err)["field"]; got != tt.field {
				t.Errorf("field = %q", got)
			}
			if after, ok := client.RetryAfter(tt.err); after != tt.after || ok != tt.ok {
				t.Errorf("RetryAfter = %v, %t", after, ok)
			}
		})
	}
}

func TestCancelEndsAPause(t *testing.T) {
	b := &broker{whoami: func(int) error { return refusal(codes.Unavailable, "SHUTTING_DOWN", 20*time.Second) }}
	c := pairUp(t, b)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(200*time.Millisecond, cancel)
	start := time.Now()
	if _, err := c.Broker().WhoAmI(ctx, &brokerv1.WhoAmIRequest{}); err == nil || time.Since(start) > 5*time.Second {
		t.Fatalf("%v after %v", err, time.Since(start))
	}
}
