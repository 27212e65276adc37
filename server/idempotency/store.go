// Package idempotency remembers the answers of changes by their request_id.
//
// The same ID with the same request gives the first answer again; with another
// request it is refused. What was begun is on disk before the effect and what
// was answered before the answer goes out, so a repeated request never acts
// twice, not even over a crash: a change whose answer was never recorded reads
// as Unknown.
package idempotency

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/renameio/v2"
)

// State says what is known of a request.
type State int

// The states.
const (
	// New: nothing; the caller now holds the ID and must Finish or Abandon it.
	New State = iota
	// Done: it was answered; Answer has the answer.
	Done
	// Running: the first one is still being served.
	Running
	// Reused: the ID belongs to another request.
	Reused
	// Unknown: it was begun, and the broker stopped before its answer was recorded.
	Unknown
)

// Answer is what a caller was told.
type Answer struct {
	// Response is the serialised response of a call that succeeded.
	Response []byte `json:"response,omitempty"`
	// Status is the serialised google.rpc.Status of one that failed.
	Status []byte `json:"status,omitempty"`
}

// Store keeps the answers in a file of JSON lines.
type Store struct {
	path   string
	keep   time.Duration
	most   int
	now    func() time.Time
	mu     sync.Mutex
	file   *os.File
	size   int64 // Of the file's whole, durable lines.
	broken bool  // Something may stand behind size.
	lines  int
	known  map[key]*entry
	held   map[string]int // How many of them, by caller.
}

type key struct{ caller, id string }

type entry struct {
	digest [32]byte
	begun  time.Time
	state  State
	answer Answer
	// recorded says that the file has a line of it.
	recorded bool
}

// line is one event of one ID in the file.
type line struct {
	Time   time.Time `json:"time"`
	Caller string    `json:"caller"`
	ID     string    `json:"id"`
	Digest []byte    `json:"digest"`
	Answer *Answer   `json:"answer,omitempty"` // Absent when the change begins.
	Void   bool      `json:"void,omitempty"`   // It did not happen after all.
}

// ErrFull means that a caller used more IDs than are held for it within the time
// they are kept.
var ErrFull = errors.New("the caller's share of the store of request IDs is full")

