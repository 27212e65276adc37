package certs

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

func problems(cert *x509.Certificate, now time.Time) []string {
	list := append(validityProblems(cert, now), idProblems(cert)...)
	if cert.IsCA {
		return append(list, authorityProblems(cert)...)
	}
	return append(list, leafProblems(cert)...)
}

func validityProblems(cert *x509.Certificate, now time.Time) []string {
	left := cert.NotAfter.Sub(now)
	switch {
	case now.Before(cert.NotBefore):
		return []string{fmt.Sprintf("not valid before %s", timestamp(cert.NotBefore))}
	case left < 0:
		return []string{fmt.Sprintf("expired at %s", timestamp(cert.NotAfter))}
	case left < cert.NotAfter.Sub(cert.NotBefore)/3:
		return []string{fmt.Sprintf("expires in %v, with less than a third of its life left: renew it", left.Round(time.Second))}
	}
	return nil
}

func idProblems(cert *x509.Certificate) []string {
	if n := len(cert.URIs); n != 1 {
		return []string{fmt.Sprintf("has %d URI SANs, must have exactly 1", n)}
	}
	id, err := x509svid.IDFromCert(cert)
	switch {
	case err != nil:
		return []string{"its URI SAN is not a SPIFFE ID: " + printable(err.Error())}
	case cert.IsCA && id.Path() != "":
		return []string{"the SPIFFE ID of an authority must have no path"}
	case !cert.IsCA && id.Path() == "":
		return []string{"the SPIFFE ID has no path: it names the whole trust domain"}
	}
	return nil
}

func authorityProblems(cert *x509.Certificate) []string {
	if cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return []string{"is an authority without the key usage keyCertSign"}
	}
	return nil
}

func leafProblems(cert *x509.Certificate) []string {
	var list []string
	if cert.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		list = append(list, "lacks the key usage digitalSignature")
	}
	if cert.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		list = append(list, "is a leaf with the key usage keyCertSign or cRLSign")
	}
	switch n := len(cert.ExtKeyUsage) + len(cert.UnknownExtKeyUsage); {
	case n == 0:
		list = append(list, "has no extended key usage: it would pass for any purpose")
	case n > 1:
		list = append(list, fmt.Sprintf("has %d extended key usages, must have exactly 1", n))
	case len(cert.ExtKeyUsage) == 0 ||
		cert.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth && cert.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth:
		list = append(list, "its extended key usage is neither clientAuth nor serverAuth")
	case cert.ExtKeyUsage[0] == x509.ExtKeyUsageClientAuth && len(cert.DNSNames)+len(cert.IPAddresses) > 0:
		list = append(list, "is for clients but has DNS names or IP addresses")
	}
	return list
}
