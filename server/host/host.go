// Package host is brokerhost: what the broker has to ask programs and daemons of
// the host for.
//
// It is the only package that starts programs, and only brokerhost has it. Its
// power is a closed table, one file a tool: an absolute path that root alone can
// change, arguments that are written here, no environment, a deadline, a bound of
// the output, a process group of its own. A request names a line of the table and
// gives values of types that can hold nothing dangerous, which are checked here
// once more: brokerd is not trusted to have done it.
//
// brokerhost has no network: it listens on one unix socket, in a folder of root's,
// and talks to the user that its configuration names.
package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/gortium/hermes-broker/internal/hostv1"
	"github.com/gortium/hermes-broker/internal/peercred"
	"github.com/gortium/hermes-broker/server/rootfile"
)

// Host is a brokerhost.
type Host struct {
	hostv1.UnimplementedHostServiceServer
	cfg *Config
	// tools and follows bound what runs at once; who follows the journal takes
	// nothing from those who ask.
	tools, follows chan struct{}
	// looking lets one look at the sockets at a time.
	looking chan struct{}
}

const (
	maxTools   = 8
	maxFollows = 16
)

// New makes a brokerhost that does not listen yet.
func New(cfg *Config) *Host {
	return &Host{cfg: cfg, tools: make(chan struct{}, maxTools), follows: make(chan struct{}, maxFollows), looking: make(chan struct{}, 1)}
}

// Serve listens and serves until the context ends. What runs then is ended.
func (h *Host) Serve(ctx context.Context) error {
	l, err := h.listen()
	if err != nil {
		return err
	}
	s := grpc.NewServer(
		grpc.Creds(peercred.New(func(uid uint32) bool { return uid == uint32(h.cfg.User.Value) }, func(err error) {
			slog.Warn("a peer was refused", "error", err)
		})),
		grpc.ConnectionTimeout(5*time.Second),
		grpc.MaxConcurrentStreams(128),
		grpc.MaxRecvMsgSize(128<<10),
		grpc.MaxHeaderListSize(16<<10),
		grpc.WaitForHandlers(true), // They end what they run.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
	)
	hostv1.RegisterHostServiceServer(s, h)
	for _, t := range h.table() {
		if problem := t.problem(); problem != nil {
			slog.Warn("this host lacks a tool; what needs it is not answered", "tool", t.name, "problem", problem)
		}
	}
	slog.Info("serving", "address", l.Addr().String())
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	return s.Serve(l)
}

// listen opens the socket, in a folder that is root's alone.
func (h *Host) listen() (net.Listener, error) {
	path := h.cfg.Socket.Value
	dir := filepath.Dir(path)
	// What an earlier start has opened for the other user is closed again first.
	if info, err := os.Lstat(dir); err == nil && info.Mode() == os.ModeDir|othersDir {
		if err := os.Chmod(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if err := rootfile.MkdirPrivate(dir); err != nil {
		return nil, err
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return nil, errors.Join(fmt.Errorf("%s: another process listens there", path), c.Close())
	}
	// The folder is private: what is left there is of a brokerhost that was killed.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if uid := h.cfg.User.Value; uid != os.Geteuid() {
		err = h.admit(uid)
	} else {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// othersDir is the mode of the folder when brokerd runs as another user: it can
// reach the socket, and nobody can see or change what is there.
const othersDir = 0o711

// admit lets one other user reach the socket: its folder stays root's.
func (h *Host) admit(uid int) error {
	path := h.cfg.Socket.Value
	return errors.Join(os.Chown(path, uid, -1), os.Chmod(path, 0o600), os.Chmod(filepath.Dir(path), othersDir))
}

// Describe implements hostv1.HostServiceServer.
func (h *Host) Describe(context.Context, *hostv1.DescribeRequest) (*hostv1.DescribeResponse, error) {
	resp := &hostv1.DescribeResponse{}
	for _, t := range h.table() {
		d := &hostv1.Tool{Name: t.name}
		if problem := t.problem(); problem != nil {
			d.Problem = problem.Error()
		}
		resp.Tools = append(resp.Tools, d)
	}
	return resp, nil
}

// Table is brokerhost's table with what each tool is on this host, for people.
func (h *Host) Table(ctx context.Context) (all []Line) {
	for _, t := range h.table() {
		all = append(all, t.line(ctx))
	}
	return all
}

// Read implements hostv1.HostServiceServer.
func (h *Host) Read(req *hostv1.ReadRequest, stream hostv1.HostService_ReadServer) error {
	ask, err := h.asked(req)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	slots := h.tools
	if req.GetJournal().GetFollow() {
		slots = h.follows
	}
	// A reader who does not read holds up the sender alone: the tool, and its place,
	// are gone at the tool's bound all the same.
	pieces, sent := make(chan []byte), make(chan error, 1)
	go func() {
		var err error
		for data := range pieces {
			if err == nil {
				err = stream.Send(&hostv1.ReadResponse{Event: &hostv1.ReadResponse_Data{Data: data}})
			}
		}
		sent <- err
	}()
	var end *hostv1.End
	select {
	case slots <- struct{}{}:
		end = ask(stream.Context(), func(ctx context.Context, data []byte) error {
			select {
			case pieces <- bytes.Clone(data):
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
		<-slots
	default:
		end = &hostv1.End{Outcome: hostv1.Outcome_OUTCOME_BUSY}
	}
	close(pieces)
	if err := <-sent; err != nil {
		return err
	}
	if err := stream.Context().Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	return stream.Send(&hostv1.ReadResponse{Event: &hostv1.ReadResponse_End{End: end}})
}

// answer asks one line of the table and hands over what it says, piece by piece.
type answer func(ctx context.Context, send send) *hostv1.End

// send hands over a piece, which is the caller's again when it returns. It waits for
// the reader no longer than the context lives.
type send func(ctx context.Context, data []byte) error

// asked is the line of the table that a request means. It is the only way from a
// request to a program.
func (h *Host) asked(req *hostv1.ReadRequest) (answer, error) {
	switch what := req.GetWhat().(type) {
	case *hostv1.ReadRequest_IptablesSave:
		return h.iptablesSave(what.IptablesSave).with(), nil
	case *hostv1.ReadRequest_NftRuleset:
		return h.nft().with("-j", "list", "ruleset"), nil
	case *hostv1.ReadRequest_SshdConfig:
		return h.sshd().with(h.sshdArgs()...), nil
	case *hostv1.ReadRequest_Journal:
		args, err := h.journalArgs(what.Journal)
		if err != nil {
			return nil, err
		}
		return h.journalctl(what.Journal.GetFollow()).with(args...), nil
	case *hostv1.ReadRequest_Fail2Ban:
		return h.fail2ban(what.Fail2Ban)
	}
	return nil, errors.New("names no line of the table")
}
