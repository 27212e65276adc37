package testhost

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

const (
	runDirEnv    = "HERMES_TESTHOST_DIR"
	runDirPrefix = "hermes-testhost-"

	// maxRunDir leaves room below a run's folder for the engine's own sockets:
	// the kernel limits a unix socket's path to 107 bytes.
	maxRunDir = 50
)

// A runDir holds all the files of one run. It is locked for as long as the
// run or its init lives, which says "in use" without the ambiguity of a
// recycled PID.
type runDir struct {
	path string
	lock *os.File
}

func newRunDir() (*runDir, error) {
	for {
		path, err := os.MkdirTemp("", runDirPrefix)
		if err != nil {
			return nil, err
		}
		if len(path) > maxRunDir {
			os.Remove(path)
			return nil, fmt.Errorf("%s is too long a path to hold unix sockets: set TMPDIR to a shorter one", path)
		}
		// Another run's sweep may take the folder before it is locked.
		if lock, err := lockDir(path); err == nil {
			return &runDir{path, lock}, nil
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EWOULDBLOCK) {
			os.Remove(path)
			return nil, err
		}
	}
}

// lockDir fails with EWOULDBLOCK when the folder is in use and with
// [fs.ErrNotExist] when it is gone by the time it is locked.
func lockDir(path string) (*os.File, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(dir.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		_, err = os.Lstat(path)
	}
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return dir, nil
}

// remove keeps the folder when a cgroup is still in use: the folder is what
// names it, to the next sweep.
func (d *runDir) remove() error {
	defer d.lock.Close()
	if err := removeCgroups(d.path); err != nil {
		return err
	}
	if root := os.Getenv(engineRootEnv); root != "" {
		_ = os.Remove(filepath.Join(root, d.path)) // where the folder was mounted, for furnishRoot
	}
	return os.RemoveAll(d.path)
}

// sweepStaleRuns removes the folders of runs that were killed. It is best
// effort: a folder in use is locked, and one that resists (a killed run's last
// processes may just be ending) waits for the next sweep.
func sweepStaleRuns() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), runDirPrefix+"*"))
	for _, path := range dirs {
		if lock, err := lockDir(path); err == nil {
			_ = (&runDir{path, lock}).remove()
		}
	}
}

// removeCgroups removes the empty cgroups of containers that a killed engine
// could not clean up after; they outlive every namespace. The IDs come from
// the run's own data folders, so no other engine's cgroup is meant.
func removeCgroups(run string) error {
	containers, _ := filepath.Glob(filepath.Join(run, "*/data/containers/*"))
	for _, c := range containers {
		id := filepath.Base(c)
		v1, _ := filepath.Glob("/sys/fs/cgroup/*/docker/" + id)
		for _, dir := range append(v1, "/sys/fs/cgroup/docker/"+id) {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
