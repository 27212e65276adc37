// Package peercred is gRPC over a unix socket between two processes of one host:
// each end asks the kernel who is at the other, and talks to nobody else. Nothing
// is encrypted; nothing leaves the kernel.
package peercred

import (
	"cmp"
	"context"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// Credentials are gRPC transport credentials, for either end.
type Credentials struct {
	allow   func(uid uint32) bool
	refused func(error)
}

// New makes credentials that talk to processes of the users that allow lets. Of
// every other peer refused is told; it may be nil.
func New(allow func(uid uint32) bool, refused func(error)) *Credentials {
	return &Credentials{allow: allow, refused: refused}
}

// Info says that the peer was looked at.
type Info struct{ credentials.CommonAuthInfo }

// AuthType names the scheme.
func (Info) AuthType() string { return "peercred" }

// handshake looks at the peer. Its credentials are those of the moment when it
// connected or listened.
func (c *Credentials) handshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	uid, pid, err := peer(raw)
	if err == nil && !c.allow(uid) {
		err = fmt.Errorf("the process %d of uid %d may not use this socket", pid, uid)
	}
	if err != nil {
		if c.refused != nil {
			c.refused(err)
		}
		_ = raw.Close()
		return nil, nil, err
	}
	return raw, Info{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
}

func peer(raw net.Conn) (uid uint32, pid int32, err error) {
	conn, ok := raw.(*net.UnixConn)
	if !ok {
		return 0, 0, fmt.Errorf("%T is no unix socket", raw)
	}
	control, err := conn.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var cred *unix.Ucred
	failed := control.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if failed != nil || err != nil {
		return 0, 0, fmt.Errorf("peer credentials: %w", cmp.Or(failed, err))
	}
	return cred.Uid, cred.Pid, nil
}

// ServerHandshake implements credentials.TransportCredentials.
func (c *Credentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.handshake(raw)
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *Credentials) ClientHandshake(_ context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.handshake(raw)
}

// Info implements credentials.TransportCredentials.
func (c *Credentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

// Clone implements credentials.TransportCredentials.
func (c *Credentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials.
func (c *Credentials) OverrideServerName(string) error { return nil }
