// Package hostlink asks brokerhost, over its socket, for what brokerd itself must
// not reach: see package host. Errors that leave it are ready for the caller; a
// tool's own words go to the audit trail alone.
package hostlink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/internal/hostv1"
	"github.com/gortium/hermes-broker/internal/peercred"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
)

// maxMessage bounds one message of brokerhost's.
const maxMessage = 1 << 20

// Link is the way to brokerhost. It connects when it is used, and again when the
// connection was lost.
type Link struct {
	conn   *grpc.ClientConn
	client hostv1.HostServiceClient
	shares shares
}

// New makes a link to the socket. Whoever answers there must be root, or the user
// of this process.
func New(socket string) (*Link, error) {
	conn, err := grpc.NewClient("passthrough:///brokerhost",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}),
		grpc.WithTransportCredentials(peercred.New(func(uid uint32) bool { return uid == 0 || uid == uint32(os.Geteuid()) }, nil)),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
		// By default it would look for two minutes apart whether it is back.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 2, MaxDelay: time.Second}, MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	)
	if err != nil {
		return nil, err
	}
	return &Link{conn: conn, client: hostv1.NewHostServiceClient(conn)}, nil
}

// Close ends the link, and what it still asks for.
func (l *Link) Close() error { return l.conn.Close() }

// Describe asks for brokerhost's table.
func (l *Link) Describe(ctx context.Context) ([]*hostv1.Tool, error) {
	resp, err := l.client.Describe(ctx, &hostv1.DescribeRequest{})
	if err != nil {
		return nil, linkFault(ctx, err)
	}
	return resp.GetTools(), nil
}

