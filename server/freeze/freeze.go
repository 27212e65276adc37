// Package freeze is the operator's switch that stops every change.
//
// A freeze is kept in a file, so that it outlives a restart; a file that cannot
// be read or understood means that everybody is frozen.
package freeze

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/renameio/v2"
)

// Status is one freeze.
type Status struct {
	// Caller is who is frozen: a SPIFFE ID, or "" for all callers.
	Caller string `json:"caller"`
	// Reason is why, in the operator's words.
	Reason string `json:"reason"`
	// By is who froze.
	By string `json:"by"`
	// At is since when.
	At time.Time `json:"at"`
}

// Switch holds the freezes in force.
type Switch struct {
	path string

	writing sync.Mutex // One at a time goes to the disk, which may be slow.

	mu     sync.RWMutex
	frozen map[string]Status // By caller.
}

type file struct {
	Freezes []Status `json:"freezes"`
}

// Open reads the file. An error says why everybody is frozen now; the Switch is
// usable all the same, and Clear of all callers mends it.
func Open(path string) (*Switch, error) {
	s := &Switch{path: path, frozen: map[string]Status{}}
	f, err := read(path)
	if err != nil {
		s.frozen[""] = Status{Reason: "the freeze file is broken; an operator must look at it and unfreeze", By: "brokerd"}
		return s, fmt.Errorf("%s: %w", path, err)
	}
	for _, st := range f.Freezes {
		s.frozen[st.Caller] = st
	}
	return s, nil
}

func read(path string) (f file, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return file{}, nil
	}
	if err != nil {
		return f, err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return f, err
	}
	if _, err := d.Token(); err != io.EOF {
		return f, errors.New("more than one document")
	}
	if f.Freezes == nil {
		return f, errors.New("no list of freezes")
	}
	return f, nil
}

// Check is the freeze that is in force for a caller, if any.
func (s *Switch) Check(caller string) (Status, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if st, ok := s.frozen[""]; ok {
		return st, true
	}
	st, ok := s.frozen[caller]
	return st, ok
}

// All are the freezes in force.
func (s *Switch) All() []Status {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return sorted(s.frozen)
}

// Set freezes st.Caller. It is on disk when Set returns; after an error it is in
// force all the same, and lost at the next start: better frozen than not.
func (s *Switch) Set(st Status) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	frozen := s.without(st.Caller)
	frozen[st.Caller] = st
	s.publish(frozen)
	return s.write(frozen)
}

// Clear ends the freeze of a caller, or with "" the one of all callers. After an
// error the freeze stays.
func (s *Switch) Clear(caller string) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	left := s.without(caller)
	if err := s.write(left); err != nil {
		return err
	}
	s.publish(left)
	return nil
}

// without is a copy of the freezes but one.
func (s *Switch) without(caller string) map[string]Status {
	s.mu.RLock()
	defer s.mu.RUnlock()
	left := maps.Clone(s.frozen)
	delete(left, caller)
	return left
}

func (s *Switch) publish(frozen map[string]Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen = frozen
}

func (s *Switch) write(frozen map[string]Status) error {
	data, err := json.MarshalIndent(file{Freezes: sorted(frozen)}, "", "  ")
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(s.path, append(data, '\n'), 0o600, renameio.WithTempDir(filepath.Dir(s.path))); err != nil {
		return err
	}
	// The rename itself must outlive a power cut too.
	dir, err := os.Open(filepath.Dir(s.path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func sorted(frozen map[string]Status) []Status {
	all := make([]Status, 0, len(frozen))
	for _, st := range frozen {
		all = append(all, st)
	}
	slices.SortFunc(all, func(a, b Status) int { return strings.Compare(a.Caller, b.Caller) })
	return all
}
