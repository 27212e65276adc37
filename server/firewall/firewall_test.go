package firewall

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	gstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/internal/hostv1"
	"github.com/gortium/hermes-broker/server/fault"
)

func toolFault(reason brokerv1.ErrorReason) error { return fault.New(reason, "x") }

var (
	errMissing = toolFault(brokerv1.ErrorReason_ERROR_REASON_TOOL_MISSING)
	errFailed  = toolFault(brokerv1.ErrorReason_ERROR_REASON_TOOL_FAILED)
)

func states4(resp *brokerv1.FirewallStatusResponse) string {
	var all []string
	for _, s := range resp.GetSources() {
		all = append(all, strings.ToLower(strings.TrimPrefix(s.GetState().String(), "FIREWALL_SOURCE_STATE_")))
	}
	return strings.Join(all, " ")
}

// TestSources: what came of asking a tool is told, and what it means for the whole.
func TestSources(t *testing.T) {
	docker, dockerNft := recorded(t, "docker-nft.txt"), recorded(t, "docker-nft.json")
	for name, c := range map[string]struct {
		said   said
		states string
		native int32  // Rules of nftables.
		unsure string // In what is uncertain; "" means nothing is.
	}{
		"nothing":                 {said{}, "empty empty empty empty empty", 0, ""},
		"iptables over nf_tables": {said{nft4: docker, native: dockerNft}, "active empty empty empty empty", 0, ""},
		"two of them":             {said{nft4: docker, native: dockerNft, legacy4: recorded(t, "ufw-legacy.txt")}, "active empty active empty empty", 0, ""},
		"no iptables-nft-save":    {said{nft4: errMissing, native: dockerNft}, "missing empty empty empty active", 33, ""},
		"it failed":               {said{nft4: errFailed, native: dockerNft}, "unreadable empty empty empty active", 33, ""},
		"no nft":                  {said{nft4: docker, native: errMissing}, "active empty empty empty missing", 0, "the host has no nft "},
		"neither":                 {said{nft4: errMissing, native: errFailed}, "missing empty empty empty unreadable", 0, "iptables-nft-save that"},
		"legacy failed":           {said{legacy6: errFailed}, "empty empty empty unreadable empty", 0, "ip6tables-legacy-save failed"},
		"legacy timed out":        {said{legacy6: toolFault(brokerv1.ErrorReason_ERROR_REASON_TOOL_TIMEOUT)}, "empty empty empty unreadable empty", 0, "took too long"},
		"legacy told too much":    {said{legacy6: toolFault(brokerv1.ErrorReason_ERROR_REASON_TOOL_OUTPUT_TOO_LARGE)}, "empty empty empty unreadable empty", 0, "more than the broker takes"},
		"nft has a rule more":     {said{nft4: strings.Replace(docker, "[0:0] -A DOCKER-USER -j RETURN\n", "", 1), native: dockerNft}, "active empty empty empty active", 22, ""},
		"another policy":          {said{nft4: strings.Replace(docker, ":FORWARD DROP", ":FORWARD ACCEPT", 1), native: dockerNft}, "active empty empty empty active", 22, ""},
		"nftables' own":           {said{nft4: recorded(t, "incompatible-nft.txt"), nft6: recorded(t, "incompatible6-nft.txt"), native: recorded(t, "incompatible.json")}, "unreadable unreadable empty empty active", 30, ""},
		"of another family":       {said{nft6: docker, native: dockerNft}, "empty active empty empty active", 33, ""},
		"not understood":          {said{legacy4: "*filter\n:INPUT ACCEPT [0:0]\nhello\nCOMMIT\n"}, "empty empty unreadable empty empty", 0, "not understood: 1 times, first at line 3"},
	} {
		t.Run(name, func(t *testing.T) {
			resp := status(t, c.said)
			if got := states4(resp); got != c.states {
				t.Errorf("the states are %s", got)
			}
			if n := resp.GetSources()[4].GetRules(); n != c.native {
				t.Errorf("%d rules of nftables", n)
			}
			if u := resp.GetSummary().GetUncertain(); c.unsure == "" && u != "" || !strings.Contains(u, c.unsure) {
				t.Errorf("uncertain is %q", u)
			}
			for _, s := range resp.GetSources() {
				if (s.GetProblem() == "") != (s.GetState() == active || s.GetState() == empty) {
					t.Errorf("%v", s)
				}
			}
		})
	}
}

