package testhost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const (
	engineRootEnv = "E2E_ENGINE_ROOT"
	engineInRoot  = "/usr/sbin/dockerd"

	// Gateway is the host's address on the engine's default bridge: where a
	// container reaches what listens on the host.
	Gateway = "198.18.0.1"
)

// A Host is a running Docker Engine and the folder it lives in. Its methods are
// safe for concurrent use, but for StopEngine, StartEngine and Close.
type Host struct {
	// Dir is the host's folder, on a path short enough for unix sockets below
	// it. What a container binds from the host has to lie in it.
	Dir string
	// Socket is the path of the engine's unix socket.
	Socket string
	// Gateway is the constant of that name.
	Gateway string

	api    *engineClient
	engine *process // nil while stopped
}

// Start raises the engine, waits until it answers and gives it the image
// [GuestImage]. It has to run inside (see [Main]); ctx bounds the start alone.
// The caller closes the Host.
func Start(ctx context.Context) (_ *Host, err error) {
	if !Inside() {
		return nil, errors.New("testhost: Start outside of a host's namespaces: use Main or Enter first")
	}
	dir, err := os.MkdirTemp(os.Getenv(runDirEnv), "h")
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "docker.sock")
	h := &Host{Dir: dir, Socket: socket, Gateway: Gateway, api: newEngineClient(socket)}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()

	type build struct {
		program []byte
		err     error
	}
	guest := make(chan build, 1)
	go func() { // compiling takes as long as the engine takes to start
		program, err := buildGuest(ctx, dir)
		guest <- build{program, err}
	}()
	err = h.StartEngine(ctx)
	built := <-guest // waited for in any case: it writes below Dir
	if err := errors.Join(err, built.err); err != nil {
		return nil, err
	}
	return h, h.BuildImage(ctx, GuestImage, map[string][]byte{"guest": built.program},
		`ENTRYPOINT ["/guest"]`, `CMD ["serve"]`)
}

// StartEngine starts a stopped engine on the data it had, and waits until it
// answers.
func (h *Host) StartEngine(ctx context.Context) error {
	if h.engine != nil {
		return errors.New("testhost: the engine is already running")
	}
	// An explicit configuration keeps the machine's daemon.json out. By default an
	// engine comes again and again for a layer whose connection was cut, with
	// pauses of up to 75 s in all. With this one 28.5 gives up at once, and 20.10
	// after 5 s and one more attempt.
	config := filepath.Join(h.Dir, "daemon.json")
	if err := os.WriteFile(config, []byte(`{"max-download-attempts": 1}`+"\n"), 0o600); err != nil {
		return err
	}
	engine, err := startProcess(h.LogFile(), engineCommand(
		"--config-file", config,
		"--data-root", filepath.Join(h.Dir, "data"),
		"--exec-root", filepath.Join(h.Dir, "exec"),
		"--pidfile", filepath.Join(h.Dir, "dockerd.pid"),
		"--host", "unix://"+h.Socket,
		"--bip", Gateway+"/24",
		"--default-address-pool", "base=198.19.0.0/16,size=24",
		"--log-level", "warn",
	))
	if err != nil {
		return fmt.Errorf("starting dockerd: %w", err)
	}
	h.engine = engine
	err = engine.waitReady(ctx, func(ctx context.Context) error { return h.API(ctx, "GET", "/_ping", nil, nil) })
	if err != nil {
		return errors.Join(fmt.Errorf("starting dockerd: %w", err), h.StopEngine())
	}
	return nil
}

// enterRoot gives dockerd another root file system. A chroot would not do: exec
// in a container, and so a health check, enters the container's mount namespace
// and would find the machine's root there.
const enterRoot = `cd "$0" && pivot_root . . && umount -l . && exec ` + engineInRoot + ` "$@"`

func engineCommand(args ...string) *exec.Cmd {
	root := os.Getenv(engineRootEnv)
	if root == "" {
		return exec.Command("dockerd", args...)
	}
	return exec.Command("unshare", append([]string{
		"--mount", "--propagation", "private", "sh", "-c", enterRoot, root}, args...)...)
}

// StopEngine stops the engine and with it the running containers; their
// restart policies hold when it starts again. It is a no-op on a stopped
// engine. Containers that ignore SIGTERM delay it by their stop timeout.
func (h *Host) StopEngine() error {
	p := h.engine
	if p == nil {
		return nil
	}
	h.engine = nil
	h.api.CloseIdleConnections()
	if err := p.stop(); err != nil {
		return fmt.Errorf("dockerd: %w", err)
	}
	return nil
}

// Close removes the containers and networks, stops the engine and removes Dir
// with all that is mounted below it. Closing twice is harmless.
func (h *Host) Close() error {
	if h.engine != nil {
		h.clear()
	}
	err := h.StopEngine()
	return errors.Join(err, unmountBelow(h.Dir), os.RemoveAll(h.Dir))
}

// clear removes what would delay the engine's end (containers that ignore
// SIGTERM) or outlive it (the bridges of networks). It is best effort: the end
// of the namespaces is the end of both in any case.
func (h *Host) clear() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var containers []struct {
		ID string `json:"Id"`
	}
	_ = h.API(ctx, "GET", "/containers/json?all=1", nil, &containers)
	for _, c := range containers {
		_ = h.Remove(ctx, c.ID)
	}
	_ = h.API(ctx, "POST", "/networks/prune", nil, nil)
}

// LogFile is the path of the engine's log, which spans its restarts.
func (h *Host) LogFile() string { return filepath.Join(h.Dir, "dockerd.log") }
