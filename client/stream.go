package client

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"google.golang.org/grpc"
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
		req, at := proto.CloneOf(req), instant{}
		req.Follow, req.Timestamps = true, true
		f := follower[brokerv1.ContainerLogsResponse, brokerv1.LogEntry]{
			client: c,
			open: func(ctx context.Context) (grpc.ServerStreamingClient[brokerv1.ContainerLogsResponse], error) {
				if since := at.again(); since != nil {
					// The tail was counted back from another end.
					req.Since, req.Tail = since, 0
				}
				return c.Containers().ContainerLogs(ctx, req, once{})
			},
			items: (*brokerv1.ContainerLogsResponse).GetEntries,
			known: func(entry *brokerv1.LogEntry) bool { return at.known(entry.GetLogTime()) },
		}
		f.follow(ctx, yield)
	}
}

// FollowEvents yields what happens on the engine, and goes on by itself as
// FollowLogs does, from the newest event that it yielded; no event is yielded
// twice. What happened while the broker was away is missing when no event had
// come before, or when the engine has forgotten it.
//
// The sequence ends at req.Until or with ctx. Its last element has the error, if
// there is one, and no event. Breaking off hangs up.
func (c *Client) FollowEvents(ctx context.Context, req *brokerv1.EventsRequest) iter.Seq2[*brokerv1.EventsResponse, error] {
	return func(yield func(*brokerv1.EventsResponse, error) bool) {
		req, at := proto.CloneOf(req), instant{}
		f := follower[brokerv1.EventsResponse, brokerv1.EventsResponse]{
			client: c,
			open: func(ctx context.Context) (grpc.ServerStreamingClient[brokerv1.EventsResponse], error) {
				if since := at.again(); since != nil {
					req.Since = since
				}
				return c.Engine().Events(ctx, req, once{})
			},
			items: func(e *brokerv1.EventsResponse) []*brokerv1.EventsResponse { return []*brokerv1.EventsResponse{e} },
			known: func(e *brokerv1.EventsResponse) bool { return at.known(e.GetEventTime()) },
		}
		f.follow(ctx, yield)
	}
}

// FollowJournal yields the entries of a source of the host's journal as they come,
// and goes on by itself as FollowLogs does, behind the newest entry that it yielded;
// no entry is yielded twice.
//
// req names the source and where to begin; Follow is taken as set. The sequence ends
// with ctx. Its last element has the error, if there is one, and no entry. Breaking
// off hangs up.
func (c *Client) FollowJournal(ctx context.Context, req *brokerv1.ReadJournalRequest) iter.Seq2[*brokerv1.JournalEntry, error] {
	return func(yield func(*brokerv1.JournalEntry, error) bool) {
		req := proto.CloneOf(req)
		req.Follow = true
		f := follower[brokerv1.ReadJournalResponse, brokerv1.JournalEntry]{
			client: c,
			open: func(ctx context.Context) (grpc.ServerStreamingClient[brokerv1.ReadJournalResponse], error) {
				return c.Journal().ReadJournal(ctx, req, once{})
			},
			items: (*brokerv1.ReadJournalResponse).GetEntries,
			known: func(e *brokerv1.JournalEntry) bool {
				// From here on a new call has to begin behind it.
				req.Cursor, req.Since = e.GetCursor(), nil
				return false
			},
		}
		f.follow(ctx, yield)
	}
}

// follower reads a stream of M to its end, over as many calls as that takes, and
// yields the Ts in it.
type follower[M, T any] struct {
	client *Client
	open   func(context.Context) (grpc.ServerStreamingClient[M], error) // from where it was
	items  func(*M) []*T
	known  func(*T) bool // notes an item, and reports whether it was yielded before

	failures int    // drops in a row without an item between
	serial   string // certificate the stream was opened with
}

func (f *follower[M, T]) follow(ctx context.Context, yield func(*T, error) bool) {
	ctx, hangUp := context.WithCancel(ctx)
	defer hangUp()
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

// read opens the stream and yields until it ends. It reports false when the
// sequence is over.
func (f *follower[M, T]) read(ctx context.Context, yield func(*T, error) bool) (more bool, err error) {
	f.serial = f.client.serial()
	stream, err := f.open(ctx)
	if err != nil {
		return true, err
	}
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return true, err
		}
		for _, item := range f.items(message) {
			if f.known(item) {
				continue
			}
			f.failures = 0
			if !yield(item, nil) {
				return false, nil
			}
		}
	}
}

// resume waits until the stream may be opened again after err, and reports false
// when err is the end.
func (f *follower[M, T]) resume(ctx context.Context, err error) bool {
	if ErrorMetadata(err)[operationKey] != "" {
		return false // The operation's own end, whatever its code.
	}
	expired := Reason(err) == brokerv1.ErrorReason_ERROR_REASON_STREAM_EXPIRED
	renewed := Reason(err) == brokerv1.ErrorReason_ERROR_REASON_ACCESS_REVOKED && f.client.serial() != f.serial
	if !expired && !renewed && status.Code(err) != codes.Unavailable {
		return false
	}
	if expired {
		// A silent stream ends like this for ever, and well.
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
	return sleep(ctx, wait)
}

// instant is where a stream of things with a time was: `since` gives all of its
// instant again, in the same order.
type instant struct {
	last   *timestamppb.Timestamp // time of the newest thing
	atLast int                    // how many things bore it
	skip   int                    // how many of them are yet to be left out
}

// again returns where the next stream has to begin; nil before the first thing.
func (i *instant) again() *timestamppb.Timestamp {
	i.skip = i.atLast
	return i.last
}

// known notes a thing's time, and reports whether the thing was there before.
func (i *instant) known(t *timestamppb.Timestamp) bool {
	same := proto.Equal(t, i.last)
	if same && i.skip > 0 {
		i.skip--
		return true
	}
	i.skip = 0
	if same {
		i.atLast++
	} else {
		i.last, i.atLast = t, 1
	}
	return false
}

// serial is the serial number of the certificate a new connection would use.
func (c *Client) serial() string {
	svid, err := c.certs.GetX509SVID()
	if err != nil {
		return ""
	}
	return svid.Certificates[0].SerialNumber.String()
}
