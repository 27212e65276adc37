package hermesbroker

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gortium/hermes-broker/server"
	"github.com/gortium/hermes-broker/server/access"
	"github.com/gortium/hermes-broker/server/policy"
	"github.com/gortium/hermes-broker/server/strictyaml"
)

// blocks are the code blocks of a language in a Markdown text.
func blocks(text, language string) (all []string) {
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return all
}

// TestReadmeFiles: the files that the README shows are those of deploy/example,
// and the broker takes them.
func TestReadmeFiles(t *testing.T) {
	shown := strings.Join(blocks(read(t, "README.md"), "yaml"), "\x00")
	for _, name := range []string{"brokerd.yaml", "policy.yaml"} {
		if !strings.Contains(shown, read(t, "deploy/example/"+name)) {
			t.Errorf("README.md does not show deploy/example/%s as it is", name)
		}
	}
	if _, problems := server.ParseConfig("brokerd.yaml", []byte(read(t, "deploy/example/brokerd.yaml"))); len(problems) > 0 {
		t.Error(problems)
	}
	methods, err := server.Methods()
	if err != nil {
		t.Fatal(err)
	}
	p, problems := policy.Parse("policy.yaml", []byte(read(t, "deploy/example/policy.yaml")), methods.Permissions(), access.Single)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	const hermes, alice = "spiffe://home.example/agent/hermes", "spiffe://home.example/operator/alice"
	for _, want := range []struct {
		caller, permission, resource string
		allowed                      bool
	}{
		{hermes, "containers.restart", "containers/media-player", true},
		{hermes, "containers.restart", "containers/vault", false},
		{hermes, "containers.logs", "containers/vault", true},
		{hermes, "containers.logs", "containers/hermes", false},
		{hermes, "containers.remove", "containers/media-player", false},
		{hermes, "broker.unfreeze", "broker", false},
		{alice, "broker.unfreeze", "broker", true},
		{alice, "containers.restart", "containers/hermes", true},
		{hermes, "images.pull", "images/docker.io/ollama/ollama:latest", true},
		{hermes, "images.pull", "images/docker.io/library/alpine:latest", false},
		{hermes, "images.remove", "images/docker.io/ollama/ollama:latest", false},
		{hermes, "engine.prune", "engine", false},
		{hermes, "operations.get_others", "operations/x", false},
		{alice, "operations.get_others", "operations/x", true},
		{alice, "images.remove", "images/sha256:0", true},
	} {
		if got := p.Decide(want.caller, want.permission, want.resource).Allowed; got != want.allowed {
			t.Errorf("%s, %s on %s: %v", want.caller, want.permission, want.resource, got)
		}
	}
}

// brokerctl builds the command and returns how to run it on a context that the
// README shows.
func brokerctl(t *testing.T) func(args ...string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("go", "build", "-tags", "grpcnotrace,retrynotrace", "-o", dir, "./cmd/brokerctl").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if err := os.Mkdir(filepath.Join(dir, "hermes-broker"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks(read(t, "README.md"), "yaml") {
		if strings.Contains(b, "contexts:") {
			if err := os.WriteFile(filepath.Join(dir, "hermes-broker", "config.yaml"), []byte(b), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return func(args ...string) string {
		cmd := exec.Command(filepath.Join(dir, "brokerctl"), args...)
		cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+dir)
		out, _ := cmd.CombinedOutput() // What it prints is looked at.
		return string(out)
	}
}

// TestReadmeContext: brokerctl takes the file of contexts that the README shows.
func TestReadmeContext(t *testing.T) {
	if out := brokerctl(t)("doctor", "--timeout", "1s"); !regexp.MustCompile(`(?m)^OK +configuration +context "home"`).MatchString(out) {
		t.Error(out)
	}
}

// TestNamedCommands: every make target, brokerctl command and flag that a
// document names is there.
func TestNamedCommands(t *testing.T) {
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z0-9-]+):`).FindAllStringSubmatch(read(t, "Makefile"), -1) {
		targets[m[1]] = true
	}
	ctl := brokerctl(t)
	help := map[string]string{}
	named := 0
	for _, doc := range documents(t) {
		text := read(t, doc)
		for _, m := range regexp.MustCompile("(?m)(?:`|^# |^    )make ([a-z0-9-]+)").FindAllStringSubmatch(text, -1) {
			named++
			if !targets[m[1]] {
				t.Errorf("%s: there is no make %s", doc, m[1])
			}
		}
		for _, m := range regexp.MustCompile("(?m)(?:`|^# |^    )brokerctl ([^`\n|]+)").FindAllStringSubmatch(text, -1) {
			named++
			if wrong := wrongCommand(ctl, help, strings.Fields(m[1])); wrong != "" {
				t.Errorf("%s: brokerctl %s: %s", doc, m[1], wrong)
			}
		}
	}
	if named < 30 {
		t.Errorf("only %d commands were found", named)
	}
}

var subcommand = regexp.MustCompile(`(?m)^  ([a-z][a-z0-9]*) {2,}\S`)

// wrongCommand says which word of a command line brokerctl does not know.
func wrongCommand(ctl func(...string) string, help map[string]string, words []string) string {
	text := func(path []string) string {
		key := strings.Join(path, " ")
		if help[key] == "" {
			help[key] = ctl(append(path, "--help")...)
		}
		return help[key]
	}
	var path []string
	for len(words) > 0 && !strings.HasPrefix(words[0], "-") {
		_, list, group := strings.Cut(text(path), "Available Commands:\n")
		if !group {
			break
		}
		list, _, _ = strings.Cut(list, "\n\n")
		known := false
		for _, m := range subcommand.FindAllStringSubmatch(list, -1) {
			known = known || m[1] == words[0]
		}
		if !known {
			return "no command " + words[0]
		}
		path, words = append(path, words[0]), words[1:]
	}
	for _, w := range words {
		if flag := regexp.MustCompile(`^--?[a-z][a-z-]*`).FindString(w); flag != "" && !regexp.MustCompile(`(?m)^ .*`+flag+`\b`).MatchString(text(path)) {
			return "no flag " + flag
		}
	}
	return ""
}

