package certs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/sys/unix"
)

func TestWrite(t *testing.T) {
	ca, _ := newCA(t)
	dir := filepath.Join(t.TempDir(), "new")
	leaf := issue(t, ca, Request{ID: testID("/agent/hermes"), Role: Agent})
	if err := leaf.Write(dir, "hermes"); err != nil {
		t.Fatal(err)
	}
	// A second leaf of the same CA shares the bundle.
	if err := issue(t, ca, Request{ID: testID("/agent/other"), Role: Agent}).Write(dir, "other"); err != nil {
		t.Fatal(err)
	}
	svid := must[*x509svid.SVID](t)(x509svid.Load(filepath.Join(dir, "hermes.crt"), filepath.Join(dir, "hermes.key")))
	if svid.ID != testID("/agent/hermes") || !svid.Certificates[0].Equal(leaf.Certificate) {
		t.Errorf("wrote %s", svid.ID)
	}
	if readFile(t, filepath.Join(dir, BundleFile)) != readFile(t, filepath.Join(ca.Dir(), CertFile)) {
		t.Error("the bundle is not the CA's certificate")
	}
	if !strings.HasPrefix(readFile(t, filepath.Join(dir, "hermes.key")), "-----BEGIN PRIVATE KEY-----\n") {
		t.Error("the key is not PKCS#8 PEM")
	}
	if entries := must[[]os.DirEntry](t)(os.ReadDir(dir)); len(entries) != 5 {
		t.Errorf("wrote %v, want 2 pairs and a bundle", entries)
	}
}

func TestWriteRefuses(t *testing.T) {
	ca, _ := newCA(t)
	foreign, _ := newCA(t)
	leaf := issue(t, ca, Request{ID: testID("/agent/hermes"), Role: Agent})
	link := func(name string) func(string) {
		return func(dir string) {
			target := filepath.Join(dir, "target")
			writeFile(t, target, "target", 0o600)
			os.Symlink(target, filepath.Join(dir, name))
		}
	}
	for name, prepare := range map[string]func(dir string){
		"certificate exists": func(dir string) { writeFile(t, filepath.Join(dir, "hermes.crt"), "old", 0o644) },
		"key exists":         func(dir string) { writeFile(t, filepath.Join(dir, "hermes.key"), "old", 0o600) },
		"key is a directory": func(dir string) { os.Mkdir(filepath.Join(dir, "hermes.key"), 0o700) },
		"foreign bundle": func(dir string) {
			writeFile(t, filepath.Join(dir, BundleFile), readFile(t, filepath.Join(foreign.Dir(), CertFile)), 0o644)
		},
		"linked certificate": link("hermes.crt"),
		"linked key":         link("hermes.key"),
		"linked bundle":      link(BundleFile),
		"dangling link":      func(dir string) { os.Symlink("nowhere", filepath.Join(dir, "hermes.key")) },
	} {
		dir := t.TempDir()
		prepare(dir)
		before := listing(t, dir)
		err := leaf.Write(dir, "hermes")
		if err == nil || !errors.Is(err, fs.ErrExist) && name != "linked bundle" {
			t.Errorf("%s: %v, want fs.ErrExist", name, err)
		}
		if strings.HasSuffix(name, "exists") && !strings.Contains(err.Error(), "renew") {
			t.Errorf("%s: %v, want what to do", name, err)
		}
		if after := listing(t, dir); after != before {
			t.Errorf("%s: %s became %s", name, before, after)
		}
	}
	for _, name := range []string{"", ".", "..", ".hidden", "a/b", "../up", "/abs", "a\x00b", "a b", "bundle", "ca", strings.Repeat("x", 65)} {
		dir := t.TempDir()
		if err := leaf.Write(dir, name); err == nil || listing(t, dir) != "" {
			t.Errorf("name %q: %v, wrote %s", name, err, listing(t, dir))
		}
	}
}

// TestPlaceKeepsWhatAppeared: a file that appears between the check and the
// write is not replaced.
func TestPlaceKeepsWhatAppeared(t *testing.T) {
	path := t.TempDir()
	d := must[*dir](t)(openLocked(path))
	defer d.close()
	if err := d.stage(file{name: "leaf.key", data: []byte("new"), perm: keyPerm}); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(path, "leaf.key"), "old", 0o600)
	if err := d.place("leaf.key"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want fs.ErrExist", err)
	}
	if got := readFile(t, filepath.Join(path, "leaf.key")); got != "old" {
		t.Errorf("the file now holds %q", got)
	}
}

// TestCreateUndo: a set that cannot be completed leaves nothing behind.
func TestCreateUndo(t *testing.T) {
	path := t.TempDir()
	d := must[*dir](t)(openLocked(path))
	defer d.close()
	// The same name twice passes the first check and meets itself at the link.
	twice := file{name: "leaf.key", data: []byte("new"), perm: keyPerm}
	if err := d.create(twice, twice); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v, want fs.ErrExist", err)
	}
	if left := listing(t, path); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

