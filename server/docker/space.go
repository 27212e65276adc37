package docker

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// freeSpace asks the file system of a folder. The folder's name comes from the
// engine; nothing in it is opened or read.
func freeSpace(path string) (free, total int64, err error) {
	if !filepath.IsAbs(path) {
		return 0, 0, fmt.Errorf("%q is no absolute path", path)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, fmt.Errorf("statfs %s: %w", path, err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}