// Open reads the store. IDs are kept for keep; at most so many of one caller
// are held, since none may be forgotten before its time.
func Open(path string, keep time.Duration, most int, now func() time.Time) (*Store, error) {
	s := &Store{path: path, keep: keep, most: most, now: now, known: map[key]*entry{}, held: map[string]int{}}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := s.compact(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

func (s *Store) load() error {
	f, err := os.Open(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReader(f)
	for n := 1; ; n++ {
		text, err := r.ReadBytes('\n')
		if err == io.EOF {
			// A last line without an end was never durable: what it announces did
			// not begin, what it answers was not told.
			return nil
		}
		if err != nil {
			return err
		}
		var l line
		if err := json.Unmarshal(text, &l); err != nil || len(l.Digest) != 32 {
			return fmt.Errorf("line %d is damaged; move the file away to go on (request IDs in it may then act again)", n)
		}
		s.apply(l)
	}
}

func (s *Store) apply(l line) {
	k := key{l.Caller, l.ID}
	switch {
	case l.Void:
		s.drop(k)
	case l.Answer != nil:
		s.put(k, &entry{digest: [32]byte(l.Digest), begun: l.Time, state: Done, answer: *l.Answer, recorded: true})
	default:
		s.put(k, &entry{digest: [32]byte(l.Digest), begun: l.Time, state: Unknown, recorded: true})
	}
}

func (s *Store) put(k key, e *entry) {
	s.drop(k)
	s.known[k] = e
	s.held[k.caller]++
}

func (s *Store) drop(k key) {
	if s.known[k] == nil {
		return
	}
	delete(s.known, k)
	if s.held[k.caller]--; s.held[k.caller] == 0 {
		delete(s.held, k.caller)
	}
}

// Begin asks for an ID. With New the caller holds it.
func (s *Store) Begin(caller, id string, digest [32]byte) (State, Answer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := key{caller, id}
	if e := s.known[k]; e != nil && (e.state == Running || s.now().Sub(e.begun) < s.keep) {
		if e.digest != digest {
			return Reused, Answer{}, nil
		}
		return e.state, e.answer, nil
	}
	// Each caller has its own share, so that none can use up the operator's.
	if s.held[caller] >= s.most {
		s.expire()
		if s.held[caller] >= s.most {
			return New, Answer{}, ErrFull
		}
	}
	s.put(k, &entry{digest: digest, begun: s.now(), state: Running})
	return New, Answer{}, nil
}

// Record makes it durable that a held ID's effect is about to happen.
func (s *Store) Record(caller, id string) error {
	return s.write(caller, id, func(*line, *entry) {})
}

// Finish records the answer of a held ID. After an error the answer is known
// until the broker stops, and Unknown after.
func (s *Store) Finish(caller, id string, a Answer) error {
	return s.write(caller, id, func(l *line, e *entry) {
		e.state, e.answer = Done, a
		l.Answer = &a
	})
}

// Abandon gives a held ID back: nothing happened. recorded says whether Record
// was called.
func (s *Store) Abandon(caller, id string, recorded bool) error {
	if recorded {
		return s.write(caller, id, func(l *line, _ *entry) { l.Void = true })
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(key{caller, id})
	return nil
}

func (s *Store) write(caller, id string, edit func(*line, *entry)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := key{caller, id}
	e := s.known[k]
	l := line{Time: e.begun, Caller: caller, ID: id, Digest: e.digest[:]}
	edit(&l, e)
	if l.Void { // Before the file may be compacted, which would bring it back.
		s.drop(k)
	}
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if err := s.append(append(text, '\n')); err != nil {
		return err
	}
	e.recorded = true
	// Twice as many lines as IDs are normal, one to begin and one to answer.
	if s.lines++; s.lines > 1000 && s.lines > 4*len(s.known) {
		// The line is durable either way; a file that is too long is no failure.
		if err := s.compact(); err != nil {
			slog.Warn("the record of request IDs was not compacted", "path", s.path, "error", err)
		}
	}
	return nil
}

// append adds a line durably or not at all: after a failure, what may have been
// written of it is cut off before anything else is.
func (s *Store) append(text []byte) error {
	if s.broken {
		if err := s.file.Truncate(s.size); err != nil {
			return err
		}
		s.broken = false
	}
	_, err := s.file.WriteAt(text, s.size)
	if err == nil {
		err = s.file.Sync()
	}
	if err != nil {
		s.broken = true
		return err
	}
	s.size += int64(len(text))
	return nil
}

func (s *Store) expire() {
	for k, e := range s.known {
		if e.state != Running && s.now().Sub(e.begun) >= s.keep {
			s.drop(k)
		}
	}
}

// compact rewrites the file with what is still known.
func (s *Store) compact() error {
	s.expire()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	s.lines = 0
	for k, e := range s.known {
		if !e.recorded {
			continue
		}
		l := line{Time: e.begun, Caller: k.caller, ID: k.id, Digest: e.digest[:]}
		if e.state == Done {
			l.Answer = &e.answer
		}
		if err := enc.Encode(l); err != nil {
			return err
		}
		s.lines++
	}
	pending, err := renameio.TempFile(filepath.Dir(s.path), s.path)
	if err != nil {
		return err
	}
	defer pending.Cleanup()
	if _, err := pending.Write(b.Bytes()); err != nil {
		return err
	}
	// Opened before the rename, so that no failure leaves us writing into a file
	// that has no name any more.
	f, err := os.OpenFile(pending.Name(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := pending.CloseAtomicallyReplace(); err != nil {
		return errors.Join(err, f.Close())
	}
	if s.file != nil {
		s.file.Close()
	}
	s.file, s.size, s.broken = f, int64(b.Len()), false
	dir, err := os.Open(filepath.Dir(s.path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Close closes the file. The store must not be used any more.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.file.Close()
}
