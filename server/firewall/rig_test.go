package firewall

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/internal/hostv1"
)

// said is what the tools say: text, or an error.
type said struct {
	nft4, nft6, legacy4, legacy6, native any
}

const noRules = `{"nftables": []}`

// service is a service on a host whose tools say so; what is not told is empty.
func service(s said) *Service {
	return New(func(_ context.Context, req *hostv1.ReadRequest) ([]byte, error) {
		var v any
		switch save := req.GetIptablesSave(); {
		case req.GetNftRuleset() != nil:
			if v = s.native; v == nil {
				v = noRules
			}
		case save == nil:
			return nil, fmt.Errorf("asked for %v", req)
		case save.GetLegacy():
			if v = s.legacy4; save.GetIpv6() {
				v = s.legacy6
			}
		default:
			if v = s.nft4; save.GetIpv6() {
				v = s.nft6
			}
		}
		switch v := v.(type) {
		case error:
			return nil, v
		case string:
			return []byte(v), nil
		}
		return nil, nil
	})
}

func status(t testing.TB, s said) *brokerv1.FirewallStatusResponse {
	t.Helper()
	resp, err := service(s).FirewallStatus(t.Context(), &brokerv1.FirewallStatusRequest{PageSize: 500})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func recorded(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// openPorts writes the summary's ranges, one a line.
func openPorts(sum *brokerv1.FirewallSummary) string {
	var b strings.Builder
	for _, o := range sum.GetOpenPorts() {
		fmt.Fprintf(&b, "%s %s %d-%d %s", strings.TrimPrefix(o.GetFamily().String(), "FIREWALL_FAMILY_"), o.GetProtocol(), o.GetFirstPort(), o.GetLastPort(),
			strings.TrimPrefix(o.GetReach().String(), "REACH_"))
		if r := o.GetRule(); r != nil {
			fmt.Fprintf(&b, " %s/%s/%d", r.GetTable(), r.GetChain(), r.GetNumber())
		}
		if o.GetForwardedTo() != "" {
			fmt.Fprintf(&b, " to %s", o.GetForwardedTo())
		}
		b.WriteByte('\n')
	}
	if sum.GetUncertain() != "" {
		fmt.Fprintf(&b, "uncertain: %s\n", sum.GetUncertain())
	}
	return b.String()
}

// fields writes what is known of a rule beside its text.
func fields(r *brokerv1.FirewallRule) string {
	var b strings.Builder
	put := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s=%s ", name, value)
		}
	}
	put("p", r.GetProtocol())
	put("s", r.GetSource())
	put("d", r.GetDestination())
	put("i", r.GetInInterface())
	put("o", r.GetOutInterface())
	put("sport", r.GetSourcePorts())
	put("dport", r.GetDestinationPorts())
	for _, m := range r.GetMatches() {
		fmt.Fprintf(&b, "%s{%s} ", m.GetName(), m.GetText())
	}
	put(map[bool]string{false: "j", true: "g"}[r.GetGotoTarget()], r.GetTarget())
	put("opts", r.GetTargetOptions())
	put("comment", r.GetComment())
	return cmp.Or(strings.TrimSuffix(b.String(), " "), "nothing")
}
