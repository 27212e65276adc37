package certs

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestIssue(t *testing.T) {
	ca, _ := newCA(t)
	for role, want := range map[Role]struct {
		usage x509.ExtKeyUsage
		ttl   time.Duration
	}{
		Agent:    {x509.ExtKeyUsageClientAuth, 24 * time.Hour},
		Operator: {x509.ExtKeyUsageClientAuth, 30 * 24 * time.Hour},
		Server:   {x509.ExtKeyUsageServerAuth, 90 * 24 * time.Hour},
	} {
		before := time.Now().Truncate(time.Second)
		c := issue(t, ca, Request{ID: testID("/" + string(role)), Role: role}).Certificate
		if err := c.CheckSignatureFrom(ca.Certificate()); err != nil {
			t.Errorf("%s: %v", role, err)
		}
		if c.NotAfter.Before(before.Add(want.ttl)) || c.NotAfter.After(time.Now().Add(want.ttl)) {
			t.Errorf("%s: expires in %v, want %v", role, time.Until(c.NotAfter), want.ttl)
		}
		if c.NotAfter.Sub(c.NotBefore) != want.ttl+time.Minute {
			t.Errorf("%s: is not back-dated by a minute: %v to %v", role, c.NotBefore, c.NotAfter)
		}
		if !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{want.usage}) || len(c.UnknownExtKeyUsage) != 0 {
			t.Errorf("%s: usages %v", role, c.ExtKeyUsage)
		}
		if c.KeyUsage != x509.KeyUsageDigitalSignature || c.IsCA || !c.BasicConstraintsValid {
			t.Errorf("%s: key usage %b, CA %v", role, c.KeyUsage, c.IsCA)
		}
		if n := c.SerialNumber.BitLen(); n < 64 || n > 128 {
			t.Errorf("%s: serial of %d bits", role, n)
		}
		if len(c.SubjectKeyId) != 20 || !bytes.Equal(c.AuthorityKeyId, ca.Certificate().SubjectKeyId) {
			t.Errorf("%s: key identifiers %x and %x", role, c.SubjectKeyId, c.AuthorityKeyId)
		}
	}
}

func TestIssueRefuses(t *testing.T) {
	ca, _ := newCA(t)
	hermes := testID("/agent/hermes")
	other := spiffeid.RequireFromString("spiffe://other.example/agent/hermes")
	sub := spiffeid.RequireFromString("spiffe://sub.home.example/agent/hermes")
	ip := net.IPv4(10, 0, 0, 1)
	for name, r := range map[string]Request{
		"no ID":                {Role: Agent},
		"no path":              {ID: home.ID(), Role: Agent},
		"other trust domain":   {ID: other, Role: Agent},
		"domain below ours":    {ID: sub, Role: Agent},
		"long ID":              {ID: testID("/" + strings.Repeat("x", 2048)), Role: Agent},
		"no role":              {ID: hermes},
		"unknown role":         {ID: hermes, Role: "root"},
		"negative TTL":         {ID: hermes, Role: Agent, TTL: -time.Hour},
		"TTL below a second":   {ID: hermes, Role: Agent, TTL: time.Nanosecond},
		"agent TTL too long":   {ID: hermes, Role: Agent, TTL: 7*day + 1},
		"operator too long":    {ID: hermes, Role: Operator, TTL: 90*day + 1},
		"server too long":      {ID: hermes, Role: Server, TTL: 365*day + 1},
		"agent with DNS":       {ID: hermes, Role: Agent, DNS: []string{"broker"}},
		"agent with IP":        {ID: hermes, Role: Agent, IPs: []net.IP{ip}},
		"operator with DNS":    {ID: hermes, Role: Operator, DNS: []string{"broker"}},
		"nil IP":               {ID: hermes, Role: Server, IPs: []net.IP{nil}},
		"IP of wrong length":   {ID: hermes, Role: Server, IPs: []net.IP{{1, 2, 3}}},
		"unspecified IP":       {ID: hermes, Role: Server, IPs: []net.IP{net.IPv4zero}},
		"multicast IP":         {ID: hermes, Role: Server, IPs: []net.IP{net.IPv4allsys}},
		"empty DNS":            {ID: hermes, Role: Server, DNS: []string{""}},
		"wildcard DNS":         {ID: hermes, Role: Server, DNS: []string{"*.home"}},
		"DNS is an IP":         {ID: hermes, Role: Server, DNS: []string{"10.0.0.1"}},
		"DNS with port":        {ID: hermes, Role: Server, DNS: []string{"broker:443"}},
		"DNS with space":       {ID: hermes, Role: Server, DNS: []string{"bro ker"}},
		"DNS with NUL":         {ID: hermes, Role: Server, DNS: []string{"broker\x00.evil"}},
		"DNS with underscore":  {ID: hermes, Role: Server, DNS: []string{"my_broker"}},
		"DNS not ASCII":        {ID: hermes, Role: Server, DNS: []string{"bröker"}},
		"DNS empty label":      {ID: hermes, Role: Server, DNS: []string{"broker..home"}},
		"DNS trailing dot":     {ID: hermes, Role: Server, DNS: []string{"broker."}},
		"DNS leading hyphen":   {ID: hermes, Role: Server, DNS: []string{"-broker"}},
		"DNS trailing hyphen":  {ID: hermes, Role: Server, DNS: []string{"broker-.home"}},
		"DNS label too long":   {ID: hermes, Role: Server, DNS: []string{strings.Repeat("x", 64)}},
		"DNS too long":         {ID: hermes, Role: Server, DNS: []string{strings.Repeat("x.", 127)}},
		"one bad DNS of three": {ID: hermes, Role: Server, DNS: []string{"a", "b", "c d"}},
	} {
		if leaf, err := ca.Issue(r); err == nil {
			t.Errorf("%s: issued %v until %v", name, leaf.Certificate.URIs, leaf.Certificate.NotAfter)
		}
	}
}

