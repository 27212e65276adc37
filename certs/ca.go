package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	// CertFile and KeyFile are the names of the authority's own files in its
	// directory.
	CertFile = "ca.crt"
	KeyFile  = "ca.key"

	// backdate is how far in the past a validity begins, so that a certificate
	// works at once on a machine whose clock is a little behind.
	backdate = time.Minute

	// minTTL is the resolution of the times in a certificate.
	minTTL = time.Second

	defaultCATTL      = 10 * 365 * 24 * time.Hour
	defaultCommonName = "hermes-broker local CA"
	maxCommonName     = 64  // RFC 5280, ub-common-name
	maxTrustDomain    = 255 // SPIFFE-ID, section 2.3
)

// Options describe a new authority.
type Options struct {
	// TrustDomain is the SPIFFE trust domain of every certificate. Required.
	TrustDomain spiffeid.TrustDomain
	// TTL is how long the authority is valid. Default 10 years of 365 days.
	TTL time.Duration
	// CommonName names the authority to people, in at most 64 characters.
	// Default "hermes-broker local CA".
	CommonName string
	// Now is the clock of the new authority. Default time.Now.
	Now func() time.Time
}

// CA is a certificate authority for one trust domain. It is safe for use by
// several goroutines.
type CA struct {
	dir         string
	cert        *x509.Certificate
	key         crypto.Signer
	trustDomain spiffeid.TrustDomain
	now         func() time.Time
}

// Certificate returns the authority's certificate: what a verifier trusts.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// TrustDomain returns the trust domain of every certificate it issues.
func (ca *CA) TrustDomain() spiffeid.TrustDomain { return ca.trustDomain }

// Dir returns the directory that holds [CertFile] and [KeyFile].
func (ca *CA) Dir() string { return ca.dir }

// Init makes a new authority in path: [CertFile] (0644) and [KeyFile] (0600).
// The directory is created 0700 if it is missing; its parent must exist. An
// existing one must not be writable by other users. Init never overwrites: if
// either file is there, in any form, the error matches [fs.ErrExist].
func Init(path string, o Options) (*CA, error) {
	ca, err := initialize(path, o)
	if err != nil {
		return nil, fmt.Errorf("create CA: %w", err)
	}
	return ca, nil
}

func initialize(path string, o Options) (*CA, error) {
	if o.TTL == 0 {
		o.TTL = defaultCATTL
	}
	if o.CommonName == "" {
		o.CommonName = defaultCommonName
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := o.validate(); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert, err := selfSign(key, o)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}

	d, err := makeDir(path)
	if err != nil {
		return nil, err
	}
	defer d.close()
	if err := d.checkTamperProof(); err != nil {
		return nil, err
	}
	// The key comes first, so a certificate without a key is never the trace of
	// a crash here: it is a key that somebody keeps elsewhere, or has lost.
	err = d.create(
		file{name: KeyFile, data: keyPEM, perm: keyPerm},
		file{name: CertFile, data: encodeCertificate(cert), perm: certPerm},
	)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%w: to keep this CA, use it as it is; to replace it, move %s and %s out of %s and issue every certificate again; a %s alone is left from a creation that was cut short",
			err, CertFile, KeyFile, path, KeyFile)
	}
	if err != nil {
		return nil, err
	}
	return &CA{dir: path, cert: cert, key: key, trustDomain: o.TrustDomain, now: o.Now}, nil
}

func (o Options) validate() error {
	switch {
	case o.TrustDomain.IsZero():
		return errors.New("no trust domain given")
	case len(o.TrustDomain.Name()) > maxTrustDomain:
		return fmt.Errorf("the trust domain is longer than %d bytes", maxTrustDomain)
	case o.TTL < minTTL:
		return fmt.Errorf("a TTL of %v is too short: it must be at least %v", o.TTL, minTTL)
	case !utf8.ValidString(o.CommonName) || utf8.RuneCountInString(o.CommonName) > maxCommonName:
		return fmt.Errorf("the common name is longer than %d characters, or not UTF-8", maxCommonName)
	}
	for _, r := range o.CommonName {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("the common name %q holds a character that cannot be printed", o.CommonName)
		}
	}
	return nil
}

