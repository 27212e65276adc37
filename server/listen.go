package server

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// listen opens a listener that bounds its connections. Each listener has bounds
// of its own, so that a crowd at the TCP port leaves the operator's socket free.
func listen(l *Listener, limits *LimitsConfig) (net.Listener, error) {
	inner, err := open(l)
	if err != nil {
		return nil, err
	}
	return &boundedListener{Listener: inner, most: int64(limits.Connections.Value), handshakes: int64(limits.Handshakes.Value)}, nil
}

func open(l *Listener) (net.Listener, error) {
	if l.TCP.Value != "" {
		return net.Listen("tcp", l.TCP.Value)
	}
	path := l.Unix.Value
	if err := clearSocket(path); err != nil {
		return nil, err
	}
	inner, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	mode, err := l.mode()
	if err == nil {
		err = os.Chmod(path, fs.FileMode(mode))
	}
	if err != nil {
		return nil, errors.Join(err, inner.Close())
	}
	return inner, nil
}

// clearSocket removes the socket of a brokerd that was killed, and nothing else.
func clearSocket(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s: is there and is no socket; move it away", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		return errors.Join(fmt.Errorf("%s: another process listens there", path), c.Close())
	}
	return os.Remove(path)
}

// boundedListener closes what comes in over its bounds at once. To leave it
// waiting instead would let idle connections keep everybody else out.
type boundedListener struct {
	net.Listener
	most, handshakes int64

	open, shaking atomic.Int64
}

func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Load() >= l.most || l.shaking.Load() >= l.handshakes {
			_ = c.Close()
			continue
		}
		l.open.Add(1)
		l.shaking.Add(1)
		return &boundedConn{Conn: c, listener: l}, nil
	}
}

type boundedConn struct {
	net.Conn
	listener *boundedListener
	shaken   sync.Once
	closed   sync.Once
}

// HandshakeDone is called by identity.Credentials.
func (c *boundedConn) HandshakeDone() { c.shaken.Do(func() { c.listener.shaking.Add(-1) }) }

func (c *boundedConn) Close() error {
	c.HandshakeDone()
	c.closed.Do(func() { c.listener.open.Add(-1) })
	return c.Conn.Close()
}
