package rootfile

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const stranger = 65534

// host is a directory with etc/broker/policy.yaml in it.
type host struct {
	t    *testing.T
	root string
}

func newHost(t *testing.T) host {
	t.Helper()
	if unix.Geteuid() != 0 {
		t.Skip("needs root, to give files to other users")
	}
	h := host{t, t.TempDir()}
	h.must(os.MkdirAll(h.path("etc/broker"), 0o755))
	h.must(os.WriteFile(h.path("etc/broker/policy.yaml"), []byte("trusted"), 0o644))
	return h
}

func (h host) path(name string) string { return filepath.Join(h.root, name) }

func (h host) policy() string { return h.path("etc/broker/policy.yaml") }

func (h host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// chmod sets the mode whatever the umask is.
func (h host) chmod(name string, mode uint32) { h.t.Helper(); h.must(unix.Chmod(h.path(name), mode)) }

func (h host) chown(name string, uid int) { h.t.Helper(); h.must(os.Lchown(h.path(name), uid, -1)) }

// open lets other users pass through the directory, which testing closes.
func (h host) open() {
	h.t.Helper()
	h.must(os.Chmod(filepath.Dir(h.root), 0o755))
	h.must(os.Chmod(h.root, 0o755))
}

// replace puts what create makes in the place of the policy.
func (h host) replace(create func(path string) error) {
	h.t.Helper()
	h.must(os.Remove(h.policy()))
	h.must(create(h.policy()))
}

func TestRead(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(h host)
		options Options
		want    string // part of the error, with ROOT for the host's directory; "" when the file is read
	}{
		{"as it should be", func(h host) {}, Options{}, ""},
		{"mode 0444", func(h host) { h.chmod("etc/broker/policy.yaml", 0o444) }, Options{}, ""},
		{"below a sticky directory of root", func(h host) { h.chmod("etc", 0o1777) }, Options{}, ""},

		{"file of another user", func(h host) { h.chown("etc/broker/policy.yaml", stranger) }, Options{},
			"ROOT/etc/broker/policy.yaml is owned by uid 65534, and must be by root: run chown root ROOT/etc/broker/policy.yaml"},
		{"directory of another user", func(h host) { h.chown("etc/broker", stranger) }, Options{},
			"ROOT/etc/broker/policy.yaml: ROOT/etc/broker is owned by uid 65534"},
		{"directory of another user, higher up", func(h host) { h.chown("etc", stranger) }, Options{},
			"ROOT/etc is owned by uid 65534"},
		{"sticky directory of another user", func(h host) { h.chmod("etc", 0o1777); h.chown("etc", stranger) }, Options{},
			"ROOT/etc is owned by uid 65534"},
		{"another user's directory in a sticky directory", func(h host) { h.chmod("etc", 0o1777); h.chown("etc/broker", stranger) }, Options{},
			"ROOT/etc/broker is owned by uid 65534"},
		{"another user's file in a sticky directory", func(h host) { h.chmod("etc/broker", 0o1777); h.chown("etc/broker/policy.yaml", stranger) },
			Options{}, "ROOT/etc/broker/policy.yaml is owned by uid 65534"},

		{"file writable by group", func(h host) { h.chmod("etc/broker/policy.yaml", 0o664) }, Options{},
			"ROOT/etc/broker/policy.yaml is writable by its group or by others (mode 0664): run chmod go-w ROOT/etc/broker/policy.yaml"},
		{"file writable by others", func(h host) { h.chmod("etc/broker/policy.yaml", 0o646) }, Options{}, "(mode 0646): run chmod go-w"},
		{"sticky file writable by others", func(h host) { h.chmod("etc/broker/policy.yaml", 0o1646) }, Options{}, "(mode 1646): run chmod go-w"},
		{"directory writable by group", func(h host) { h.chmod("etc/broker", 0o775) }, Options{},
			"ROOT/etc/broker is writable by its group or by others (mode 0775): run chmod go-w ROOT/etc/broker"},
		{"directory writable by others, higher up", func(h host) { h.chmod("etc", 0o757) }, Options{}, "ROOT/etc is writable"},

		{"link to the file", func(h host) {
			h.must(os.Rename(h.policy(), h.path("real")))
			h.must(os.Symlink(h.path("real"), h.policy()))
		}, Options{}, "ROOT/etc/broker/policy.yaml is a symbolic link, and links are not followed: " +
			"give the path it leads to (readlink -f ROOT/etc/broker/policy.yaml)"},
		{"link in the middle", func(h host) {
			h.must(os.Rename(h.path("etc"), h.path("usr")))
			h.must(os.Symlink("usr", h.path("etc")))
		}, Options{}, "ROOT/etc/broker/policy.yaml: ROOT/etc is a symbolic link"},
		{"link to nothing", func(h host) {
			h.replace(func(path string) error { return os.Symlink("nowhere", path) })
		}, Options{}, "is a symbolic link"},

		{"FIFO", func(h host) {
			h.replace(func(path string) error { return unix.Mkfifo(path, 0o600) })
		}, Options{}, "is not a regular file"},
		{"device", func(h host) {
			h.replace(func(path string) error {
				err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))) // zero
				if errors.Is(err, unix.EPERM) {
					h.t.Skip("devices cannot be made here")
				}
				return err
			})
		}, Options{}, "is not a regular file"},
		{"socket", func(h host) {
			h.replace(func(path string) error {
				t.Chdir(filepath.Dir(path)) // an address holds 108 bytes
				l, err := net.Listen("unix", filepath.Base(path))
				if err == nil {
					h.t.Cleanup(func() { l.Close() })
				}
				return err
			})
		}, Options{}, "is not a regular file"},
		{"directory", func(h host) {
			h.replace(func(path string) error { return os.Mkdir(path, 0o700) })
		}, Options{}, "is not a regular file"},
		{"file in the middle", func(h host) {
			h.must(os.RemoveAll(h.path("etc")))
			h.must(os.WriteFile(h.path("etc"), nil, 0o644))
		}, Options{}, "ROOT/etc/broker/policy.yaml: ROOT/etc is not a directory"},

		{"at the size limit", func(h host) {}, Options{MaxBytes: 7}, ""},
		{"over the size limit", func(h host) {}, Options{MaxBytes: 6}, "ROOT/etc/broker/policy.yaml: is larger than 6 bytes"},
		{"over the default size limit", func(h host) { h.must(os.Truncate(h.policy(), DefaultMaxBytes+1)) }, Options{},
			"is larger than 1048576 bytes"},

		{"secret", func(h host) { h.chmod("etc/broker/policy.yaml", 0o600) }, Options{Secret: true}, ""},
		{"secret readable by group", func(h host) { h.chmod("etc/broker/policy.yaml", 0o640) }, Options{Secret: true},
			"is open to group or others (mode 0640): run chmod 0600 ROOT/etc/broker/policy.yaml"},
		{"secret executable by others", func(h host) { h.chmod("etc/broker/policy.yaml", 0o601) }, Options{Secret: true},
			"is open to group or others (mode 0601)"},
		{"secret of another user", func(h host) { h.chmod("etc/broker/policy.yaml", 0o600); h.chown("etc/broker/policy.yaml", stranger) },
			Options{Secret: true}, "is owned by uid 65534"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			tt.prepare(h)
			var data []byte
			var err, checkErr error
			within(t, 5*time.Second, func() {
				data, err = Read(h.policy(), tt.options)
				checkErr = Check(h.policy(), tt.options)
			})
			if tt.want == "" {
				if err != nil || string(data) != "trusted" || checkErr != nil {
					t.Errorf("Read: %q, %v; Check: %v", data, err, checkErr)
				}
				return
			}
			want := strings.ReplaceAll(tt.want, "ROOT", h.root)
			if err == nil || data != nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Read: %q, %v\nwant %s", data, err, want)
			}
			if checkErr == nil || err != nil && checkErr.Error() != err.Error() {
				t.Errorf("Check says %v, Read says %v", checkErr, err)
			}
		})
	}
}