// documents are the documents written by hand.
func documents(t *testing.T) []string {
	t.Helper()
	all := []string{"README.md", "SECURITY.md", "CHANGELOG.md"}
	for _, pattern := range []string{"docs/*.md", "docs/design/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

// TestNamedTestsAndFiles: every test that a document names exists, and every
// link leads somewhere.
func TestNamedTestsAndFiles(t *testing.T) {
	tests := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, "_test.go") {
			for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`).FindAllStringSubmatch(read(t, path), -1) {
				tests[m[1]] = true
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range documents(t) {
		text := read(t, doc)
		for _, m := range regexp.MustCompile("`((?:Test|Fuzz)[A-Z]\\w*)`").FindAllStringSubmatch(text, -1) {
			if !tests[m[1]] {
				t.Errorf("%s names %s, which does not exist", doc, m[1])
			}
		}
		for _, m := range regexp.MustCompile(`\]\(([^):#]+)\)`).FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1])); err != nil {
				t.Errorf("%s: %v", doc, err)
			}
		}
	}
}

// TestConfigurationIsDocumented: docs/configuration.md has every key of
// brokerd.yaml with its default, every key of the policy and every permission.
func TestConfigurationIsDocumented(t *testing.T) {
	text := read(t, "docs/configuration.md")
	keys(reflect.ValueOf(server.Defaults()).Elem(), "", func(key, def string) {
		row := regexp.MustCompile("(?m)^\\| `" + regexp.QuoteMeta(key) + "` \\| (.*?) \\|").FindStringSubmatch(text)
		switch {
		case row == nil:
			t.Errorf("no row for %s", key)
		case def != "" && strings.Trim(row[1], "`") != def:
			t.Errorf("%s: the default is %s, not %s", key, def, row[1])
		}
	})
	// The policy's form is its package's own affair, so its source is read.
	f, err := parser.ParseFile(token.NewFileSet(), "server/policy/load.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	ast.Inspect(f, func(n ast.Node) bool {
		if field, ok := n.(*ast.Field); ok && field.Tag != nil {
			key := reflect.StructTag(strings.Trim(field.Tag.Value, "`")).Get("yaml")
			if key == "" || strings.HasPrefix(key, "-") {
				return true
			}
			found++
			if !regexp.MustCompile("(?m)^\\| `([a-z.]+\\.)?" + key + "` \\|").MatchString(text) {
				t.Errorf("no row for the policy's %s", key)
			}
		}
		return true
	})
	if found < 8 {
		t.Errorf("only %d keys of the policy were found", found)
	}
	methods, err := server.Methods()
	if err != nil {
		t.Fatal(err)
	}
	for permission := range methods.Permissions() {
		if !strings.Contains(text, "`"+permission+"`") {
			t.Errorf("the permission %s is not explained", permission)
		}
	}
}

// keys visits the keys of a configuration with their defaults as they are
// written, "" for those without.
func keys(v reflect.Value, prefix string, visit func(key, def string)) {
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("yaml")
		if name == "" || strings.HasPrefix(name, "-") {
			continue
		}
		f, key := v.Field(i), prefix+name
		value := f
		if f.Kind() == reflect.Struct && f.FieldByName("Value").IsValid() {
			value = f.FieldByName("Value")
		} else if f.Kind() == reflect.Struct {
			keys(f, key+".", visit)
			continue
		} else if f.Kind() == reflect.Slice {
			if e := f.Type().Elem(); e.Kind() == reflect.Struct && !strings.HasPrefix(e.Name(), "At[") {
				keys(reflect.New(e).Elem(), key+".", visit)
			}
		}
		visit(key, written(value))
	}
}

func written(v reflect.Value) string {
	switch d := v.Interface().(type) {
	case time.Duration:
		switch {
		case d%time.Hour == 0:
			return fmt.Sprintf("%dh", d/time.Hour)
		case d%time.Minute == 0:
			return fmt.Sprintf("%dm", d/time.Minute)
		}
		return d.String()
	case strictyaml.Bytes:
		if d%(1<<20) == 0 {
			return fmt.Sprintf("%dMiB", d>>20)
		}
		return fmt.Sprintf("%dKiB", d>>10)
	case policy.Budget:
		return d.String()
	case string:
		return d
	}
	if v.Kind() == reflect.Slice {
		return ""
	}
	return fmt.Sprint(v.Interface())
}

// TestDependenciesAreExplained: every direct requirement and every tool has its
// line.
func TestDependenciesAreExplained(t *testing.T) {
	text := read(t, "docs/design/dependencies.md")
	var names []string
	for _, line := range strings.Split(read(t, "go.mod"), "\n") {
		if m := regexp.MustCompile(`^\t(\S+) v\S+$`).FindStringSubmatch(line); m != nil {
			names = append(names, m[1])
		}
	}
	for _, mod := range []string{"tools/go.mod", "tools/buf/go.mod"} {
		for _, m := range regexp.MustCompile(`(?m)^(?:tool |\t)(\S+/cmd/\S+)$`).FindAllStringSubmatch(read(t, mod), -1) {
			names = append(names, m[1])
		}
	}
	if len(names) < 20 {
		t.Fatalf("only %d were found", len(names))
	}
	for _, n := range names {
		if !strings.Contains(text, "`"+n+"`") {
			t.Errorf("docs/design/dependencies.md has no line for %s", n)
		}
	}
}
