package client

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gortium/hermes-broker/api/brokerv1"
)

// A follower that lost the broker opens its stream again up to resumeAttempts
// times in a row, about half a minute in all.
const (
	resumeAttempts = 10
	resumePause    = 5 * time.Second
)

// FollowLogs yields the entries of a container's log as they come, and goes on
// where it was when the stream ends before the log does: when the broker says
// STREAM_EXPIRED, is away (UNAVAILABLE) for less than about half a minute, or
// ends a stream with the certificate it was opened with although a renewed one is
// there. Each resumption is a new call, decided anew by the broker; no entry is
// yielded twice.
//
// req names the container and where to begin; Follow and Timestamps are taken as
// set. The sequence ends when the container stops or ctx ends. Its last element
// has the error, if there is one, and no entry. Breaking off hangs up.
func (c *Client) FollowLogs(ctx context.Context, req *brokerv1.ContainerLogsRequest) iter.Seq2[*brokerv1.LogEntry, error] {
	return func(yield func(*brokerv1.LogEntry, error) bool) {
		ctx, hangUp := context.WithCancel(ctx)
		defer hangUp()
		f := &follower{client: c, req: proto.CloneOf(req)}
		f.req.Follow, f.req.Timestamps = true, true
		for {
			more, err := f.read(ctx, yield)
			if !more {
				return
			}
			if !f.resume(ctx, err) {
				yield(nil, err)
				return
			}
		}
	}
}

// follower is one FollowLogs under way.
type follower struct {
	client *Client
	req    *brokerv1.ContainerLogsRequest

	last     *timestamppb.Timestamp // log_time of the newest entry
	atLast   int                    // how many entries bore it
	skip     int                    // how many of them are yet to be left out
	failures int                    // drops in a row without an entry between
	serial   string                 // certificate the stream was opened with
}

// read opens the stream and yields until it ends. It reports false when the
// sequence is over.
func (f *follower) read(ctx context.Context, yield func(*brokerv1.LogEntry, error) bool) (more bool, err error) {
	f.serial = f.client.serial()
	stream, err := f.client.Containers().ContainerLogs(ctx, f.req, once{})
	if err != nil {
		return true, err
	}
	for {
		batch, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return true, err
		}
		for _, entry := range batch.GetEntries() {
			if f.repeated(entry.GetLogTime()) {
				continue
			}
			if !yield(entry, nil) {
				return false, nil
			}
		}
	}
}

// repeated notes an entry's time, and reports whether the entry was yielded
// before: `since` gives all entries of its instant again, in the same order.
func (f *follower) repeated(t *timestamppb.Timestamp) bool {
	same := proto.Equal(t, f.last)
	if same && f.skip > 0 {
		f.skip--
		return true
	}
	f.skip, f.failures = 0, 0
	if same {
		f.atLast++
	} else {
		f.last, f.atLast = t, 1
	}
	return false
}

// resume prepares the request that goes on after err, and reports false when err
// is the end.
func (f *follower) resume(ctx context.Context, err error) bool {
	expired := Reason(err) == brokerv1.ErrorReason_ERROR_REASON_STREAM_EXPIRED
	renewed := Reason(err) == brokerv1.ErrorReason_ERROR_REASON_ACCESS_REVOKED && f.client.serial() != f.serial
	if !expired && !renewed && status.Code(err) != codes.Unavailable {
		return false
	}
	if expired {
		// A silent container's stream ends like this for ever, and well.
		f.failures = 0
	} else {
		f.failures++
	}
	asked, ok := RetryAfter(err)
	if f.failures > resumeAttempts || asked > maxAskedPause {
		return false
	}
	wait := asked
	if !ok {
		wait = backoff(f.failures+1, resumePause)
	}
	if !sleep(ctx, wait) {
		return false
	}
	if f.last != nil {
		// The tail was counted back from another end.
		f.req.Since, f.req.Tail, f.skip = f.last, 0, f.atLast
	}
	return true
}

// serial is the serial number of the certificate a new connection would use.
func (c *Client) serial() string {
	svid, err := c.certs.GetX509SVID()
	if err != nil {
		return ""
	}
	return svid.Certificates[0].SerialNumber.String()
}
