package idempotency

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// childEnv makes the test binary one of the processes below.
const childEnv = "IDEMPOTENCY_CHILD"

func TestMain(m *testing.M) {
	role, path, _ := strings.Cut(os.Getenv(childEnv), " ")
	var err error
	switch role {
	case "kill":
		err = runKilled(path)
	case "limit":
		err = runLimited(path)
	default:
		goleak.VerifyTestMain(m)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

func child(t *testing.T, role, path string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+role+" "+path)
	return cmd
}

// runKilled begins and answers until it is killed, and says what it was told is
// durable. It compacts again and again.
func runKilled(path string) error {
	s, err := Open(path, time.Hour, 1e6, time.Now)
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		id := fmt.Sprintf("%d-%d", os.Getpid(), i)
		if _, _, err := s.Begin("ada", id, sum(id)); err != nil {
			return err
		}
		if err := s.Record("ada", id); err != nil {
			return err
		}
		fmt.Println("recorded", id)
		if i%3 == 2 {
			continue
		}
		if err := s.Finish("ada", id, answer("answer of "+id)); err != nil {
			return err
		}
		fmt.Println("finished", id)
		if i%50 == 49 {
			s.mu.Lock()
			err = s.compact()
			s.mu.Unlock()
			if err != nil {
				return err
			}
		}
	}
}

// TestKill defends acknowledged answers against kill -9: each is there
// afterwards, and what was recorded without one is Unknown, never New.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "requests.jsonl")
	recorded, finished := map[string]bool{}, map[string]bool{}
	for range 8 {
		cmd := child(t, "kill", path)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(20*time.Millisecond+rand.N(120*time.Millisecond), func() { _ = cmd.Process.Kill() })
		for sc := bufio.NewScanner(out); sc.Scan(); {
			switch what, id, _ := strings.Cut(sc.Text(), " "); what {
			case "recorded":
				recorded[id] = true
			case "finished":
				finished[id] = true
			default:
				t.Error(sc.Text())
			}
		}
		_ = cmd.Wait()
		kill.Stop()
	}
	if len(finished) < 10 {
		t.Fatalf("only %d answers: the children hardly ran", len(finished))
	}
	r := &rig{t: t, path: path, c: newClock(), keep: time.Hour, most: 1e6}
	r.c.t = time.Now()
	r.open()
	defer r.Close()
	for id := range recorded {
		if finished[id] {
			r.done(id)
			continue
		}
		// Killed between the answer and the word of it, it may be Done.
		if s, _, err := r.Begin("ada", id, sum(id)); err != nil || s != Unknown && s != Done {
			t.Errorf("%s was recorded and is %v, %v", id, s, err)
		}
	}
}

// runLimited has a write fail half-way, by a limit on the size of files.
func runLimited(path string) error {
	signal.Ignore(unix.SIGXFSZ)
	s, err := Open(path, time.Hour, 100, time.Now)
	if err != nil {
		return err
	}
	for _, id := range []string{"before", "failed"} {
		if _, _, err := s.Begin("ada", id, sum(id)); err != nil {
			return err
		}
		if err := s.Record("ada", id); err != nil {
			return err
		}
	}
	if err := s.Finish("ada", "before", answer("answer of before")); err != nil {
		return err
	}
	if _, _, err := s.Begin("ada", "late", sum("late")); err != nil {
		return err
	}
	limit := func(n uint64) error {
		return unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: n, Max: unix.RLIM_INFINITY})
	}
	if err := limit(uint64(s.size) + 20); err != nil {
		return err
	}
	for range 2 {
		if s.Record("ada", "late") == nil {
			return fmt.Errorf("a write beyond the limit succeeded")
		}
	}
	// What this one leaves behind is longer than the next line.
	const room = 2000
	if err := limit(uint64(s.size) + room); err != nil {
		return err
	}
	if s.Finish("ada", "failed", answer(strings.Repeat("x", 2*room))) == nil {
		return fmt.Errorf("a write beyond the limit succeeded")
	}
	if st, err := os.Stat(path); err != nil || st.Size() != s.size+room {
		return fmt.Errorf("the failed write left nothing behind: %v", err)
	}
	if state, _, _ := s.Begin("ada", "failed", sum("failed")); state != Done {
		return fmt.Errorf("the answer that was not recorded is not known: %v", state)
	}
	if err := limit(unix.RLIM_INFINITY); err != nil {
		return err
	}
	if err := s.Record("ada", "late"); err != nil {
		return err
	}
	if st, err := os.Stat(path); err != nil || st.Size() != s.size {
		return fmt.Errorf("what the failed write left stands behind the next line: %v", err)
	}
	return s.Finish("ada", "late", answer("answer of late"))
}

// TestFailedWrite: what a failed write left behind is cut off before the next,
// so that the file stays readable, and knows what was acknowledged.
func TestFailedWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "requests.jsonl")
	if out, err := child(t, "limit", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r := &rig{t: t, path: path, c: newClock(), keep: time.Hour, most: 100}
	r.c.t = time.Now()
	r.open()
	defer r.Close()
	r.done("before")
	r.done("late")
	r.begin("failed", Unknown)
}