// TestNativeTableStaysInSight: a table of nftables' own that iptables-nft-save
// prints as empty and open is shown, and blocks.
func TestNativeTableStaysInSight(t *testing.T) {
	resp := status(t, said{nft4: recorded(t, "incompatible-nft.txt"), nft6: recorded(t, "incompatible6-nft.txt"), native: recorded(t, "incompatible.json")})
	var own []string
	for _, c := range resp.GetChains() {
		if c.GetBackend() == ofNative && c.GetHook() != "" {
			own = append(own, fmt.Sprint(c.GetFamily(), c.GetTable(), c.GetName(), c.GetPolicy()))
		}
	}
	for _, want := range []string{"FIREWALL_FAMILY_IPV4filterinputdrop", "FIREWALL_FAMILY_IPV6filterINPUTdrop", "FIREWALL_FAMILY_IPV6securityINPUTdrop"} {
		if !slices.Contains(own, want) {
			t.Errorf("%s is not among %v", want, own)
		}
	}
	if got := openPorts(resp.GetSummary()); !strings.HasPrefix(got, "IPV4 tcp 22-22 CONDITIONAL filter/input/1\nIPV6 tcp 1-5 OPEN security/INPUT/2\nIPV6 tcp 6-21 CONDITIONAL") {
		t.Error(got)
	}
	if p := resp.GetSources()[0].GetProblem(); !strings.Contains(p, "table mangle is nftables' own") || !strings.Contains(p, "filter") || !strings.Contains(p, "nat") {
		t.Error(p)
	}
}

// TestWholeFails: what is not about one tool fails the call.
func TestWholeFails(t *testing.T) {
	busy := toolFault(brokerv1.ErrorReason_ERROR_REASON_HOST_BUSY)
	for _, err := range []error{busy, toolFault(brokerv1.ErrorReason_ERROR_REASON_HOST_UNAVAILABLE), context.Canceled, errors.New("something")} {
		for _, s := range []said{{nft4: err}, {native: err}, {legacy6: err, native: errFailed}} {
			if _, got := service(s).FirewallStatus(t.Context(), &brokerv1.FirewallStatusRequest{}); !errors.Is(got, err) {
				t.Errorf("%v became %v", err, got)
			}
			if _, got := service(s).Reach(t.Context()); !errors.Is(got, err) {
				t.Errorf("%v became %v", err, got)
			}
		}
	}
	_, err := service(said{errMissing, errMissing, errMissing, errMissing, errMissing}).FirewallStatus(t.Context(), &brokerv1.FirewallStatusRequest{})
	if fault.Reason(err) != "TOOL_MISSING" || gstatus.Code(err) != codes.FailedPrecondition {
		t.Error(err)
	}
}

// TestTwoAtOnce: brokerhost has no more slots for one caller.
func TestTwoAtOnce(t *testing.T) {
	var now, most atomic.Int32
	var mu sync.Mutex
	s := New(func(context.Context, *hostv1.ReadRequest) ([]byte, error) {
		mu.Lock()
		most.Store(max(most.Load(), now.Add(1)))
		mu.Unlock()
		time.Sleep(5 * time.Millisecond)
		now.Add(-1)
		return nil, errFailed
	})
	if _, err := s.Reach(t.Context()); err != nil || most.Load() != 2 {
		t.Errorf("%d at once, %v", most.Load(), err)
	}
}

func TestFilters(t *testing.T) {
	s := service(said{nft4: recorded(t, "docker-nft.txt"), native: recorded(t, "host.json")})
	for _, c := range []struct {
		req  *brokerv1.FirewallStatusRequest
		want int
	}{
		{&brokerv1.FirewallStatusRequest{}, 53},
		{&brokerv1.FirewallStatusRequest{Backend: ofNft}, 33},
		{&brokerv1.FirewallStatusRequest{Backend: ofLegacy}, 0},
		{&brokerv1.FirewallStatusRequest{Family: familyInet}, 18},
		{&brokerv1.FirewallStatusRequest{Table: "nat"}, 13},
		{&brokerv1.FirewallStatusRequest{Table: "nat", Backend: ofNative}, 2},
		{&brokerv1.FirewallStatusRequest{Chain: "DOCKER", Table: "filter"}, 2},
		{&brokerv1.FirewallStatusRequest{Chain: "docker"}, 0},
	} {
		c.req.PageSize = 500
		resp, err := s.FirewallStatus(t.Context(), c.req)
		if err != nil || len(resp.GetRules()) != c.want {
			t.Errorf("%v: %d rules, %v", c.req, len(resp.GetRules()), err)
		}
		if len(resp.GetChains()) != 18 || len(resp.GetSources()) != 5 || len(resp.GetSummary().GetDefaults()) != 7 {
			t.Errorf("%d chains, %d sources, %d defaults", len(resp.GetChains()), len(resp.GetSources()), len(resp.GetSummary().GetDefaults()))
		}
	}
	for _, req := range []*brokerv1.FirewallStatusRequest{
		{Backend: 4}, {Backend: -1}, {Family: 7}, {Table: "a\nb"}, {Table: "\xff"}, {Chain: strings.Repeat("x", 257)}, {Chain: "\x7f"}, {PageSize: -1}, {PageToken: "x"},
	} {
		if _, err := s.FirewallStatus(t.Context(), req); fault.Reason(err) != "INVALID_ARGUMENT" {
			t.Errorf("%v: %v", req, err)
		}
	}
}

