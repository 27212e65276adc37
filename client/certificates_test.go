package client_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestServerIsAuthorised(t *testing.T) {
	ours, other := newAuthority(), newAuthority()
	past := time.Now().Add(-time.Minute)
	tests := []struct {
		name    string
		ca      *authority
		cert    leaf
		version uint16
		ok      bool
	}{
		{name: "the broker", cert: leaf{ids: []string{serverID}}, ok: true},
		{name: "another ID", cert: leaf{ids: []string{callerID}}},
		{name: "a longer ID", cert: leaf{ids: []string{serverID + "/x"}}},
		{name: "another trust domain", cert: leaf{ids: []string{"spiffe://evil.example/broker"}}},
		{name: "another CA", ca: other, cert: leaf{ids: []string{serverID}}},
		{name: "no URI", cert: leaf{}},
		{name: "two URIs", cert: leaf{ids: []string{serverID, callerID}}},
		{name: "made for callers", cert: leaf{ids: []string{serverID}, usage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}},
		{name: "expired", cert: leaf{ids: []string{serverID}, notAfter: past}},
		{name: "not yet valid", cert: leaf{ids: []string{serverID}, notBefore: time.Now().Add(time.Minute)}},
		{name: "TLS 1.2", cert: leaf{ids: []string{serverID}}, version: tls.VersionTLS12},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ca := ours
			if tt.ca != nil {
				ca = tt.ca
			}
			version := uint16(tls.VersionTLS13)
			if tt.version != 0 {
				version = tt.version
			}
			lis, err := net.Listen("tcp", "127.0.0.1:0")
			check(err)
			b := &broker{}
			t.Cleanup(b.start(lis, ours, ca.issue(tt.cert), version))
			f := writeFiles(t.TempDir(), ours, ours.issue(leaf{ids: []string{callerID}}))
			c := dial(t, f.config(b.address))

			_, err = c.Broker().WhoAmI(within(t, 5*time.Second), &brokerv1.WhoAmIRequest{})
			calls, _ := b.count()
			if tt.ok && err != nil {
				t.Fatal(err)
			}
			if !tt.ok && (status.Code(err) != codes.Unavailable || calls != 0) {
				t.Fatalf("err = %v, calls = %d; want UNAVAILABLE and none", err, calls)
			}
		})
	}
}

func TestDialRefuses(t *testing.T) {
	a := newAuthority()
	good := writeFiles(t.TempDir(), a, a.issue(leaf{ids: []string{callerID}}))
	other := writeFiles(t.TempDir(), a, a.issue(leaf{ids: []string{callerID}}))
	empty := filepath.Join(t.TempDir(), "empty.pem")
	check(os.WriteFile(empty, nil, 0o600))
	tests := []struct {
		name, want string
		change     func(*client.Config)
	}{
		{"no address", "address", func(c *client.Config) { c.Address = "" }},
		{"no port", "address", func(c *client.Config) { c.Address = "broker.example" }},
		{"relative socket", "unix:///absolute/path", func(c *client.Config) { c.Address = "unix://run/broker.sock" }},
		{"no server ID", "ServerID", func(c *client.Config) { c.ServerID = "" }},
		{"server ID is no SPIFFE ID", "ServerID", func(c *client.Config) { c.ServerID = "https://home.example/broker" }},
		{"no key", "required", func(c *client.Config) { c.KeyFile = "" }},
		{"missing file", "no such file", func(c *client.Config) { c.CertFile += ".gone" }},
		{"key of another", "private key", func(c *client.Config) { c.KeyFile = other.key }},
		{"empty bundle", "bundle", func(c *client.Config) { c.BundleFile = empty }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := good.config("127.0.0.1:1")
			tt.change(&cfg)
			c, err := client.Dial(t.Context(), cfg)
			if err == nil {
				_ = c.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("Dial: %v, want %q", err, tt.want)
			}
		})
	}
}

// TestRotation renews the certificate 100 times under load: every call succeeds,
// every certificate is used, and a stream outlives the connection's replacement.
func TestRotation(t *testing.T) {
	a := newAuthority()
	release := make(chan struct{})
	b := &broker{logs: func(_ int, _ *brokerv1.ContainerLogsRequest, s grpc.ServerStreamingServer[brokerv1.ContainerLogsResponse]) error {
		if err := s.Send(&brokerv1.ContainerLogsResponse{}); err != nil {
			return err
		}
		<-release
		return s.Send(&brokerv1.ContainerLogsResponse{})
	}}
	b.serve(t, a, a.issue(leaf{ids: []string{serverID}}))
	f := writeFiles(t.TempDir(), a, a.issue(leaf{ids: []string{callerID}}))
	c := dial(t, f.config(b.address))

	stream, err := c.Containers().ContainerLogs(t.Context(), &brokerv1.ContainerLogsRequest{})
	check(err)
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}

	// Changes are never repeated by the client: one that fails is seen here.
	var done atomic.Bool
	var failed atomic.Int64
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for !done.Load() {
				if _, err := c.Containers().Restart(t.Context(), &brokerv1.RestartRequest{}); err != nil {
					t.Log(err)
					failed.Add(1)
				}
			}
		})
	}
	for n := range 100 {
		next := a.issue(leaf{ids: []string{callerID}})
		// Between the two writes certificate and key do not belong together.
		f.write(f.cert, "CERTIFICATE", next.Certificate[0])
		f.write(f.key, "PRIVATE KEY", keyDER(next))
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, serials := b.count(); serials == n+2 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("certificate %d is not used", n+1)
			}
		}
	}
	done.Store(true)
	load.Wait()
	close(release)
	if _, err := stream.Recv(); err != nil {
		t.Errorf("the stream was cut: %v", err)
	}
	calls, serials := b.count()
	t.Logf("%d calls, %d certificates", calls, serials)
	if failed.Load() != 0 {
		t.Errorf("%d calls failed", failed.Load())
	}
}

