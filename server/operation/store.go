package operation

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/rootfile"
)

// Options are how much is kept and how much may run.
type Options struct {
	// Dir is the folder of the journals. It is made if it is not there.
	Dir string
	// Retention is how long an operation is kept after its end.
	Retention time.Duration
	// Kept is how many operations of one caller are kept; the oldest that have
	// ended go first.
	Kept int
	// PerCaller and PerKind are how many may run at once, of one caller and of one
	// method. One of its own every caller may run, whatever others run.
	PerCaller, PerKind int
	// Now is the clock.
	Now func() time.Time
}

// The bounds that Begin can meet.
var (
	ErrCallerBusy = errors.New("the caller has as many operations running as it may")
	ErrKindBusy   = errors.New("as many operations of this kind run as may")
)

// Store has all operations that are kept.
type Store struct {
	Options

	mu      sync.Mutex
	all     map[string]*Operation // By ID.
	unnamed map[string]*Operation // Begun, and known to nobody yet.
}

const (
	prefix = "operations/"
	suffix = ".jsonl"
)

// Open reads the journals. What was running is marked as interrupted.
func Open(o Options) (*Store, error) {
	if err := rootfile.MkdirPrivate(o.Dir); err != nil {
		return nil, err
	}
	s := &Store{Options: o, all: map[string]*Operation{}, unnamed: map[string]*Operation{}}
	paths, err := filepath.Glob(filepath.Join(o.Dir, "*"+suffix))
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		op, err := s.load(path)
		if err != nil {
			// One journal is no reason not to start: what it is about is on record in
			// the audit trail, and its request ID reads as unknown.
			slog.Error("the journal of an operation cannot be read and is left out", "path", path, "error", err)
			continue
		}
		s.all[op.id] = op
	}
	s.Sweep()
	return s, nil
}

// tail is how much of a long journal's end is read at the start: more than its
// last line, which has all there is to know of an operation that ended.
const tail = 128 << 10

// load reads a journal: its description, and the end of what it holds.
func (s *Store) load(path string) (*Operation, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	o := &Operation{
		id: strings.TrimSuffix(filepath.Base(path), suffix), path: path,
		changed: make(chan struct{}), ended: make(chan struct{}),
	}
	var sequence int64
	lines := newLines(f, 0, st.Size())
	for first := true; ; first = false {
		l, err := lines.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if l.Operation != nil {
			o.view = &brokerv1.Operation{}
			if err := protojson.Unmarshal(l.Operation, o.view); err != nil {
				return nil, err
			}
			o.status = l.Status
		}
		if l.Event != nil {
			o.latest, sequence = l.Event, l.Sequence
		}
		if first && st.Size()-lines.offset > tail {
			if lines, err = linesAfter(f, st.Size()-tail, st.Size()); err != nil {
				return nil, err
			}
		}
	}
	if o.view.GetName() != prefix+o.id {
		return nil, errors.New("it describes no operation of its name")
	}
	o.size, o.broken = lines.offset, true // A torn line may stand behind it.
	close(o.ended)
	if o.view.GetState() != Running {
		return o, nil
	}
	return o, o.edit(func(view *brokerv1.Operation) bool {
		view.State, view.LastSequence, view.EndTime = Interrupted, sequence, timestamppb.New(s.Now())
		return true
	})
}

// lines reads a part of a journal line by line.
type lines struct {
	r      *bufio.Reader
	offset int64 // Behind the last whole line.
	limit  int64
}

func newLines(f *os.File, from, to int64) *lines {
	return &lines{r: bufio.NewReaderSize(io.NewSectionReader(f, from, to-from), 16<<10), offset: from, limit: to}
}

// linesAfter reads from the first line that begins after an offset.
func linesAfter(f *os.File, from, to int64) (*lines, error) {
	l := newLines(f, from, to)
	skipped, err := l.r.ReadBytes('\n')
	l.offset += int64(len(skipped))
	return l, err
}

// next is the next line, or io.EOF where there is no whole one. A crash can leave
// a torn line at the end and nowhere else.
func (l *lines) next() (line, error) {
	text, err := l.r.ReadBytes('\n')
	if err != nil {
		return line{}, err
	}
	var out line
	if err := json.Unmarshal(text, &out); err != nil {
		return line{}, fmt.Errorf("the line at byte %d is damaged: %w", l.offset, err)
	}
	l.offset += int64(len(text))
	return out, nil
}

