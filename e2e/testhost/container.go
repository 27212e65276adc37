package testhost

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

// A ContainerSpec says what to run. The zero value of each field is the
// engine's default, but for Image.
type ContainerSpec struct {
	Name   string
	Image  string // default GuestImage
	Cmd    []string
	Env    []string // KEY=value
	Labels map[string]string
	User   string
	TTY    bool

	// LogDriver is json-file by default, which replaces bytes that are not
	// UTF-8. local keeps them.
	LogDriver string

	Binds      []string // /on/host:/in/container[:ro], the former below Host.Dir
	Networks   []string // by name; the first replaces the default bridge
	ExtraHosts []string // name:address, or name:host-gateway
	Ports      []PortBinding
	Privileged bool
	Memory     int64 // limit in bytes

	RestartPolicy string // no, always, on-failure or unless-stopped
	Health        *Health
	StopTimeout   time.Duration // from SIGTERM to SIGKILL, in whole seconds
}

// A PortBinding publishes a container's TCP port on an address of the host.
type PortBinding struct {
	Container uint16
	Host      netip.AddrPort
}

// Health is a container's health check. Cmd is an argv; a zero Retries or
// duration is the engine's default.
type Health struct {
	Cmd               []string
	Interval, Timeout time.Duration
	Retries           int
}

// createBody is the engine's form of a spec.
func (s ContainerSpec) createBody() map[string]any {
	host := map[string]any{
		"Binds":         s.Binds,
		"ExtraHosts":    s.ExtraHosts,
		"Privileged":    s.Privileged,
		"Memory":        s.Memory,
		"LogConfig":     map[string]any{"Type": s.LogDriver},
		"RestartPolicy": map[string]any{"Name": s.RestartPolicy},
	}
	body := map[string]any{
		"Image": s.Image, "Cmd": s.Cmd, "Env": s.Env, "Labels": s.Labels,
		"User": s.User, "Tty": s.TTY, "HostConfig": host,
	}
	if s.Image == "" {
		body["Image"] = GuestImage
	}
	if len(s.Networks) > 0 {
		host["NetworkMode"] = s.Networks[0]
	}
	if s.StopTimeout > 0 {
		body["StopTimeout"] = int(s.StopTimeout / time.Second)
	}
	if s.Health != nil {
		body["Healthcheck"] = map[string]any{
			"Test":     append([]string{"CMD"}, s.Health.Cmd...),
			"Interval": s.Health.Interval, "Timeout": s.Health.Timeout, "Retries": s.Health.Retries,
		}
	}
	exposed, bindings := map[string]any{}, map[string]any{}
	for _, p := range s.Ports {
		port := strconv.Itoa(int(p.Container)) + "/tcp"
		exposed[port] = struct{}{}
		bindings[port] = []map[string]string{{
			"HostIp": p.Host.Addr().String(), "HostPort": strconv.Itoa(int(p.Host.Port())),
		}}
	}
	body["ExposedPorts"], host["PortBindings"] = exposed, bindings
	return body
}

// Run creates and starts a container and returns its ID. A container that does
// not start is removed again.
func (h *Host) Run(ctx context.Context, spec ContainerSpec) (id string, err error) {
	query := url.Values{"name": {spec.Name}}
	var created struct {
		ID string `json:"Id"`
	}
	if err := h.API(ctx, "POST", "/containers/create?"+query.Encode(), spec.createBody(), &created); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Remove(context.WithoutCancel(ctx), created.ID))
		}
	}()
	// A create request of API 1.41 takes one network.
	for _, network := range spec.Networks[min(1, len(spec.Networks)):] {
		path := "/networks/" + url.PathEscape(network) + "/connect"
		if err := h.API(ctx, "POST", path, map[string]any{"Container": created.ID}, nil); err != nil {
			return "", err
		}
	}
	return created.ID, h.API(ctx, "POST", "/containers/"+created.ID+"/start", nil, nil)
}

// Remove kills and removes a container and its anonymous volumes. A container
// that does not exist is no error.
func (h *Host) Remove(ctx context.Context, name string) error {
	err := h.API(ctx, "DELETE", containerPath(name, "")+"?force=1&v=1", nil, nil)
	var refused *EngineError
	if errors.As(err, &refused) && refused.Status == http.StatusNotFound {
		return nil
	}
	return err
}

// A Container is what the engine says of one. Raw is all of it.
type Container struct {
	ID           string `json:"Id"`
	Name         string // with the engine's leading slash
	Image        string // the image's ID
	RestartCount int    // by its restart policy, not by a caller
	State        struct {
		Status    string
		Running   bool
		Pid       int // in the namespace of the tests
		ExitCode  int
		StartedAt time.Time
		Health    *struct{ Status string }
	}
	NetworkSettings struct {
		Networks map[string]struct{ IPAddress string }
	}
	Raw json.RawMessage `json:"-"`
}

// Inspect asks the engine about a container, by name or ID.
func (h *Host) Inspect(ctx context.Context, name string) (Container, error) {
	var raw json.RawMessage
	if err := h.API(ctx, "GET", containerPath(name, "/json"), nil, &raw); err != nil {
		return Container{}, err
	}
	c := Container{Raw: raw}
	return c, json.Unmarshal(raw, &c)
}

// Wait waits until a container is not running and returns its exit code.
func (h *Host) Wait(ctx context.Context, name string) (exitCode int, err error) {
	var ended struct{ StatusCode int }
	err = h.API(ctx, "POST", containerPath(name, "/wait"), nil, &ended)
	return ended.StatusCode, err
}

// Logs returns all a container without a TTY has written, stdout and stderr as
// they came.
func (h *Host) Logs(ctx context.Context, name string) ([]byte, error) {
	resp, err := h.api.do(ctx, "GET", containerPath(name, "/logs?stdout=1&stderr=1"), "", nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	// Each frame is: stream, three zero bytes, big-endian length, payload.
	var logs []byte
	for header := make([]byte, 8); ; {
		switch _, err := io.ReadFull(resp.Body, header); {
		case errors.Is(err, io.EOF):
			return logs, nil
		case err != nil:
			return nil, fmt.Errorf("logs of %s: %w", name, err)
		}
		payload := make([]byte, binary.BigEndian.Uint32(header[4:]))
		if _, err := io.ReadFull(resp.Body, payload); err != nil {
			return nil, fmt.Errorf("logs of %s: %w", name, err)
		}
		logs = append(logs, payload...)
	}
}

func containerPath(name, rest string) string {
	return "/containers/" + url.PathEscape(name) + rest
}
