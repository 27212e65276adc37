package certs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	certPerm fs.FileMode = 0o644
	keyPerm  fs.FileMode = 0o600
	dirPerm  fs.FileMode = 0o700

	// maxFile bounds what is read from any file. One certificate is about 1 KiB.
	maxFile = 256 << 10

	// lockWait bounds the wait for another writer. Any process that can read
	// the directory can hold its lock, so the wait must end.
	lockWait = 5 * time.Second
)

// dir is an open directory of certificates. Every name is a single path element
// relative to the open handle: a directory that is swapped for another, or for a
// symbolic link, while it is in use changes nothing.
type dir struct {
	path string
	root *os.Root
	self *os.File
}

func openDir(path string) (*dir, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	self, err := root.Open(".")
	if err != nil {
		root.Close()
		return nil, err
	}
	return &dir{path: path, root: root, self: self}, nil
}

// makeDir opens path for writing and creates it first, private, if it is
// missing. Its parent must exist.
func makeDir(path string) (*dir, error) {
	if err := os.Mkdir(path, dirPerm); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return openLocked(path)
}

func openLocked(path string) (*dir, error) {
	d, err := openDir(path)
	if err != nil {
		return nil, err
	}
	if err := d.lock(); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// lock keeps other writers of this package out until close. Two renewals at
// once could otherwise leave the key of one beside the certificate of the other.
func (d *dir) lock() error {
	for end := time.Now().Add(lockWait); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(d.self.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %s: %w", d.path, err)
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is locked by another process for more than %v: try again when it is done", d.path, lockWait)
		}
	}
}

func (d *dir) close() {
	d.self.Close()
	d.root.Close()
}

func (d *dir) join(name string) string { return filepath.Join(d.path, name) }

// checkTamperProof refuses a directory in which other users can replace files:
// the mode of a key means nothing there.
func (d *dir) checkTamperProof() error {
	info, err := d.self.Stat()
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("other users can replace files in %s (mode %04o): run `chmod go-w %s`", d.path, info.Mode().Perm(), d.path)
	}
	return checkOwner(d.path, info)
}

// checkPrivate refuses a key that others can read or own.
func checkPrivate(path string, info fs.FileInfo) error {
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("the private key %s is open to other users (mode %04o): run `chmod 600 %s`, and replace the key if anyone may have read it",
			path, info.Mode().Perm(), path)
	}
	return checkOwner(path, info)
}

func checkOwner(path string, info fs.FileInfo) error {
	uid, _ := owner(info)
	if uid != 0 && uid != os.Geteuid() {
		return fmt.Errorf("%s belongs to uid %d, who could change it: run `chown %d %s`", path, uid, os.Geteuid(), path)
	}
	return nil
}

func owner(info fs.FileInfo) (uid, gid int) {
	stat := info.Sys().(*syscall.Stat_t) // always so for files on Linux
	return int(stat.Uid), int(stat.Gid)
}

// read returns a regular file and what fstat says of the very file that was
// read. O_NONBLOCK keeps a named pipe from blocking the open forever.
func (d *dir) read(name string) ([]byte, fs.FileInfo, error) {
	path := d.join(name)
	fd, err := unix.Openat(int(d.self.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, nil, fmt.Errorf("%s is a symbolic link, which is not followed here: name the file itself", path)
	}
	if err != nil {
		return nil, nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	return readRegular(f)
}

func readRegular(f *os.File) ([]byte, fs.FileInfo, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is not a regular file", f.Name())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, nil, err
	}
	if len(data) > maxFile {
		return nil, nil, fmt.Errorf("%s is larger than %d bytes", f.Name(), maxFile)
	}
	return data, info, nil
}

// file is one file to write. A nil owner means the calling process.
type file struct {
	name  string
	data  []byte
	perm  fs.FileMode
	owner fs.FileInfo
}

// stagedName is fixed, not random: the next renewal must be able to find what a
// renewal that died left behind.
func stagedName(name string) string { return "." + name + ".new" }

// stage writes f under its staged name, down to the disk. The file is created
// with its final mode or, under a strict umask, a narrower one: at no time is
// it open to more users than f.perm allows.
func (d *dir) stage(f file) (err error) {
	name := stagedName(f.name)
	if err := d.remove(name); err != nil {
		return err
	}
	w, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.perm)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := w.Close(); err == nil {
			err = closeErr
		}
	}()
	info, err := w.Stat()
	if err != nil {
		return err
	}
	if info.Mode().Perm() != f.perm {
		if err := w.Chmod(f.perm); err != nil {
			return err
		}
	}
	if f.owner != nil {
		uid, gid := owner(f.owner)
		if newUID, newGID := owner(info); uid != newUID || gid != newGID {
			if err := w.Chown(uid, gid); err != nil {
				return err
			}
		}
	}
	if _, err := w.Write(f.data); err != nil {
		return err
	}
	return w.Sync()
}

// create puts the files in place in the given order, and none of them if one
// cannot be: it never replaces anything, a dangling symbolic link included. An
// error that an existing file causes matches [fs.ErrExist].
func (d *dir) create(files ...file) (err error) {
	for _, f := range files {
		if _, err := d.root.Lstat(f.name); err == nil {
			return &fs.PathError{Op: "create", Path: d.join(f.name), Err: fs.ErrExist}
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	var undo []string
	defer func() {
		for _, f := range files {
			err = errors.Join(err, d.remove(stagedName(f.name)))
		}
		if err != nil {
			for _, name := range undo {
				err = errors.Join(err, d.remove(name))
			}
		}
	}()
	for _, f := range files {
		if err := d.stage(f); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := d.place(f.name); err != nil {
			return err
		}
		undo = append(undo, f.name)
	}
	return d.self.Sync()
}

// place gives a staged file its final name. link(2), unlike rename(2), refuses a
// name that exists, so nothing that appears at the last moment is lost.
func (d *dir) place(name string) error {
	return d.root.Link(stagedName(name), name)
}

// commit moves a staged file over its final name. Unlike [os.Rename] alone it
// returns only when the new name is on the disk.
func (d *dir) commit(name string) error {
	if err := d.root.Rename(stagedName(name), name); err != nil {
		return err
	}
	return d.self.Sync()
}

func (d *dir) remove(name string) error {
	if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
