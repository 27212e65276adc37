package firewall

import (
	"context"
	"sync"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/internal/hostv1"
	"github.com/gortium/hermes-broker/server/fault"
)

// asked is what brokerhost is asked for, in the order in which it is shown.
var asked = []struct {
	tool    string
	backend brokerv1.FirewallBackend
	family  brokerv1.FirewallFamily
	req     *hostv1.ReadRequest
}{
	{"iptables-nft-save", ofNft, familyIPv4, save(false, false)},
	{"ip6tables-nft-save", ofNft, familyIPv6, save(true, false)},
	{"iptables-legacy-save", ofLegacy, familyIPv4, save(false, true)},
	{"ip6tables-legacy-save", ofLegacy, familyIPv6, save(true, true)},
	{"nft", ofNative, 0, &hostv1.ReadRequest{What: &hostv1.ReadRequest_NftRuleset{NftRuleset: &hostv1.NftRuleset{}}}},
}

func save(ipv6, legacy bool) *hostv1.ReadRequest {
	return &hostv1.ReadRequest{What: &hostv1.ReadRequest_IptablesSave{IptablesSave: &hostv1.IptablesSave{Ipv6: ipv6, Legacy: legacy}}}
}

const atOnce = 2

// gather asks for all there is. A tool that is missing or fails leaves a gap that
// its source tells of; what else goes wrong fails the whole.
func (s *Service) gather(ctx context.Context) ([]*source, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sources, errs := make([]*source, len(asked)), make([]error, len(asked))
	failed := make(chan error, len(asked))
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i := range asked {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			var data []byte
			if data, errs[i] = s.read(ctx, asked[i].req); errs[i] == nil {
				sources[i] = parse(i, data)
			} else if sources[i] = gap(i, errs[i]); sources[i] == nil {
				failed <- errs[i]
				cancel()
			}
		})
	}
	wg.Wait()
	select {
	case err := <-failed: // The first; the others may come of its cancelling them.
		return nil, err
	default:
	}
	gaps := 0
	for _, src := range sources {
		if src.pb.GetState() == missing {
			gaps++
		}
	}
	if gaps == len(asked) {
		return nil, fault.New(brokerv1.ErrorReason_ERROR_REASON_TOOL_MISSING,
			"this host has none of the tools that print its packet filter, or none that the broker may use; the operator finds why with `brokerhost check`")
	}
	compare(sources)
	return sources, nil
}

func newSource(i int) *source {
	return &source{pb: &brokerv1.FirewallSource{Backend: asked[i].backend, Family: asked[i].family, State: empty}}
}

func parse(i int, data []byte) *source {
	s := newSource(i)
	if asked[i].backend == ofNative {
		s.parseNft(asked[i].tool, data)
	} else {
		s.parseIptables(asked[i].tool, data)
	}
	return s
}

// gap is the source whose tool gave nothing; nil for an error that is not the tool's.
func gap(i int, err error) *source {
	s := newSource(i)
	tool := asked[i].tool
	switch fault.Reason(err) {
	case fault.Name(brokerv1.ErrorReason_ERROR_REASON_TOOL_MISSING):
		s.pb.State, s.pb.Problem = missing, "the host has no "+tool+" that the broker may use"
	case fault.Name(brokerv1.ErrorReason_ERROR_REASON_TOOL_FAILED):
		s.pb.State, s.pb.Problem = unreadable, tool+" failed"
	case fault.Name(brokerv1.ErrorReason_ERROR_REASON_TOOL_TIMEOUT):
		s.pb.State, s.pb.Problem = unreadable, tool+" took too long"
	case fault.Name(brokerv1.ErrorReason_ERROR_REASON_TOOL_OUTPUT_TOO_LARGE):
		s.pb.State, s.pb.Problem = unreadable, tool+" wrote more than the broker takes"
	default:
		return nil
	}
	s.hole = s.pb.GetProblem()
	return s
}

// compare puts the sources side by side. nft prints the tables of iptables over
// nf_tables too, but what only iptables understands it cannot show. Nothing in its
// JSON says whose a table is: names prove nothing, and a rule may have no part that
// is iptables' own. So a table of nft's is left out when the other tool showed it,
// whole: under the same family and name, without having said that there is more,
// with as many rules in each of nft's chains, and with the same hooks and policies.
// In every other case it is shown, at worst twice, which changes nothing of what
// the rules come to: a packet that passes a chain passes it again.
//
// For the same reason nothing is hidden by a missing or failed iptables-nft-save
// when nft could be read.
func compare(sources []*source) {
	native := sources[len(sources)-1]
	if native.pb.GetState() == missing || native.hole != "" {
		return
	}
	kept := native.tables[:0]
	for _, t := range native.tables {
		if !shownBy(sources, t) {
			kept = append(kept, t)
			continue
		}
		for _, c := range t.chains {
			native.rules -= len(c.rules)
			native.chains--
		}
	}
	clear(native.tables[len(kept):])
	native.tables = kept
	native.count()
	for _, s := range sources {
		if s.pb.GetBackend() == ofNft {
			s.hole = ""
		}
	}
}

func shownBy(sources []*source, t *table) bool {
	for _, s := range sources {
		if s.pb.GetBackend() != ofNft || s.pb.GetFamily() != t.family {
			continue
		}
		for _, u := range s.tables {
			if u.name == t.name {
				return !u.lacking && !s.full && u.has(t)
			}
		}
	}
	return false
}

// has reports whether a table has what another one has.
func (t *table) has(other *table) bool {
	for _, c := range other.chains {
		mine := t.byName[c.pb.GetName()]
		if mine == nil || len(mine.rules) != len(c.rules) || mine.pb.GetHook() != c.pb.GetHook() || mine.pb.GetPolicy() != c.pb.GetPolicy() {
			return false
		}
	}
	for _, c := range t.chains { // Chains that are not there at all are printed as empty.
		if other.byName[c.pb.GetName()] == nil && len(c.rules) > 0 {
			return false
		}
	}
	return true
}
