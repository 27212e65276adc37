package rootfile

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// exchanging swaps a and b over and over until the test ends.
func (h host) exchanging(a, b string) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				if err := unix.Renameat2(unix.AT_FDCWD, h.path(a), unix.AT_FDCWD, h.path(b), unix.RENAME_EXCHANGE); err != nil {
					h.t.Error(err)
					return
				}
			}
		}
	}()
	h.t.Cleanup(func() { close(stop); <-stopped })
}

// TestExchangeDuringRead reads while what the path means changes all the time,
// from trusted to not trusted and back.
func TestExchangeDuringRead(t *testing.T) {
	tests := []struct {
		name     string
		prepare  func(h host)
		original string
		other    string
	}{
		{"directory and a link to another", func(h host) {
			h.must(os.MkdirAll(h.path("evil/broker"), 0o755))
			h.must(os.WriteFile(h.path("evil/broker/policy.yaml"), []byte("evil"), 0o644))
			h.must(os.Symlink("evil", h.path("link")))
		}, "etc", "link"},
		{"directory and another user's", func(h host) {
			h.must(os.MkdirAll(h.path("evil/broker"), 0o755))
			h.must(os.WriteFile(h.path("evil/broker/policy.yaml"), []byte("evil"), 0o644))
			h.chown("evil", stranger)
		}, "etc", "evil"},
		{"file and another user's", func(h host) {
			h.must(os.WriteFile(h.path("evil"), []byte("evil"), 0o644))
			h.chown("evil", stranger)
		}, "etc/broker/policy.yaml", "evil"},
		{"file and a link to another", func(h host) {
			h.must(os.WriteFile(h.path("evil"), []byte("evil"), 0o644))
			h.must(os.Symlink(h.path("evil"), h.path("link")))
		}, "etc/broker/policy.yaml", "link"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			tt.prepare(h)
			h.exchanging(tt.original, tt.other)
			read, refused := 0, 0
			for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end) || read == 0 || refused == 0; {
				data, err := Read(h.policy(), Options{})
				switch {
				case err != nil:
					refused++
				case string(data) == "trusted":
					read++
				default:
					t.Fatalf("read %q", data)
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}

// TestNoDescriptorIsLeft counts descriptors after each way out.
func TestNoDescriptorIsLeft(t *testing.T) {
	h := newHost(t)
	h.must(os.Symlink("etc", h.path("link")))
	h.must(os.Mkdir(h.path("open"), 0o755))
	h.chmod("open", 0o755)
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		h.must(err)
		return len(entries)
	}
	before := count()
	for range 50 {
		Read(h.policy(), Options{})
		Read(h.policy(), Options{MaxBytes: 1})
		Read(h.path("link/broker/policy.yaml"), Options{})
		Read(h.path("none/policy.yaml"), Options{})
		Check(h.policy(), Options{})
		MkdirPrivate(h.path("state"))
		MkdirPrivate(h.path("open"))
	}
	if after := count(); after > before+5 { // the runtime may have opened its own
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
