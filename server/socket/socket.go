// Package socket is SocketService: what waits for others on this host, who holds
// it, and who can get to it.
package socket

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/internal/hostv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/hostlink"
	"github.com/gortium/hermes-broker/server/page"
)

// Config is whom the service asks. Every field is required.
type Config struct {
	// List lists the sockets of the host, or of all network namespaces.
	List func(ctx context.Context, allNamespaces bool) (hostlink.Sockets, error)
	// Containers gives all of the engine's containers.
	Containers func(ctx context.Context) ([]*brokerv1.Container, error)
	// Reach works out who can get to a port.
	Reach func(ctx context.Context) (Reach, error)
}

// Reach says who can get to a port from outside.
type Reach interface {
	// Port is for the host's own addresses of one family.
	Port(ipv6, udp bool, port uint16) (brokerv1.Reach, *brokerv1.FirewallRuleRef)
	// Uncertain is why that may be wrong, or "".
	Uncertain() string
}

// Service is SocketService.
type Service struct {
	brokerv1.UnimplementedSocketServiceServer
	Config
}

// New makes the service.
func New(cfg Config) *Service { return &Service{Config: cfg} }

// ListeningSockets implements brokerv1.SocketServiceServer.
func (s *Service) ListeningSockets(ctx context.Context, req *brokerv1.ListeningSocketsRequest) (*brokerv1.ListeningSocketsResponse, error) {
	p, err := page.New(req)
	if err != nil {
		return nil, err
	}
	if _, known := brokerv1.TransportProtocol_name[int32(req.GetProtocol())]; !known {
		return nil, fault.Invalid("protocol", "give TCP, UDP, or nothing for both")
	}
	found, err := s.List(ctx, req.GetIncludeContainers())
	if err != nil {
		return nil, err
	}
	v := &view{resp: &brokerv1.ListeningSocketsResponse{}}
	if found.HoldersMissing {
		v.problem("some processes could not be looked into: who holds a socket may be missing")
	}
	if found.SocketsMissing {
		v.problem("there are more sockets or networks than the broker looks at: some are missing, and none of the host's own unless it has that many")
	}
	containers, err := s.Containers(ctx)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		v.problem("the container engine does not answer: the names of containers are missing")
	}
	if v.reach, err = s.Reach(ctx); ctx.Err() != nil {
		return nil, context.Cause(ctx)
	} else if err != nil {
		v.problem("the packet filter could not be read: who can get to a socket is not known")
	} else if why := v.reach.Uncertain(); why != "" {
		v.problem("who can get to a socket may not be right: " + why)
	}
	v.index(ctx, containers)
	var items []page.Item[*brokerv1.ListeningSocket]
	for _, socket := range found.All {
		if shown, key := v.socket(socket); shown != nil {
			items = append(items, page.Item[*brokerv1.ListeningSocket]{Key: key, Value: shown})
		}
	}
	v.resp.Sockets, v.resp.NextPageToken = page.Cut(p, page.Sort(items), func(l *brokerv1.ListeningSocket) bool {
		return req.GetProtocol() == 0 || l.GetProtocol() == req.GetProtocol()
	})
	return v.resp, nil
}

// view puts sockets, containers and rules together.
type view struct {
	resp      *brokerv1.ListeningSocketsResponse
	reach     Reach             // nil when it is not known.
	names     map[string]string // Of the containers that the caller may list, by ID.
	published map[port]string   // To the ID of a container.
}

// port is a port of the host's that the engine publishes.
type port struct {
	udp     bool
	address string
	number  uint32
}

func (v *view) problem(text string) { v.resp.Problems = append(v.resp.Problems, text) }

func (v *view) index(ctx context.Context, containers []*brokerv1.Container) {
	v.names, v.published = map[string]string{}, map[port]string{}
	for _, c := range containers {
		if call.Permits(ctx, "containers.list", "containers/"+c.GetName()) {
			v.names[c.GetId()] = c.GetName()
		}
		for _, p := range c.GetPorts() {
			if p.GetHostPort() != 0 {
				v.published[port{p.GetProtocol() == "udp", p.GetHostIp(), p.GetHostPort()}] = c.GetId()
			}
		}
	}
}

// socket is a socket as it is shown, and its place in the list; nil for one that
// is not.
func (v *view) socket(s *hostv1.Socket) (*brokerv1.ListeningSocket, string) {
	address, ok := netip.AddrFromSlice(s.GetAddress())
	if !ok {
		return nil, ""
	}
	l := &brokerv1.ListeningSocket{
		Protocol: brokerv1.TransportProtocol_TRANSPORT_PROTOCOL_TCP,
		Address:  address.String(), Port: s.GetPort(), Inode: s.GetInode(), Uid: s.GetUid(), ContainerNetwork: !s.GetOfHost(),
	}
	if s.GetUdp() {
		l.Protocol = brokerv1.TransportProtocol_TRANSPORT_PROTOCOL_UDP
	}
	container := ""
	for _, h := range s.GetHolders() {
		id := h.GetContainerId()
		container = cmp.Or(container, id)
		// Nor is what runs in one that the caller may not list.
		if id == "" || v.names[id] != "" {
			l.Processes = append(l.Processes, &brokerv1.SocketProcess{Pid: h.GetPid(), Name: strings.ToValidUTF8(string(h.GetName()), "\uFFFD")})
		}
	}
	if !s.GetOfHost() {
		// The inside of a container that the caller may not list is not shown.
		if l.Container = v.names[container]; l.Container == "" {
			return nil, ""
		}
		return l, key(l, s)
	}
	published := ""
	if container == "" {
		published = v.published[port{s.GetUdp(), address.String(), s.GetPort()}]
	}
	l.Container = v.names[cmp.Or(container, published)]
	l.Published = published != "" && l.Container != ""
	switch {
	case address.Unmap().IsLoopback():
		l.Reach = brokerv1.Reach_REACH_LOCAL
	case v.reach != nil:
		l.Reach, l.ReachRule = v.into(address, s)
	}
	return l, key(l, s)
}

// into is who can get to a socket. One that is bound to all addresses of IPv6
// takes IPv4 too, unless it was told not to, which the kernel's table does not say.
func (v *view) into(address netip.Addr, s *hostv1.Socket) (brokerv1.Reach, *brokerv1.FirewallRuleRef) {
	reach, rule := v.reach.Port(address.Is6() && !address.Is4In6(), s.GetUdp(), uint16(s.GetPort()))
	if address == netip.IPv6Unspecified() {
		if over4, rule4 := v.reach.Port(false, s.GetUdp(), uint16(s.GetPort())); wider(over4, reach) {
			return over4, rule4
		}
	}
	return reach, rule
}

// wider reports whether a lets in more than b. What is not known is the widest.
func wider(a, b brokerv1.Reach) bool {
	order := []brokerv1.Reach{
		brokerv1.Reach_REACH_LOCAL, brokerv1.Reach_REACH_BLOCKED, brokerv1.Reach_REACH_CONDITIONAL, brokerv1.Reach_REACH_OPEN, brokerv1.Reach_REACH_UNSPECIFIED,
	}
	return slices.Index(order, a) > slices.Index(order, b)
}

// key sorts by protocol, port and address, and tells sockets apart that are bound
// to the same ones.
func key(l *brokerv1.ListeningSocket, s *hostv1.Socket) string {
	return fmt.Sprintf("%d %05d %02d %x %d", l.GetProtocol(), l.GetPort(), len(s.GetAddress()), s.GetAddress(), s.GetInode())
}
