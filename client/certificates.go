package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// certificateSource gives the caller's own certificate and the authorities that
// may sign the broker's, as they are now.
type certificateSource interface {
	x509svid.Source
	x509bundle.Source
	io.Closer
}

func openCertificates(ctx context.Context, cfg Config) (certificateSource, error) {
	if cfg.WorkloadAPI != "" {
		source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(cfg.WorkloadAPI)))
		if err != nil {
			return nil, fmt.Errorf("client: Workload API %s: %w", cfg.WorkloadAPI, err)
		}
		return source, nil
	}
	if cfg.CertFile == "" || cfg.KeyFile == "" || cfg.BundleFile == "" {
		return nil, errors.New("client: CertFile, KeyFile and BundleFile are required without WorkloadAPI")
	}
	source := &fileSource{paths: [3]string{cfg.CertFile, cfg.KeyFile, cfg.BundleFile}}
	if _, err := source.current(); err != nil {
		return nil, err
	}
	return source, nil
}

// newTLSConfig accepts one server: the SVID of serverID, signed by its trust
// domain, and made for serving.
func newTLSConfig(certs certificateSource, serverID string) (*tls.Config, error) {
	id, err := spiffeid.FromString(serverID)
	if err != nil {
		return nil, fmt.Errorf("client: ServerID %q: %w", serverID, err)
	}
	cfg := tlsconfig.MTLSClientConfig(certs, certs, tlsconfig.AuthorizeID(id))
	cfg.MinVersion = tls.VersionTLS13
	// A resumed session skips the check of the peer's certificate.
	cfg.SessionTicketsDisabled = true
	cfg.VerifyConnection = verifyServerUsage
	return cfg, nil
}

// verifyServerUsage refuses a certificate that was made for callers: otherwise
// whoever holds an agent's certificate with the broker's ID could serve. go-spiffe
// accepts any extended key usage.
func verifyServerUsage(state tls.ConnectionState) error {
	if !slices.Contains(state.PeerCertificates[0].ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return errors.New("client: the server's certificate is not for server authentication")
	}
	return nil
}

// fileSource reads the three files again whenever one of them has changed, which
// it looks for each time it is asked: a certificate that lives for hours needs no
// watcher, and a watcher can miss what a look cannot.
type fileSource struct {
	paths [3]string // certificate, key, bundle

	mu     sync.Mutex
	stamps [3]stamp
	pair   *pair
}

// pair is a certificate with its key, and the bundle that was read with it.
type pair struct {
	svid   *x509svid.SVID
	bundle *x509bundle.Bundle
}

// stamp is what changes when a file is replaced or rewritten.
type stamp struct {
	modified     time.Time
	size         int64
	device, node uint64
}

// current returns the pair on disk, or the last good one while what is on disk
// cannot be used: a renewal writes several files and is seen in the middle.
func (s *fileSource) current() (*pair, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.reload()
	switch {
	case err == nil:
		return s.pair, nil
	case s.pair == nil:
		return nil, fmt.Errorf("client: %w", err)
	case time.Now().After(s.pair.svid.Certificates[0].NotAfter):
		// The last good pair is of no more use; why no other came is what its
		// owner needs to know.
		return nil, fmt.Errorf("client: the certificate has expired and its renewal cannot be read: %w", err)
	default:
		return s.pair, nil
	}
}

func (s *fileSource) reload() error {
	// Stamps before reading: a file that changes meanwhile is read again next
	// time.
	var stamps [3]stamp
	for i, path := range s.paths {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		stamps[i] = stamp{modified: info.ModTime(), size: info.Size()}
		if sys, ok := info.Sys().(*syscall.Stat_t); ok {
			stamps[i].device, stamps[i].node = uint64(sys.Dev), sys.Ino
		}
	}
	if s.pair != nil && stamps == s.stamps {
		return nil
	}
	// Load fails when key and certificate do not belong together.
	svid, err := x509svid.Load(s.paths[0], s.paths[1])
	if err != nil {
		return fmt.Errorf("certificate %s with key %s: %w", s.paths[0], s.paths[1], err)
	}
	bundle, err := x509bundle.Load(svid.ID.TrustDomain(), s.paths[2])
	if err != nil {
		return fmt.Errorf("bundle %s: %w", s.paths[2], err)
	}
	if bundle.Empty() {
		return fmt.Errorf("bundle %s: no certificate in it", s.paths[2])
	}
	s.pair, s.stamps = &pair{svid: svid, bundle: bundle}, stamps
	return nil
}

// GetX509SVID implements x509svid.Source.
func (s *fileSource) GetX509SVID() (*x509svid.SVID, error) {
	p, err := s.current()
	if err != nil {
		return nil, err
	}
	return p.svid, nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (s *fileSource) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	p, err := s.current()
	if err != nil {
		return nil, err
	}
	return p.bundle.GetX509BundleForTrustDomain(td)
}

// Close implements io.Closer.
func (s *fileSource) Close() error { return nil }
