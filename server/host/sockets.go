package host

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gortium/hermes-broker/internal/hostv1"
)

const (
	procRoot      = "/proc"
	maxHolders    = 8
	maxNamespaces = 1000
	maxSockets    = 50_000
	socketsInOne  = 256 // In one message.
)

// ListSockets implements hostv1.HostServiceServer. It runs nothing: the kernel
// tells of sockets and processes in files.
func (h *Host) ListSockets(req *hostv1.ListSocketsRequest, stream hostv1.HostService_ListSocketsServer) error {
	select {
	case h.tools <- struct{}{}:
		defer func() { <-h.tools }()
	default:
		return status.Error(codes.ResourceExhausted, "busy")
	}
	s := &survey{holders: map[uint64][]*hostv1.Holder{}, seats: map[uint64]string{}}
	if err := s.look(stream.Context(), req.GetAllNamespaces()); err != nil {
		slog.Error("the sockets could not be listed", "error", err)
		return status.Error(codes.Internal, err.Error())
	}
	for {
		n := min(len(s.found), socketsInOne)
		if err := stream.Send(&hostv1.ListSocketsResponse{Sockets: s.found[:n], Incomplete: s.incomplete}); err != nil {
			return err
		}
		if s.found = s.found[n:]; len(s.found) == 0 {
			return nil
		}
	}
}

// survey is one look at sockets and who holds them.
type survey struct {
	host       uint64                      // The network namespace of brokerhost.
	holders    map[uint64][]*hostv1.Holder // By the inode of the socket.
	seats      map[uint64]string           // By network namespace, the folder of a process in it.
	found      []*hostv1.Socket
	incomplete bool
}

func (s *survey) look(ctx context.Context, all bool) error {
	var err error
	if s.host, err = namespaceOf(procRoot + "/self"); err != nil {
		return err
	}
	s.seats[s.host] = procRoot + "/self"
	if err := s.processes(ctx); err != nil {
		return err
	}
	for ns, seat := range s.seats {
		if ns != s.host && !all {
			continue
		}
		// The process may have gone; then so may its namespace.
		if err := s.sockets(ns, seat); err != nil && ns == s.host {
			return err
		} else if err != nil {
			s.incomplete = true
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// processes finds out who holds which socket. Processes come and go meanwhile.
func (s *survey) processes(ctx context.Context) error {
	fs, err := procfs.NewFS(procRoot)
	if err != nil {
		return err
	}
	procs, err := fs.AllProcs()
	if err != nil {
		return err
	}
	for _, p := range procs {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := filepath.Join(procRoot, strconv.Itoa(p.PID))
		if ns, err := namespaceOf(dir); err == nil && s.seats[ns] == "" && len(s.seats) < maxNamespaces {
			s.seats[ns] = dir
		}
		targets, err := p.FileDescriptorTargets()
		if err != nil {
			s.incomplete = s.incomplete || !os.IsNotExist(err)
			continue
		}
		var holder *hostv1.Holder
		for _, target := range targets {
			inode, ok := socketInode(target)
			if !ok {
				continue
			}
			if holder == nil {
				name, _ := os.ReadFile(dir + "/comm")
				holder = &hostv1.Holder{Pid: int32(p.PID), Name: []byte(strings.TrimSuffix(string(name), "\n")), ContainerId: containerOf(dir)}
			}
			if l := s.holders[inode]; len(l) < maxHolders && (len(l) == 0 || l[len(l)-1] != holder) {
				s.holders[inode] = append(l, holder)
			}
		}
	}
	return nil
}

// socketInode reads "socket:[123]".
func socketInode(target string) (uint64, bool) {
	text, ok := strings.CutPrefix(target, "socket:[")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
	return inode, err == nil
}

// The states of a socket that waits, as the kernel numbers them. A UDP socket that
// is bound and not connected is in the state of a closed one.
const (
	tcpListen = 10
	udpBound  = 7
)

// sockets reads the tables of the network namespace that a process is in.
func (s *survey) sockets(ns uint64, seat string) error {
	fs, err := procfs.NewFS(seat)
	if err != nil {
		return err
	}
	tcp4, err := fs.NetTCP()
	if err != nil {
		return err
	}
	udp4, err := fs.NetUDP()
	if err != nil {
		return err
	}
	// A host without IPv6 has no such tables.
	tcp6, err := fs.NetTCP6()
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	udp6, err := fs.NetUDP6()
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	add := func(udp bool, address []byte, port, uid, inode uint64) {
		if len(s.found) >= maxSockets {
			s.incomplete = true
			return
		}
		s.found = append(s.found, &hostv1.Socket{
			Udp: udp, Address: address, Port: uint32(port), Inode: inode, Uid: uint32(uid),
			Namespace: ns, OfHost: ns == s.host, Holders: s.holders[inode],
		})
	}
	for _, l := range append(tcp4, tcp6...) {
		if l.St == tcpListen {
			add(false, l.LocalAddr, l.LocalPort, l.UID, l.Inode)
		}
	}
	for _, table := range []procfs.NetUDP{udp4, udp6} {
		for _, l := range table {
			if l.St == udpBound {
				add(true, l.LocalAddr, l.LocalPort, l.UID, l.Inode)
			}
		}
	}
	return nil
}

// namespaceOf is the inode of a process's network namespace.
func namespaceOf(dir string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir+"/ns/net", &st); err != nil {
		return 0, fmt.Errorf("network namespace: %w", err)
	}
	return st.Ino, nil
}

// containerSegment is how an engine calls the control group of a container:
// "/docker/<id>", or below systemd "docker-<id>.scope".
var containerSegment = regexp.MustCompile(`/(?:docker-)?([0-9a-f]{64})(?:\.scope)?(?:/|\n|$)`)

// containerOf is the container that a process runs in, or "". Its outermost
// segment is the engine's doing; what is inside it the container may have made.
func containerOf(dir string) string {
	data, err := os.ReadFile(dir + "/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if m := containerSegment.FindStringSubmatch(line); m != nil {
			return m[1]
		}
	}
	return ""
}