// within fails the test when f takes longer than d, as an open of a FIFO would.
func within(t *testing.T, d time.Duration, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatal("blocked")
	}
}

func TestPaths(t *testing.T) {
	for _, path := range []string{"", "/", "policy.yaml", "./policy.yaml", "/etc/../etc/passwd", "/etc//passwd", "/etc/passwd/", "/etc/./passwd", "/etc/pass\x00wd"} {
		if _, err := Read(path, Options{}); err == nil || !strings.Contains(err.Error(), "is not an absolute and clean path") {
			t.Errorf("Read(%q): %v", path, err)
		}
		if err := MkdirPrivate(path); err == nil || !strings.Contains(err.Error(), "is not an absolute and clean path") {
			t.Errorf("MkdirPrivate(%q): %v", path, err)
		}
	}
}

// TestReadIsBounded reads a file that says it has no size, as one that grows
// after it was checked would.
func TestReadIsBounded(t *testing.T) {
	path := fmt.Sprintf("/proc/%d/status", os.Getpid())
	if _, err := Read(path, Options{}); err != nil {
		t.Skip(err)
	}
	if data, err := Read(path, Options{MaxBytes: 10}); err == nil || !strings.Contains(err.Error(), "is larger than 10 bytes") {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}

func TestAbsentFileIsErrNotExist(t *testing.T) {
	h := newHost(t)
	for _, name := range []string{"etc/broker/none", "etc/none/policy.yaml"} {
		if _, err := Read(h.path(name), Options{}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// as runs f with the effective user uid, on a thread of its own.
func as(t *testing.T, uid int, f func()) {
	t.Helper()
	setEUID := func(uid int) {
		keep := ^uintptr(0)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
			panic(errno)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		setEUID(uid)
		defer setEUID(0)
		f()
	}()
	<-done
}

func TestReadAsAnotherUser(t *testing.T) {
	h := newHost(t)
	h.open()
	h.chown("etc/broker", stranger)
	h.chown("etc/broker/policy.yaml", stranger)
	as(t, stranger, func() {
		if data, err := Read(h.policy(), Options{}); err != nil || string(data) != "trusted" {
			t.Errorf("own file below root's directories: %q, %v", data, err)
		}
	})
	h.chmod("etc/broker", 0o1777)
	as(t, stranger, func() {
		if _, err := Read(h.policy(), Options{}); err == nil || !strings.Contains(err.Error(), "etc/broker is writable") {
			t.Errorf("own sticky directory: %v", err)
		}
	})
	h.chmod("etc/broker", 0o755)
	h.chown("etc/broker/policy.yaml", stranger-1)
	as(t, stranger, func() {
		if _, err := Read(h.policy(), Options{}); err == nil || !strings.Contains(err.Error(), "must be by root or uid 65534") {
			t.Errorf("third user's file: %v", err)
		}
	})
}
