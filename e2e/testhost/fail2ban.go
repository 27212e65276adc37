package testhost

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// python runs fail2ban: the system's own, which has its modules. The one on PATH
// may be another.
const python = "/usr/bin/python3"

// A Fail2ban is a real fail2ban with two jails, demo and quiet, which watch a log
// file and ban with real rules.
type Fail2ban struct {
	// Socket is the daemon's.
	Socket string
	// Jail is the name of the jail that bans.
	Jail    string
	log     string
	process *process
}

// StartFail2ban starts the fail2ban that lives below root, "" for the machine's
// own, in a folder of the host, and waits until it answers.
func (h *Host) StartFail2ban(ctx context.Context, name, root string) (*Fail2ban, error) {
	dir := filepath.Join(h.Dir, name)
	f := &Fail2ban{Socket: dir + "/fail2ban.sock", Jail: "demo", log: dir + "/watched.log"}
	if err := os.MkdirAll(dir+"/jail.d", 0o755); err != nil {
		return nil, err
	}
	for _, part := range []string{"action.d", "filter.d", "fail2ban.conf", "jail.conf"} {
		if out, err := exec.Command("cp", "-r", root+"/etc/fail2ban/"+part, dir).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("fail2ban's configuration: %w\n%s", err, out)
		}
	}
	paths, _ := filepath.Glob(root + "/etc/fail2ban/paths-*.conf")
	for _, p := range paths {
		if out, err := exec.Command("cp", p, dir).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("fail2ban's configuration: %w\n%s", err, out)
		}
	}
	const jail = "enabled = true\nfilter = demo\nbackend = polling\nbanaction = iptables-multiport\nlogpath = %s\nmaxretry = 3\nfindtime = 600\nport = 80\nignoreip = 127.0.0.1/8 ::1\n"
	for name, text := range map[string]string{
		"fail2ban.local":     strings.ReplaceAll("[Definition]\nsocket = D/fail2ban.sock\npidfile = D/fail2ban.pid\ndbfile = D/fail2ban.sqlite3\nlogtarget = D/fail2ban.log\n", "D/", dir+"/"),
		"filter.d/demo.conf": "[Definition]\nfailregex = ^.*failure from <HOST>$\n",
		"jail.local":         fmt.Sprintf("[demo]\nbantime = 3600\n"+jail+"\n[quiet]\nbantime = -1\n"+jail, f.log, dir+"/quiet.log"),
		"watched.log":        "",
		"quiet.log":          "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	cmd := exec.Command(python, root+"/usr/bin/fail2ban-server", "-c", dir, "-f")
	cmd.Env = append(os.Environ(), "PYTHONPATH="+root+"/usr/lib/python3/dist-packages", "PYTHONDONTWRITEBYTECODE=1")
	var err error
	if f.process, err = startProcess(dir+"/out", cmd); err != nil {
		return nil, fmt.Errorf("starting fail2ban: %w", err)
	}
	err = f.process.waitReady(ctx, func(context.Context) error {
		log, err := os.ReadFile(dir + "/fail2ban.log")
		if err == nil && strings.Count(string(log), "Jail '") < 2 {
			err = fmt.Errorf("the jails are not up:\n%s", log)
		}
		if err != nil {
			return err
		}
		c, err := net.Dial("unix", f.Socket)
		if err == nil {
			err = c.Close()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("starting fail2ban: %w", err)
	}
	return f, nil
}

// Fail has an address fail as often as it takes to be banned.
func (f *Fail2ban) Fail(address string) error {
	log, err := os.OpenFile(f.log, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer log.Close()
	for range 3 {
		if _, err := fmt.Fprintf(log, "%s failure from %s\n", time.Now().Format(time.DateTime), address); err != nil {
			return err
		}
	}
	return nil
}

// Kill ends it at once, and leaves its socket behind.
func (f *Fail2ban) Kill() {
	_ = f.process.cmd.Process.Kill()
	<-f.process.done
}

// Close stops it in order.
func (f *Fail2ban) Close() error {
	select {
	case <-f.process.done:
		return nil
	default:
		return f.process.stop()
	}
}
