package server

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/audit"
	"github.com/gortium/hermes-broker/server/fault"
)

// onDisk moves the audit trail of a rig onto a disk that mount makes.
func onDisk(t *testing.T, mount func(dir string)) (*rig, brokerv1.ContainerServiceClient) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("E2E_REQUIRE") == "1" {
			t.Fatal("E2E_REQUIRE=1, but mounting a disk needs root")
		}
		t.Skip("NOT TESTED: mounting a disk needs root")
	}
	r := newRig(t, everything, nil)
	r.container("web")
	r.stop()
	disk := r.path("state/audit")
	if err := os.RemoveAll(disk); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	mount(disk)
	t.Cleanup(func() {
		r.stop()
		if err := unix.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	r.start(nil)
	return r, brokerv1.NewContainerServiceClient(r.dial(hermes))
}

// refuses calls until the first refusal, then so many times, and sees to it
// that the engine hears of none of them while reads go on.
func (r *rig) refuses(client brokerv1.ContainerServiceClient, calls int) {
	r.t.Helper()
	// A block that is half full still takes a few records, rightly.
	var err error
	for range 200 {
		if err = restart(r.t.Context(), client, "web"); fault.Reason(err) == "AUDIT_UNAVAILABLE" {
			break
		}
	}
	wantReason(r.t, err, "AUDIT_UNAVAILABLE")
	before := r.changes()
	for range calls {
		if err := restart(r.t.Context(), client, "web"); fault.Reason(err) != "AUDIT_UNAVAILABLE" {
			r.t.Fatalf("got %v, want AUDIT_UNAVAILABLE", err)
		}
	}
	if done := r.changes() - before; done != 0 {
		r.t.Errorf("%d effects without a record in %d calls", done, calls)
	}
	if _, err := client.InspectContainer(r.t.Context(), &brokerv1.InspectContainerRequest{Container: "web"}); err != nil {
		r.t.Errorf("a read: %v", err)
	}
}

func TestAuditOnAFullDisk(t *testing.T) {
	r, client := onDisk(t, func(dir string) {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=700"); err != nil {
			t.Fatal(err)
		}
	})
	ballast := r.path("state/audit/ballast")
	fill(t, ballast)
	r.refuses(client, 10_000)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "changes work again", func() bool { return restart(t.Context(), client, "web") == nil })
	r.stop()
	if _, err := audit.Verify(r.path("state/audit"), audit.VerifyOptions{}); err != nil {
		t.Errorf("the chain: %v", err)
	}
}

// TestAuditOnAFailingDisk puts the trail on a real file system whose device
// takes no more blocks: writes succeed, fsync fails, and then the kernel makes
// the file system read-only.
func TestAuditOnAFailingDisk(t *testing.T) {
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v: %s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	var device, loop string
	r, client := onDisk(t, func(dir string) {
		device = t.TempDir()
		if err := unix.Mount("tmpfs", device, "tmpfs", 0, "size=8m"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(device, unix.MNT_DETACH) })
		image := device + "/image"
		if err := os.WriteFile(image, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(image, 64<<20); err != nil {
			t.Fatal(err)
		}
		run("mkfs.ext4", "-q", image)
		loop = run("losetup", "--find", "--show", image)
		t.Cleanup(func() { run("losetup", "--detach", loop) })
		if err := unix.Mount(loop, dir, "ext4", 0, "errors=remount-ro"); err != nil {
			t.Fatal(err)
		}
	})
	if err := restart(t.Context(), client, "web"); err != nil {
		t.Fatal(err)
	}
	fill(t, device+"/ballast")
	r.refuses(client, 1000)
}

// fill writes until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{4096, 1} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
}
