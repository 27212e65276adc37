package main

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/internal/termclean"
)

const question = "Leave it running on the broker? [Y/n] "

// TestInterruptedPull has a person at a terminal press Ctrl-C during a pull, and
// answer.
func TestInterruptedPull(t *testing.T) {
	tests := []struct {
		name      string
		image     string
		keys      []string // each after one more question
		questions int
		code      int
		detached  bool
		says      string
	}{
		{"yes", "slow", []string{"y\n"}, 1, exitOK, true, "operations/PULL goes on; brokerctl ops watch operations/PULL"},
		{"enter", "slow", []string{"\n"}, 1, exitOK, true, "operations/PULL goes on"},
		{"end of input", "slow", []string{"\x04"}, 1, exitOK, true, "operations/PULL goes on"},
		{"no", "slow", []string{"n\n"}, 1, exitInterrupted, false, "brokerctl: interrupted: operations/PULL is cancelled\r\nhint: --detach"},
		{"second interrupt", "slow", []string{"\x03"}, 1, exitInterrupted, false, "operations/PULL is cancelled"},
		{"neither", "slow", []string{"what\n", "NO\n"}, 2, exitInterrupted, false, "operations/PULL is cancelled"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			fake := &fakeBroker{}
			s := onTerminal(t, startFake(t, fake), "images", "pull", tt.image)
			s.waitFor("1 of 3 layers", 1)
			s.press("\x03")
			for i, keys := range tt.keys {
				s.waitFor(question, i+1)
				s.press(keys)
			}
			if code := s.exitCode(); code != tt.code {
				t.Errorf("code %d, want %d: %q", code, tt.code, s.text())
			}
			if !strings.Contains(s.text(), tt.says) || strings.Count(s.text(), question) != tt.questions {
				t.Errorf("%q does not say %q, with %d questions", s.text(), tt.says, tt.questions)
			}
			one := fake.pulls.only()
			if !eventually(func() bool { d, c, _ := fake.pulls.state(one); return d == tt.detached && c != tt.detached }) {
				t.Errorf("detached %t, cancelled %t", one.detached, one.cancelled)
			}
			if tt.detached {
				checkSameRequest(t, one)
			}
		})
	}
}

// checkSameRequest: what detaches a pull is its request, with detach added.
func checkSameRequest(t *testing.T, one *fakePull) {
	t.Helper()
	if len(one.requests) != 2 || one.requests[0].GetRequestId() != one.requests[1].GetRequestId() || one.requests[0].GetImage() != one.requests[1].GetImage() ||
		one.requests[0].GetDetach() || !one.requests[1].GetDetach() {
		t.Errorf("requests %v", one.requests)
	}
}

// TestPullEndsDuringTheQuestion: the answer is then that of the pull.
func TestPullEndsDuringTheQuestion(t *testing.T) {
	for name, tt := range map[string]struct {
		end  error
		code int
		says string
	}{
		"well":  {nil, exitOK, "\r\ndocker.io/library/slow: pulled sha256:"},
		"badly": {refusal(codes.ResourceExhausted, "INSUFFICIENT_SPACE", "no room", 0, map[string]string{"operation": "operations/PULL"}), exitRefused, "\r\nbrokerctl: pull slow: no room [INSUFFICIENT_SPACE]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := &fakeBroker{}
			s := onTerminal(t, startFake(t, fake), "images", "pull", "slow")
			s.waitFor("1 of 3 layers", 1)
			s.press("\x03")
			s.waitFor(question, 1)
			fake.pulls.only().finish <- tt.end
			if code := s.exitCode(); code != tt.code || !strings.Contains(s.text(), tt.says) {
				t.Errorf("code %d: %q", code, s.text())
			}
		})
	}
}

// TestPullThatCannotBeLeft stays with it, and the next interrupt cancels it.
func TestPullThatCannotBeLeft(t *testing.T) {
	for _, finish := range []bool{true, false} {
		t.Run(fmt.Sprintf("finish %t", finish), func(t *testing.T) {
			t.Parallel()
			fake := &fakeBroker{}
			s := onTerminal(t, startFake(t, fake), "images", "pull", "stubborn")
			s.waitFor("1 of 3 layers", 1)
			s.press("\x03")
			s.waitFor(question, 1)
			s.press("y\n")
			s.waitFor("brokerctl: leave it running: the state cannot be written [STATE_UNAVAILABLE]", 1)
			s.waitFor("the pull goes on here; Ctrl-C cancels it", 1)
			want := exitOK
			if finish {
				fake.pulls.only().finish <- nil
			} else {
				s.press("\x03")
				want = exitInterrupted
			}
			if code := s.exitCode(); code != want {
				t.Errorf("code %d, want %d: %q", code, want, s.text())
			}
			one := fake.pulls.only()
			if !finish && !eventually(func() bool { _, c, _ := fake.pulls.state(one); return c }) {
				t.Error("it was not cancelled")
			}
		})
	}
}

