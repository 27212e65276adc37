package rootfile

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks bounds the links on the way to a program, as the kernel does.
const maxLinks = 40

// Program returns the file that the path of a program leads to, when nobody but
// root and the process' own user could have another file run in its place.
//
// Links are followed here, as they are not by [Read]: distributions reach most
// programs through some. What holds for directories and files of [Read] holds
// for everything on the way, the links and what they lead to. All of it belongs
// to root, so that nobody else can exchange it afterwards.
func Program(path string) (target string, err error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" || strings.ContainsRune(path, 0) {
		return "", fmt.Errorf("%q: is not an absolute and clean path of something below /", path)
	}
	at, todo, links := "/", strings.Split(path[1:], "/"), 0
	if err := checkDirAt(at, path); err != nil {
		return "", err
	}
	for len(todo) > 0 {
		next := filepath.Join(at, todo[0]) // ".." of a link goes up in what is resolved already.
		todo = todo[1:]
		st, err := lstat(next)
		if err != nil {
			return "", err
		}
		switch {
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			if err := checkOwner(st, next, path); err != nil {
				return "", err
			}
			if links++; links > maxLinks {
				return "", fmt.Errorf("%s: leads through more than %d links", path, maxLinks)
			}
			to := make([]byte, unix.PathMax)
			n, err := unix.Readlink(next, to)
			if err != nil {
				return "", &fs.PathError{Op: "readlink", Path: next, Err: err}
			}
			if link := string(to[:n]); filepath.IsAbs(link) {
				at, todo = "/", append(split(link), todo...)
			} else {
				todo = append(split(link), todo...)
			}
		case len(todo) > 0:
			if err := checkDirAt(next, path); err != nil {
				return "", err
			}
			at = next
		default:
			return next, checkProgram(st, next, path)
		}
	}
	return "", fmt.Errorf("%s: %s is not a program", path, at)
}

func split(link string) []string {
	return strings.FieldsFunc(link, func(r rune) bool { return r == '/' })
}

func checkProgram(st unix.Stat_t, at, path string) error {
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0 {
		return fmt.Errorf("%s: %s is not a program", path, at)
	}
	if err := checkOwner(st, at, path); err != nil {
		return err
	}
	if st.Mode&0o022 != 0 {
		return isWritable(st, at, path)
	}
	return nil
}

func checkDirAt(at, path string) error {
	fd, err := openDir(unix.AT_FDCWD, at, at, path)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func lstat(path string) (st unix.Stat_t, err error) {
	if err := unix.Lstat(path, &st); err != nil {
		return st, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return st, nil
}