func TestLockKeepsOthersOut(t *testing.T) {
	path := t.TempDir()
	first := must[*dir](t)(openLocked(path))
	entered := make(chan error, 1)
	go func() {
		second, err := openLocked(path)
		if err == nil {
			second.close()
		}
		entered <- err
	}()
	select {
	case err := <-entered:
		t.Fatalf("entered a locked directory (%v)", err)
	case <-time.After(100 * time.Millisecond):
	}
	first.close()
	if err := <-entered; err != nil {
		t.Fatal(err)
	}
}

// umask sets the process's umask until the test ends.
func umask(t *testing.T, mask int) {
	old := unix.Umask(mask)
	t.Cleanup(func() { unix.Umask(old) })
}

// everything makes a CA and a leaf in base, and renews the leaf.
func everything(t *testing.T, base string) (caDir, leafDir string) {
	t.Helper()
	caDir, leafDir = filepath.Join(base, "ca"), filepath.Join(base, "leaf")
	ca := must[*CA](t)(Init(caDir, Options{TrustDomain: home}))
	if err := issue(t, ca, Request{ID: testID("/agent/hermes"), Role: Agent}).Write(leafDir, "hermes"); err != nil {
		t.Fatal(err)
	}
	must[*Leaf](t)(ca.Renew(filepath.Join(leafDir, "hermes.crt"), filepath.Join(leafDir, "hermes.key")))
	return caDir, leafDir
}

func TestModesUnderAnyUmask(t *testing.T) {
	for _, mask := range []int{0, 0o022, 0o077, 0o277} {
		t.Run(fmt.Sprintf("%03o", mask), func(t *testing.T) {
			base := filepath.Join(t.TempDir(), "base")
			if err := os.Mkdir(base, 0o700); err != nil {
				t.Fatal(err)
			}
			if mask == 0o277 && os.Geteuid() != 0 {
				t.Skip("a directory made under this umask is closed to its owner")
			}
			umask(t, mask)
			caDir, leafDir := everything(t, base)
			for path, want := range map[string]os.FileMode{
				filepath.Join(caDir, KeyFile):        0o600,
				filepath.Join(caDir, CertFile):       0o644,
				filepath.Join(leafDir, "hermes.key"): 0o600,
				filepath.Join(leafDir, "hermes.crt"): 0o644,
				filepath.Join(leafDir, BundleFile):   0o644,
				caDir:                                0o700 &^ os.FileMode(mask),
				leafDir:                              0o700 &^ os.FileMode(mask),
			} {
				if got := perm(t, path); got != want {
					t.Errorf("%s has mode %04o, want %04o", path, got, want)
				}
			}
		})
	}
}

// TestKeyIsBornPrivate watches the directories while keys are written under
// umask 0. The kernel reports every chmod in them, so a key that ends as 0600
// and was never changed has been 0600 since open(2) created it.
func TestKeyIsBornPrivate(t *testing.T) {
	umask(t, 0)
	base := t.TempDir()
	for _, name := range []string{"ca", "leaf"} {
		if err := os.Mkdir(filepath.Join(base, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	events := watch(t, unix.IN_CREATE|unix.IN_ATTRIB, filepath.Join(base, "ca"), filepath.Join(base, "leaf"))
	caDir, leafDir := everything(t, base)
	created := map[string]int{}
	for _, e := range events() {
		if !strings.Contains(e.name, "key") {
			continue
		}
		if e.mask&unix.IN_ATTRIB != 0 {
			t.Errorf("the mode or owner of %s was changed after it was created", e.name)
		}
		created[e.name]++
	}
	// Each key under its staged name, and linked to its own; the renewal stages
	// once more. Another name would be a file whose final mode is not checked.
	want := map[string]int{stagedName(KeyFile): 1, KeyFile: 1, stagedName("hermes.key"): 2, "hermes.key": 1}
	if fmt.Sprint(created) != fmt.Sprint(want) {
		t.Errorf("created %v, want %v", created, want)
	}
	for _, path := range []string{filepath.Join(caDir, KeyFile), filepath.Join(leafDir, "hermes.key")} {
		if got := perm(t, path); got != 0o600 {
			t.Errorf("%s has mode %04o", path, got)
		}
	}
}

type event struct {
	mask uint32
	name string
}

// watch returns a function that gives the events so far, in order.
func watch(t *testing.T, mask uint32, dirs ...string) func() []event {
	t.Helper()
	fd := must[int](t)(unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC))
	t.Cleanup(func() { unix.Close(fd) })
	for _, dir := range dirs {
		must[int](t)(unix.InotifyAddWatch(fd, dir, mask))
	}
	return func() (events []event) {
		buf := make([]byte, 64<<10)
		n := must[int](t)(unix.Read(fd, buf))
		for b := buf[:n]; len(b) > 0; {
			nameLen := binary.NativeEndian.Uint32(b[12:])
			name, _, _ := strings.Cut(string(b[unix.SizeofInotifyEvent:][:nameLen]), "\x00")
			events = append(events, event{binary.NativeEndian.Uint32(b[4:]), name})
			b = b[unix.SizeofInotifyEvent+nameLen:]
		}
		return events
	}
}
