package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// BundleFile is the name, beside every leaf, of the authority's certificate:
// what the holder of the leaf trusts.
const BundleFile = "bundle.crt"

// Leaf is a certificate with its private key.
type Leaf struct {
	Certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	issuer      *x509.Certificate
}

// TLS returns the pair for use in a [tls.Config]. The authority's certificate is
// not in it: the peer has its own copy, or it must not trust the leaf.
func (l *Leaf) TLS() tls.Certificate {
	return tls.Certificate{
		Certificate: [][]byte{l.Certificate.Raw},
		PrivateKey:  l.key,
		Leaf:        l.Certificate,
	}
}

// Write puts name.crt (0644), name.key (PKCS#8, 0600) and [BundleFile] (0644)
// into the directory path, all of them or none. The directory is created 0700
// if it is missing; its parent must exist. Files belong to the calling process.
//
// Write never overwrites: if one of the first two exists, or the bundle exists
// and is another authority's, the error matches [fs.ErrExist]. To replace a
// certificate use [CA.Renew]. After a crash there may be a key without a
// certificate; Write then says that the key exists, and it is safe to remove,
// because its certificate was never handed out.
func (l *Leaf) Write(path, name string) error {
	if err := l.write(path, name); err != nil {
		return fmt.Errorf("write certificate: %w", err)
	}
	return nil
}

func (l *Leaf) write(path, name string) error {
	if err := checkFileName(name); err != nil {
		return err
	}
	cert, key, err := l.files(name+".crt", name+".key")
	if err != nil {
		return err
	}
	d, err := makeDir(path)
	if err != nil {
		return err
	}
	defer d.close()
	files := []file{key, cert}
	bundle := file{name: BundleFile, data: encodeCertificate(l.issuer), perm: certPerm}
	switch data, _, err := d.read(BundleFile); {
	case errors.Is(err, fs.ErrNotExist):
		files = append([]file{bundle}, files...)
	case err != nil:
		return err
	case !bytes.Equal(data, bundle.data):
		return fmt.Errorf("%w: it is another CA's; use another directory, or move it away if that CA is gone",
			&fs.PathError{Op: "create", Path: d.join(BundleFile), Err: fs.ErrExist})
	}
	if err := d.create(files...); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: renew the certificate instead, or use another name", err)
	} else if err != nil {
		return err
	}
	return nil
}

func (l *Leaf) files(certName, keyName string) (cert, key file, err error) {
	keyPEM, err := encodeKey(l.key)
	if err != nil {
		return file{}, file{}, err
	}
	return file{name: certName, data: encodeCertificate(l.Certificate), perm: certPerm},
		file{name: keyName, data: keyPEM, perm: keyPerm}, nil
}

// checkFileName keeps a name inside its directory, visible, and apart from the
// bundle and the authority's own files.
func checkFileName(name string) error {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	switch {
	case name == "" || len(name) > 64 || name[0] == '.' || strings.Trim(name, allowed) != "":
		return fmt.Errorf("%q is not a usable file name: use 1 to 64 letters, digits, '-', '_' and '.', not beginning with '.'", name)
	case name == "bundle" || name == "ca":
		return fmt.Errorf("the file name %q is reserved for the CA's certificate", name)
	}
	return nil
}
