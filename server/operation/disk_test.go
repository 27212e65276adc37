package operation

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFullDisk: on a real one no operation begins without its journal, what runs
// loses progress and nothing else, and its end reaches who watches.
func TestFullDisk(t *testing.T) {
	mnt := t.TempDir()
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		if os.Getenv("E2E_REQUIRE") == "1" {
			t.Fatalf("E2E_REQUIRE=1, but a tmpfs cannot be mounted: %v", err)
		}
		t.Skipf("NOT TESTED: a tmpfs cannot be mounted (needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Error(err)
		}
	})
	dir := filepath.Join(mnt, "operations")
	s := open(t, dir, nil)
	o := begin(t, s, 1, nil)
	ballast := filepath.Join(mnt, "ballast")
	for n := 64 << 10; n > 0; n -= 4 << 10 {
		if os.WriteFile(ballast, make([]byte, n), 0o600) == nil {
			break
		}
	}
	for range 20 { // Its block has room for some of it.
		if err := o.Append(text(strings.Repeat("x", 1000))); err != nil {
			t.Fatalf("progress fails the work: %v", err)
		}
	}
	kept := o.View().GetLastSequence()
	if kept == 21 {
		t.Fatal("the disk is not full")
	}
	if _, err := try(s, 2, nil); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a second operation: %v", err)
	}
	if len(s.List()) != 1 {
		t.Errorf("%d operations are kept", len(s.List()))
	}
	// The end may fit into what progress has left of the block, or not: there is a
	// long result.
	if err := o.End(text(strings.Repeat("r", 5000)), nil, time.Now()); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("the end: %v", err)
	}
	got := events(t, o, kept)
	if len(got) != 2 || !strings.HasSuffix(got[0], "rrr") || got[1] != "end" {
		t.Errorf("who watches gets %.60q", got)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	next := begin(t, s, 2, nil)
	if next.Append(text("step")) != nil || next.View().GetLastSequence() != 2 {
		t.Error("it does not go on when there is room")
	}
	succeed(t, next)
	// What the disk did not take is interrupted after a restart, never succeeded.
	if v := open(t, dir, nil).Get("operations/" + id(1)).View(); v.GetState() != Interrupted {
		t.Errorf("%v", v)
	}
}
