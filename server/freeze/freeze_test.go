package freeze

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	hermes = "spiffe://home.example/agent/hermes"
	other  = "spiffe://home.example/agent/other"
)

func freeze(caller, reason string) Status {
	return Status{Caller: caller, Reason: reason, By: "ada", At: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)}
}

// mustOpen opens a switch anew, as after a restart.
func mustOpen(t *testing.T, path string) *Switch {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// want sees to it that these and no others are frozen, and for what reason.
func want(t *testing.T, s *Switch, reasons map[string]string) {
	t.Helper()
	for _, caller := range []string{hermes, other, "nobody", ""} {
		st, frozen := s.Check(caller)
		if reason, is := reasons[caller]; is != frozen || st.Reason != reason {
			t.Errorf("%q: frozen %v for %q, want %v for %q", caller, frozen, st.Reason, is, reason)
		}
	}
}

func all(reason string) map[string]string {
	return map[string]string{hermes: reason, other: reason, "nobody": reason, "": reason}
}

func TestOneAndAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "freeze.json")
	s := mustOpen(t, path)
	want(t, s, nil)
	for _, step := range []struct {
		do   func() error
		want map[string]string
		all  []string
	}{
		{func() error { return s.Set(freeze(hermes, "one")) }, map[string]string{hermes: "one"}, []string{hermes}},
		{func() error { return s.Set(freeze(other, "two")) }, map[string]string{hermes: "one", other: "two"}, []string{other, hermes}},
		{func() error { return s.Set(freeze(hermes, "again")) }, map[string]string{hermes: "again", other: "two"}, []string{other, hermes}},
		{func() error { return s.Set(freeze("", "all")) }, all("all"), []string{"", other, hermes}},
		// Unfreezing one caller does not let it through while all are frozen.
		{func() error { return s.Clear(hermes) }, all("all"), []string{"", other}},
		{func() error { return s.Clear("") }, map[string]string{other: "two"}, []string{other}},
		{func() error { return s.Clear("nobody") }, map[string]string{other: "two"}, []string{other}},
		{func() error { return s.Clear(other) }, nil, nil},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		for range 2 { // Now, and after a restart.
			want(t, s, step.want)
			var callers []string
			for _, st := range s.All() {
				callers = append(callers, st.Caller)
			}
			slices.Sort(step.all)
			if !slices.Equal(callers, step.all) {
				t.Errorf("All is %q, want %q", callers, step.all)
			}
			s = mustOpen(t, path)
		}
	}
}

func TestEverythingIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "freeze.json")
	st := freeze(hermes, "a \"reason\"\nin two lines, \u00fc")
	if err := mustOpen(t, path).Set(st); err != nil {
		t.Fatal(err)
	}
	if got, _ := mustOpen(t, path).Check(hermes); got != st {
		t.Errorf("got %+v, want %+v", got, st)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// TestBrokenFileFreezesEverybody defends against lifting a freeze by damaging
// its file.
func TestBrokenFileFreezesEverybody(t *testing.T) {
	good := `{"freezes":[{"caller":"` + hermes + `","reason":"r","by":"b","at":"2026-01-02T03:04:05Z"}]}`
	for name, text := range map[string]string{
		"empty": "", "half": good[:len(good)/2], "zeros": "\x00\x00\x00", "no object": "[]", "null": "null", "no list": "{}", "null list": `{"freezes":null}`,
		"unknown key": `{"freezes":[],"frozen":true}`, "two documents": good + `{"freezes":[]}`, "text behind": good + "x", "brace behind": good + "}",
		"bracket behind": good + "]", "wrong type": `{"freezes":"all"}`, "wrong time": `{"freezes":[{"caller":"","at":"today"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "freeze.json")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := Open(path)
			if err == nil {
				t.Fatal("no error")
			}
			reason := "the freeze file is broken; an operator must look at it and unfreeze"
			want(t, s, all(reason))
			// A freeze of one and its end do not mend it by the way.
			if err := s.Set(freeze(hermes, "one")); err != nil {
				t.Fatal(err)
			}
			if err := s.Clear(hermes); err != nil {
				t.Fatal(err)
			}
			want(t, s, all(reason))
			want(t, mustOpen(t, path), all(reason))
			if err := s.Clear(""); err != nil {
				t.Fatal(err)
			}
			want(t, s, nil)
			want(t, mustOpen(t, path), nil)
		})
	}
	t.Run("unreadable", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "freeze.json")
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path)
		if err == nil {
			t.Fatal("no error")
		}
		want(t, s, all("the freeze file is broken; an operator must look at it and unfreeze"))
	})
}

// TestWriteFailureKeepsFrozen defends the switch against a disk that fails: a
// freeze is in force without it, and an end of one is not.
func TestWriteFailureKeepsFrozen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "freeze.json")
	s := mustOpen(t, path)
	if err := s.Set(freeze(other, "before")); err != nil {
		t.Fatal(err)
	}
	away := dir + ".away"
	if err := os.Rename(dir, away); err != nil {
		t.Fatal(err)
	}
	if err := s.Set(freeze(hermes, "now")); err == nil {
		t.Error("Set says that it is on disk")
	}
	if err := s.Clear(other); err == nil {
		t.Error("Clear says that it is on disk")
	}
	want(t, s, map[string]string{hermes: "now", other: "before"})
	if err := s.Set(freeze("", "all")); err == nil {
		t.Error("Set says that it is on disk")
	}
	if err := s.Clear(""); err == nil {
		t.Error("Clear says that it is on disk")
	}
	want(t, s, all("all"))
	if err := os.Rename(away, dir); err != nil {
		t.Fatal(err)
	}
	want(t, mustOpen(t, path), map[string]string{other: "before"})
	// The disk is back: the next write has what the failed ones had.
	if err := s.Clear(""); err != nil {
		t.Fatal(err)
	}
	want(t, mustOpen(t, path), map[string]string{hermes: "now", other: "before"})
}

// TestFullDisk: what could not be written whole does not replace what is there.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: mounting a disk needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Skip("NOT TESTED: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "freeze.json")
	s := mustOpen(t, path)
	if err := s.Set(freeze(hermes, "before")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 64<<10), 0o600); err == nil {
		t.Fatal("the disk is not full")
	}
	if err := s.Clear(hermes); err == nil {
		t.Error("Clear says that it is on disk")
	}
	want(t, s, map[string]string{hermes: "before"})
	want(t, mustOpen(t, path), map[string]string{hermes: "before"})
}

func TestConcurrentUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "freeze.json")
	s := mustOpen(t, path)
	var w sync.WaitGroup
	for i := range 8 {
		w.Go(func() {
			caller := fmt.Sprint(i)
			for range 5 {
				if err := s.Set(freeze(caller, "r")); err != nil {
					t.Error(err)
				}
				if _, frozen := s.Check(caller); !frozen {
					t.Error("not frozen after Set")
				}
				s.All()
				if i%2 == 0 {
					if err := s.Clear(caller); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	w.Wait()
	if n := len(mustOpen(t, path).All()); n != 4 {
		t.Errorf("%d freezes on disk, want 4", n)
	}
}
