package socket

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/internal/hostv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/hostlink"
)

// scope lets its caller list every container but the hidden one.
type scope struct{ call.Scope }

func (scope) Permits(permission, resource string) bool {
	return permission == "containers.list" && resource != "containers/hidden"
}

const (
	webID    = "1111111111111111111111111111111111111111111111111111111111111111"
	hiddenID = "2222222222222222222222222222222222222222222222222222222222222222"
	goneID   = "3333333333333333333333333333333333333333333333333333333333333333"
)

// rules is a packet filter that lets in what is over 8000, and over IPv6 all.
type rules struct{ uncertain string }

func (r rules) Uncertain() string { return r.uncertain }

func (rules) Port(ipv6, udp bool, port uint16) (brokerv1.Reach, *brokerv1.FirewallRuleRef) {
	switch {
	case ipv6 && udp:
		return brokerv1.Reach_REACH_CONDITIONAL, nil
	case port > 8000:
		return brokerv1.Reach_REACH_OPEN, &brokerv1.FirewallRuleRef{Chain: "INPUT", Number: 3}
	}
	return brokerv1.Reach_REACH_BLOCKED, nil
}

func at(address string, port uint32, edit func(*hostv1.Socket)) *hostv1.Socket {
	s := &hostv1.Socket{Address: netip.MustParseAddr(address).AsSlice(), Port: port, Inode: uint64(port), OfHost: true}
	if edit != nil {
		edit(s)
	}
	return s
}

func held(name, container string) func(*hostv1.Socket) {
	return func(s *hostv1.Socket) {
		s.Holders = append(s.Holders, &hostv1.Holder{Pid: 7, Name: []byte(name), ContainerId: container})
	}
}

func service(sockets ...*hostv1.Socket) *Service {
	return New(Config{
		List: func(_ context.Context, all bool) (hostlink.Sockets, error) {
			return hostlink.Sockets{All: slices.DeleteFunc(slices.Clone(sockets), func(s *hostv1.Socket) bool { return !all && !s.GetOfHost() })}, nil
		},
		Containers: func(context.Context) ([]*brokerv1.Container, error) {
			return []*brokerv1.Container{
				{Id: webID, Name: "web", Ports: []*brokerv1.Port{{ContainerPort: 80, HostPort: 8080, HostIp: "0.0.0.0", Protocol: "tcp"}, {ContainerPort: 81, Protocol: "tcp"}}},
				{Id: hiddenID, Name: "hidden", Ports: []*brokerv1.Port{{ContainerPort: 80, HostPort: 9090, HostIp: "::", Protocol: "tcp"}}},
			}, nil
		},
		Reach: func(context.Context) (Reach, error) { return rules{}, nil },
	})
}

// text is a socket in a line.
func text(l *brokerv1.ListeningSocket) string {
	var holders []string
	for _, p := range l.GetProcesses() {
		holders = append(holders, p.GetName())
	}
	s := fmt.Sprintf("%s %s %d %s %s %s", strings.TrimPrefix(l.GetProtocol().String(), "TRANSPORT_PROTOCOL_"), l.GetAddress(), l.GetPort(),
		strings.TrimPrefix(l.GetReach().String(), "REACH_"), strings.Join(holders, ","), l.GetContainer())
	if l.GetPublished() {
		s += " published"
	}
	if l.GetContainerNetwork() {
		s += " inside"
	}
	return strings.TrimSpace(s)
}

func list(t *testing.T, s *Service, req *brokerv1.ListeningSocketsRequest) ([]string, *brokerv1.ListeningSocketsResponse) {
	t.Helper()
	resp, err := s.ListeningSockets(call.With(t.Context(), scope{}), req)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, l := range resp.GetSockets() {
		all = append(all, text(l))
	}
	return all, resp
}

