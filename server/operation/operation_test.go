package operation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const caller = "spiffe://home.example/agent/hermes"

type clock struct{ now time.Time }

func open(t *testing.T, dir string, edit func(*Options)) *Store {
	t.Helper()
	c := &clock{time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	o := Options{Dir: dir, Retention: time.Hour, Kept: 10, PerCaller: 3, PerKind: 4, Now: func() time.Time { c.now = c.now.Add(time.Second); return c.now }}
	if edit != nil {
		edit(&o)
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func folder(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "operations")
	if err := os.Chmod(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func id(n int) string { return fmt.Sprintf("%s%02d", strings.Repeat("A", 24), n) }

func text(s string) func(int64) ([]byte, error) {
	return func(n int64) ([]byte, error) { return fmt.Appendf(nil, "%d %s", n, s), nil }
}

func begin(t *testing.T, s *Store, n int, edit func(*brokerv1.Operation)) *Operation {
	t.Helper()
	o, err := try(s, n, edit)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func try(s *Store, n int, edit func(*brokerv1.Operation)) (*Operation, error) {
	v := &brokerv1.Operation{Name: "operations/" + id(n), Method: "ImageService/Pull", Caller: caller, RequestId: fmt.Sprint("request ", n)}
	if edit != nil {
		edit(v)
	}
	o, err := s.Begin(v, func(*brokerv1.Operation) ([]byte, error) { return []byte("1 begun"), nil }, func(error) {})
	if err == nil {
		s.Publish(o)
	}
	return o, err
}

func succeed(t *testing.T, o *Operation) {
	t.Helper()
	if err := o.End(text("result"), nil, time.Now()); err != nil {
		t.Fatal(err)
	}
}

// events reads what a watcher has until the operation's end or a pause.
func events(t *testing.T, o *Operation, after int64) []string {
	t.Helper()
	w, err := o.Watch(after)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var all []string
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		e, err := w.Next(ctx)
		cancel()
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			return append(all, "waits")
		case errors.Is(err, io.EOF):
			return append(all, "end")
		case err != nil:
			t.Fatal(err)
		}
		all = append(all, string(e))
	}
}

func want(t *testing.T, got []string, list string) {
	t.Helper()
	if s := strings.Join(got, ", "); s != list {
		t.Errorf("got  %s\nwant %s", s, list)
	}
}

func TestLife(t *testing.T) {
	dir := folder(t)
	s := open(t, dir, nil)
	o := begin(t, s, 1, nil)
	for i := range 3 {
		if err := o.Append(text(fmt.Sprint("step ", i))); err != nil {
			t.Fatal(err)
		}
	}
	want(t, events(t, o, 0), "1 begun, 2 step 0, 3 step 1, 4 step 2, waits")
	want(t, events(t, o, 3), "4 step 2, waits")
	if v := o.View(); v.GetState() != Running || v.GetLastSequence() != 4 || string(o.Latest()) != "4 step 2" {
		t.Errorf("running: %v, latest %q", v, o.Latest())
	}
	// A watcher that waits is woken by the end.
	w, err := o.Watch(4)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	woken := make(chan string, 1)
	go func() {
		e, err := w.Next(t.Context())
		woken <- fmt.Sprint(string(e), err)
	}()
	time.Sleep(10 * time.Millisecond)
	succeed(t, o)
	if got := <-woken; got != "5 result<nil>" {
		t.Errorf("woken by %q", got)
	}
	select {
	case <-o.Ended():
	default:
		t.Error("it has not ended")
	}
	// All of it is there after a restart.
	again := open(t, dir, nil).Get("operations/" + id(1))
	if again == nil || again.View().GetState() != Succeeded || again.View().GetLastSequence() != 5 || string(again.Latest()) != "5 result" {
		t.Fatalf("after a restart: %v", again.View())
	}
	want(t, events(t, again, 2), "3 step 1, 4 step 2, 5 result, end")
	if err := again.Append(text("late")); err != nil || again.View().GetLastSequence() != 5 {
		t.Error("an operation that ended takes events")
	}
}

func TestFailureIsKept(t *testing.T) {
	dir := folder(t)
	o := begin(t, open(t, dir, nil), 1, nil)
	failure := fault.New(brokerv1.ErrorReason_ERROR_REASON_REGISTRY_UNAVAILABLE, "it stopped", fault.With("registry", "r"))
	if err := o.End(nil, failure, time.Now()); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir, nil).Get("operations/" + id(1))
	if v := again.View(); v.GetState() != Failed || v.GetErrorReason() != "REGISTRY_UNAVAILABLE" || v.GetErrorMessage() != "it stopped" || v.GetEndTime() == nil {
		t.Errorf("%v", v)
	}
	if again.Err() == nil || again.Err().Error() != failure.Error() || fault.Reason(again.Err()) != "REGISTRY_UNAVAILABLE" {
		t.Errorf("the failure became %v", again.Err())
	}
	want(t, events(t, again, 0), "1 begun, end")
}

// TestInterrupted: what ran when the broker stopped reads so, whatever the crash
// left of the last line, and is never running again.
func TestInterrupted(t *testing.T) {
	for name, torn := range map[string]string{"whole": "", "torn": `{"sequence":3,"event":"AAA`, "torn with a zero tail": "\x00\x00\x00"} {
		t.Run(name, func(t *testing.T) {
			dir := folder(t)
			s := open(t, dir, nil)
			o := begin(t, s, 1, nil)
			if err := o.Append(text("step")); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(o.path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteString(torn); err != nil {
				t.Fatal(err)
			}
			f.Close()
			for range 2 {
				again := open(t, dir, nil).Get("operations/" + id(1))
				if again == nil {
					t.Fatal("it is gone")
				}
				if v := again.View(); v.GetState() != Interrupted || v.GetLastSequence() != 2 || v.GetEndTime() == nil {
					t.Errorf("%v", v)
				}
				want(t, events(t, again, 0), "1 begun, 2 step, end")
				if fault.Reason(again.Err()) != "OPERATION_INTERRUPTED" {
					t.Errorf("it ended with %v", again.Err())
				}
			}
			again := open(t, dir, nil).Get("operations/" + id(1))
			if err := again.Found(brokerv1.Aftermath_AFTERMATH_COMPLETE); err != nil {
				t.Fatal(err)
			}
			if v := open(t, dir, nil).Get("operations/" + id(1)).View(); v.GetAftermath() != brokerv1.Aftermath_AFTERMATH_COMPLETE || v.GetState() != Interrupted {
				t.Errorf("what was found is not kept: %v", v)
			}
		})
	}
}

// TestUnnamed: what nobody was told of cannot be found, and counts; what never
// came to be leaves nothing.
func TestUnnamed(t *testing.T) {
	s := open(t, folder(t), func(o *Options) { o.PerCaller = 1 })
	v := &brokerv1.Operation{Name: "operations/" + id(1), Caller: caller, RequestId: "r"}
	o, err := s.Begin(v, func(*brokerv1.Operation) ([]byte, error) { return []byte("1"), nil }, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	if s.Get(v.GetName()) != nil || s.Of(caller, "r") != nil || len(s.List()) != 0 {
		t.Error("it can be found before its time")
	}
	if _, err := try(s, 2, nil); !errors.Is(err, ErrCallerBusy) {
		t.Errorf("it does not count: %v", err)
	}
	s.Discard(o)
	if left, _ := filepath.Glob(s.Dir + "/*"); len(left) != 0 {
		t.Errorf("it leaves %v", left)
	}
	begin(t, s, 2, nil)
	if err := o.End(nil, errors.New("x"), time.Now()); err != nil { // Its file is closed all the same.
		t.Error(err)
	}
	if _, err := s.Begin(&brokerv1.Operation{Name: "operations/" + id(2)}, func(*brokerv1.Operation) ([]byte, error) { return nil, nil }, func(error) {}); err == nil {
		t.Error("two of one name")
	}
}

// TestDamagedJournals are left out and left alone; the others are there.
func TestDamagedJournals(t *testing.T) {
	dir := folder(t)
	s := open(t, dir, nil)
	succeed(t, begin(t, s, 1, nil))
	for n, text := range map[int]string{2: "", 3: "not json\n", 4: "{}\n", 5: `{"operation":{"name":"operations/` + id(6) + `"}}` + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, id(n)+suffix), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if all := open(t, dir, nil).List(); len(all) != 1 {
		t.Errorf("%d operations, want 1", len(all))
	}
	if left, _ := filepath.Glob(dir + "/*"); len(left) != 5 {
		t.Errorf("%d files, want 5", len(left))
	}
}

func TestLongJournalIsReadFromItsEnd(t *testing.T) {
	dir := folder(t)
	o := begin(t, open(t, dir, nil), 1, nil)
	n := 0
	for o.size < maxJournal {
		if err := o.Append(text(strings.Repeat("x", 1000))); err != nil {
			t.Fatal(err)
		}
		n++
	}
	if err := o.Append(text("dropped")); err != nil || o.View().GetLastSequence() != int64(n+1) {
		t.Errorf("progress goes on beyond the bound: %v", o.View())
	}
	succeed(t, o) // The end is written all the same.
	again := open(t, dir, nil).Get("operations/" + id(1))
	if v := again.View(); v.GetState() != Succeeded || v.GetLastSequence() != int64(n+2) || again.size != o.size {
		t.Errorf("%v", v)
	}
	if got := events(t, again, 0); len(got) != n+3 {
		t.Errorf("%d events, want %d", len(got), n+3)
	}
}

func TestLimits(t *testing.T) {
	s := open(t, folder(t), nil)
	for n := range 3 {
		begin(t, s, n, nil)
	}
	if _, err := try(s, 3, nil); !errors.Is(err, ErrCallerBusy) {
		t.Errorf("a fourth of one caller: %v", err)
	}
	other := func(v *brokerv1.Operation) { v.Caller = "spiffe://home.example/agent/other" }
	begin(t, s, 4, other)
	if _, err := try(s, 5, other); !errors.Is(err, ErrKindBusy) {
		t.Errorf("a fifth of one kind: %v", err)
	}
	begin(t, s, 6, func(v *brokerv1.Operation) { other(v); v.Method = "JobService/RunJob" })
	succeed(t, s.Get("operations/"+id(0)))
	begin(t, s, 7, nil)
	// Nobody can use up all that there is of a kind: each has a first one.
	begin(t, s, 8, func(v *brokerv1.Operation) { v.Caller = "spiffe://home.example/operator/ada" })
	if left, _ := filepath.Glob(s.Dir + "/*"); len(left) != 7 {
		t.Errorf("%d journals, want 7: one that was refused has one", len(left))
	}
}

func TestOldestGoFirst(t *testing.T) {
	s := open(t, folder(t), func(o *Options) { o.Kept = 3 })
	running := begin(t, s, 0, nil)
	for n := 1; n < 6; n++ {
		succeed(t, begin(t, s, n, nil))
	}
	var names []string
	for _, o := range s.List() {
		names = append(names, strings.TrimLeft(o.View().GetName()[len("operations/"):], "A"))
	}
	want(t, names, "05, 04, 00")
	if running.View().GetState() != Running {
		t.Error("a running one was removed")
	}
	if left, _ := filepath.Glob(s.Dir + "/*"); len(left) != 3 {
		t.Errorf("%d journals are left", len(left))
	}
}

func TestRetention(t *testing.T) {
	dir := folder(t)
	now := time.Now()
	s := open(t, dir, func(o *Options) { o.Now = func() time.Time { return now } })
	o := begin(t, s, 1, nil)
	begin(t, s, 2, nil)
	if err := o.End(text("result"), nil, now); err != nil {
		t.Fatal(err)
	}
	w, err := o.Watch(0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	now = now.Add(59 * time.Minute)
	s.Sweep()
	if s.Get("operations/"+id(1)) == nil {
		t.Error("it went before its time")
	}
	now = now.Add(2 * time.Minute)
	s.Sweep()
	if s.Get("operations/"+id(1)) != nil || s.Get("operations/"+id(2)) == nil {
		t.Error("it stays, or what runs went")
	}
	if e, err := w.Next(t.Context()); err != nil || string(e) != "1 begun" {
		t.Errorf("who watched it lost it: %q, %v", e, err)
	}
}

func TestOfTheRequest(t *testing.T) {
	s := open(t, folder(t), nil)
	o := begin(t, s, 1, nil)
	if s.Of(caller, "request 1") != o || s.Of(caller, "request 2") != nil || s.Of("spiffe://home.example/agent/other", "request 1") != nil {
		t.Error("the wrong operation belongs to the request")
	}
}

func TestDetachIsKept(t *testing.T) {
	dir := folder(t)
	o := begin(t, open(t, dir, nil), 1, nil)
	if err := o.Detach(); err != nil || !o.View().GetDetached() {
		t.Fatal(err)
	}
	if v := open(t, dir, nil).Get("operations/" + id(1)).View(); !v.GetDetached() {
		t.Errorf("%v", v)
	}
}