// TestHalfWrittenRenewal shows every state a renewal passes through.
func TestHalfWrittenRenewal(t *testing.T) {
	a := newAuthority()
	b := &broker{}
	b.serve(t, a, a.issue(leaf{ids: []string{serverID}}))
	f := writeFiles(t.TempDir(), a, a.issue(leaf{ids: []string{callerID}}))
	next := a.issue(leaf{ids: []string{callerID}})
	steps := []struct {
		name    string
		do      func()
		serials int
	}{
		{"as issued", func() {}, 1},
		{"certificate torn", func() { check(os.WriteFile(f.cert, []byte("-----BEGIN CERT"), 0o600)) }, 1},
		{"certificate gone", func() { check(os.Remove(f.cert)) }, 1},
		{"certificate without its key", func() { f.write(f.cert, "CERTIFICATE", next.Certificate[0]) }, 1},
		{"bundle empty", func() { check(os.Truncate(f.bundle, 0)) }, 1},
		{"key complete, bundle empty", func() { f.write(f.key, "PRIVATE KEY", keyDER(next)) }, 1},
		{"complete", func() { f.write(f.bundle, "CERTIFICATE", a.cert.Raw) }, 2},
	}
	cfg := f.config(b.address)
	var connection net.Conn
	cfg.Dialer = func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		connection, err = new(net.Dialer).DialContext(ctx, network, address)
		return connection, err
	}
	c := dial(t, cfg)
	for _, s := range steps {
		s.do()
		// A lost connection makes the client show its certificate again.
		if connection != nil {
			check(connection.Close())
		}
		if _, err := c.Broker().WhoAmI(within(t, 5*time.Second), &brokerv1.WhoAmIRequest{}); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if _, serials := b.count(); serials != s.serials {
			t.Fatalf("%s: %d certificates seen, want %d", s.name, serials, s.serials)
		}
	}
}

func TestExpiredWithoutRenewalSaysWhy(t *testing.T) {
	a := newAuthority()
	b := &broker{}
	b.serve(t, a, a.issue(leaf{ids: []string{serverID}}))
	f := writeFiles(t.TempDir(), a, a.issue(leaf{ids: []string{callerID}, notAfter: time.Now().Add(-time.Second)}))
	c := dial(t, f.config(b.address))
	check(os.Remove(f.key))
	_, err := c.Broker().WhoAmI(within(t, 5*time.Second), &brokerv1.WhoAmIRequest{})
	if err == nil || !strings.Contains(err.Error(), "renewal cannot be read") {
		t.Fatalf("err = %v", err)
	}
}

func TestUnixSocketAndDialer(t *testing.T) {
	a := newAuthority()
	b := &broker{}
	path := filepath.Join(t.TempDir(), "s")
	lis, err := net.Listen("unix", path)
	check(err)
	t.Cleanup(b.start(lis, a, a.issue(leaf{ids: []string{serverID}}), tls.VersionTLS13))
	f := writeFiles(t.TempDir(), a, a.issue(leaf{ids: []string{callerID}}))

	if _, err := dial(t, f.config("unix://"+path)).Broker().WhoAmI(within(t, 5*time.Second), &brokerv1.WhoAmIRequest{}); err != nil {
		t.Error(err)
	}
	cfg := f.config("broker.invalid:443")
	cfg.Dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
		if network != "tcp" || address != "broker.invalid:443" {
			t.Errorf("dialer got %s %s", network, address)
		}
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	if _, err := dial(t, cfg).Broker().WhoAmI(within(t, 5*time.Second), &brokerv1.WhoAmIRequest{}); err != nil {
		t.Error(err)
	}
}

// workloadAPI hands out certificates as a SPIRE agent does.
type workloadAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	updates chan *workload.X509SVIDResponse
}

func (w *workloadAPI) FetchX509SVID(_ *workload.X509SVIDRequest, s grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	for {
		select {
		case u := <-w.updates:
			if err := s.Send(u); err != nil {
				return err
			}
		case <-s.Context().Done():
			return nil
		}
	}
}

func TestWorkloadAPI(t *testing.T) {
	a := newAuthority()
	b := &broker{}
	b.serve(t, a, a.issue(leaf{ids: []string{serverID}}))
	next := func() *workload.X509SVIDResponse {
		cert := a.issue(leaf{ids: []string{callerID}})
		return &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
			SpiffeId: callerID, X509Svid: cert.Certificate[0], X509SvidKey: keyDER(cert), Bundle: a.cert.Raw,
		}}}
	}
	path := filepath.Join(t.TempDir(), "agent.sock")
	lis, err := net.Listen("unix", path)
	check(err)
	agent := &workloadAPI{updates: make(chan *workload.X509SVIDResponse, 1)}
	s := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(s, agent)
	go func() { _ = s.Serve(lis) }()
	t.Cleanup(s.Stop)

	agent.updates <- next()
	c := dial(t, client.Config{Address: b.address, WorkloadAPI: "unix://" + path, ServerID: serverID})
	if _, err := c.Broker().WhoAmI(t.Context(), &brokerv1.WhoAmIRequest{}); err != nil {
		t.Fatal(err)
	}
	agent.updates <- next()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := c.Broker().WhoAmI(t.Context(), &brokerv1.WhoAmIRequest{}); err != nil {
			t.Fatal(err)
		}
		if _, serials := b.count(); serials == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the renewed certificate is not used")
		}
	}
}
