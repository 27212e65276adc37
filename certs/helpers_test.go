package certs

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var home = spiffeid.RequireTrustDomainFromString("home.example")

func testID(path string) spiffeid.ID { return spiffeid.RequireFromPath(home, path) }

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// clock is a settable time; the zero offset is the real one.
type clock struct{ offset time.Duration }

func (c *clock) now() time.Time { return time.Now().Add(c.offset) }

func newCA(t testing.TB) (*CA, *clock) {
	t.Helper()
	c := &clock{}
	ca, err := Init(filepath.Join(t.TempDir(), "ca"), Options{TrustDomain: home, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	return ca, c
}

func issue(t testing.TB, ca *CA, r Request) *Leaf {
	t.Helper()
	return must[*Leaf](t)(ca.Issue(r))
}

func perm(t testing.TB, path string) os.FileMode {
	t.Helper()
	return must[os.FileInfo](t)(os.Lstat(path)).Mode().Perm()
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	return string(must[[]byte](t)(os.ReadFile(path)))
}

func writeFile(t testing.TB, path, data string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
}
