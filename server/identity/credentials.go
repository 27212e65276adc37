package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// Failure is a handshake that was refused.
type Failure struct {
	// Address is where it came from.
	Address string
	// Claimed is the SPIFFE ID the peer presented, if any. Nothing vouches for it.
	Claimed string
	// Serial is the presented certificate's serial number, if any.
	Serial string
	// Reason says why.
	Reason string
}

// Info is what the handshake leaves for the calls on a connection.
type Info struct {
	credentials.CommonAuthInfo
	Peer
	// HangUp closes the connection, with everything on it.
	HangUp func()
}

// AuthType names the scheme.
func (Info) AuthType() string { return "spiffe-mtls" }

// Credentials are gRPC transport credentials that admit callers and keep track
// of their connections, so that they can be cut.
type Credentials struct {
	source  Source
	rules   Rules
	failed  func(Failure)
	perPeer int

	mu    sync.Mutex
	conns map[*conn]struct{}
	count map[string]int
}

// NewCredentials makes the server's credentials. failed is told of each refused
// handshake; perPeer bounds the connections one identity may hold open.
func NewCredentials(source Source, rules Rules, perPeer int, failed func(Failure)) *Credentials {
	return &Credentials{
		source:  source,
		rules:   rules,
		failed:  failed,
		perPeer: perPeer,
		conns:   map[*conn]struct{}{},
		count:   map[string]int{},
	}
}

// ServerHandshake admits a caller or closes the connection. gRPC bounds its
// time (limits.handshake_timeout).
func (c *Credentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	var p Peer
	tc := tls.Server(raw, tlsConfig(c.source, c.rules.Now, func(chain []*x509.Certificate) (err error) {
		p, err = Verify(chain, c.source, c.rules)
		return err
	}))
	err := tc.Handshake()
	if bounded, ok := raw.(interface{ HandshakeDone() }); ok {
		bounded.HandshakeDone()
	}
	state := tc.ConnectionState()
	if err == nil && state.NegotiatedProtocol != "h2" {
		err = errors.New("the client does not speak HTTP/2")
	}
	var tracked *conn
	if err == nil {
		tracked, err = c.track(tc, p)
	}
	if err != nil {
		f := Failure{Address: Address(raw.RemoteAddr()), Reason: err.Error()}
		if len(state.PeerCertificates) > 0 {
			leaf := state.PeerCertificates[0]
			f.Serial = leaf.SerialNumber.Text(16)
			if len(leaf.URIs) > 0 {
				f.Claimed = leaf.URIs[0].String()
			}
		}
		c.failed(f)
		linger(raw)
		return nil, nil, err
	}
	info := Info{Peer: p, HangUp: tracked.cut}
	info.SecurityLevel = credentials.PrivacyAndIntegrity
	return tracked, info, nil
}

// linger closes a refused connection such that its peer can read why: to close
// with something unread would reset it, and the TLS alert would be lost.
func linger(raw net.Conn) {
	_ = raw.SetDeadline(time.Now().Add(500 * time.Millisecond))
	_, _ = io.CopyN(io.Discard, raw, 64<<10)
	_ = raw.Close()
}

// Sweep closes every connection whose peer keep says no of, and every one whose
// certificate has expired by now.
func (c *Credentials) Sweep(now time.Time, keep func(Peer) bool) {
	c.mu.Lock()
	var cut []*conn
	for conn := range c.conns {
		if now.After(conn.peer.NotAfter) || !keep(conn.peer) {
			cut = append(cut, conn)
		}
	}
	c.mu.Unlock()
	for _, conn := range cut {
		conn.cut()
	}
}

// cut closes the raw connection: a TLS goodbye would wait for a peer that does
// not read.
func (c *conn) cut() { _ = c.Conn.(*tls.Conn).NetConn().Close() }

// Reverify closes every connection whose certificate does not verify any more,
// after a change of the bundle. The rest of a peer's rules is Sweep's affair.
func (c *Credentials) Reverify() {
	c.mu.Lock()
	all := slices.Collect(maps.Keys(c.conns))
	c.mu.Unlock()
	for _, conn := range all {
		if _, err := Verify(conn.Conn.(*tls.Conn).ConnectionState().PeerCertificates, c.source, c.rules); err != nil {
			conn.cut()
		}
	}
}

func (c *Credentials) track(tc *tls.Conn, p Peer) (*conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.perPeer > 0 && c.count[p.ID] >= c.perPeer {
		return nil, errors.New("the caller has as many connections open as it may")
	}
	tracked := &conn{Conn: tc, peer: p, owner: c}
	c.conns[tracked] = struct{}{}
	c.count[p.ID]++
	return tracked, nil
}

type conn struct {
	net.Conn
	peer  Peer
	owner *Credentials
	once  sync.Once
}

// Close also forgets the connection.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.owner.mu.Lock()
		defer c.owner.mu.Unlock()
		delete(c.owner.conns, c)
		if c.owner.count[c.peer.ID]--; c.owner.count[c.peer.ID] <= 0 {
			delete(c.owner.count, c.peer.ID)
		}
	})
	return c.Conn.Close()
}

// Address is an address for the audit trail: "198.18.0.5:40112", or "unix".
func Address(a net.Addr) string {
	if a == nil || a.Network() == "unix" {
		return "unix"
	}
	return a.String()
}

// ClientHandshake is never used: these are the server's credentials.
func (c *Credentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("server credentials cannot dial")
}

// Info describes the protocol to gRPC.
func (c *Credentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone returns the same credentials: the connections they track are shared.
func (c *Credentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName does nothing on a server.
func (c *Credentials) OverrideServerName(string) error { return nil }
