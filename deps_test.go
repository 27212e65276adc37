package hermesbroker

import (
	"go/build"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/gortium/hermes-broker/"

// deciders decide and record; the slices do neither, and know nothing of each other.
var deciders = []string{
	module + "server/policy", module + "server/audit", module + "server/identity", module + "server/chain", module + "server", module + "server/docker",
}

// rules say which package may not depend on which, and why. With direct set
// only the package's own imports count. A name that ends in "/..." is all below.
var rules = []struct {
	from   string
	direct bool
	not    []string
	except []string
	why    string
}{
	{"client", false, []string{module + "server/...", "github.com/docker/docker/..."}, nil, "the client holds no power"},
	{"cmd/brokerctl", false, []string{"github.com/docker/docker/...", module + "server/docker", module + "server/chain", module + "server/policy", module + "server"}, nil,
		"the operator's tool asks the broker like everybody else; it reads the audit trail's files with server/audit alone"},
	{"server/docker", false, deciders[:5], nil,
		"a slice is asked after the decision and cannot make it"},
	{"server/firewall", false, deciders, nil, "as server/docker"},
	{"server/jail", false, deciders, nil, "as server/docker"},
	{"server/journal", false, deciders, nil, "as server/docker"},
	{"server/ssh", false, deciders, nil, "as server/docker"},
	{"server/socket", false, deciders, nil, "as server/docker"},
	{"server/hostlink", false, deciders, nil, "as server/docker"},
	{"cmd/brokerhost", false, append([]string{"github.com/docker/docker/...", "github.com/kisielk/og-rek/...", module + "server/access", module + "server/hostlink"}, deciders...), nil,
		"brokerhost runs its table and reads nothing of what comes out"},
	{"server/policy", false, []string{"google.golang.org/grpc/..."}, nil, "a decision is about words, not about how calls arrive"},
	{"server/audit", false, []string{"google.golang.org/grpc/..."}, nil, "the trail outlives the protocol"},
	{"cmd/brokerd", false, []string{
		"os/exec", "plugin", "text/template", "html/template", "github.com/docker/cli/...", "github.com/docker/compose/...", "github.com/compose-spec/...",
		"github.com/open-policy-agent/...", "github.com/coreos/go-iptables/...", "github.com/urfave/...", "github.com/spf13/cobra", "go/build",
	}, nil, "brokerd cannot run anything, and links nothing that keeps it from being shown"},
	{"...", true, []string{"os/exec", "plugin"}, []string{"server/host", "e2e/testhost"}, "only brokerhost and tests' hosts start programs"},
	{"...", true, []string{module + "server/host"}, []string{"cmd/brokerhost"}, "what starts programs is in one binary"},
	{"...", true, []string{module + "internal/hostv1"}, []string{
		"server/host", "server/hostlink", "server/firewall", "server/jail", "server/journal", "server/ssh", "server/socket",
	}, "nobody else asks brokerhost"},
	{"...", true, []string{"github.com/docker/docker/..."}, []string{"server/docker"}, "one package has the SDK"},
	{"...", true, []string{"github.com/spiffe/go-spiffe/..."}, []string{"server/identity", "certs", "certs/certstest", "client"}, "identity is checked in few places"},
	{"...", true, []string{"log"}, []string{"e2e/testhost"}, "slog is the log"},
}

// TestDependencies holds the layout together: see docs/design/layout.md.
func TestDependencies(t *testing.T) {
	packages := list(t, "-f", "{{.ImportPath}}", "./...")
	for _, r := range rules {
		matched := false
		for _, p := range packages {
			short := strings.TrimPrefix(p, module)
			if r.from != "..." && short != r.from || contains(r.except, short) {
				continue
			}
			matched = true
			format := `{{join .Deps "\n"}}`
			if r.direct {
				format = `{{join .Imports "\n"}}`
			}
			for _, dep := range list(t, "-f", format, p) {
				if contains(r.not, dep) {
					t.Errorf("%s depends on %s; it may not: %s", short, dep, r.why)
				}
			}
		}
		if !matched {
			t.Errorf("the rule about %q is about no package", r.from)
		}
		for _, name := range append(r.not, r.except...) {
			if strings.HasPrefix(name, module) && !strings.HasSuffix(name, "/...") && !contains(packages, name) {
				t.Errorf("the rule about %q names %s, which is gone", r.from, name)
			}
		}
		for _, name := range r.except {
			if !contains(packages, module+name) {
				t.Errorf("the rule about %q excepts %s, which is gone", r.from, name)
			}
		}
	}
}

// TestOptionsAreReadInOnePlace: nobody else looks at what methods declare.
func TestOptionsAreReadInOnePlace(t *testing.T) {
	for _, p := range list(t, "-f", "{{.Dir}}", "./...") {
		pkg, err := build.ImportDir(p, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range pkg.GoFiles {
			text := read(t, p+"/"+f)
			if strings.Contains(text, "brokerv1.E_") && !strings.HasSuffix(p, "/server/access") {
				t.Errorf("%s/%s reads the schema's options; ask package access", p, f)
			}
			if strings.HasSuffix(p, "/server/docker") && strings.Contains(text, `"github.com/docker/docker/`) && !strings.HasSuffix(f, "sdk.go") && !strings.HasSuffix(f, "convert.go") && f != "errors.go" {
				t.Errorf("%s imports the SDK; its types stay in the files that end in sdk.go and convert.go", f)
			}
		}
	}
}

func list(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-tags", "grpcnotrace,retrynotrace"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	return strings.Fields(string(out))
}

func contains(patterns []string, name string) bool {
	for _, p := range patterns {
		if below, ok := strings.CutSuffix(p, "/..."); ok && (name == below || strings.HasPrefix(name, below+"/")) || p == name {
			return true
		}
	}
	return false
}