func TestSockets(t *testing.T) {
	inside := func(container string) func(*hostv1.Socket) {
		return func(s *hostv1.Socket) { held("nginx", container)(s); held("other", hiddenID)(s); s.OfHost = false }
	}
	s := service(
		at("0.0.0.0", 22, held("sshd", "")), at("::", 22, func(s *hostv1.Socket) { held("sshd", "")(s); s.Inode = 23 }),
		at("127.0.0.1", 631, held("cupsd", "")), at("::1", 631, nil), at("::ffff:127.0.0.1", 632, nil),
		at("0.0.0.0", 8080, held("docker-proxy", "")), at("::", 9090, held("docker-proxy", "")), at("0.0.0.0", 9090, held("other", "")),
		at("0.0.0.0", 11434, held("ollama", webID)), at("0.0.0.0", 11435, held("secret", hiddenID)), at("0.0.0.0", 11436, held("old", goneID)),
		at("0.0.0.0", 53, func(s *hostv1.Socket) { s.Udp = true; held("dns\xff\x1b", "")(s); held("dns2", "")(s) }), at("::", 53, func(s *hostv1.Socket) { s.Udp = true; s.Inode = 54 }),
		at("0.0.0.0", 80, inside(webID)), at("0.0.0.0", 81, inside(hiddenID)), at("0.0.0.0", 82, inside("")), at("127.0.0.1", 83, inside(webID)),
		&hostv1.Socket{Address: []byte{1, 2}, Port: 1, OfHost: true},
	)
	want := []string{
		"TCP 0.0.0.0 22 BLOCKED sshd", "TCP :: 22 BLOCKED sshd", "TCP 127.0.0.1 631 LOCAL cupsd", "TCP ::1 631 LOCAL", "TCP ::ffff:127.0.0.1 632 LOCAL",
		"TCP 0.0.0.0 8080 OPEN docker-proxy web published", "TCP 0.0.0.0 9090 OPEN other", "TCP :: 9090 OPEN docker-proxy",
		"TCP 0.0.0.0 11434 OPEN ollama web", "TCP 0.0.0.0 11435 OPEN", "TCP 0.0.0.0 11436 OPEN",
		"UDP 0.0.0.0 53 BLOCKED dns\uFFFD\x1b,dns2", "UDP :: 53 CONDITIONAL",
	}
	got, resp := list(t, s, &brokerv1.ListeningSocketsRequest{})
	if !slices.Equal(got, want) {
		t.Errorf("%q\nwant\n%q", got, want)
	}
	if len(resp.GetProblems()) != 0 || resp.GetSockets()[5].GetReachRule().GetNumber() != 3 {
		t.Errorf("%v", resp)
	}
	if _, err := proto.Marshal(resp); err != nil {
		t.Error(err)
	}
	got, _ = list(t, s, &brokerv1.ListeningSocketsRequest{IncludeContainers: true, Protocol: brokerv1.TransportProtocol_TRANSPORT_PROTOCOL_TCP})
	insides := slices.DeleteFunc(slices.Clone(got), func(s string) bool { return !strings.HasSuffix(s, "inside") })
	if want := []string{"TCP 0.0.0.0 80 UNSPECIFIED nginx web inside", "TCP 127.0.0.1 83 UNSPECIFIED nginx web inside"}; !slices.Equal(insides, want) || len(got) != 13 {
		t.Errorf("%q", got)
	}
	// Pages have the same, and nothing twice.
	var paged []string
	for token := ""; ; {
		part, resp := list(t, s, &brokerv1.ListeningSocketsRequest{PageSize: 2, PageToken: token})
		paged = append(paged, part...)
		if token = resp.GetNextPageToken(); token == "" {
			break
		}
	}
	if !slices.Equal(paged, want) {
		t.Errorf("in pages: %q", paged)
	}
}

// TestWhatCannotBeFoundOutIsSaid: the rest of the answer comes all the same.
func TestWhatCannotBeFoundOutIsSaid(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*Service)
		want string
		line string
	}{
		"processes": {func(s *Service) {
			list := s.List
			s.List = func(ctx context.Context, all bool) (hostlink.Sockets, error) {
				sockets, err := list(ctx, all)
				sockets.HoldersMissing = true
				return sockets, err
			}
		}, "who holds a socket", "TCP 0.0.0.0 8080 OPEN x web published"},
		"sockets": {func(s *Service) {
			list := s.List
			s.List = func(ctx context.Context, all bool) (hostlink.Sockets, error) {
				sockets, err := list(ctx, all)
				sockets.SocketsMissing = true
				return sockets, err
			}
		}, "more sockets", "TCP 0.0.0.0 8080 OPEN x web published"},
		"engine": {func(s *Service) {
			s.Containers = func(context.Context) ([]*brokerv1.Container, error) { return nil, errors.New("down") }
		}, "names of containers", "TCP 0.0.0.0 8080 OPEN x"},
		"firewall": {func(s *Service) {
			s.Reach = func(context.Context) (Reach, error) { return nil, errors.New("none") }
		}, "packet filter", "TCP 0.0.0.0 8080 UNSPECIFIED x web published"},
		"a part of it": {func(s *Service) {
			s.Reach = func(context.Context) (Reach, error) { return rules{"nft is missing"}, nil }
		}, "nft is missing", "TCP 0.0.0.0 8080 OPEN x web published"},
	} {
		s := service(at("0.0.0.0", 8080, held("x", "")))
		c.edit(s)
		got, resp := list(t, s, &brokerv1.ListeningSocketsRequest{})
		if len(resp.GetProblems()) != 1 || !strings.Contains(resp.GetProblems()[0], c.want) || !slices.Equal(got, []string{c.line}) {
			t.Errorf("%s: %q, %q", name, got, resp.GetProblems())
		}
	}
	s := service()
	s.List = func(context.Context, bool) (hostlink.Sockets, error) {
		return hostlink.Sockets{}, fault.Invalid("x", "y")
	}
	if _, err := s.ListeningSockets(t.Context(), &brokerv1.ListeningSocketsRequest{}); fault.Reason(err) != "INVALID_ARGUMENT" {
		t.Error(err)
	}
	for _, req := range []*brokerv1.ListeningSocketsRequest{{Protocol: 9}, {PageSize: -1}, {PageToken: "x"}} {
		if _, err := service().ListeningSockets(t.Context(), req); fault.Reason(err) != "INVALID_ARGUMENT" {
			t.Errorf("%v: %v", req, err)
		}
	}
}