// TestPages: all rules come, once each and in order; other counters do not disturb
// that, other rules do.
func TestPages(t *testing.T) {
	docker := recorded(t, "docker-nft.txt")
	ask := func(text string, req *brokerv1.FirewallStatusRequest) (*brokerv1.FirewallStatusResponse, error) {
		return service(said{nft4: text}).FirewallStatus(t.Context(), req)
	}
	for _, size := range []int32{1, 7, 33, 50} {
		var all []string
		text, token := docker, ""
		for {
			resp, err := ask(text, &brokerv1.FirewallStatusRequest{PageSize: size, PageToken: token})
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range resp.GetRules() {
				all = append(all, r.GetTable()+r.GetText())
			}
			text = strings.ReplaceAll(text, "[0:0] -A", "[1:60] -A")
			if token = resp.GetNextPageToken(); token == "" {
				break
			}
		}
		if len(all) != 33 || len(slices.Compact(slices.Sorted(slices.Values(all)))) != 33 {
			t.Errorf("%d rules in pages of %d", len(all), size)
		}
	}
	first, err := ask(docker, &brokerv1.FirewallStatusRequest{PageSize: 5})
	if err != nil {
		t.Fatal(err)
	}
	next := &brokerv1.FirewallStatusRequest{PageSize: 5, PageToken: first.GetNextPageToken()}
	for name, text := range map[string]string{
		"one more": strings.Replace(docker, "COMMIT\n", "[0:0] -A INPUT -j DROP\nCOMMIT\n", 1),
		"one less": strings.Replace(docker, "[0:0] -A DOCKER-USER -j RETURN\n", "", 1),
		"another":  strings.Replace(docker, "--dport 22 ", "--dport 23 ", 1),
		"none":     "",
	} {
		if _, err := ask(text, next); fault.Reason(err) != "RULES_CHANGED" || gstatus.Code(err) != codes.Aborted {
			t.Errorf("%s: %v", name, err)
		}
	}
	if resp, err := ask(docker, next); err != nil || len(resp.GetRules()) != 5 {
		t.Errorf("%v", err)
	}
}

func TestSummary(t *testing.T) {
	text := strings.NewReplacer("[0:0] -A INPUT -i lo", "[5:300] -A INPUT -i lo", ":INPUT DROP [0:0]", ":INPUT DROP [12:3456]").Replace(recorded(t, "docker-nft.txt"))
	resp := status(t, said{nft4: text, native: recorded(t, "host.json")})
	sum := resp.GetSummary()
	// Of nftables' rules two count, and neither matched.
	if sum.GetRulesWithoutHits() != 32+3 || len(sum.GetWithoutHits()) != 35 || sum.GetWithoutHits()[0].GetNumber() != 2 {
		t.Errorf("%d without hits: %v", sum.GetRulesWithoutHits(), sum.GetWithoutHits()[0])
	}
	c := resp.GetChains()[0]
	if c.GetName() != "INPUT" || c.GetHook() != "input" || c.GetPolicy() != "drop" || c.GetPackets() != 12 || c.GetBytes() != 3456 || c.GetRules() != 3 {
		t.Errorf("%v", c)
	}
	if c := resp.GetChains()[3]; c.GetName() != "DOCKER" || c.GetHook() != "" || c.GetPolicy() != "" {
		t.Errorf("%v", c)
	}
	var many strings.Builder
	many.WriteString("*filter\n:INPUT ACCEPT [0:0]\n")
	for i := range 6000 {
		fmt.Fprintf(&many, ":c%d - [0:0]\n", i)
	}
	many.WriteString("COMMIT\n")
	resp = status(t, said{legacy4: many.String()})
	if len(resp.GetChains()) != 5000 || !strings.Contains(resp.GetSummary().GetUncertain(), "more chains than are shown") || proto.Size(resp) > 3<<20 {
		t.Errorf("%d chains, %q", len(resp.GetChains()), resp.GetSummary().GetUncertain())
	}
	many.Reset()
	many.WriteString("*filter\n:INPUT DROP [0:0]\n")
	for i := range 3000 {
		fmt.Fprintf(&many, "[0:0] -A INPUT -p tcp -m tcp --dport %d -j ACCEPT\n", 1+2*i)
	}
	many.WriteString("COMMIT\n")
	if resp = status(t, said{legacy4: many.String()}); len(resp.GetSummary().GetOpenPorts()) != 1000 || !strings.Contains(resp.GetSummary().GetUncertain(), "more ranges") || len(resp.GetSummary().GetWithoutHits()) != 100 {
		t.Errorf("%d ranges, %q", len(resp.GetSummary().GetOpenPorts()), resp.GetSummary().GetUncertain())
	}
	if resp.GetSummary().GetRulesWithoutHits() != 3000 || math.MaxInt32 < len(resp.GetRules()) {
		t.Error(resp.GetSummary().GetRulesWithoutHits())
	}
}
