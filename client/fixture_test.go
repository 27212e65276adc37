package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

const (
	serverID = "spiffe://home.example/broker"
	callerID = "spiffe://home.example/agent/hermes"
)

// authority is a CA for one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func newAuthority() *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "test"},
		URIs:                  uris("spiffe://home.example"),
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	check(err)
	cert, err := x509.ParseCertificate(der)
	check(err)
	return &authority{cert: cert, key: key}
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	check(err)
	return n
}

func uris(ids ...string) (all []*url.URL) {
	for _, id := range ids {
		u, err := url.Parse(id)
		check(err)
		all = append(all, u)
	}
	return all
}

// leaf describes a certificate; its zero value with ids is good for an hour and
// for both ends of TLS.
type leaf struct {
	ids                 []string
	usage               []x509.ExtKeyUsage
	notBefore, notAfter time.Time
}

func (a *authority) issue(l leaf) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	if l.usage == nil {
		l.usage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	}
	if l.notBefore.IsZero() {
		l.notBefore = time.Now().Add(-time.Minute)
	}
	if l.notAfter.IsZero() {
		l.notAfter = time.Now().Add(time.Hour)
	}
	template := &x509.Certificate{
		SerialNumber: serial(),
		URIs:         uris(l.ids...),
		NotBefore:    l.notBefore,
		NotAfter:     l.notAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  l.usage,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	check(err)
	parsed, err := x509.ParseCertificate(der)
	check(err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: parsed}
}

func pool(a *authority) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// files is a folder with a caller's certificate, key and bundle.
type files struct{ dir, cert, key, bundle string }

func writeFiles(dir string, a *authority, cert tls.Certificate) files {
	f := files{dir, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "bundle.pem")}
	f.write(f.cert, "CERTIFICATE", cert.Certificate[0])
	f.write(f.key, "PRIVATE KEY", keyDER(cert))
	f.write(f.bundle, "CERTIFICATE", a.cert.Raw)
	return f
}

func keyDER(cert tls.Certificate) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	check(err)
	return der
}

// write replaces a file atomically, as certificate managers do.
func (f files) write(path, kind string, der []byte) {
	next := path + ".next"
	check(os.WriteFile(next, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	check(os.Rename(next, path))
}

func (f files) config(address string) client.Config {
	return client.Config{Address: address, CertFile: f.cert, KeyFile: f.key, BundleFile: f.bundle, ServerID: serverID}
}

// broker is a server whose answers a test chooses.
type broker struct {
	brokerv1.UnimplementedContainerServiceServer
	brokerv1.UnimplementedImageServiceServer
	brokerv1.UnimplementedEngineServiceServer
	brokerv1.UnimplementedOperationServiceServer
	brokerv1.UnimplementedJournalServiceServer
	brokerv1.UnimplementedBrokerServiceServer

	address string

	whoami  func(n int) error // n counts calls from 1
	restart func(*brokerv1.RestartRequest) error
	logs    func(n int, req *brokerv1.ContainerLogsRequest, s grpc.ServerStreamingServer[brokerv1.ContainerLogsResponse]) error
	watch   func(n int, req *brokerv1.WatchOperationRequest, s grpc.ServerStreamingServer[brokerv1.WatchOperationResponse]) error
	events  func(n int, req *brokerv1.EventsRequest, s grpc.ServerStreamingServer[brokerv1.EventsResponse]) error
	journal func(n int, req *brokerv1.ReadJournalRequest, s grpc.ServerStreamingServer[brokerv1.ReadJournalResponse]) error
	pull    func(req *brokerv1.PullRequest, s grpc.ServerStreamingServer[brokerv1.PullResponse]) error

	mu       sync.Mutex
	calls    int
	serials  map[string]bool
	requests []string
}

func (b *broker) seen(ctx context.Context) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls++
	if p, ok := peer.FromContext(ctx); ok {
		b.serials[p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0].SerialNumber.String()] = true
	}
	return b.calls
}

func (b *broker) count() (calls, serials int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls, len(b.serials)
}

func (b *broker) WhoAmI(ctx context.Context, _ *brokerv1.WhoAmIRequest) (*brokerv1.WhoAmIResponse, error) {
	n := b.seen(ctx)
	if b.whoami != nil {
		if err := b.whoami(n); err != nil {
			return nil, err
		}
	}
	return &brokerv1.WhoAmIResponse{SpiffeId: callerID}, nil
}

func (b *broker) Restart(ctx context.Context, req *brokerv1.RestartRequest) (*brokerv1.RestartResponse, error) {
	b.seen(ctx)
	b.mu.Lock()
	b.requests = append(b.requests, req.GetRequestId())
	b.mu.Unlock()
	if b.restart != nil {
		if err := b.restart(req); err != nil {
			return nil, err
		}
	}
	return &brokerv1.RestartResponse{}, nil
}

func (b *broker) ContainerLogs(req *brokerv1.ContainerLogsRequest, s grpc.ServerStreamingServer[brokerv1.ContainerLogsResponse]) error {
	return b.logs(b.seen(s.Context()), req, s)
}

func (b *broker) WatchOperation(req *brokerv1.WatchOperationRequest, s grpc.ServerStreamingServer[brokerv1.WatchOperationResponse]) error {
	return b.watch(b.seen(s.Context()), req, s)
}

func (b *broker) Events(req *brokerv1.EventsRequest, s grpc.ServerStreamingServer[brokerv1.EventsResponse]) error {
	return b.events(b.seen(s.Context()), req, s)
}

func (b *broker) ReadJournal(req *brokerv1.ReadJournalRequest, s grpc.ServerStreamingServer[brokerv1.ReadJournalResponse]) error {
	return b.journal(b.seen(s.Context()), req, s)
}

func (b *broker) Pull(req *brokerv1.PullRequest, s grpc.ServerStreamingServer[brokerv1.PullResponse]) error {
	b.seen(s.Context())
	b.mu.Lock()
	b.requests = append(b.requests, req.GetRequestId())
	b.mu.Unlock()
	return b.pull(req, s)
}

// serve runs b on loopback with cert until the test ends.
func (b *broker) serve(t testing.TB, a *authority, cert tls.Certificate) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	t.Cleanup(b.start(lis, a, cert, tls.VersionTLS13))
}

func (b *broker) start(lis net.Listener, a *authority, cert tls.Certificate, version uint16) (stop func()) {
	b.address = lis.Addr().String()
	b.serials = map[string]bool{}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{cert},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool(a),
		MinVersion:   tls.VersionTLS12,
		MaxVersion:   version,
	})), grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{ // As the broker's: the client pings a quiet stream.
		MinTime: 20 * time.Second, PermitWithoutStream: true,
	}))
	brokerv1.RegisterContainerServiceServer(s, b)
	brokerv1.RegisterImageServiceServer(s, b)
	brokerv1.RegisterEngineServiceServer(s, b)
	brokerv1.RegisterOperationServiceServer(s, b)
	brokerv1.RegisterJournalServiceServer(s, b)
	brokerv1.RegisterBrokerServiceServer(s, b)
	go func() { _ = s.Serve(lis) }()
	return s.Stop
}

// pairUp gives a running broker and a client of it.
func pairUp(t *testing.T, b *broker) *client.Client {
	t.Helper()
	a := newAuthority()
	b.serve(t, a, a.issue(leaf{ids: []string{serverID}}))
	f := writeFiles(t.TempDir(), a, a.issue(leaf{ids: []string{callerID}}))
	return dial(t, f.config(b.address))
}

func dial(t testing.TB, cfg client.Config) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