// ReadAll asks for something, and gives all that was said.
func (l *Link) ReadAll(ctx context.Context, req *hostv1.ReadRequest) (data []byte, err error) {
	err = l.Read(ctx, req, func(r io.Reader) error {
		var all bytes.Buffer
		_, err := all.ReadFrom(r)
		data = all.Bytes()
		return err
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

// Read asks for something, and hands over what is said while it is said. Use reads
// for as long as it likes; when it returns, the tool is ended. An error of the
// reader is what Read returns, unless use puts another in its place.
func (l *Link) Read(ctx context.Context, req *hostv1.ReadRequest, use func(io.Reader) error) error {
	leave, err := l.shares.take(ctx, req.GetJournal().GetFollow())
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := l.client.Read(ctx, req)
	if err != nil {
		return linkFault(ctx, err)
	}
	return use(&reader{ctx: ctx, stream: stream})
}

// reader is the output of a tool.
type reader struct {
	ctx    context.Context
	stream hostv1.HostService_ReadClient
	piece  []byte
	err    error
}

func (r *reader) Read(p []byte) (int, error) {
	for len(r.piece) == 0 && r.err == nil {
		resp, err := r.stream.Recv()
		switch {
		case errors.Is(err, io.EOF): // Without an end: brokerhost never does that.
			r.err = fault.Internal(call.ID(r.ctx))
		case err != nil:
			r.err = linkFault(r.ctx, err)
		case resp.GetEnd() != nil:
			r.err = ended(r.ctx, resp.GetEnd())
		default:
			r.piece = resp.GetData()
		}
	}
	if len(r.piece) == 0 {
		return 0, r.err
	}
	n := copy(p, r.piece)
	r.piece = r.piece[n:]
	return n, nil
}

// Sockets are sockets that wait for others to begin.
type Sockets struct {
	All []*hostv1.Socket
	// What could not be found out.
	HoldersMissing, SocketsMissing bool
}

// ListSockets lists the sockets of the host, or of all network namespaces.
func (l *Link) ListSockets(ctx context.Context, allNamespaces bool) (s Sockets, err error) {
	leave, err := l.shares.take(ctx, false)
	if err != nil {
		return s, err
	}
	defer leave()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := l.client.ListSockets(ctx, &hostv1.ListSocketsRequest{AllNamespaces: allNamespaces})
	for err == nil {
		var resp *hostv1.ListSocketsResponse
		if resp, err = stream.Recv(); err == nil {
			s.All = append(s.All, resp.GetSockets()...)
			s.HoldersMissing, s.SocketsMissing = s.HoldersMissing || resp.GetHoldersMissing(), s.SocketsMissing || resp.GetSocketsMissing()
		}
	}
	if errors.Is(err, io.EOF) {
		return s, nil
	}
	return Sockets{}, linkFault(ctx, err)
}

// linkFault maps an error of the link itself.
func linkFault(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	call.Note(ctx, "brokerhost: "+err.Error())
	switch status.Code(err) {
	case codes.Unavailable:
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_HOST_UNAVAILABLE,
			"brokerhost, which reads the host's own state, does not answer; try again, and tell the operator if it stays so", fault.RetryAfter(fault.RetryEngine))
	case codes.ResourceExhausted:
		return busy()
	}
	return fault.Internal(call.ID(ctx))
}

func busy() error {
	return fault.New(brokerv1.ErrorReason_ERROR_REASON_HOST_BUSY,
		"as many of the host's tools run as may at once; try again", fault.RetryAfter(fault.RetryEngine))
}

// ended is io.EOF for a tool that ended well, else what is wrong.
func ended(ctx context.Context, end *hostv1.End) error {
	name, about := end.GetTool(), fault.With("tool", end.GetTool())
	if len(end.GetWords()) > 0 && (end.GetOutcome() != hostv1.Outcome_OUTCOME_EXITED || end.GetExitCode() != 0) {
		call.Note(ctx, name+": "+string(end.GetWords()))
	}
	switch end.GetOutcome() {
	case hostv1.Outcome_OUTCOME_EXITED:
		if end.GetExitCode() == 0 {
			return io.EOF
		}
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_TOOL_FAILED,
			fmt.Sprintf("%s failed with exit code %d; the operator finds its words in the audit trail under call %s", name, end.GetExitCode(), call.ID(ctx)),
			about, fault.With("exit_code", strconv.Itoa(int(end.GetExitCode()))), fault.With("call", call.ID(ctx)))
	case hostv1.Outcome_OUTCOME_SIGNALLED:
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_TOOL_FAILED,
			fmt.Sprintf("%s was ended by a signal (%s) before it was done; try again, and tell the operator if it stays so", name, end.GetSignal()),
			about, fault.With("signal", end.GetSignal()))
	case hostv1.Outcome_OUTCOME_TIMED_OUT:
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_TOOL_TIMEOUT,
			name+" took too long and was ended; try again, and tell the operator if it stays so", about)
	case hostv1.Outcome_OUTCOME_TOO_LARGE:
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_TOOL_OUTPUT_TOO_LARGE,
			name+" wrote more than the broker takes and was ended; ask for less, or tell the operator", about)
	case hostv1.Outcome_OUTCOME_UNAVAILABLE:
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_TOOL_MISSING,
			"this host has no "+name+" that the broker may use; the operator finds why with `brokerhost check`", about)
	case hostv1.Outcome_OUTCOME_NO_SOCKET:
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_FAIL2BAN_MISSING,
			"fail2ban's socket is not there: this host has no fail2ban, or it was never started; the operator can start it, or name its socket to brokerhost (fail2ban)")
	case hostv1.Outcome_OUTCOME_NOT_LISTENING:
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_FAIL2BAN_STOPPED,
			"fail2ban's socket is there and nobody answers: it has died or is being restarted; try again, and tell the operator if it stays so", fault.RetryAfter(fault.RetryEngine))
	case hostv1.Outcome_OUTCOME_TRUNCATED:
		return fault.New(brokerv1.ErrorReason_ERROR_REASON_FAIL2BAN_ANSWER_TRUNCATED,
			"fail2ban hung up in the middle of its answer; try again, and tell the operator if it stays so", fault.RetryAfter(fault.RetryEngine))
	case hostv1.Outcome_OUTCOME_BUSY:
		return busy()
	}
	return fault.Internal(call.ID(ctx))
}
