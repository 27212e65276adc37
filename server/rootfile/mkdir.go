package rootfile

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// MkdirPrivate makes sure that path is a directory of mode 0700 that belongs to
// the effective user of the process, below directories that [Read] would trust.
// It creates the directory when it is not there, and neither its parents nor
// any change to what is there already: what others could write to until now may
// hold anything.
func MkdirPrivate(path string) error {
	parent, name, err := openParent(path)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	if err := unix.Mkdirat(parent, name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return &fs.PathError{Op: "mkdir", Path: path, Err: err}
	}
	fd, err := openDir(parent, name, path, path)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	st, err := fstat(fd, path)
	if err != nil {
		return err
	}
	if euid := unix.Geteuid(); int(st.Uid) != euid {
		return fmt.Errorf("%s: is owned by uid %d, and must be by uid %d: remove it, or run chown %[3]d %[1]s",
			path, st.Uid, euid)
	}
	if st.Mode&0o777 != 0o700 {
		return fmt.Errorf("%s: has mode %04o, and must have 0700: see who used it, and run chmod 0700 %[1]s",
			path, st.Mode&0o7777)
	}
	return nil
}
