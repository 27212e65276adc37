package host

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/gortium/hermes-broker/internal/hostv1"
)

// TestContainerOf: only a control group that root alone can make says that a process
// is a container's.
func TestContainerOf(t *testing.T) {
	id, inner := strings.Repeat("1a", 32), strings.Repeat("2b", 32)
	for cgroups, want := range map[string]string{
		"0::/system.slice/docker-" + id + ".scope\n":                                             id,
		"0::/docker/" + id + "\n":                                                                id,
		"0::/docker/" + id + "/docker/" + inner + "\n":                                           id,
		"0::/my.slice/my-own.slice/docker-" + id + ".scope\n":                                    id,
		"12:pids:/docker/" + id + "\n11:memory:/docker/" + id + "\n1:name=systemd:/docker/" + id: id,
		"0::/system.slice/docker-" + id + ".scope/system.slice/x.service\n":                      id,
		"0::/system.slice/ssh.service\n":                                                         "",
		"0::/user.slice/user-1000.slice/user@1000.service/docker-" + id + ".scope\n":             "",
		"0::/user.slice/docker-" + id + ".scope\n":                                               "",
		"0::/system.slice/web.service/docker/" + id + "\n":                                       "",
		"0::/user.slice/user-1000.slice/session-3.scope/" + id + "\n":                            "",
		"0::/docker/" + id[:63] + "\n":                                                           "",
		"0::/docker/" + strings.ToUpper(id) + "\n":                                               "",
		"0::/docker/x" + id + "\n":                                                               "",
		"0::/\n":                                                                                 "", "": "", "\n": "", "0::": "", "docker": "",
	} {
		if got := containerOf(cgroups); got != want {
			t.Errorf("%q: %q, want %q", cgroups, got, want)
		}
	}
}

// TestListSockets: this process's own sockets are there, with it as holder; those
// that are connected are not.
func TestListSockets(t *testing.T) {
	r := newRig(t, nil)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	u, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for _, all := range []bool{false, true} {
		stream, err := r.client.ListSockets(t.Context(), &hostv1.ListSocketsRequest{AllNamespaces: all})
		found := map[string]*hostv1.Socket{}
		for err == nil {
			var resp *hostv1.ListSocketsResponse
			if resp, err = stream.Recv(); err == nil {
				for _, s := range resp.GetSockets() {
					found[fmt.Sprint(s.GetUdp(), s.GetPort())] = s
				}
			}
		}
		for _, key := range []string{fmt.Sprint(false, l.Addr().(*net.TCPAddr).Port), fmt.Sprint(true, u.LocalAddr().(*net.UDPAddr).Port)} {
			s := found[key]
			if s == nil || string(s.GetAddress()) != "\x7f\x00\x00\x01" || !s.GetOfHost() || len(s.GetHolders()) != 1 || s.GetHolders()[0].GetPid() != int32(os.Getpid()) || s.GetInode() == 0 {
				t.Errorf("%s: %v", key, s)
			}
		}
		if s := found[fmt.Sprint(false, c.LocalAddr().(*net.TCPAddr).Port)]; s != nil {
			t.Errorf("a connected socket: %v", s)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := new(survey).look(ctx, true); err == nil {
		t.Error("it goes on when nobody waits")
	}
}