// TestInterruptedPullWithoutItsCall: work that the broker goes on with after it cut
// the call has to be cancelled by name.
func TestInterruptedPullWithoutItsCall(t *testing.T) {
	for answer, want := range map[string][]string{"n\n": {"operations/RUNS"}, "\x03": {"operations/RUNS"}, "y\n": nil} {
		t.Run(fmt.Sprintf("%q", answer), func(t *testing.T) {
			t.Parallel()
			fake := &fakeBroker{}
			s := onTerminal(t, startFake(t, fake), "images", "pull", "expires and runs")
			s.waitFor("3 of 3 layers", 1)
			s.press("\x03")
			s.waitFor(question, 1)
			s.press(answer)
			code, says := exitInterrupted, "operations/RUNS is cancelled"
			if want == nil {
				code, says = exitOK, "operations/RUNS goes on"
			}
			if got := s.exitCode(); got != code || !strings.Contains(s.text(), says) || !slices.Equal(fake.cancels.all(), want) {
				t.Errorf("code %d, cancelled %q: %q", got, fake.cancels.all(), s.text())
			}
		})
	}
}

// TestPullWithNobodyToAsk: without a terminal, and for SIGTERM with one.
func TestPullWithNobodyToAsk(t *testing.T) {
	for name, signal := range map[string]os.Signal{"interrupt": os.Interrupt, "terminate": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := &fakeBroker{}
			env := startFake(t, fake)
			var text func() string
			cmd := command(env, "images", "pull", "slow")
			if signal == os.Interrupt {
				var out lockedBuffer
				cmd.Stdout, cmd.Stderr, text = &out, &out, out.String
				check(cmd.Start())
			} else {
				s := onTerminal(t, env, "images", "pull", "slow")
				cmd, text = s.cmd, s.text
			}
			if !eventually(func() bool { return strings.Contains(text(), "1 of 3 layers") }) {
				t.Fatalf("no progress: %q", text())
			}
			check(cmd.Process.Signal(signal))
			if code := exitCode(t, cmd); code != exitInterrupted {
				t.Errorf("code %d: %q", code, text())
			}
			if !eventually(func() bool { return strings.Contains(text(), "hint: --detach leaves a pull running") }) || strings.Contains(text(), question) ||
				!strings.Contains(text(), "brokerctl: interrupted: operations/PULL is cancelled") {
				t.Errorf("%q", text())
			}
			one := fake.pulls.only()
			if !eventually(func() bool { _, c, _ := fake.pulls.state(one); return c }) {
				t.Error("it was not cancelled")
			}
		})
	}
}

// TestInterruptedWatch leaves the operation alone, and says where to go on.
func TestInterruptedWatch(t *testing.T) {
	s := onTerminal(t, startBroker(t), "ops", "watch", "RUNS")
	s.waitFor("3 of 3 layers", 1)
	s.press("\x03")
	if code := s.exitCode(); code != exitInterrupted || !strings.Contains(s.text(), "brokerctl: interrupted: operations/RUNS goes on\r\nhint: brokerctl ops watch operations/RUNS --after 4 shows the rest") {
		t.Errorf("code %d: %q", code, s.text())
	}
}

// lockedBuffer is written to by others while it is read.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

var redraw = regexp.MustCompile(`\x1b\[\d+A\x1b\[J`)

// frame is the newest complete drawing of the bars.
func frame(out string) string {
	frames := redraw.Split(out, -1)
	if len(frames) < 2 {
		return ""
	}
	return frames[len(frames)-1]
}

// TestBars: a bar for each layer in progress, the total below, and nothing of it
// left at the end.
func TestBars(t *testing.T) {
	var out lockedBuffer
	bars := &progressBars{app: &app{stderr: &out}}
	shows := func(lines ...string) {
		t.Helper()
		ok := eventually(func() bool {
			drawn := strings.Split(strings.TrimSuffix(frame(out.String()), "\n"), "\n")
			if len(drawn) != len(lines) {
				return false
			}
			for i, want := range lines {
				if !regexp.MustCompile(want).MatchString(drawn[i]) {
					return false
				}
			}
			return true
		})
		if !ok {
			t.Fatalf("want %q, drawn %q", lines, frame(out.String()))
		}
	}
	events := pullEvents("alpine:3.22")
	bars.begin(events[0].GetOperation())
	if out.String() != "operations/PULL: pulling docker.io/library/alpine:3.22\n" {
		t.Errorf("%q", out.String())
	}
	bars.update(events[1].GetProgress())
	shows(`^aaaabbbbcccc downloading +\[-+\] 0B of 6MB$`, `^1 of 3 layers, 0B of 8MB +\[-+\] 0B of 8MB$`)
	// What the broker says that cannot be is drawn as well as it can.
	bars.update(events[2].GetProgress())
	shows(`^aaaabbbbcccc extracting +\[-+\] 0B of 6MB$`, `^ddddeeeeffff downloading +\[=+>?\] 9MB of 2MB$`, `^1 of 3 layers, 6MB of 8MB +\[=+>-+\] 6MB of 8MB$`)
	bars.update(events[3].GetProgress())
	shows(`^3 of 3 layers, 8MB of 8MB +\[=+>?\] 8MB of 8MB$`)
	many := &brokerv1.PullProgress{}
	for i := range 3 * maxBars {
		many.Layers = append(many.Layers, layer(fmt.Sprint("layer", i), downloading, 1, 2))
	}
	bars.update(many)
	var want []string
	for i := range maxBars {
		want = append(want, fmt.Sprintf(`^layer%d downloading +\[`, i))
	}
	shows(append(want, `^0 of 0 layers`)...)
	bars.stop()
	bars.stop()
	end := out.String()
	if regexp.MustCompile(`dddd\S+ [^\n]+\n(aaaabbbb|1 of.*\naaaabbbb)|layer7 [^\n]+\nlayer|layer[1-7] [^\n]+\nlayer0`).MatchString(end) {
		t.Errorf("bars change places: %q", end)
	}
	if frame(end) != "" {
		t.Errorf("left on the screen: %q", frame(end))
	}
	bars.update(events[1].GetProgress())
	time.Sleep(300 * time.Millisecond)
	if out.String() != end {
		t.Error("drawn after the end")
	}
}

