package client

import (
	"context"
	"crypto/sha256"
	"sync"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/attributes"
	"google.golang.org/grpc/resolver"
)

// renewingResolver resolves to one address, which bears the fingerprint of the
// caller's certificate. When the certificate is renewed the address becomes
// another one to gRPC: it connects to it with the new certificate, sends new
// calls there, and lets those on the old connection finish. Without this a
// connection would live, and die, with the certificate it was opened with.
type renewingResolver struct {
	certs   certificateSource
	address string

	mu        sync.Mutex
	cc        resolver.ClientConn // nil while the channel is idle
	seen      *x509svid.SVID      // what announced was made from
	announced fingerprint
}

type fingerprint [sha256.Size]byte

type fingerprintKey struct{}

func newRenewingResolver(certs certificateSource, address string) *renewingResolver {
	return &renewingResolver{certs: certs, address: address}
}

// Scheme implements resolver.Builder.
func (*renewingResolver) Scheme() string { return "hermes-broker" }

// Build implements resolver.Builder. A ClientConn builds its resolver anew each
// time it leaves idleness.
func (r *renewingResolver) Build(_ resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cc = cc
	r.announce(true)
	return r, nil
}

// ResolveNow implements resolver.Resolver. The host's name is looked up by the
// dialer, at each connection.
func (*renewingResolver) ResolveNow(resolver.ResolveNowOptions) {}

// Close implements resolver.Resolver.
func (r *renewingResolver) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cc = nil
}

// announce gives gRPC the address under the certificate's present fingerprint.
// A certificate that cannot be read changes nothing here: the next handshake
// reports it. It needs mu; gRPC does not call the resolver from UpdateState.
func (r *renewingResolver) announce(first bool) {
	now := r.announced
	if svid, err := r.certs.GetX509SVID(); err == nil && svid != r.seen {
		// Another object may hold the same certificate.
		r.seen, now = svid, sha256.Sum256(svid.Certificates[0].Raw)
	}
	if now == r.announced && !first {
		return
	}
	address := resolver.Address{Addr: r.address, Attributes: attributes.New(fingerprintKey{}, now)}
	// The error asks to resolve again; there is nothing else to resolve to.
	_ = r.cc.UpdateState(resolver.State{Endpoints: []resolver.Endpoint{{Addresses: []resolver.Address{address}}}})
	r.announced = now
}

// check looks for a renewed certificate, before each call.
func (r *renewingResolver) check() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cc != nil {
		r.announce(false)
	}
}

func (r *renewingResolver) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	r.check()
	return invoke(ctx, method, req, reply, cc, opts...)
}

func (r *renewingResolver) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	r.check()
	return stream(ctx, desc, cc, method, opts...)
}
