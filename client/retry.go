package client

import (
	"context"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Reads are sent at most maxAttempts times. Without a word of the broker the
// pauses between grow from minPause, doubling, to at most maxPause. A pause that
// the broker asks for is kept unless it is longer than maxAskedPause: then the
// caller decides.
const (
	maxAttempts   = 4
	minPause      = 100 * time.Millisecond
	maxPause      = 2 * time.Second
	maxAskedPause = 30 * time.Second
)

// once is the call option of calls whose repeating is somebody else's matter.
type once struct{ grpc.EmptyCallOption }

// repeatable reports whether sending req twice is as good as sending it once. It
// knows messages of the API and health checks without a request_id; what it does
// not know might be a change.
func repeatable(req any, opts []grpc.CallOption) bool {
	m, ok := req.(proto.Message)
	if !ok {
		return false
	}
	if _, ok := req.(interface{ GetRequestId() string }); ok {
		return false
	}
	for _, o := range opts {
		if _, ok := o.(once); ok {
			return false
		}
	}
	name := string(m.ProtoReflect().Descriptor().FullName())
	return strings.HasPrefix(name, "hermes.broker.v1.") || strings.HasPrefix(name, "grpc.health.v1.")
}

// pause waits before attempt n+1, n starting at 1. It reports false when the
// error is final, attempts are used up, or ctx would end first.
func pause(ctx context.Context, err error, n int) bool {
	asked, ok := RetryAfter(err)
	switch status.Code(err) {
	case codes.Unavailable:
	case codes.ResourceExhausted:
		// Without RetryInfo it is no matter of time: a message too large, too many
		// calls open.
		if !ok {
			return false
		}
	default:
		return false
	}
	if n >= maxAttempts || asked > maxAskedPause {
		return false
	}
	wait := asked
	if !ok {
		wait = backoff(n, maxPause)
	}
	return sleep(ctx, wait)
}

// backoff is the pause after n failures: between half and all of minPause *
// 2^(n-1), so that callers who lost the broker together do not come back together.
func backoff(n int, limit time.Duration) time.Duration {
	full := min(minPause<<min(n-1, 20), limit)
	return full/2 + rand.N(full/2)
}

// sleep waits for d and reports whether it could: not when ctx ends before.
func sleep(ctx context.Context, d time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < d {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func retryUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	for n := 1; ; n++ {
		err := invoke(ctx, method, req, reply, cc, opts...)
		if err == nil || !repeatable(req, opts) || !pause(ctx, err, n) {
			return err
		}
	}
}

// retryStream repeats a server stream while nothing of it has arrived. What was
// delivered once is never delivered again; FollowLogs goes on from there.
func retryStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if desc.ClientStreams {
		return open(ctx, desc, cc, method, opts...)
	}
	s := &retriedStream{
		opts: opts,
		open: func() (grpc.ClientStream, error) { return open(ctx, desc, cc, method, opts...) },
		// Not the stream's own context: that ends with the stream.
		pause: func(err error, n int) bool { return pause(ctx, err, n) },
	}
	var err error
	s.ClientStream, err = s.open()
	for n := 1; err != nil; n++ {
		// No request has been seen yet, so none has been sent.
		if !pause(ctx, err, n) {
			return nil, err
		}
		s.ClientStream, err = s.open()
	}
	return s, nil
}

// retriedStream is a server stream that is opened anew until its first message.
// Like every stream it has one reader, and its one request is sent before the
// first read.
type retriedStream struct {
	grpc.ClientStream
	opts    []grpc.CallOption
	open    func() (grpc.ClientStream, error)
	pause   func(err error, n int) bool
	request any
	started bool
}

func (s *retriedStream) SendMsg(m any) error {
	s.request = m
	return s.ClientStream.SendMsg(m)
}

func (s *retriedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	for n := 1; err != nil && !s.started; n++ {
		if !repeatable(s.request, s.opts) || !s.pause(err, n) {
			break
		}
		err = s.again(m)
	}
	s.started = true
	return err
}

func (s *retriedStream) again(m any) error {
	next, err := s.open()
	if err != nil {
		return err
	}
	s.ClientStream = next
	// An error of sending is io.EOF; receiving tells the real one.
	if next.SendMsg(s.request) == nil {
		_ = next.CloseSend()
	}
	return next.RecvMsg(m)
}
