package testhost

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// journalRemote writes journal files as journald does. It is not on PATH.
const journalRemote = "/lib/systemd/systemd-journal-remote"

// A Journal is a folder with a real journal file, and the program that writes it.
type Journal struct {
	Dir     string
	process *process
	in      io.WriteCloser
	written int
}

// StartJournal begins an empty journal below the host's folder. A journal that is
// written to is one that can be followed.
func (h *Host) StartJournal(name string) (*Journal, error) {
	j := &Journal{Dir: filepath.Join(h.Dir, name)}
	if err := os.MkdirAll(j.Dir, 0o755); err != nil {
		return nil, err
	}
	cmd := exec.Command(journalRemote, "--output="+filepath.Join(j.Dir, "test.journal"), "-")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	j.in = in
	if j.process, err = startProcess(filepath.Join(j.Dir, "log"), cmd); err != nil {
		return nil, fmt.Errorf("starting systemd-journal-remote: %w", err)
	}
	return j, nil
}

// Write writes an entry of that moment. A value that is no line of text is written
// as bytes, as every program can.
func (j *Journal) Write(at time.Time, fields map[string]string) error {
	j.written++
	var b bytes.Buffer
	fmt.Fprintf(&b, "__REALTIME_TIMESTAMP=%d\n__MONOTONIC_TIMESTAMP=%d\n_BOOT_ID=%032x\n", at.UnixMicro(), j.written, 1)
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		value := fields[name]
		if !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == '\uFFFD' }) {
			fmt.Fprintf(&b, "%s=%s\n", name, value)
			continue
		}
		b.WriteString(name + "\n")
		b.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(value))))
		b.WriteString(value + "\n")
	}
	b.WriteString("\n")
	_, err := j.in.Write(b.Bytes())
	return err
}

// Close ends the writer; the files stay.
func (j *Journal) Close() error {
	err := j.in.Close()
	<-j.process.done
	if err == nil && !j.process.cmd.ProcessState.Success() {
		err = fmt.Errorf("systemd-journal-remote: %s\n%s", j.process.cmd.ProcessState, j.process.logTail())
	}
	return err
}
