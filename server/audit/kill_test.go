package audit

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// killedDirEnv makes the test binary the process that TestKill kills.
const killedDirEnv = "AUDIT_KILLED_DIR"

// runKilled writes intents and outcomes until it is killed, and prints each
// sequence number that was acknowledged, with its call.
func runKilled(dir string) int {
	l, err := Open(Options{Dir: dir, SegmentBytes: 16 << 10})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for _, rec := range l.Orphans() {
		fmt.Println("orphan", rec.Seq, rec.Call)
	}
	for worker := range 4 {
		go func() {
			for i := 0; ; i++ {
				call := fmt.Sprintf("%d-%d-%d", os.Getpid(), worker, i)
				l.Append(Record{Event: EventCall, Detail: strings.Repeat("x", i%500)})
				seq, err := l.Sync(context.Background(), Record{Event: EventIntent, Call: call})
				if err != nil {
					fmt.Println(err)
					os.Exit(1)
				}
				fmt.Println("acked", seq, call)
				l.Append(Record{Event: EventOutcome, Call: call})
			}
		}()
	}
	select {}
}

func TestKill(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	type ack struct {
		seq  uint64
		call string
	}
	acked := map[ack]bool{}
	told := map[ack]int{}
	for range 20 {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), killedDirEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(20+rand.IntN(100))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			word := strings.Fields(lines.Text())
			if len(word) != 3 {
				t.Fatalf("the child says %q", lines.Text())
			}
			seq, err := strconv.ParseUint(word[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			switch a := (ack{seq, word[2]}); word[0] {
			case "acked":
				acked[a] = true
			case "orphan":
				told[a]++
			}
		}
		_ = cmd.Wait() // killed
		timer.Stop()
	}
	l := mustOpen(t, Options{Dir: dir})
	for _, rec := range l.Orphans() {
		told[ack{rec.Seq, rec.Call}]++
	}
	mustClose(t, l)
	r := mustVerify(t, dir)
	if len(r.Open) != 0 || r.Gaps != 0 {
		t.Errorf("report %+v", r)
	}
	recs, _ := readAll(t, dir, ReadOptions{})
	if uint64(len(recs)) != r.Records {
		t.Fatalf("%d records read, %d verified", len(recs), r.Records)
	}
	for a := range acked {
		if rec := recs[a.seq-1]; rec.Seq != a.seq || rec.Event != EventIntent || rec.Call != a.call {
			t.Errorf("acknowledged %+v is %+v", a, rec)
		}
	}
	// Each intent is closed once, by its outcome or as an orphan; and whoever died
	// between the record and telling of it is the only reason for not having told.
	intents, closed, orphans := map[string]ack{}, map[string]int{}, 0
	for _, rec := range recs {
		switch rec.Event {
		case EventIntent:
			intents[rec.Call] = ack{rec.Seq, rec.Call}
		case EventOutcome:
			closed[rec.Call]++
		case EventOrphan:
			closed[rec.Call]++
			orphans++
		}
	}
	for call := range intents {
		if closed[call] != 1 {
			t.Errorf("intent %s was closed %d times", call, closed[call])
		}
	}
	for a, n := range told {
		if intents[a.call] != a || n != 1 {
			t.Errorf("orphan %+v was told %d times", a, n)
		}
	}
	if len(acked) == 0 || orphans == 0 {
		t.Errorf("%d acknowledged, %d orphans: nothing was tested", len(acked), orphans)
	}
	t.Logf("%d records, %d acknowledged, %d orphans, %d told, %d torn", len(recs), len(acked), orphans, len(told), r.Torn)
}
