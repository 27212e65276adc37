package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/gortium/hermes-broker/server/rootfile"
)

// Paths are the PEM files of a Files source.
type Paths struct {
	Certificate, Key, Bundle string
}

func (p Paths) all() []string { return []string{p.Certificate, p.Key, p.Bundle} }

// Files is a Source over PEM files that follows them when they are renewed: a
// new set is read whole and checked before it is taken; until then, the last
// good one stays.
type Files struct {
	paths   Paths
	current atomic.Pointer[material]
	stamps  []rootfile.Stamp
	failed  string
}

type material struct {
	svid   *x509svid.SVID
	bundle *x509bundle.Bundle
}

// NewFiles reads the files. The key must be readable by its owner alone.
func NewFiles(paths Paths) (*Files, error) {
	f := &Files{paths: paths}
	f.stamps, _ = f.stat()
	m, err := f.read()
	if err != nil {
		return nil, err
	}
	f.current.Store(m)
	return f, nil
}

// GetX509SVID is the broker's certificate and key.
func (f *Files) GetX509SVID() (*x509svid.SVID, error) { return f.current.Load().svid, nil }

// GetX509BundleForTrustDomain is the bundle callers are verified against.
func (f *Files) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return f.current.Load().bundle.GetX509BundleForTrustDomain(td)
}

// Watch follows the files until the context ends. report is told of each
// reload, and of each failed one once.
func (f *Files) Watch(ctx context.Context, every time.Duration, report func(error)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f.poll(report)
		}
	}
}

func (f *Files) poll(report func(error)) {
	stamps, err := f.stat()
	if err == nil && slices.Equal(stamps, f.stamps) {
		return
	}
	var m *material
	if err == nil {
		m, err = f.read()
	}
	if now := f.current.Load().svid.ID.TrustDomain(); err == nil && m.svid.ID.TrustDomain() != now {
		err = fmt.Errorf("%s: is of the trust domain %s, not of %s; restart brokerd to change it", f.paths.Certificate, m.svid.ID.TrustDomain(), now)
	}
	if err != nil {
		// A renewal in the middle of its two renames looks like this as well: the
		// next look will find it whole. It is told once.
		if f.failed != err.Error() {
			f.failed = err.Error()
			report(err)
		}
		return
	}
	// The stamps are those from before the read, so that a write in between is
	// seen at the next look.
	f.stamps, f.failed = stamps, ""
	f.current.Store(m)
	report(nil)
}

func (f *Files) stat() ([]rootfile.Stamp, error) {
	var stamps []rootfile.Stamp
	for _, p := range f.paths.all() {
		s, err := rootfile.StampOf(p)
		if err != nil {
			return nil, err
		}
		stamps = append(stamps, s)
	}
	return stamps, nil
}

func (f *Files) read() (*material, error) {
	var data [3][]byte
	for i, p := range f.paths.all() {
		b, err := rootfile.Read(p, rootfile.Options{Secret: p == f.paths.Key})
		if err != nil {
			return nil, err
		}
		data[i] = b
	}
	svid, err := x509svid.Parse(data[0], data[1])
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", f.paths.Certificate, f.paths.Key, err)
	}
	bundle, err := x509bundle.Parse(svid.ID.TrustDomain(), data[2])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.paths.Bundle, err)
	}
	if bundle.Empty() {
		return nil, fmt.Errorf("%s: holds no certificate", f.paths.Bundle)
	}
	if err := CheckServer(svid, bundle, time.Now()); err != nil {
		return nil, fmt.Errorf("%s: %w", f.paths.Certificate, err)
	}
	return &material{svid, bundle}, nil
}

// CheckServer says what is wrong with the broker's own certificate.
func CheckServer(svid *x509svid.SVID, bundle x509bundle.Source, now time.Time) error {
	leaf := svid.Certificates[0]
	if now.After(leaf.NotAfter) {
		return fmt.Errorf("expired on %s; renew it", leaf.NotAfter.Format(time.RFC3339))
	}
	if _, _, err := x509svid.Verify(svid.Certificates, bundle, x509svid.WithTime(now)); err != nil {
		return fmt.Errorf("does not verify against the bundle: %w", err)
	}
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return errors.New("is not for server authentication; issue one with the server role")
	}
	return nil
}

// NewWorkloadAPI is a Source fed by a SPIFFE Workload API, such as a SPIRE
// agent's: "unix:///run/spire/sockets/agent.sock". It waits for the first
// certificate until the context ends.
func NewWorkloadAPI(ctx context.Context, address string) (*workloadapi.X509Source, error) {
	return workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(
		workloadapi.WithAddr(address), workloadapi.WithLogger(spiffeLog{})))
}

// spiffeLog sends the library's messages to slog.
type spiffeLog struct{}

func (spiffeLog) Debugf(format string, args ...any) {
	slog.Debug("workload API: " + fmt.Sprintf(format, args...))
}
func (spiffeLog) Infof(format string, args ...any) {
	slog.Info("workload API: " + fmt.Sprintf(format, args...))
}
func (spiffeLog) Warnf(format string, args ...any) {
	slog.Warn("workload API: " + fmt.Sprintf(format, args...))
}
func (spiffeLog) Errorf(format string, args ...any) {
	slog.Error("workload API: " + fmt.Sprintf(format, args...))
}
