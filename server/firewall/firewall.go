// Package firewall is FirewallService: the packet filter as the kernel has it, and
// what it comes to.
//
// What the tools print comes from brokerhost. It is read by strict parsers, for
// comments and names in it are written by others: what they do not understand is
// said to be so, and not guessed at.
package firewall

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/internal/hostv1"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/page"
)

// Service is FirewallService.
type Service struct {
	brokerv1.UnimplementedFirewallServiceServer
	read func(ctx context.Context, req *hostv1.ReadRequest) ([]byte, error)
}

// New makes the service; read asks brokerhost for something.
func New(read func(ctx context.Context, req *hostv1.ReadRequest) ([]byte, error)) *Service {
	return &Service{read: read}
}

// Reach works out who can get to which port.
func (s *Service) Reach(ctx context.Context) (*View, error) {
	sources, err := s.gather(ctx)
	if err != nil {
		return nil, err
	}
	return see(sources), nil
}

// see works out what the sources' rules come to, as far as they could be read.
func see(sources []*source) *View {
	v := evaluate(sources)
	for _, s := range sources {
		if s.hole != "" {
			v.holes = append(v.holes, s.hole)
		}
	}
	return v
}

// FirewallStatus implements brokerv1.FirewallServiceServer.
func (s *Service) FirewallStatus(ctx context.Context, req *brokerv1.FirewallStatusRequest) (*brokerv1.FirewallStatusResponse, error) {
	p, err := page.New(req)
	if err == nil {
		err = check(req)
	}
	if err != nil {
		return nil, err
	}
	sources, err := s.gather(ctx)
	if err != nil {
		return nil, err
	}
	items := flat(sources)
	if after := p.After(); after != "" && !strings.HasPrefix(after, items[0].Key[:printLen]) {
		return nil, fault.New(brokerv1.ErrorReason_ERROR_REASON_RULES_CHANGED,
			"the firewall's rules were changed since the page before; begin again without page_token")
	}
	resp := &brokerv1.FirewallStatusResponse{}
	resp.Chains, resp.Summary = see(sources).summary(sources)
	for _, src := range sources {
		resp.Sources = append(resp.Sources, src.pb)
	}
	resp.Rules, resp.NextPageToken = page.Cut(p, items[1:], func(r *brokerv1.FirewallRule) bool { return wanted(req, r) })
	return resp, nil
}

func wanted(req *brokerv1.FirewallStatusRequest, r *brokerv1.FirewallRule) bool {
	return (req.GetBackend() == 0 || req.GetBackend() == r.GetBackend()) && (req.GetFamily() == 0 || req.GetFamily() == r.GetFamily()) &&
		(req.GetTable() == "" || req.GetTable() == r.GetTable()) && (req.GetChain() == "" || req.GetChain() == r.GetChain())
}

func check(req *brokerv1.FirewallStatusRequest) error {
	if _, known := brokerv1.FirewallBackend_name[int32(req.GetBackend())]; !known {
		return fault.Invalid("backend", "give IPTABLES_NFT, IPTABLES_LEGACY, NFTABLES, or nothing for all")
	}
	if _, known := brokerv1.FirewallFamily_name[int32(req.GetFamily())]; !known {
		return fault.Invalid("family", "give IPV4, IPV6, INET, ARP, BRIDGE, NETDEV, or nothing for all")
	}
	for _, f := range []struct{ field, name string }{{"table", req.GetTable()}, {"chain", req.GetChain()}} {
		if len(f.name) > maxName || !utf8.ValidString(f.name) || strings.ContainsFunc(f.name, unicode.IsControl) {
			return fault.Invalid(f.field, fmt.Sprintf("give at most %d bytes of a name, without control characters", maxName))
		}
	}
	return nil
}

// printLen is the length of a rule set's fingerprint, as it stands in keys.
const printLen = 16

// flat are all rules in order. A key is the fingerprint of all rules, without their
// counters, and a number, so that a token tells which rules its page was cut from.
// The first item is none: its key is the fingerprint.
func flat(sources []*source) []page.Item[*brokerv1.FirewallRule] {
	h := sha256.New()
	items := make([]page.Item[*brokerv1.FirewallRule], 1)
	for _, s := range sources {
		for _, t := range s.tables {
			for _, c := range t.chains {
				for _, r := range c.rules {
					fmt.Fprintf(h, "%d %d %q %q %q\n", r.pb.GetBackend(), r.pb.GetFamily(), r.pb.GetTable(), r.pb.GetChain(), r.pb.GetText())
					items = append(items, page.Item[*brokerv1.FirewallRule]{Value: r.pb})
				}
			}
		}
	}
	print := hex.EncodeToString(h.Sum(nil))[:printLen]
	for i := range items {
		items[i].Key = fmt.Sprintf("%s%08d", print, i)
	}
	return items
}
