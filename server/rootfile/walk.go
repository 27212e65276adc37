package rootfile

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// openParent walks to the directory that path is in, checks every directory on
// the way, and returns a descriptor of the last with the name of the entry.
func openParent(path string) (fd int, name string, err error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" || strings.ContainsRune(path, 0) {
		return -1, "", fmt.Errorf("%q: is not an absolute and clean path of something below /", path)
	}
	at := "/"
	fd, err = openDir(unix.AT_FDCWD, "/", at, path)
	if err != nil {
		return -1, "", err
	}
	components := strings.Split(path[1:], "/")
	last := len(components) - 1
	for _, component := range components[:last] {
		at = filepath.Join(at, component)
		next, err := openDir(fd, component, at, path)
		unix.Close(fd)
		if err != nil {
			return -1, "", err
		}
		fd = next
	}
	return fd, components[last], nil
}

// openDir opens the directory name in dir, and checks it. At is its full path,
// and path what the caller is after.
func openDir(dir int, name, at, path string) (int, error) {
	// O_PATH opens a link itself, which can then be told from a file, and needs
	// no permission to list the directory.
	fd, err := openat(dir, name, unix.O_PATH)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: at, Err: err}
	}
	if err := checkDir(fd, at, path); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func checkDir(fd int, at, path string) error {
	st, err := fstat(fd, at)
	if err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
	case unix.S_IFLNK:
		return isLink(at, path)
	default:
		return fmt.Errorf("%s: %s is not a directory", path, at)
	}
	if err := checkOwner(st, at, path); err != nil {
		return err
	}
	sticky := st.Mode&unix.S_ISVTX != 0 && st.Uid == 0
	if st.Mode&0o022 != 0 && !sticky {
		return isWritable(st, at, path)
	}
	return nil
}

func checkOwner(st unix.Stat_t, at, path string) error {
	euid := unix.Geteuid()
	if st.Uid == 0 || int(st.Uid) == euid {
		return nil
	}
	who := "root"
	if euid != 0 {
		who = fmt.Sprintf("root or uid %d", euid)
	}
	return fmt.Errorf("%s: %s is owned by uid %d, and must be by %s: run chown root %[2]s", path, at, st.Uid, who)
}

func isWritable(st unix.Stat_t, at, path string) error {
	return fmt.Errorf("%s: %s is writable by its group or by others (mode %04o): run chmod go-w %[2]s",
		path, at, st.Mode&0o7777)
}

func isLink(at, path string) error {
	return fmt.Errorf("%s: %s is a symbolic link, and links are not followed: give the path it leads to (readlink -f %[1]s)",
		path, at)
}

// openat opens name in dir without following a link and without leaking the
// descriptor to another program.
func openat(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) { // network file systems
			return fd, err
		}
	}
}

func fstat(fd int, at string) (st unix.Stat_t, err error) {
	if err := unix.Fstat(fd, &st); err != nil {
		return st, &fs.PathError{Op: "stat", Path: at, Err: err}
	}
	return st, nil
}
