package server

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// listen opens a listener that bounds its connections. Each listener has bounds
// of its own, so that a crowd at the TCP port leaves the operator's socket free.
func listen(l *Listener, limits *LimitsConfig) (net.Listener, error) {
	inner, err := open(l)
	if err != nil {
		return nil, err
	}
	return &boundedListener{Listener: inner, most: limits.Connections.Value, handshakes: limits.Handshakes.Value}, nil
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

// boundedListener bounds connections. Over its bound of connections a newcomer is
// closed at once. Over its bound of handshakes the oldest one is: a handshake
// takes milliseconds, so that whoever is closed was idling, and a crowd of idlers
// keeps nobody out.
type boundedListener struct {
	net.Listener
	most, handshakes int

	mu      sync.Mutex
	open    int
	shaking []*boundedConn // Oldest first.
}

func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if b := l.admit(c); b != nil {
			return b, nil
		}
		_ = c.Close()
	}
}

func (l *boundedListener) admit(c net.Conn) *boundedConn {
	l.mu.Lock()
	if len(l.shaking) >= l.handshakes || l.open >= l.most && len(l.shaking) > 0 {
		oldest := l.shaking[0]
		l.mu.Unlock()
		_ = oldest.Close()
		l.mu.Lock()
	}
	defer l.mu.Unlock()
	if l.open >= l.most {
		return nil
	}
	b := &boundedConn{Conn: c, listener: l}
	l.open++
	l.shaking = append(l.shaking, b)
	return b
}

type boundedConn struct {
	net.Conn
	listener *boundedListener
	closed   sync.Once
}

// HandshakeDone is called by identity.Credentials.
func (c *boundedConn) HandshakeDone() {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	c.listener.shaking = slices.DeleteFunc(c.listener.shaking, func(o *boundedConn) bool { return o == c })
}

func (c *boundedConn) Close() error {
	c.closed.Do(func() {
		c.HandshakeDone()
		c.listener.mu.Lock()
		defer c.listener.mu.Unlock()
		c.listener.open--
	})
	return c.Conn.Close()
}
