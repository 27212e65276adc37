package certs

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Renew replaces a certificate and its key, in place, with a new certificate
// for a new key: same SPIFFE ID, same usage, same names, same TTL counted from
// now. The old certificate may have expired. Both files must be in one
// directory, as [Leaf.Write] leaves them; their owner and group are kept, their
// modes become 0644 and 0600, and [BundleFile] is not touched.
//
// Renew refuses a certificate that this authority did not sign or would not
// issue, and one whose private key is not at keyPath. The last rule is there
// because the directory may belong to the agent while Renew runs as root: an
// agent that puts an operator's certificate, which is no secret, in place of
// its own must not get a key for it.
//
// The new key is renamed into place first, then the new certificate; both are
// on the disk before either is. Between the two renames, or after a crash
// there, the files are a new key and an old certificate. A watcher sees that
// they do not match, which it must check anyway, and keeps the last pair that
// did. The certificate's arrival is the commit: who reloads on it alone always
// finds its key. The next Renew finishes what a crash cut short.
func (ca *CA) Renew(certPath, keyPath string) (*Leaf, error) {
	leaf, err := ca.renew(certPath, keyPath)
	if err != nil {
		return nil, fmt.Errorf("renew certificate: %w", err)
	}
	return leaf, nil
}

func (ca *CA) renew(certPath, keyPath string) (*Leaf, error) {
	certPath, keyPath = filepath.Clean(certPath), filepath.Clean(keyPath)
	if filepath.Dir(certPath) != filepath.Dir(keyPath) || certPath == keyPath {
		return nil, fmt.Errorf("%s and %s must be two files in one directory", certPath, keyPath)
	}
	d, err := openLocked(filepath.Dir(certPath))
	if err != nil {
		return nil, err
	}
	defer d.close()
	r := renewal{ca: ca, dir: d, certName: filepath.Base(certPath), keyName: filepath.Base(keyPath)}
	return r.run()
}

type renewal struct {
	ca                *CA
	dir               *dir
	certName, keyName string
}

func (r renewal) run() (*Leaf, error) {
	old, certInfo, keyInfo, err := r.oldPair()
	if err != nil {
		return nil, err
	}
	p, err := r.ca.profileOf(old)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.dir.join(r.certName), err)
	}
	leaf, err := r.ca.sign(p)
	if err != nil {
		return nil, err
	}
	if err := r.stage(leaf, certInfo, keyInfo); err != nil {
		return nil, errors.Join(err, r.dir.remove(stagedName(r.keyName)), r.dir.remove(stagedName(r.certName)))
	}
	// From here on nothing is cleaned up: what is staged is what the next
	// renewal needs to recover.
	for _, name := range []string{r.keyName, r.certName} {
		if err := r.dir.commit(name); err != nil {
			return nil, fmt.Errorf("the renewal is unfinished, run it again: %w", err)
		}
	}
	return leaf, nil
}

func (r renewal) stage(leaf *Leaf, certInfo, keyInfo fs.FileInfo) error {
	cert, key, err := leaf.files(r.certName, r.keyName)
	if err != nil {
		return err
	}
	cert.owner, key.owner = certInfo, keyInfo
	if err := r.dir.stage(cert); err != nil {
		return err
	}
	return r.dir.stage(key)
}

// oldPair reads the certificate to renew and proves that the key beside it is
// its own. If it is not, but a staged certificate is the key's, a renewal died
// between its two renames, and oldPair does the second one.
func (r renewal) oldPair() (cert *x509.Certificate, certInfo, keyInfo fs.FileInfo, err error) {
	keyPEM, keyInfo, err := r.dir.read(r.keyName)
	if err != nil {
		return nil, nil, nil, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%s: %w", r.dir.join(r.keyName), err)
	}
	cert, certInfo, err = r.readCertificate(r.certName)
	if err != nil {
		return nil, nil, nil, err
	}
	if keyMatches(key, cert) {
		return cert, certInfo, keyInfo, nil
	}
	cert, certInfo, err = r.readCertificate(stagedName(r.certName))
	if err != nil || !keyMatches(key, cert) || cert.CheckSignatureFrom(r.ca.cert) != nil {
		return nil, nil, nil, fmt.Errorf("the key %s does not belong to the certificate %s: only the holder of the key can renew; issue a new certificate instead",
			r.dir.join(r.keyName), r.dir.join(r.certName))
	}
	return cert, certInfo, keyInfo, r.dir.commit(r.certName)
}

func (r renewal) readCertificate(name string) (*x509.Certificate, fs.FileInfo, error) {
	data, info, err := r.dir.read(name)
	if err != nil {
		return nil, nil, err
	}
	cert, err := parseCertificate(data)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", r.dir.join(name), err)
	}
	return cert, info, nil
}

// profileOf reads a leaf of this authority back into what it was issued from.
// It refuses what Issue cannot have made, which a renewal would silently change.
// Expiry does not matter.
func (ca *CA) profileOf(cert *x509.Certificate) (profile, error) {
	if err := cert.CheckSignatureFrom(ca.cert); err != nil {
		return profile{}, fmt.Errorf("is not signed by this CA, %s: %w", ca.dir, err)
	}
	if cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature {
		return profile{}, errors.New("is not a leaf certificate")
	}
	id, err := x509svid.IDFromCert(cert)
	if err != nil {
		return profile{}, err
	}
	if len(cert.ExtKeyUsage) != 1 || len(cert.UnknownExtKeyUsage) != 0 {
		return profile{}, errors.New("has not exactly one extended key usage")
	}
	if len(cert.EmailAddresses) != 0 {
		return profile{}, errors.New("has an e-mail address")
	}
	usage := cert.ExtKeyUsage[0]
	if usage != x509.ExtKeyUsageClientAuth && usage != x509.ExtKeyUsageServerAuth {
		return profile{}, errors.New("has an extended key usage that is neither clientAuth nor serverAuth")
	}
	return profile{
		id:    id,
		usage: usage,
		ttl:   cert.NotAfter.Sub(cert.NotBefore) - backdate,
		dns:   cert.DNSNames,
		ips:   cert.IPAddresses,
	}, nil
}
