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
// tells of sockets and processes in files. One look at a time is enough.
func (h *Host) ListSockets(req *hostv1.ListSocketsRequest, stream hostv1.HostService_ListSocketsServer) error {
	select {
	case h.looking <- struct{}{}:
	case <-stream.Context().Done():
		return status.FromContextError(stream.Context().Err()).Err()
	}
	s := &survey{}
	err := s.look(stream.Context(), req.GetAllNamespaces())
	<-h.looking
	if err != nil {
		slog.Error("the sockets could not be listed", "error", err)
		return status.Error(codes.Internal, err.Error())
	}
	for {
		n := min(len(s.found), socketsInOne)
		if err := stream.Send(&hostv1.ListSocketsResponse{Sockets: s.found[:n], HoldersMissing: s.holdersMissing, SocketsMissing: s.socketsMissing}); err != nil {
			return err
		}
		if s.found = s.found[n:]; len(s.found) == 0 {
			return nil
		}
	}
}

// survey is one look at sockets and who holds them.
type survey struct {
	found   []*hostv1.Socket
	byInode map[uint64]*hostv1.Socket

	holdersMissing, socketsMissing bool
}

// look finds the sockets first, those of the host before all others, and then who
// holds them: nobody's other sockets cost anything.
func (s *survey) look(ctx context.Context, all bool) error {
	host, err := namespaceOf(procRoot + "/self")
	if err != nil {
		return err
	}
	fs, err := procfs.NewFS(procRoot)
	if err != nil {
		return err
	}
	procs, err := fs.AllProcs()
	if err != nil {
		return err
	}
	s.byInode = map[uint64]*hostv1.Socket{}
	if err := s.sockets(host, procRoot+"/self", true); err != nil {
		return err
	}
	seen := map[uint64]bool{host: true}
	for _, p := range procs {
		if !all || ctx.Err() != nil {
			break
		}
		dir := folder(p)
		ns, err := namespaceOf(dir)
		if err != nil || seen[ns] {
			continue
		}
		if len(seen) == maxNamespaces {
			s.socketsMissing = true
			break
		}
		seen[ns] = true
		if err := s.sockets(ns, dir, false); err != nil {
			s.socketsMissing = s.socketsMissing || !os.IsNotExist(err) // It may have gone.
		}
	}
	for _, p := range procs {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.holds(p)
	}
	return nil
}

func folder(p procfs.Proc) string { return filepath.Join(procRoot, strconv.Itoa(p.PID)) }

// holds notes which of the sockets a process holds. Processes come and go meanwhile.
func (s *survey) holds(p procfs.Proc) {
	targets, err := p.FileDescriptorTargets()
	if err != nil {
		s.holdersMissing = s.holdersMissing || !os.IsNotExist(err)
		return
	}
	var holder *hostv1.Holder
	for _, target := range targets {
		inode, ok := socketInode(target)
		socket := s.byInode[inode]
		if !ok || socket == nil {
			continue
		}
		if holder == nil {
			name, _ := os.ReadFile(folder(p) + "/comm")
			cgroups, _ := os.ReadFile(folder(p) + "/cgroup")
			holder = &hostv1.Holder{Pid: int32(p.PID), Name: []byte(strings.TrimSuffix(string(name), "\n")), ContainerId: containerOf(string(cgroups))}
		}
		if l := socket.Holders; len(l) < maxHolders && (len(l) == 0 || l[len(l)-1] != holder) {
			socket.Holders = append(l, holder)
		}
	}
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
func (s *survey) sockets(ns uint64, seat string, host bool) error {
	fs, err := procfs.NewFS(seat)
	if err != nil {
		return err
	}
	// Netlink, which the library would have instead, answers for the network of the
	// asking thread alone: it would have to enter every container's.
	tcp4, err := fs.NetTCP() //lint:ignore SA1019 see above
	if err != nil {
		return err
	}
	udp4, err := fs.NetUDP()
	if err != nil {
		return err
	}
	// A host without IPv6 has no such tables.
	tcp6, err := fs.NetTCP6() //lint:ignore SA1019 see above
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	udp6, err := fs.NetUDP6()
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	// The number of a process that has gone may be another's, elsewhere.
	if now, err := namespaceOf(seat); err != nil || now != ns {
		return os.ErrNotExist
	}
	add := func(udp bool, address []byte, port, uid, inode uint64) {
		if len(s.found) == maxSockets {
			s.socketsMissing = true
			return
		}
		socket := &hostv1.Socket{Udp: udp, Address: address, Port: uint32(port), Inode: inode, Uid: uint32(uid), OfHost: host}
		s.found = append(s.found, socket)
		s.byInode[inode] = socket
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
// "<id>" below a folder of its own, or "docker-<id>.scope" in a slice of systemd's.
var containerSegment = regexp.MustCompile(`^(?:docker-)?([0-9a-f]{64})(?:\.scope)?$`)

// containerOf is the container that a process of these control groups runs in, or
// "". Only the outermost one counts, and only where root alone can make one: below a
// service, a scope or a user's slice others may, who would call it as they like.
func containerOf(cgroups string) string {
	for line := range strings.Lines(cgroups) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		_, path, _ := strings.Cut(rest, ":")
		for segment := range strings.SplitSeq(path, "/") {
			if m := containerSegment.FindStringSubmatch(segment); m != nil {
				return m[1]
			}
			if strings.HasSuffix(segment, ".service") || strings.HasSuffix(segment, ".scope") || segment == "user.slice" {
				break
			}
		}
	}
	return ""
}
