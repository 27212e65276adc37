// Package client calls a Hermes broker over gRPC with mutual TLS.
//
// [Dial] gives a [Client], whose Containers, Images, Engine, Operations and Broker
// are the generated gRPC clients of the API. Around them the package sees to five things:
//
//   - Identity. The caller proves itself with an X.509 SVID, from files or from
//     the SPIFFE Workload API, and accepts one server: the exact SPIFFE ID that
//     Config.ServerID names. TLS 1.3, no session resumption. There is no way to
//     connect without.
//   - Renewal. A renewed certificate is used from the next call on, over a new
//     connection; calls that run finish on the old one. A half-written renewal
//     changes nothing: the last good pair stays.
//   - Repeating. Reads that met a broker that was away are repeated, at most
//     four times and never beyond the context. A request with a request_id is a
//     change and is sent once: when its answer is lost nobody knows whether it
//     took effect, and that is for the caller to find out. Whoever wants to ask
//     again chooses the ID ([NewRequestID]) and sends the same request with the
//     same ID: the broker then gives the first answer again. Changes without an
//     ID get a new one; the caller's message is never written to.
//   - Following. [Client.FollowLogs], [Client.FollowEvents], [Client.FollowJournal]
//     and [Client.WatchOperation] read streams to their end over as many calls as
//     that takes.
//   - Errors. [Reason], [RetryAfter] and [ErrorMetadata] read what the broker
//     says about a failure.
//
// A Client is safe for concurrent use. It opens one connection, on the first
// call, and again by itself whenever it is lost. Text that comes from containers
// (names, labels, logs) is handed on as it is: treat it as hostile.
package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/gortium/hermes-broker/api/brokerv1"
)

// What one message and one block of headers may hold. The broker's own limits
// are lower or equal; these bound what a client reads from whoever answers.
const (
	maxReceiveBytes = 4 << 20
	maxSendBytes    = 1 << 20
	maxHeaderBytes  = 16 << 10
)

// keepalivePing finds a dead connection under a running stream. The broker
// refuses pings more often than every 20 s.
var keepalivePing = keepalive.ClientParameters{Time: 45 * time.Second, Timeout: 15 * time.Second}

// Config says where the broker is and who is calling.
type Config struct {
	// Address is "host:port" or "unix:///absolute/path". Required.
	Address string

	// CertFile, KeyFile and BundleFile are PEM files: the caller's X.509 SVID
	// with its intermediates, its private key, and the CA certificates of the
	// trust domain. All three are required unless WorkloadAPI is set. They are
	// read again when they change.
	CertFile, KeyFile, BundleFile string

	// WorkloadAPI is the address of a SPIFFE Workload API, such as
	// "unix:///run/spire/agent.sock". It takes the place of the files.
	WorkloadAPI string

	// ServerID is the broker's SPIFFE ID, compared whole. Required.
	ServerID string

	// UserAgent is put before grpc-go's own. Optional.
	UserAgent string

	// Dialer opens connections; network is "tcp" or "unix". The default is that
	// of net.Dialer. TLS happens above it all the same.
	Dialer func(ctx context.Context, network, address string) (net.Conn, error)
}

// Client is a connection to one broker. Close it after use.
type Client struct {
	conn  *grpc.ClientConn
	certs certificateSource
}

// Dial prepares a client. It reads the certificates, or waits for the Workload
// API's first answer until ctx ends, and fails when they cannot be used. It does
// not connect: the first call does, so a client may be made before its broker
// runs. The context is not used after Dial returns.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	network, address, err := parseAddress(cfg.Address)
	if err != nil {
		return nil, err
	}
	certs, err := openCertificates(ctx, cfg)
	if err != nil {
		return nil, err
	}
	tlsConfig, err := newTLSConfig(certs, cfg.ServerID)
	if err != nil {
		return nil, errors.Join(err, certs.Close())
	}
	dial := cfg.Dialer
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	// A socket has no host name; gRPC's convention for its :authority is this.
	authority := "localhost"
	if network == "tcp" {
		authority = address
	}
	target := newRenewingResolver(certs, address)
	conn, err := grpc.NewClient(target.Scheme()+":///broker",
		grpc.WithResolvers(target),
		grpc.WithAuthority(authority),
		grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dial(ctx, network, address)
		}),
		grpc.WithUserAgent(cfg.UserAgent),
		grpc.WithDisableServiceConfig(),
		grpc.WithKeepaliveParams(keepalivePing),
		grpc.WithMaxHeaderListSize(maxHeaderBytes),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(maxReceiveBytes),
			grpc.MaxCallSendMsgSize(maxSendBytes),
		),
		grpc.WithChainUnaryInterceptor(target.unary, fillUnary, retryUnary),
		grpc.WithChainStreamInterceptor(target.stream, fillStream, retryStream),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("client: %w", err), certs.Close())
	}
	return &Client{conn: conn, certs: certs}, nil
}

// Containers is the client of the containers on the broker's engine.
func (c *Client) Containers() brokerv1.ContainerServiceClient {
	return brokerv1.NewContainerServiceClient(c.conn)
}

// Images is the client of the images on the broker's engine.
func (c *Client) Images() brokerv1.ImageServiceClient {
	return brokerv1.NewImageServiceClient(c.conn)
}

// Engine is the client of the engine as a whole.
func (c *Client) Engine() brokerv1.EngineServiceClient {
	return brokerv1.NewEngineServiceClient(c.conn)
}

// Firewall is the client of the host's packet filter.
func (c *Client) Firewall() brokerv1.FirewallServiceClient {
	return brokerv1.NewFirewallServiceClient(c.conn)
}

// Jails is the client of the host's fail2ban.
func (c *Client) Jails() brokerv1.JailServiceClient {
	return brokerv1.NewJailServiceClient(c.conn)
}

// Journal is the client of the host's journal.
func (c *Client) Journal() brokerv1.JournalServiceClient {
	return brokerv1.NewJournalServiceClient(c.conn)
}

// SSH is the client of the host's sshd.
func (c *Client) SSH() brokerv1.SshServiceClient {
	return brokerv1.NewSshServiceClient(c.conn)
}

// Sockets is the client of the host's sockets.
func (c *Client) Sockets() brokerv1.SocketServiceClient {
	return brokerv1.NewSocketServiceClient(c.conn)
}

// Operations is the client of long work that outlives a call.
func (c *Client) Operations() brokerv1.OperationServiceClient {
	return brokerv1.NewOperationServiceClient(c.conn)
}

// Broker is the client of the broker itself: identity, decisions, the freeze.
func (c *Client) Broker() brokerv1.BrokerServiceClient {
	return brokerv1.NewBrokerServiceClient(c.conn)
}

// Health is the client of grpc.health.v1.
func (c *Client) Health() healthpb.HealthClient {
	return healthpb.NewHealthClient(c.conn)
}

// Conn is the connection below, for calling methods by name. What the package
// comment says of repeating and of request IDs holds for it too.
func (c *Client) Conn() *grpc.ClientConn { return c.conn }

// Close cuts every running call and frees the connection.
func (c *Client) Close() error {
	return errors.Join(c.conn.Close(), c.certs.Close())
}

// parseAddress splits an address into what net.Dialer takes.
func parseAddress(s string) (network, address string, err error) {
	if path, ok := strings.CutPrefix(s, "unix://"); ok {
		if !strings.HasPrefix(path, "/") {
			return "", "", fmt.Errorf("client: address %q: want unix:///absolute/path", s)
		}
		return "unix", path, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" || port == "" {
		return "", "", fmt.Errorf("client: address %q: want host:port or unix:///absolute/path", s)
	}
	return "tcp", s, nil
}