// selfSign makes an X509-SVID signing certificate.
//
// It carries no name constraints. A URI constraint would have to be critical,
// and several verifiers (rustls among them) then refuse every certificate of
// the authority, because they implement no URI constraints; the X509-SVID
// specification, section 4.2, urges caution for that reason. It would gain
// little: a SPIFFE verifier keeps one bundle for each trust domain and so never
// accepts this authority for another. DNS names cannot be constrained here,
// because nobody knows yet under which names the servers will be reached.
func selfSign(key *ecdsa.PrivateKey, o Options) (*x509.Certificate, error) {
	now := o.Now().UTC().Truncate(time.Second)
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	keyID, err := keyIdentifier(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: o.CommonName},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(o.TTL),
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true, // it signs leaves, never another authority
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs:                  uriSAN(o.TrustDomain.ID()),
		SubjectKeyId:          keyID,
		AuthorityKeyId:        keyID,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Load opens the authority in path. It refuses a key that other users can read,
// a directory in which they can replace it, a key that is not the
// certificate's, a certificate that is not an authority of one trust domain, and
// one that is expired or not yet valid.
func Load(path string) (*CA, error) { return load(path, time.Now) }

func load(path string, now func() time.Time) (*CA, error) {
	ca, err := loadFiles(path, now)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	return ca, nil
}

func loadFiles(path string, now func() time.Time) (*CA, error) {
	d, err := openDir(path)
	if err != nil {
		return nil, err
	}
	defer d.close()
	if err := d.checkTamperProof(); err != nil {
		return nil, err
	}
	certPEM, _, err := d.read(CertFile)
	if err != nil {
		return nil, err
	}
	cert, err := parseCertificate(certPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.join(CertFile), err)
	}
	keyPEM, info, err := d.read(KeyFile)
	if err != nil {
		return nil, err
	}
	if err := checkPrivate(d.join(KeyFile), info); err != nil {
		return nil, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.join(KeyFile), err)
	}
	if !keyMatches(key, cert) {
		return nil, fmt.Errorf("the key %s does not belong to the certificate %s: restore both from one backup", d.join(KeyFile), d.join(CertFile))
	}
	trustDomain, err := signingTrustDomain(cert)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.join(CertFile), err)
	}
	ca := &CA{dir: path, cert: cert, key: key, trustDomain: trustDomain, now: now}
	if err := ca.checkValid(now()); err != nil {
		return nil, err
	}
	return ca, nil
}

// signingTrustDomain says for which trust domain cert is a self-signed X509-SVID
// signing certificate.
func signingTrustDomain(cert *x509.Certificate) (spiffeid.TrustDomain, error) {
	if !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return spiffeid.TrustDomain{}, errors.New("is not the certificate of an authority")
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return spiffeid.TrustDomain{}, fmt.Errorf("is not self-signed: %w", err)
	}
	id, err := x509svid.IDFromCert(cert)
	if err != nil {
		return spiffeid.TrustDomain{}, err
	}
	if id.Path() != "" {
		return spiffeid.TrustDomain{}, fmt.Errorf("is for %s: an authority's SPIFFE ID has no path", id)
	}
	return id.TrustDomain(), nil
}

func (ca *CA) checkValid(now time.Time) error {
	if now.Before(ca.cert.NotBefore) {
		return fmt.Errorf("the CA is not valid before %s: check the clock", timestamp(ca.cert.NotBefore))
	}
	if now.After(ca.cert.NotAfter) {
		return fmt.Errorf("the CA expired at %s: move %s and %s out of %s, create a new CA, and issue every certificate again",
			timestamp(ca.cert.NotAfter), CertFile, KeyFile, ca.dir)
	}
	return nil
}

func newSerial() (*big.Int, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	return new(big.Int).SetBytes(b[:]), nil
}

// keyIdentifier is method 1 of RFC 7093: the leftmost 160 bits of the SHA-256 of
// the public key.
func keyIdentifier(public *ecdsa.PublicKey) ([]byte, error) {
	point, err := public.Bytes()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(point)
	return sum[:20], nil
}

func timestamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
