package host

import (
	"context"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gortium/hermes-broker/internal/hostv1"
	"github.com/gortium/hermes-broker/server/rootfile"
)

// tool is a line of the table: a program, and how it may be run.
type tool struct {
	name string
	path string
	// args stand before those of a request.
	args []string
	// timeout is how long it may run; 0 is until its caller has had enough.
	timeout time.Duration
	// most is how many bytes it may write; 0 is no bound.
	most int64
	// version makes it say its version.
	version string
	// check is what the path must lead to; nil for a program.
	check func(path string) (target string, err error)
}

// table is everything that brokerhost may run or talk to.
func (h *Host) table() []*tool {
	return []*tool{
		h.iptablesSave(&hostv1.IptablesSave{}),
		h.iptablesSave(&hostv1.IptablesSave{Ipv6: true}),
		h.iptablesSave(&hostv1.IptablesSave{Legacy: true}),
		h.iptablesSave(&hostv1.IptablesSave{Ipv6: true, Legacy: true}),
		h.nft(), h.sshd(), h.journalctl(false), h.fail2banSocket(),
	}
}

// target is the file that the path leads to, when it can be trusted.
func (t *tool) target() (string, error) {
	if t.check != nil {
		return t.check(t.path)
	}
	return rootfile.Program(t.path)
}

// problem is why the tool cannot be used, or nil.
func (t *tool) problem() error {
	_, err := t.target()
	return err
}

// with is the tool with the arguments of a request.
func (t *tool) with(args ...string) answer {
	return func(ctx context.Context, send send) *hostv1.End {
		end := t.run(ctx, args, send)
		end.Tool = t.name
		return end
	}
}

// Line is a line of the table, as people see it.
type Line struct {
	// Name and Path are the tool's.
	Name, Path string
	// Problem is why it cannot be used; empty when it can.
	Problem string
	// Target is the file that the path leads to, and Owner whose that is.
	Target, Owner string
	// Version is what the tool says of it; empty when it says nothing.
	Version string
}

func (t *tool) line(ctx context.Context) Line {
	l := Line{Name: t.name, Path: t.path}
	target, err := t.target()
	if err != nil {
		l.Problem = err.Error()
		return l
	}
	l.Target, l.Owner = target, owner(target)
	if t.version == "" {
		return l
	}
	var out strings.Builder
	asked := *t
	asked.args, asked.timeout, asked.most = nil, 2*time.Second, 4<<10
	end := asked.run(ctx, []string{t.version}, func(_ context.Context, data []byte) error {
		out.Write(data)
		return nil
	})
	// sshd says its version while it complains that nobody may ask for it.
	out.Write(end.GetWords())
	l.Version = versionOf(out.String())
	return l
}

// versionOf is the first word with a digit and a dot in what a tool says.
func versionOf(text string) string {
	for word := range strings.FieldsSeq(text) {
		if strings.Contains(word, ".") && strings.ContainsAny(word, "0123456789") {
			return strings.Trim(word, "(),v")
		}
	}
	return ""
}

func owner(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	uid := strconv.Itoa(int(st.Uid))
	if u, err := user.LookupId(uid); err == nil {
		return u.Username
	}
	return uid
}
