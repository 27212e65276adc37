package firewall

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

// tenThousand are as many rules: bans by address, and ports that are open, each
// for itself.
func tenThousand() string {
	var b strings.Builder
	b.WriteString("*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:bans - [0:0]\n[9:900] -A INPUT -p tcp -m multiport --dports 22,80 -j bans\n")
	for i := range 5000 {
		fmt.Fprintf(&b, "[%d:%d] -A INPUT -p tcp -m tcp --dport %d -m conntrack --ctstate NEW -m comment --comment \"service number %d\" -j ACCEPT\n", i%3, i, 1000+2*i, i)
	}
	for i := range 4999 {
		fmt.Fprintf(&b, "[0:0] -A bans -s 198.51.%d.%d/32 -j REJECT --reject-with icmp-port-unreachable\n", i/250, i%250)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

func BenchmarkFirewall10000(b *testing.B) {
	text := []byte(tenThousand())
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		s := parse(2, text)
		if v := see([]*source{s}); s.pb.GetRules() != 10_000 || v.Uncertain() != "" {
			b.Fatal(s.pb, v.Uncertain())
		}
	}
}

func BenchmarkParse10000(b *testing.B) {
	text := []byte(tenThousand())
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		parse(2, text)
	}
}

// TestTenThousand: as many rules take a bounded time and a bounded memory.
func TestTenThousand(t *testing.T) {
	text := tenThousand()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	begin := time.Now()
	resp, err := service(said{legacy4: text}).FirewallStatus(t.Context(), &brokerv1.FirewallStatusRequest{PageSize: 500})
	took := time.Since(begin)
	runtime.ReadMemStats(&after)
	if err != nil || len(resp.GetRules()) != 500 || resp.GetSources()[2].GetRules() != 10_000 {
		t.Fatal(err)
	}
	if took > 3*time.Second || after.TotalAlloc-before.TotalAlloc > 200<<20 {
		t.Errorf("it took %v and %d MB", took, (after.TotalAlloc-before.TotalAlloc)>>20)
	}
	t.Logf("%v, %d MB", took, (after.TotalAlloc-before.TotalAlloc)>>20)
}
