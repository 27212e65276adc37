package docker

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/page"
)

// converter turns the engine's answers into the broker's. It copies what the
// schema has a field for; arguments, environment values, health-check output,
// and labels that are not on the list have none.
type converter struct {
	labels map[string]bool
}

func (c converter) list(all []container.Summary) []page.Item[*brokerv1.Container] {
	out := make([]page.Item[*brokerv1.Container], 0, len(all))
	for i := range all {
		s := &all[i]
		name := ownName(s.Names)
		if name == "" {
			continue // Being created or removed: it cannot be asked for either.
		}
		state := stateOf(s.State)
		out = append(out, page.Item[*brokerv1.Container]{Key: page.Newest(time.Unix(s.Created, 0), s.ID), Value: &brokerv1.Container{
			Name:       name,
			Id:         s.ID,
			Image:      s.Image,
			ImageId:    s.ImageID,
			State:      state,
			StateText:  s.State,
			Health:     healthOfStatus(s.Status, state),
			CreateTime: timestamppb.New(time.Unix(s.Created, 0)),
			Ports:      portsOf(s.Ports),
			Labels:     c.allowed(s.Labels),
		}})
	}
	return page.Sort(out)
}

// ownName is the container's name among its names: links add "/other/alias".
func ownName(names []string) string {
	for _, n := range names {
		if n = strings.TrimPrefix(n, "/"); n != "" && !strings.Contains(n, "/") {
			return n
		}
	}
	return ""
}

var states = map[string]brokerv1.ContainerState{
	"created":    brokerv1.ContainerState_CONTAINER_STATE_CREATED,
	"running":    brokerv1.ContainerState_CONTAINER_STATE_RUNNING,
	"paused":     brokerv1.ContainerState_CONTAINER_STATE_PAUSED,
	"restarting": brokerv1.ContainerState_CONTAINER_STATE_RESTARTING,
	"removing":   brokerv1.ContainerState_CONTAINER_STATE_REMOVING,
	"exited":     brokerv1.ContainerState_CONTAINER_STATE_EXITED,
	"dead":       brokerv1.ContainerState_CONTAINER_STATE_DEAD,
}

func stateOf(s string) brokerv1.ContainerState { return states[s] }

// healthOfStatus reads the health out of a list's status text, the only place
// where the engine gives it: "Up 3 minutes (healthy)". Only a running container
// has one there.
func healthOfStatus(status string, state brokerv1.ContainerState) brokerv1.ContainerHealth {
	switch {
	case strings.HasSuffix(status, "(healthy)"):
		return brokerv1.ContainerHealth_CONTAINER_HEALTH_HEALTHY
	case strings.HasSuffix(status, "(unhealthy)"):
		return brokerv1.ContainerHealth_CONTAINER_HEALTH_UNHEALTHY
	case strings.HasSuffix(status, "(health: starting)"):
		return brokerv1.ContainerHealth_CONTAINER_HEALTH_STARTING
	case state == brokerv1.ContainerState_CONTAINER_STATE_RUNNING:
		return brokerv1.ContainerHealth_CONTAINER_HEALTH_NONE
	}
	return brokerv1.ContainerHealth_CONTAINER_HEALTH_UNSPECIFIED
}

var healths = map[string]brokerv1.ContainerHealth{
	"none":      brokerv1.ContainerHealth_CONTAINER_HEALTH_NONE,
	"starting":  brokerv1.ContainerHealth_CONTAINER_HEALTH_STARTING,
	"healthy":   brokerv1.ContainerHealth_CONTAINER_HEALTH_HEALTHY,
	"unhealthy": brokerv1.ContainerHealth_CONTAINER_HEALTH_UNHEALTHY,
}

// maxPorts and maxLabel bound what one image can make everybody read: it may
// expose all ports there are.
const (
	maxPorts = 256
	maxLabel = 1024
)

func portsOf(ports []container.Port) []*brokerv1.Port {
	var out []*brokerv1.Port
	ports = ports[:min(len(ports), maxPorts)]
	for _, p := range ports {
		out = append(out, &brokerv1.Port{
			ContainerPort: uint32(p.PrivatePort), HostPort: uint32(p.PublicPort), HostIp: p.IP, Protocol: p.Type,
		})
	}
	slices.SortFunc(out, comparePorts)
	return out
}

