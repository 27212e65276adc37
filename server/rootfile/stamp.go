package rootfile

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// Stamp identifies one state of a file. Two stamps of a path are equal when the
// file was neither replaced, written nor changed in owner or mode between them,
// to the resolution of the file system's clock (a few milliseconds).
type Stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64 // nanoseconds
}

// StampOf returns the stamp of the file at path, for finding out by polling
// that it may have changed. It checks nothing: [Read] does, when there is
// something new. Take the stamp before reading, so that a change in between is
// seen in the next round. A last component that is a link is not followed.
func StampOf(path string) (Stamp, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Stamp{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return Stamp{
		dev: st.Dev, ino: st.Ino, size: st.Size,
		mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(),
	}, nil
}
