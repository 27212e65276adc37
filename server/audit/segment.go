package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// segmentName is the file whose first record has the sequence number first. The
// names sort in the order of the chain.
func segmentName(first uint64) string { return fmt.Sprintf("audit-%020d.jsonl", first) }

// listSegments returns the first sequence numbers of the segments in dir,
// ascending. Files of other names are not the log's and are passed over.
func listSegments(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return nil, err
	}
	var firsts []uint64
	for _, e := range entries {
		number, _ := strings.CutPrefix(e.Name(), "audit-")
		number, _ = strings.CutSuffix(number, ".jsonl")
		first, err := strconv.ParseUint(number, 10, 64)
		if err == nil && first > 0 && segmentName(first) == e.Name() {
			firsts = append(firsts, first)
		}
	}
	return firsts, nil
}

// openSegment opens a segment for reading. A link or a pipe in its place must
// neither lead elsewhere nor block.
func openSegment(dir string, first uint64) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, segmentName(first)), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: f.Name(), Err: errors.New("not a regular file")}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// file is what the writer does with a segment, and where tests put their faults.
type file interface {
	Write(p []byte) (int, error)
	Sync() error
	Truncate(size int64) error
	Close() error
}

// openAppend opens a segment for writing, creating it if need be, and returns its
// size.
func openAppend(path string) (file, int64, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

// syncDir makes the creation or removal of a file in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lineReader reads the lines of a segment in bounded memory.
type lineReader struct {
	src io.ReaderAt
	buf *bufio.Reader
	off int64 // of the next line
}

func newLineReader(src io.ReaderAt, off int64) *lineReader {
	r := &lineReader{src: src, buf: bufio.NewReaderSize(nil, maxLine)}
	r.seek(off)
	return r
}

func (r *lineReader) seek(off int64) {
	r.off = off
	r.buf.Reset(io.NewSectionReader(r.src, off, math.MaxInt64-off))
}

// next returns the next line without its newline; it is valid until the next
// call. ended is false for the bytes after the last newline, of which there may
// be none. For a line above maxLine the text is empty, which no check takes for a
// record; off tells its length.
func (r *lineReader) next() (text []byte, ended bool, err error) {
	text, err = r.buf.ReadSlice('\n')
	r.off += int64(len(text))
	if errors.Is(err, bufio.ErrBufferFull) {
		text = nil
		for errors.Is(err, bufio.ErrBufferFull) {
			var more []byte
			more, err = r.buf.ReadSlice('\n')
			r.off += int64(len(more))
		}
		if err == nil {
			return text, true, nil
		}
	}
	switch {
	case err == nil:
		return text[:len(text)-1], true, nil
	case errors.Is(err, io.EOF):
		return text, false, nil
	default:
		return nil, false, err
	}
}
