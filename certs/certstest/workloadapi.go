package certstest

import (
	"crypto/x509"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/gortium/hermes-broker/certs"
)

// WorkloadAPI is a SPIFFE Workload API on a unix socket, as a SPIRE agent has
// one. Like that it refuses who does not send the header that the standard asks
// for, and streams what changes. It ends with the test.
type WorkloadAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	// Address is what its clients are configured with: "unix:///...".
	Address string

	mu      sync.Mutex
	current *workload.X509SVIDResponse
	changed chan struct{} // closed and replaced by each Serve
}

// NewWorkloadAPI starts one that has nothing for anybody yet.
func NewWorkloadAPI(t testing.TB) *WorkloadAPI {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	w := &WorkloadAPI{Address: "unix://" + socket, changed: make(chan struct{})}
	l, err := net.Listen("unix", socket)
	check(t, err)
	s := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(s, w)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return w
}

// Serve gives a certificate, and its authority as the bundle, to all clients
// from now on.
func (w *WorkloadAPI) Serve(t testing.TB, ca *certs.CA, p *Pair) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(p.TLS.PrivateKey)
	check(t, err)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.current = &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
		SpiffeId: p.Certificate.URIs[0].String(), X509Svid: p.Certificate.Raw, X509SvidKey: key, Bundle: ca.Certificate().Raw,
	}}}
	close(w.changed)
	w.changed = make(chan struct{})
}

// FetchX509SVID implements workload.SpiffeWorkloadAPIServer.
func (w *WorkloadAPI) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	if v := md.Get("workload.spiffe.io"); len(v) != 1 || v[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	for {
		w.mu.Lock()
		current, changed := w.current, w.changed
		w.mu.Unlock()
		if current == nil {
			return status.Error(codes.PermissionDenied, "no identity issued")
		}
		if err := stream.Send(current); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}