// Begin makes a running operation out of its description (name, method, resource,
// target, caller, request ID). first encodes the event that names it. It is on
// disk when Begin returns, and known to nobody until Publish. cancel ends the work.
func (s *Store) Begin(view *brokerv1.Operation, first func(*brokerv1.Operation) ([]byte, error), cancel context.CancelCauseFunc) (*Operation, error) {
	view = proto.CloneOf(view)
	view.State, view.CreateTime, view.LastSequence = Running, timestamppb.New(s.Now()), 1
	event, err := first(view)
	if err != nil {
		return nil, err
	}
	id := strings.TrimPrefix(view.GetName(), prefix)
	o := &Operation{
		id: id, path: filepath.Join(s.Dir, id+suffix), view: view, latest: event,
		changed: make(chan struct{}), ended: make(chan struct{}), cancel: cancel,
	}
	if err := s.reserve(o); err != nil {
		return nil, err
	}
	if err := o.create(); err != nil {
		s.Discard(o)
		return nil, err
	}
	return o, nil
}

// Publish makes a begun operation one that can be looked up.
func (s *Store) Publish(o *Operation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.unnamed, o.id)
	s.all[o.id] = o
}

// Discard forgets a begun operation that never came to be.
func (s *Store) Discard(o *Operation) {
	s.mu.Lock()
	delete(s.unnamed, o.id)
	s.mu.Unlock()
	s.remove(o)
}

// create writes the journal's first line, durably, name and all.
func (o *Operation) create() (err error) {
	if o.file, err = os.OpenFile(o.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err != nil {
		return err
	}
	if err = o.writeView(o.view, o.latest, nil); err == nil {
		err = syncDir(filepath.Dir(o.path))
	}
	if err != nil {
		o.file.Close()
	}
	return err
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// reserve counts a new operation, or says why it may not run. The oldest of its
// caller's that have ended make room for it.
func (s *Store) reserve(o *Operation) error {
	s.mu.Lock()
	var gone []*Operation
	defer func() {
		s.mu.Unlock()
		s.remove(gone...)
	}()
	if err := s.room(o.view.GetCaller(), o.view.GetMethod()); err != nil {
		return err
	}
	held := 0
	var ended []*Operation
	for _, other := range s.all {
		if v := other.View(); v.GetCaller() == o.view.GetCaller() {
			held++
			if v.GetState() != Running {
				ended = append(ended, other)
			}
		}
	}
	if excess := min(held-s.Kept+1, len(ended)); excess > 0 {
		slices.SortFunc(ended, newestFirst)
		gone = ended[len(ended)-excess:]
		for _, old := range gone {
			delete(s.all, old.id)
		}
	}
	s.unnamed[o.id] = o
	return nil
}

// Room says whether a caller may begin an operation of a method now.
func (s *Store) Room(caller, method string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.room(caller, method)
}

func (s *Store) room(caller, method string) error {
	mine, kind := 0, 0
	for _, all := range []map[string]*Operation{s.all, s.unnamed} {
		for _, o := range all {
			v := o.View()
			if v.GetState() != Running {
				continue
			}
			if v.GetCaller() == caller {
				mine++
			}
			if v.GetMethod() == method {
				kind++
			}
		}
	}
	switch {
	case mine >= s.PerCaller:
		return ErrCallerBusy
	case kind >= s.PerKind && mine > 0: // A first one each, whatever others run.
		return ErrKindBusy
	}
	return nil
}

func newestFirst(a, b *Operation) int {
	va, vb := a.View(), b.View()
	return cmp.Or(vb.GetCreateTime().AsTime().Compare(va.GetCreateTime().AsTime()), cmp.Compare(va.GetName(), vb.GetName()))
}

// remove deletes journals. Who watches one reads on to its end.
func (s *Store) remove(gone ...*Operation) {
	for _, o := range gone {
		if err := os.Remove(o.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			slog.Warn("the journal of an operation was not removed", "path", o.path, "error", err)
		}
	}
}

// Get is the operation of a name, "operations/<id>", or nil.
func (s *Store) Get(name string) *Operation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[strings.TrimPrefix(name, prefix)]
}

// Of is the newest operation that a caller began with a request ID, or nil.
func (s *Store) Of(caller, requestID string) *Operation {
	for _, o := range s.List() {
		if v := o.View(); v.GetCaller() == caller && v.GetRequestId() == requestID {
			return o
		}
	}
	return nil
}

// List are all operations, newest first.
func (s *Store) List() []*Operation {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*Operation, 0, len(s.all))
	for _, o := range s.all {
		all = append(all, o)
	}
	slices.SortFunc(all, newestFirst)
	return all
}

// Sweep removes what was kept for long enough.
func (s *Store) Sweep() {
	s.mu.Lock()
	var gone []*Operation
	for id, o := range s.all {
		if v := o.View(); v.GetState() != Running && s.Now().Sub(v.GetEndTime().AsTime()) >= s.Retention {
			gone = append(gone, o)
			delete(s.all, id)
		}
	}
	s.mu.Unlock()
	s.remove(gone...)
}
