package e2e

import (
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/e2e/testhost"
)

// TestSockets: what processes of the host and of containers have opened, who they
// are, and whether somebody outside gets to it.
func TestSockets(t *testing.T) {
	b := hostBroker(t, newHost(t, ""))
	c := b.dial("hermes").Sockets()
	run(t, testhost.ContainerSpec{Name: "published", Cmd: []string{"listen", "tcp", ":80"}, Ports: []testhost.PortBinding{{Container: 80, Host: netip.MustParseAddrPort("0.0.0.0:8180")}}})
	run(t, testhost.ContainerSpec{Name: "hidden", Cmd: []string{"listen", "tcp", ":80"}, Ports: []testhost.PortBinding{{Container: 80, Host: netip.MustParseAddrPort("0.0.0.0:8181")}}})
	run(t, testhost.ContainerSpec{Name: "onhost", Networks: []string{"host"}, Cmd: []string{"listen", "tcp", "127.0.0.1:8182"}})
	for _, args := range [][]string{{"tcp4", "0.0.0.0:8183"}, {"tcp", "[::1]:8184"}, {"udp4", "0.0.0.0:8185"}} {
		p := exec.Command(host.Dir+"/guest", append([]string{"listen"}, args...)...)
		b.must(p.Start())
		t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	}
	list := func(req *brokerv1.ListeningSocketsRequest) map[string]*brokerv1.ListeningSocket {
		t.Helper()
		req.PageSize = 500
		resp, err := c.ListeningSockets(within(t), req)
		b.must(err)
		if len(resp.GetProblems()) > 0 {
			t.Errorf("problems: %q", resp.GetProblems())
		}
		all := map[string]*brokerv1.ListeningSocket{}
		for _, s := range resp.GetSockets() {
			key := s.GetAddress() + " " + strconv.Itoa(int(s.GetPort()))
			if s.GetContainerNetwork() {
				key = s.GetContainer() + ": " + key
			}
			all[key] = s
		}
		return all
	}
	var all map[string]*brokerv1.ListeningSocket
	eventually(t, "all listen", func() bool {
		all = list(&brokerv1.ListeningSocketsRequest{})
		return all["127.0.0.1 8182"] != nil && all["0.0.0.0 8183"] != nil && all["::1 8184"] != nil && all["0.0.0.0 8185"] != nil && all["0.0.0.0 8180"] != nil
	})
	name := func(s *brokerv1.ListeningSocket) string {
		if len(s.GetProcesses()) != 1 || s.GetProcesses()[0].GetPid() < 2 {
			t.Errorf("%v", s)
			return ""
		}
		return s.GetProcesses()[0].GetName()
	}
	for key, want := range map[string]struct {
		process, container string
		published          bool
		reach              brokerv1.Reach
		protocol           brokerv1.TransportProtocol
	}{
		"0.0.0.0 8180":   {"docker-proxy", "published", true, brokerv1.Reach_REACH_OPEN, 1},
		"0.0.0.0 8181":   {"docker-proxy", "", false, brokerv1.Reach_REACH_OPEN, 1},
		"127.0.0.1 8182": {"guest", "onhost", false, brokerv1.Reach_REACH_LOCAL, 1},
		"0.0.0.0 8183":   {"guest", "", false, brokerv1.Reach_REACH_OPEN, 1},
		"::1 8184":       {"guest", "", false, brokerv1.Reach_REACH_LOCAL, 1},
		"0.0.0.0 8185":   {"guest", "", false, brokerv1.Reach_REACH_OPEN, 2},
	} {
		s := all[key]
		if s == nil || name(s) != want.process || s.GetContainer() != want.container || s.GetPublished() != want.published || s.GetReach() != want.reach || s.GetProtocol() != want.protocol || s.GetInode() == 0 || s.GetUid() != 0 {
			t.Errorf("%s: %v", key, s)
		}
	}
	// ss finds the same.
	out, err := exec.Command("ss", "-Hlntu").Output()
	b.must(err)
	if n := strings.Count(string(out), "\n"); n != len(all) {
		t.Errorf("%d sockets, ss finds %d:\n%s", len(all), n, out)
	}
	inside := list(&brokerv1.ListeningSocketsRequest{IncludeContainers: true})
	if s := inside["published: :: 80"]; s == nil || name(s) != "guest" {
		t.Errorf("inside the container: %v", s)
	}
	for key := range inside {
		if strings.HasPrefix(key, "hidden") || strings.HasPrefix(key, ": ") {
			t.Errorf("the inside of a hidden container is shown: %s", key)
		}
	}
	// The firewall closes one.
	fw := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("iptables", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	rule := []string{"INPUT", "-p", "tcp", "--dport", "8183", "-j", "DROP"}
	fw(append([]string{"-I"}, rule...)...)
	defer fw(append([]string{"-D"}, rule...)...)
	closed := list(&brokerv1.ListeningSocketsRequest{Protocol: brokerv1.TransportProtocol_TRANSPORT_PROTOCOL_TCP})
	if closed["0.0.0.0 8183"].GetReach() != brokerv1.Reach_REACH_BLOCKED || closed["0.0.0.0 8180"].GetReach() != brokerv1.Reach_REACH_OPEN || closed["0.0.0.0 8185"] != nil {
		t.Errorf("%v\n%v", closed["0.0.0.0 8183"], closed["0.0.0.0 8180"])
	}
	text, code := b.ctl("hermes", "sockets")
	if lines := strings.Split(text, "\n"); code != 0 || !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, "8180") && strings.Contains(l, "published") }) {
		t.Errorf("brokerctl sockets: %d\n%s", code, text)
	}
}
