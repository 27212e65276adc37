package certs

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/sys/unix"
)

// Info is what a certificate says, for people to read. Every string is safe to
// print on a terminal: what a stranger's certificate may hold of control and
// direction characters is escaped.
type Info struct {
	ID        string   // the SPIFFE ID, or "" if there is not exactly one valid
	CA        bool     // an authority, not a leaf
	Usage     []string // extended key usages: "clientAuth", "serverAuth", ...
	Serial    string   // lower-case hex
	NotBefore time.Time
	NotAfter  time.Time
	Remaining time.Duration // until NotAfter; negative once expired
	Issuer    string        // distinguished name
	DNS       []string
	IPs       []string
	KeyType   string   // "ECDSA P-256", ...
	SHA256    string   // fingerprint of the DER form, lower-case hex
	Problems  []string // what is wrong or soon will be; empty if nothing is
}

// Show describes the certificate in the file path as of now, as [Describe] does,
// and looks at the key beside it (name.key for name.crt), if there is one: a
// key that others can read or that belongs to another certificate is a problem.
// A key that the caller may not read is not compared. Symbolic links are
// followed, since nothing is decided here.
func Show(path string) (Info, error) {
	data, err := readPath(path)
	if err != nil {
		return Info{}, fmt.Errorf("show certificate: %w", err)
	}
	info, err := Describe(data, time.Now())
	if err != nil {
		return Info{}, fmt.Errorf("show certificate %s: %w", path, err)
	}
	if ext := filepath.Ext(path); ext != ".key" {
		info.Problems = append(info.Problems, keyProblems(strings.TrimSuffix(path, ext)+".key", data)...)
	}
	return info, nil
}

func readPath(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, _, err := readRegular(f)
	return data, err
}

func keyProblems(path string, certPEM []byte) []string {
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	var problems []string
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		problems = append(problems, printable(fmt.Sprintf("the private key %s is open to other users (mode %04o): run chmod 600 on it", path, mode)))
	}
	data, err := readPath(path)
	if err != nil {
		return problems
	}
	cert, _, err := firstCertificate(certPEM)
	if err != nil {
		return problems
	}
	switch key, err := parseKey(data); {
	case err != nil:
		problems = append(problems, printable(path)+" "+err.Error())
	case !keyMatches(key, cert):
		problems = append(problems, printable(fmt.Sprintf("the private key %s belongs to another certificate", path)))
	}
	return problems
}

// Describe reads the first certificate in PEM data and judges it as of now.
// Data without a certificate is an error; a bad certificate is not: what is
// wrong with it is in [Info.Problems].
func Describe(data []byte, now time.Time) (Info, error) {
	cert, others, err := firstCertificate(data)
	if err != nil {
		return Info{}, err
	}
	sum := sha256.Sum256(cert.Raw)
	info := Info{
		CA:        cert.IsCA,
		Usage:     usages(cert),
		Serial:    cert.SerialNumber.Text(16),
		NotBefore: cert.NotBefore,
		NotAfter:  cert.NotAfter,
		Remaining: cert.NotAfter.Sub(now),
		Issuer:    printable(cert.Issuer.String()),
		KeyType:   keyType(cert),
		SHA256:    hex.EncodeToString(sum[:]),
	}
	if id, err := x509svid.IDFromCert(cert); err == nil {
		info.ID = printable(id.String())
	}
	for _, name := range cert.DNSNames {
		info.DNS = append(info.DNS, printable(name))
	}
	for _, ip := range cert.IPAddresses {
		info.IPs = append(info.IPs, ip.String())
	}
	info.Problems = append(problems(cert, now), others...)
	return info, nil
}

// firstCertificate also says what else is in the file that does not belong there.
func firstCertificate(data []byte) (*x509.Certificate, []string, error) {
	var (
		cert   *x509.Certificate
		others []string
	)
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		switch {
		case block.Type == certificateBlock && cert == nil:
			parsed, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, nil, errors.New("the certificate cannot be parsed: " + printable(err.Error()))
			}
			cert = parsed
		case strings.HasSuffix(block.Type, keyBlock):
			others = append(others, "the file also holds a private key: keep it in a file of its own, mode 0600")
		}
	}
	if cert == nil {
		return nil, nil, errors.New("no PEM certificate in it")
	}
	return cert, others, nil
}

func usages(cert *x509.Certificate) []string {
	var names []string
	for _, usage := range cert.ExtKeyUsage {
		switch usage {
		case x509.ExtKeyUsageClientAuth:
			names = append(names, "clientAuth")
		case x509.ExtKeyUsageServerAuth:
			names = append(names, "serverAuth")
		case x509.ExtKeyUsageAny:
			names = append(names, "any")
		default:
			names = append(names, fmt.Sprintf("other(%d)", usage))
		}
	}
	for _, oid := range cert.UnknownExtKeyUsage {
		names = append(names, oid.String())
	}
	return names
}

func keyType(cert *x509.Certificate) string {
	switch key := cert.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + key.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", key.N.BitLen())
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return "unknown"
}

// printable escapes what is not a printable character. Control characters could
// repaint a terminal, and direction marks make a name read as another.
func printable(s string) string {
	quoted := strconv.Quote(s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}
