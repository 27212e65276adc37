package peercred

import (
	"net"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const other = 65534

// as runs f on a thread with another effective user.
func as(t *testing.T, uid int, f func()) {
	t.Helper()
	if unix.Geteuid() != 0 {
		if os.Getenv("E2E_REQUIRE") == "1" {
			t.Fatal("it takes root to be another user")
		}
		t.Skip("it takes root to be another user")
	}
	set := func(uid int) {
		keep := ^uintptr(0)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
			panic(errno)
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	set(uid)
	defer set(0)
	f()
}

// connect makes a connection of which each end is the user's that it says.
func connect(t *testing.T, listener, dialler int) (server, client net.Conn) {
	t.Helper()
	dir, err := os.MkdirTemp("", "p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	var l net.Listener
	as(t, listener, func() { l, err = net.Listen("unix", dir+"/s") })
	if err == nil {
		err = os.Chmod(dir+"/s", 0o777)
	}
	if err == nil {
		as(t, dialler, func() { client, err = net.Dial("unix", dir+"/s") })
	}
	if err == nil {
		server, err = l.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); client.Close(); server.Close() })
	return server, client
}

// TestPeers: each end knows the user of the other from the kernel, and hangs up on
// every other one.
func TestPeers(t *testing.T) {
	root := func(uid uint32) bool { return uid == 0 }
	for _, c := range []struct {
		listener, dialler int
		server, client    bool
	}{{0, 0, true, true}, {0, other, false, true}, {other, 0, true, false}, {other, other, false, false}} {
		server, client := connect(t, c.listener, c.dialler)
		var told error
		creds := New(root, func(err error) { told = err })
		_, info, err := creds.ServerHandshake(server)
		if (err == nil) != c.server || (told == nil) != c.server || err != nil && !strings.Contains(err.Error(), "uid 65534") {
			t.Errorf("%+v: the server: %v, %v", c, err, told)
		}
		if err == nil && info.AuthType() != "peercred" {
			t.Errorf("%v", info)
		}
		if _, _, err := New(root, nil).ClientHandshake(t.Context(), "", client); (err == nil) != c.client {
			t.Errorf("%+v: the client: %v", c, err)
		}
		if !c.server {
			if _, err := client.Read(make([]byte, 1)); err == nil {
				t.Errorf("%+v: the server did not hang up", c)
			}
		}
	}
	a, b := net.Pipe()
	defer b.Close()
	if _, _, err := New(func(uint32) bool { return true }, nil).ServerHandshake(a); err == nil {
		t.Error("what is no unix socket has no user")
	}
}
