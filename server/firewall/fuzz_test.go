package firewall

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/page"
)

// whatever checks what must hold for whatever a tool says: the answer can be sent,
// the rules are worked out in bounded time, and every port has an answer.
func whatever(t *testing.T, i int, data []byte) {
	t.Helper()
	begin := time.Now()
	sources := make([]*source, len(asked))
	for n := range sources {
		sources[n] = newSource(n)
	}
	sources[i] = parse(i, data)
	compare(sources)
	v := see(sources)
	if took := time.Since(begin); took > time.Second+time.Duration(len(data))*2*time.Microsecond {
		t.Errorf("%d bytes took %v", len(data), took)
	}
	resp := &brokerv1.FirewallStatusResponse{Sources: []*brokerv1.FirewallSource{sources[i].pb}}
	resp.Chains, resp.Summary = v.summary(sources)
	items := flat(sources)
	p, err := page.New(&brokerv1.FirewallStatusRequest{PageSize: 500})
	if err != nil {
		t.Fatal(err)
	}
	resp.Rules, _ = page.Cut(p, items[1:], func(*brokerv1.FirewallRule) bool { return true })
	if _, err := proto.Marshal(resp); err != nil { // It wants valid UTF-8.
		t.Fatal(err)
	}
	if len(items)-1 != int(sources[i].pb.GetRules()) {
		t.Errorf("%d rules, the source says %d", len(items)-1, sources[i].pb.GetRules())
	}
	for n := range 4 {
		for _, port := range []uint16{0, 1, 22, lastPort} {
			reach, rule := v.Port(n&isIPv6 != 0, n&isUDP != 0, port)
			if reach == brokerv1.Reach_REACH_LOCAL || reach == brokerv1.Reach_REACH_BLOCKED && rule != nil || (reach == brokerv1.Reach_REACH_UNSPECIFIED) != (v.tangled != "") {
				t.Errorf("port %d: %v by %v, %q", port, reach, rule, v.Uncertain())
			}
		}
	}
}

func seeds(f *testing.F, pattern string) {
	f.Helper()
	files, err := filepath.Glob("testdata/" + pattern)
	if err != nil || len(files) == 0 {
		f.Fatal(err, files)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
}

func FuzzIptablesSave(f *testing.F) {
	seeds(f, "*-nft.txt")
	seeds(f, "*-legacy.txt")
	f.Add([]byte(whole))
	f.Add([]byte(strings.Replace(whole, "-j u", "-j DNAT --to-destination [fd00::1]:80-90/7", 1)))
	f.Fuzz(func(t *testing.T, data []byte) {
		whatever(t, 0, data)
		whatever(t, 3, data)
	})
}

func FuzzNftJSON(f *testing.F) {
	seeds(f, "*.json")
	f.Fuzz(func(t *testing.T, data []byte) { whatever(t, 4, data) })
}