func comparePorts(a, b *brokerv1.Port) int {
	return cmp.Or(cmp.Compare(a.ContainerPort, b.ContainerPort), cmp.Compare(a.Protocol, b.Protocol),
		cmp.Compare(a.HostIp, b.HostIp), cmp.Compare(a.HostPort, b.HostPort))
}

func (c converter) allowed(labels map[string]string) map[string]string {
	var out map[string]string
	for k, v := range labels {
		if c.labels[k] {
			if out == nil {
				out = map[string]string{}
			}
			out[k] = strings.ToValidUTF8(v[:min(len(v), maxLabel)], "\uFFFD")
		}
	}
	return out
}

func (c converter) inspect(in container.InspectResponse) (*inspected, error) {
	if in.ContainerJSONBase == nil || in.State == nil || in.HostConfig == nil || in.Config == nil || in.NetworkSettings == nil {
		return nil, errors.New("the engine's description of the container is incomplete")
	}
	state := stateOf(in.State.Status)
	health := brokerv1.ContainerHealth_CONTAINER_HEALTH_NONE
	streak := 0
	if in.State.Health != nil {
		health, streak = healths[in.State.Health.Status], in.State.Health.FailingStreak
	}
	created, _ := time.Parse(time.RFC3339Nano, in.Created)
	view := &brokerv1.InspectContainerResponse{
		Container: &brokerv1.Container{
			Name:       strings.TrimPrefix(in.Name, "/"),
			Id:         in.ID,
			Image:      in.Config.Image,
			ImageId:    in.Image,
			State:      state,
			StateText:  in.State.Status,
			Health:     health,
			CreateTime: timestamppb.New(created),
			Labels:     c.allowed(in.Config.Labels),
		},
		RestartCount: int64(in.RestartCount),
		RestartPolicy: &brokerv1.RestartPolicy{
			Name: string(in.HostConfig.RestartPolicy.Name), MaximumRetryCount: int32(in.HostConfig.RestartPolicy.MaximumRetryCount),
		},
		StartTime:           timeOf(in.State.StartedAt),
		FinishTime:          timeOf(in.State.FinishedAt),
		ExitCode:            int32(in.State.ExitCode),
		OomKilled:           in.State.OOMKilled,
		Limits:              limitsOf(in.HostConfig),
		EnvironmentKeys:     environmentKeys(in.Config.Env),
		HealthFailingStreak: int32(streak),
	}
	for port, bindings := range in.NetworkSettings.Ports {
		p := container.Port{PrivatePort: uint16(port.Int()), Type: port.Proto()}
		ports := []container.Port{p}
		if len(bindings) > 0 {
			ports = nil
		}
		for _, b := range bindings {
			p.IP = b.HostIP
			n, _ := strconv.ParseUint(b.HostPort, 10, 16)
			p.PublicPort = uint16(n)
			ports = append(ports, p)
		}
		if len(view.Container.Ports) < maxPorts {
			view.Container.Ports = append(view.Container.Ports, portsOf(ports)...)
		}
	}
	slices.SortFunc(view.Container.Ports, comparePorts)
	for name, n := range in.NetworkSettings.Networks {
		if n != nil {
			view.Networks = append(view.Networks, &brokerv1.NetworkAttachment{
				Network: name, Ipv4Address: n.IPAddress, Ipv6Address: n.GlobalIPv6Address, MacAddress: n.MacAddress,
			})
		}
	}
	slices.SortFunc(view.Networks, func(a, b *brokerv1.NetworkAttachment) int { return cmp.Compare(a.Network, b.Network) })
	for _, m := range in.Mounts {
		source := m.Source
		if m.Name != "" {
			source = m.Name
		}
		view.Mounts = append(view.Mounts, &brokerv1.Mount{Type: string(m.Type), Destination: m.Destination, ReadOnly: !m.RW, Source: source})
	}
	slices.SortFunc(view.Mounts, func(a, b *brokerv1.Mount) int { return cmp.Compare(a.Destination, b.Destination) })
	return &inspected{
		id: in.ID, name: view.Container.Name, imageID: in.Image, state: state,
		running: in.State.Running, terminal: in.Config.Tty, view: view,
	}, nil
}

