package audit

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// needMount skips or fails where the real faults cannot be made.
func needMount(t *testing.T, dir, data string) {
	t.Helper()
	err := unix.Mount("tmpfs", dir, "tmpfs", 0, data)
	if err == nil {
		t.Cleanup(func() {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Error(err)
			}
		})
		return
	}
	if os.Getenv("E2E_REQUIRE") == "1" {
		t.Fatalf("E2E_REQUIRE=1, but a tmpfs cannot be mounted: %v", err)
	}
	t.Skipf("NOT TESTED: a tmpfs cannot be mounted (needs root): %v", err)
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	mnt := t.TempDir()
	needMount(t, mnt, "size=64k,mode=0700")
	dir := filepath.Join(mnt, "audit")
	l, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(mnt, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 32<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	asked := 0
	acked := map[uint64]string{}
	sync := func() error {
		asked++
		call := strconv.Itoa(asked)
		seq, err := l.Sync(t.Context(), Record{Event: EventIntent, Call: call, Detail: "spiffe://home.example/agent/hermes"})
		if err == nil {
			acked[seq] = call
		}
		return err
	}
	for err = sync(); err == nil; err = sync() {
		if asked > 1000 {
			t.Fatal("a 64 KiB disk does not get full")
		}
	}
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("on a full disk: %v", err)
	}
	filled := len(acked)
	for range 3 { // it stays refused, by fresh attempts too
		time.Sleep(retryEvery)
		if err := sync(); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("on a full disk: %v", err)
		}
	}
	if r := mustVerify(t, dir); r.Records != uint64(filled) || r.Unfinished != 0 {
		t.Errorf("%d records and %d bytes on disk, %d acknowledged", r.Records, r.Unfinished, filled)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	time.Sleep(retryEvery)
	if err := sync(); err != nil {
		t.Fatalf("after space was freed: %v", err)
	}
	mustClose(t, l)
	r := mustVerify(t, dir)
	recs := mustRead(t, dir)
	for seq, call := range acked {
		if recs[seq-1].Call != call {
			t.Errorf("acknowledged %d (%s) is %+v", seq, call, recs[seq-1])
		}
	}
	if gap := recs[filled]; gap.Event != EventGap || gap.Count != uint64(asked-len(acked)) || r.Gaps != 1 {
		t.Errorf("after %d records: %+v", filled, gap)
	}
}

// TestReadOnly opens logs on a disk that is mounted read-only. (The kernel does
// not remount under a file that is open for writing; TestFaults has that case.)
func TestReadOnly(t *testing.T) {
	mnt := t.TempDir()
	needMount(t, mnt, "size=1m,mode=0700")
	dir := filepath.Join(mnt, "audit")
	sample(t, dir, 11, 0)
	if err := unix.Mount("", mnt, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, filepath.Join(mnt, "new")} {
		if _, err := Open(Options{Dir: d}); !errors.Is(err, syscall.EROFS) {
			t.Errorf("Open %s: %v, want EROFS", d, err)
		}
	}
	if r := mustVerify(t, dir); r.Records != 11 {
		t.Errorf("report %+v", r)
	}
	if recs, _ := readAll(t, dir, ReadOptions{}); len(recs) != 11 {
		t.Errorf("%d records", len(recs))
	}
	if err := unix.Mount("", mnt, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	l, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	mustSync(t, l, Record{Event: EventStart})
	mustClose(t, l)
	mustVerify(t, dir)
}
