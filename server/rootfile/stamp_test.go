package rootfile

import (
	"os"
	"testing"
	"time"
)

func TestStampOf(t *testing.T) {
	changes := map[string]func(h host){
		"written": func(h host) { h.must(os.WriteFile(h.policy(), []byte("changed"), 0o644)) },
		"grown":   func(h host) { h.must(os.Truncate(h.policy(), 100)) },
		"mode":    func(h host) { h.chmod("etc/broker/policy.yaml", 0o600) },
		"replaced": func(h host) {
			h.must(os.WriteFile(h.path("new"), []byte("trusted"), 0o644))
			h.must(os.Rename(h.path("new"), h.policy()))
		},
		// The modification time can be set back, the change time cannot.
		"written and set back": func(h host) {
			info, err := os.Stat(h.policy())
			h.must(err)
			h.must(os.WriteFile(h.policy(), []byte("changed"), 0o644))
			h.must(os.Chtimes(h.policy(), info.ModTime(), info.ModTime()))
		},
		"became a link": func(h host) {
			h.replace(func(path string) error { return os.Symlink("nowhere", path) })
		},
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			before, err := StampOf(h.policy())
			h.must(err)
			if again, err := StampOf(h.policy()); err != nil || again != before {
				t.Errorf("differs without a change: %v, %v, %v", before, again, err)
			}
			time.Sleep(20 * time.Millisecond) // the clock of file systems is coarse
			change(h)
			after, err := StampOf(h.policy())
			h.must(err)
			if after == before {
				t.Error("the stamp is the same")
			}
		})
	}
	if _, err := StampOf("/nowhere/at/all"); !os.IsNotExist(err) {
		t.Errorf("of no file: %v", err)
	}
}