// timeOf reads the engine's time; its zero is "0001-01-01T00:00:00Z".
func timeOf(s string) *timestamppb.Timestamp {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.Year() <= 1 {
		return nil
	}
	return timestamppb.New(t)
}

func limitsOf(h *container.HostConfig) *brokerv1.ResourceLimits {
	l := &brokerv1.ResourceLimits{MemoryBytes: h.Memory, NanoCpus: h.NanoCPUs}
	if h.NanoCPUs == 0 && h.CPUPeriod > 0 && h.CPUQuota > 0 {
		l.NanoCpus = h.CPUQuota * 1_000_000_000 / h.CPUPeriod
	}
	if h.PidsLimit != nil {
		l.Pids = max(0, *h.PidsLimit)
	}
	return l
}

// environmentKeys are the names alone.
func environmentKeys(env []string) []string {
	var keys []string
	for _, e := range env {
		key, _, _ := strings.Cut(e, "=")
		keys = append(keys, strings.ToValidUTF8(key, "\uFFFD"))
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

func logsOptions(q logQuery) container.LogsOptions {
	o := container.LogsOptions{
		ShowStdout: q.stdout, ShowStderr: q.stderr, Follow: q.follow, Timestamps: q.timestamps, Tail: "all",
	}
	if !q.since.IsZero() {
		o.Since = unixTime(q.since)
	}
	if !q.until.IsZero() {
		o.Until = unixTime(q.until)
	}
	if q.tail > 0 {
		o.Tail = strconv.Itoa(int(q.tail))
	}
	return o
}

func unixTime(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }

func (c converter) stats(body io.ReadCloser) samples {
	d := json.NewDecoder(body)
	return samples{
		next: func() (*brokerv1.ContainerStatsResponse, error) {
			var s container.StatsResponse
			if err := d.Decode(&s); err != nil {
				return nil, err
			}
			return sampleOf(&s), nil
		},
		close: body.Close,
	}
}

func sampleOf(s *container.StatsResponse) *brokerv1.ContainerStatsResponse {
	out := &brokerv1.ContainerStatsResponse{
		SampleTime:       timestamppb.New(s.Read),
		OnlineCpus:       s.CPUStats.OnlineCPUs,
		MemoryBytes:      memoryOf(&s.MemoryStats),
		MemoryLimitBytes: s.MemoryStats.Limit,
		Pids:             s.PidsStats.Current,
	}
	if out.OnlineCpus == 0 { // Engines before 1.27, and some cgroup v1 kernels.
		out.OnlineCpus = uint32(len(s.CPUStats.CPUUsage.PercpuUsage))
	}
	used := float64(s.CPUStats.CPUUsage.TotalUsage) - float64(s.PreCPUStats.CPUUsage.TotalUsage)
	passed := float64(s.CPUStats.SystemUsage) - float64(s.PreCPUStats.SystemUsage)
	if used > 0 && passed > 0 && s.PreCPUStats.SystemUsage > 0 {
		out.CpuPercent = used / passed * float64(out.OnlineCpus) * 100
	}
	for _, n := range s.Networks {
		out.NetworkReceiveBytes += n.RxBytes
		out.NetworkTransmitBytes += n.TxBytes
	}
	for _, e := range s.BlkioStats.IoServiceBytesRecursive {
		switch strings.ToLower(e.Op) { // "Read" on cgroup v1, "read" on v2.
		case "read":
			out.BlockReadBytes += e.Value
		case "write":
			out.BlockWriteBytes += e.Value
		}
	}
	return out
}

// memoryOf is what is in use without the page cache that could be dropped.
func memoryOf(m *container.MemoryStats) uint64 {
	for _, key := range []string{"total_inactive_file", "inactive_file"} { // cgroup v1, v2.
		if cache, ok := m.Stats[key]; ok && cache < m.Usage {
			return m.Usage - cache
		}
	}
	return m.Usage
}
