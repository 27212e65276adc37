package rootfile

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMkdirPrivate(t *testing.T) {
	mkdir := func(mode uint32) func(h host) {
		return func(h host) {
			h.must(os.Mkdir(h.path("state"), 0o700))
			h.chmod("state", mode)
		}
	}
	tests := []struct {
		name    string
		prepare func(h host)
		want    string
	}{
		{"not there", func(h host) {}, ""},
		{"there", mkdir(0o700), ""},
		{"readable by group", mkdir(0o750), "has mode 0750, and must have 0700: see who used it, and run chmod 0700"},
		{"writable by others", mkdir(0o707), "is writable by its group or by others (mode 0707)"},
		{"sticky and open", mkdir(0o1777), "has mode 1777"},
		{"not for its owner", mkdir(0o500), "has mode 0500"},
		{"another user's", func(h host) { mkdir(0o700)(h); h.chown("state", stranger) }, "is owned by uid 65534"},
		{"link to a good one", func(h host) {
			h.must(os.Mkdir(h.path("good"), 0o700))
			h.must(os.Symlink("good", h.path("state")))
		}, "is a symbolic link"},
		{"link to nothing", func(h host) { h.must(os.Symlink("none", h.path("state"))) }, "is a symbolic link"},
		{"file", func(h host) { h.must(os.WriteFile(h.path("state"), nil, 0o700)) }, "is not a directory"},
		{"parent open", func(h host) { h.must(unix.Chmod(h.root, 0o777)) }, "is writable by its group or by others (mode 0777)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			tt.prepare(h)
			err := MkdirPrivate(h.path("state"))
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, want %s", err, tt.want)
				}
				return
			}
			h.must(err)
			info, err := os.Lstat(h.path("state"))
			h.must(err)
			if info.Mode() != os.ModeDir|0o700 {
				t.Errorf("mode %v", info.Mode())
			}
		})
	}
	t.Run("root's, for another user", func(t *testing.T) {
		h := newHost(t)
		h.open()
		h.must(os.Mkdir(h.path("state"), 0o700))
		as(t, stranger, func() {
			err := MkdirPrivate(h.path("state"))
			if err == nil || !strings.Contains(err.Error(), "is owned by uid 0, and must be by uid 65534") {
				t.Error(err)
			}
		})
	})
}
