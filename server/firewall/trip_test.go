package firewall

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gortium/hermes-broker/e2e/firewalltest"
)

// trips is how many rule sets make a round trip for each back end and family.
const trips = 200

// real reports whether the real tools can be used, in a network namespace of their own.
func real(t *testing.T) {
	t.Helper()
	missing := ""
	if os.Geteuid() != 0 {
		missing = "root"
	}
	for _, tool := range []string{"unshare", "nft", "iptables-nft-restore", "ip6tables-nft-save", "iptables-legacy-restore", "ip6tables-legacy-save"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing = tool
		}
	}
	switch {
	case missing == "":
	case os.Getenv("E2E_REQUIRE") == "1":
		t.Fatalf("this needs %s", missing)
	default:
		t.Skipf("this needs %s", missing)
	}
}

// trip loads rule sets in one namespace after the other, and returns the folder
// with what was printed of each: N.out, and N.txt.
func trip(t *testing.T, load, print, text string, set func(*rand.Rand) string) string {
	t.Helper()
	real(t)
	dir := t.TempDir()
	for i := range trips {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte(set(rand.New(rand.NewPCG(uint64(i), 1)))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	script := fmt.Sprintf(`i=0; while [ $i -lt %d ]; do %s $i && %s > $i.out && %s > $i.txt || { echo "set $i" >&2; exit 1; }; i=$((i+1)); done`, trips, load, print, text)
	cmd := exec.CommandContext(t.Context(), "unshare", "-n", "sh", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

func contents(t *testing.T, dir string, i int, ext string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i)+ext))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestRoundTripIptables: the fields of every rule say all that the tool says.
func TestRoundTripIptables(t *testing.T) {
	for i, a := range asked[:4] {
		t.Run(a.tool, func(t *testing.T) {
			t.Parallel()
			load := strings.TrimSuffix(a.tool, "save") + "restore -c"
			dir := trip(t, load, a.tool+" -c", "true", func(r *rand.Rand) string { return firewalltest.Generate(r, a.family == familyIPv6) })
			rules := 0
			for n := range trips {
				out := contents(t, dir, n, ".out")
				s := parse(i, []byte(out))
				if s.pb.GetState() != active || s.pb.GetProblem() != "" {
					t.Fatalf("set %d: %v\n%s", n, s.pb, out)
				}
				var mine strings.Builder
				for _, tab := range s.tables {
					fmt.Fprintf(&mine, "*%s\n", tab.name)
					for _, c := range tab.chains {
						policy := strings.ToUpper(c.pb.GetPolicy())
						if policy == "" {
							policy = "-"
						}
						fmt.Fprintf(&mine, ":%s %s [%d:%d]\n", c.pb.GetName(), policy, c.pb.GetPackets(), c.pb.GetBytes())
					}
					for _, c := range tab.chains {
						for _, r := range c.rules {
							rules++
							fmt.Fprintf(&mine, "[%d:%d] %s\n", r.pb.GetPackets(), r.pb.GetBytes(), firewalltest.PrintIptables(r.pb))
							if r.pb.GetText() != firewalltest.PrintIptables(r.pb) {
								t.Errorf("set %d: the text is %q", n, r.pb.GetText())
							}
						}
					}
					mine.WriteString("COMMIT\n")
				}
				if want := told(out); mine.String() != want {
					t.Fatalf("set %d: %s", n, cmp.Diff(want, mine.String()))
				}
				see([]*source{s})
			}
			t.Logf("%d rules", rules)
		})
	}
}

// told is the output without its comments.
func told(out string) string {
	var b strings.Builder
	for l := range strings.Lines(out) {
		if !strings.HasPrefix(l, "#") {
			b.WriteString(l)
		}
	}
	return b.String()
}

// TestRoundTripNft: every rule's text is what nft prints without counters.
func TestRoundTripNft(t *testing.T) {
	t.Parallel()
	dir := trip(t, "nft -f", "nft -j list ruleset", "nft -s list ruleset", firewalltest.GenerateNft)
	rules := 0
	for n := range trips {
		s := parse(4, []byte(contents(t, dir, n, ".out")))
		if s.pb.GetState() != active || s.pb.GetProblem() != "" {
			t.Fatalf("set %d: %v\n%s", n, s.pb, contents(t, dir, n, ".out"))
		}
		var mine strings.Builder
		for _, tab := range s.tables {
			for _, c := range tab.chains {
				fmt.Fprintf(&mine, "chain %s {\n", c.pb.GetName())
				for _, r := range c.rules {
					rules++
					mine.WriteString(r.pb.GetText() + "\n")
				}
			}
		}
		if want := chainsOf(contents(t, dir, n, ".txt")); mine.String() != want {
			t.Fatalf("set %d: %s", n, cmp.Diff(want, mine.String()))
		}
		see([]*source{s})
	}
	t.Logf("%d rules", rules)
}

// chainsOf are the chains and rules of what nft prints for people.
func chainsOf(text string) string {
	var b strings.Builder
	in := false
	for l := range strings.Lines(text) {
		l = strings.TrimSpace(l)
		switch {
		case strings.HasPrefix(l, "chain "):
			in = true
			b.WriteString(l + "\n")
		case l == "}":
			in = false
		case in && l != "" && !strings.HasPrefix(l, "type "):
			b.WriteString(l + "\n")
		}
	}
	return b.String()
}