// TestIssueProperty: whatever valid request comes, the leaf says what was asked
// for, in exactly one URI SAN and exactly one usage, and nothing else.
func TestIssueProperty(t *testing.T) {
	ca, _ := newCA(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	serials := map[string]bool{}
	for range 300 {
		r := randomRequest(rng)
		leaf, err := ca.Issue(r)
		if err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
		c := leaf.Certificate
		if len(c.URIs) != 1 || c.URIs[0].String() != r.ID.String() {
			t.Fatalf("%+v: URI SANs %v", r, c.URIs)
		}
		want := x509.ExtKeyUsageClientAuth
		if r.Role == Server {
			want = x509.ExtKeyUsageServerAuth
		}
		if !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{want}) || len(c.UnknownExtKeyUsage) != 0 {
			t.Fatalf("%+v: usages %v", r, c.ExtKeyUsage)
		}
		if !slices.Equal(c.DNSNames, r.DNS) || !slices.EqualFunc(c.IPAddresses, r.IPs, net.IP.Equal) || c.EmailAddresses != nil {
			t.Fatalf("%+v: names %v %v %v", r, c.DNSNames, c.IPAddresses, c.EmailAddresses)
		}
		if c.NotAfter.After(ca.Certificate().NotAfter) || r.TTL != 0 && c.NotAfter.Sub(c.NotBefore) != r.TTL.Truncate(time.Second)+backdate {
			t.Fatalf("%+v: valid from %v to %v", r, c.NotBefore, c.NotAfter)
		}
		if serials[c.SerialNumber.String()] {
			t.Fatalf("%+v: serial %v twice", r, c.SerialNumber)
		}
		serials[c.SerialNumber.String()] = true
	}
}

func randomRequest(rng *rand.Rand) Request {
	const alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	word := func(chars string) string {
		b := make([]byte, 1+rng.IntN(20))
		for i := range b {
			b[i] = chars[rng.IntN(len(chars))]
		}
		return string(b)
	}
	var segments []string
	for range 1 + rng.IntN(5) {
		segments = append(segments, word(alphabet+"-_")+word(alphabet+".-_"))
	}
	r := Request{
		ID:   spiffeid.RequireFromSegments(home, segments...),
		Role: []Role{Agent, Operator, Server}[rng.IntN(3)],
	}
	if rng.IntN(2) == 0 {
		r.TTL = time.Second + time.Duration(rng.Int64N(int64(7*day-time.Second)))
	}
	if r.Role == Server {
		for range rng.IntN(4) {
			r.DNS = append(r.DNS, fmt.Sprintf("%s.%s-%s", word(alphabet), word(alphabet), word(alphabet)))
			r.IPs = append(r.IPs, net.IPv4(10, byte(rng.IntN(256)), byte(rng.IntN(256)), byte(rng.IntN(256))))
		}
	}
	return r
}
