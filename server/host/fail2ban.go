package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gortium/hermes-broker/internal/hostv1"
)

const (
	fail2banEnd   = "<F2B_END_COMMAND>"
	fail2banClose = "<F2B_CLOSE_COMMAND>"
	fail2banWait  = 5 * time.Second
	fail2banMost  = 4 << 20
)

// fail2banSocket is the daemon's socket. Whoever can write to it is root: the
// daemon runs what it is told. So brokerd does not, and only these questions do.
func (h *Host) fail2banSocket() *tool {
	return &tool{name: "fail2ban", path: h.cfg.Fail2ban.Value, check: func(path string) (string, error) {
		st, err := os.Lstat(path)
		if err == nil && st.Mode().Type() != os.ModeSocket {
			err = fmt.Errorf("%s: is no socket", path)
		}
		return path, err
	}}
}

var jailSyntax = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$`)

// settings are the daemon's own: "get dbfile" is answered for like a jail. No jail
// of such a name can be asked about.
var settings = map[string]bool{
	"loglevel": true, "logtarget": true, "syslogsocket": true, "dbfile": true, "dbmaxmatches": true, "dbpurgeage": true, "thread": true, "allowipv6": true,
}

// questions are all that fail2ban is ever asked. None of them changes anything.
var questions = map[hostv1.Fail2BanVerb][]string{
	hostv1.Fail2BanVerb_FAIL2BAN_VERB_VERSION:     {"version"},
	hostv1.Fail2BanVerb_FAIL2BAN_VERB_STATUS:      {"status"},
	hostv1.Fail2BanVerb_FAIL2BAN_VERB_JAIL_STATUS: {"status", "JAIL"},
	hostv1.Fail2BanVerb_FAIL2BAN_VERB_BANNED:      {"get", "JAIL", "banip", "--with-time"},
	hostv1.Fail2BanVerb_FAIL2BAN_VERB_BAN_TIME:    {"get", "JAIL", "bantime"},
	hostv1.Fail2BanVerb_FAIL2BAN_VERB_FIND_TIME:   {"get", "JAIL", "findtime"},
	hostv1.Fail2BanVerb_FAIL2BAN_VERB_MAX_RETRY:   {"get", "JAIL", "maxretry"},
	hostv1.Fail2BanVerb_FAIL2BAN_VERB_IGNORE_IP:   {"get", "JAIL", "ignoreip"},
}

// fail2ban asks a question. The answer is the daemon's pickle, unread.
func (h *Host) fail2ban(q *hostv1.Fail2Ban) (answer, error) {
	words, ok := questions[q.GetVerb()]
	if !ok {
		return nil, errors.New("no question to fail2ban")
	}
	if about := len(words) > 1; about != (q.GetJail() != "") || about && (!jailSyntax.MatchString(q.GetJail()) || settings[q.GetJail()]) {
		return nil, errors.New("no jail")
	}
	return func(ctx context.Context, send send) *hostv1.End {
		data, outcome, err := h.askFail2ban(ctx, pickled(words, q.GetJail()))
		end := &hostv1.End{Outcome: outcome, Tool: "fail2ban"}
		if err != nil {
			end.Words = []byte(err.Error())
		}
		for piece := range slices.Chunk(data, pieceBytes) {
			if send(ctx, piece) != nil {
				break // Nobody is there to be told.
			}
		}
		return end
	}, nil
}

// pickled is a list of strings in the oldest and plainest form of pickle. Words are
// of ASCII, without a backslash or a newline.
func pickled(words []string, jail string) string {
	var b strings.Builder
	b.WriteString("(l")
	for _, w := range words {
		if w == "JAIL" {
			w = jail
		}
		b.WriteString("V" + w + "\na")
	}
	return b.String() + "." + fail2banEnd
}

func (h *Host) askFail2ban(ctx context.Context, question string) ([]byte, hostv1.Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, fail2banWait)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", h.cfg.Fail2ban.Value)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, hostv1.Outcome_OUTCOME_NO_SOCKET, err
	case errors.Is(err, unix.ECONNREFUSED):
		return nil, hostv1.Outcome_OUTCOME_NOT_LISTENING, err
	case err != nil:
		return nil, hostv1.Outcome_OUTCOME_UNAVAILABLE, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := c.Write([]byte(question)); err != nil {
		return nil, broken(ctx), err
	}
	var data []byte
	piece := make([]byte, pieceBytes)
	for {
		n, err := c.Read(piece)
		data = append(data, piece[:n]...)
		if whole, ok := bytes.CutSuffix(data, []byte(fail2banEnd)); ok {
			_, _ = c.Write([]byte(fail2banClose + fail2banEnd)) // Out of politeness.
			return whole, hostv1.Outcome_OUTCOME_EXITED, nil
		}
		switch {
		case len(data) > fail2banMost:
			return nil, hostv1.Outcome_OUTCOME_TOO_LARGE, nil
		case err != nil:
			return nil, broken(ctx), err
		}
	}
}

// broken is the outcome of a connection that ended early.
func broken(ctx context.Context) hostv1.Outcome {
	if ctx.Err() != nil {
		return hostv1.Outcome_OUTCOME_TIMED_OUT
	}
	return hostv1.Outcome_OUTCOME_TRUNCATED
}
