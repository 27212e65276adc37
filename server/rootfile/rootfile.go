// Package rootfile reads the files that root's trust hangs on: policy,
// catalogue, keys. Whoever can change such a file, or have another read in its
// place, holds the power that it grants, so a file is read only when nobody but
// root and the process' own user could have done either.
//
// For a path that means, for each component from "/" on:
//
//   - it is no symbolic link. Links are never followed: what they point to can
//     be under somebody else's control, now or later;
//   - it is owned by root or by the effective user of the process;
//   - neither its group nor others may write to it. An access control list that
//     lets somebody else write shows as group write. A directory that root owns
//     may be writable when it is sticky, as /tmp is: there nobody can replace
//     what belongs to another user, and who owns it is checked next.
//
// The file itself must be regular and of bounded size, and a secret must be
// closed to everybody else for reading too.
//
// Every component is opened once, relative to the descriptor of its parent, and
// checked on its own descriptor; the content comes from the descriptor that was
// checked. Exchanging files or directories meanwhile can make Read fail, never
// return something unchecked.
//
// Two things are not seen: a descriptor opened for writing before the modes were
// put right, and content that is half written. Replace files by renaming.
//
// Only this check protects the content; nothing is said about its meaning. The
// package logs nothing, and errors contain paths, never content.
package rootfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// DefaultMaxBytes is the largest file that is read without [Options.MaxBytes].
const DefaultMaxBytes = 1 << 20

// Options say what a file may be.
type Options struct {
	// MaxBytes is the largest size in bytes that is accepted. 0 means
	// DefaultMaxBytes.
	MaxBytes int64
	// Secret asks for a file that group and others have no access to at all.
	Secret bool
}

// Read returns the content of the file at path, which is absolute and clean.
// An error names the component that is wrong and says how to put it right. A
// file that is not there gives an error that is [fs.ErrNotExist].
func Read(path string, o Options) ([]byte, error) {
	file, err := open(path, o)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	// The file may have grown since its size was checked.
	limit := o.maxBytes()
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, tooLarge(path, limit)
	}
	return data, nil
}

// Check does everything that [Read] does except reading. It says whether the
// file could be trusted a moment ago; only the content that Read returns is
// known to come from a trusted file.
func Check(path string, o Options) error {
	file, err := open(path, o)
	if err != nil {
		return err
	}
	return file.Close()
}

func (o Options) maxBytes() int64 {
	if o.MaxBytes == 0 {
		return DefaultMaxBytes
	}
	return o.MaxBytes
}

// open returns the file at path, after all checks.
func open(path string, o Options) (*os.File, error) {
	dir, name, err := openParent(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	// O_NONBLOCK: opening a FIFO must not wait for somebody to write to it.
	fd, err := openat(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil, isLink(path, path)
	case errors.Is(err, unix.ENXIO): // a socket
		return nil, fmt.Errorf("%s: is not a regular file", path)
	case err != nil:
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	file := os.NewFile(uintptr(fd), path)
	if err := checkFile(fd, path, o); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func checkFile(fd int, path string, o Options) error {
	st, err := fstat(fd, path)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%s: is not a regular file", path)
	}
	if err := checkOwner(st, path, path); err != nil {
		return err
	}
	if o.Secret && st.Mode&0o077 != 0 {
		return fmt.Errorf("%s: holds a secret and is open to group or others (mode %04o): run chmod 0600 %[1]s, "+
			"and replace the secret if somebody may have read it", path, st.Mode&0o7777)
	}
	if st.Mode&0o022 != 0 {
		return isWritable(st, path, path)
	}
	if st.Size > o.maxBytes() {
		return tooLarge(path, o.maxBytes())
	}
	return nil
}

func tooLarge(path string, limit int64) error {
	return fmt.Errorf("%s: is larger than %d bytes", path, limit)
}
