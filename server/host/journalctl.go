package host

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gortium/hermes-broker/internal/hostv1"
)

// journalctl prints entries of the journal as JSON, one a line. Who follows it
// ends it.
func (h *Host) journalctl(follow bool) *tool {
	t := &tool{
		name: "journalctl", path: h.cfg.Tools.Journalctl.Value, version: "--version",
		// --all: else a long message is replaced by null.
		args: []string{
			"--no-pager", "--quiet", "--all", "--output=json",
			"--output-fields=MESSAGE,PRIORITY,SYSLOG_IDENTIFIER,_COMM,SYSLOG_PID,_PID,_SYSTEMD_UNIT,CONTAINER_ID",
		},
	}
	if dir := h.cfg.Journal.Value; dir != "" {
		t.args = append(t.args, "--directory="+dir)
	}
	if !follow {
		t.timeout, t.most = time.Minute, 1<<30
	}
	return t
}

// What may follow an option. journalctl takes a pattern for a unit, so that what
// could be one is refused.
var (
	unitSyntax       = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9:_.@\\-]{0,243}\.(service|socket|target|timer|mount|automount|swap|path|scope|device)$`)
	identifierSyntax = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9:_.@/+()-]{0,127}$`)
	cursorSyntax     = regexp.MustCompile(`^s=[0-9a-f]{32};i=[0-9a-f]{1,16};b=[0-9a-f]{32};m=[0-9a-f]{1,16};t=[0-9a-f]{1,16};x=[0-9a-f]{1,16}$`)
)

const maxLines = 10_000

// journalArgs are the arguments of a query: each value behind its option's equal
// sign, in one argument.
func (h *Host) journalArgs(q *hostv1.Journal) ([]string, error) {
	var args []string
	switch source := q.GetSource().(type) {
	case *hostv1.Journal_Kernel:
		args = append(args, "_TRANSPORT=kernel")
	case *hostv1.Journal_Unit:
		if !unitSyntax.MatchString(source.Unit) {
			return nil, errors.New("no name of a unit")
		}
		args = append(args, "--unit="+source.Unit)
	case *hostv1.Journal_Identifier:
		if !identifierSyntax.MatchString(source.Identifier) {
			return nil, errors.New("no identifier")
		}
		args = append(args, "--identifier="+source.Identifier)
	default:
		return nil, errors.New("no source")
	}
	for option, t := range map[string]*timestamppb.Timestamp{"--since=@": q.GetSince(), "--until=@": q.GetUntil()} {
		if t == nil {
			continue
		}
		if t.CheckValid() != nil || t.GetSeconds() < 0 {
			return nil, errors.New("no time of a journal")
		}
		args = append(args, fmt.Sprintf("%s%d.%06d", option, t.GetSeconds(), t.GetNanos()/1000))
	}
	if q.Priority != nil {
		if *q.Priority < 0 || *q.Priority > 7 {
			return nil, errors.New("no priority")
		}
		args = append(args, "--priority="+strconv.Itoa(int(*q.Priority)))
	}
	if q.GetCursor() != "" {
		if !cursorSyntax.MatchString(q.GetCursor()) {
			return nil, errors.New("no cursor")
		}
		// Not --after-cursor: when the entry itself is not among those that match,
		// that leaves out the first one behind it.
		args = append(args, "--cursor="+q.GetCursor())
	}
	if q.GetReverse() {
		args = append(args, "--reverse")
	}
	if !q.GetFollow() {
		return args, nil
	}
	if q.GetLines() < 0 || q.GetLines() > maxLines {
		return nil, errors.New("no number of lines")
	}
	args = append(args, "--follow")
	if q.GetCursor() != "" || q.GetSince() != nil {
		return append(args, "--no-tail"), nil
	}
	return append(args, "--lines="+strconv.Itoa(int(q.GetLines()))), nil
}