// TestHostileBars: nothing but what brokerctl writes itself acts on the terminal.
func TestHostileBars(t *testing.T) {
	var out lockedBuffer
	bars := &progressBars{app: &app{stderr: &out}}
	bars.begin(pullEvents(hostile)[0].GetOperation())
	bars.update(&brokerv1.PullProgress{
		Layers:          []*brokerv1.PullLayer{layer(hostile, downloading, -1, -1), layer("\u202e\x1b[A", extracting, 1<<62, 1)},
		DownloadedBytes: -1, TotalBytes: -1, LayersDone: -1, LayersTotal: -1,
	})
	if !eventually(func() bool { return strings.Contains(frame(out.String()), `\u202e\x1b[A extracting`) }) {
		t.Errorf("drawn %q", out.String())
	}
	bars.stop()
	for i, r := range redraw.ReplaceAllString(out.String(), "") {
		if !termclean.Safe(r) && r != '\n' {
			t.Fatalf("%U at %d: %q", r, i, out.String())
		}
	}
}

// brokenTerminal is gone.
type brokenTerminal struct{}

func (brokenTerminal) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestBarsOnATerminalThatGoesAway(t *testing.T) {
	bars := &progressBars{app: &app{stderr: brokenTerminal{}}}
	for range 50 {
		bars.update(pullEvents("alpine:3.22")[1].GetProgress())
		bars.update(pullEvents("alpine:3.22")[3].GetProgress())
		time.Sleep(10 * time.Millisecond)
	}
	bars.stop()
}

// TestProgressLines: a line that sums up comes every two seconds, not with each
// event.
func TestProgressLines(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	lines := &progressLines{app: &app{stderr: &out}, now: func() time.Time { return now }}
	for i := range 21 {
		lines.update(pullProgress(int64(i), 0, int64(i)).GetProgress())
		now = now.Add(200 * time.Millisecond)
	}
	if got, want := out.String(), "0 of 3 layers, 0B of 8MB\n0 of 3 layers, 10B of 8MB\n0 of 3 layers, 20B of 8MB\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestPullOnATerminal: the bars are gone at the end and the result stays.
func TestPullOnATerminal(t *testing.T) {
	fake := &fakeBroker{}
	s := onTerminal(t, startFake(t, fake), "images", "pull", "slow")
	s.waitFor("1 of 3 layers", 2)
	fake.pulls.only().finish <- nil
	if code := s.exitCode(); code != exitOK {
		t.Errorf("code %d", code)
	}
	parts := redraw.Split(s.text(), -1)
	if got := parts[len(parts)-1]; !strings.HasPrefix(got, "docker.io/library/slow: pulled sha256:") || strings.Count(got, "\n") != 1 {
		t.Errorf("left on the screen: %q", got)
	}
	for name, tt := range map[string]struct {
		term  string
		size  *unix.Winsize
		args  []string
		lines bool // in the place of bars
	}{
		"quiet":                             {"xterm", usualSize, []string{"--quiet"}, false},
		"json":                              {"xterm", usualSize, []string{"-o", "json"}, false},
		"a terminal that only prints":       {"dumb", usualSize, nil, true},
		"a terminal that has only a height": {"xterm", &unix.Winsize{Row: 24}, nil, true},
		"a terminal that has only a width":  {"xterm", &unix.Winsize{Col: 80}, nil, true},
	} {
		env := startBroker(t)
		env["TERM"] = tt.term
		s := onTerminalOf(t, tt.size, env, append([]string{"images", "pull", "alpine:3.22"}, tt.args...)...)
		if code := s.exitCode(); code != exitOK || strings.Contains(s.text(), "\x1b") || !strings.Contains(s.text(), "docker.io/library/alpine:3.22") ||
			strings.Contains(s.text(), "0123456789ab: was there already") != tt.lines {
			t.Errorf("%s: code %d, %q", name, code, s.text())
		}
	}
}
