package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

func (a *app) containersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "containers",
		Aliases: []string{"container", "c"},
		Short:   "List, read and run containers",
		RunE:    a.group,
	}
	cmd.AddCommand(
		a.listCommand(), a.inspectCommand(), a.logsCommand(), a.statsCommand(),
		a.startCommand(), a.stopCommand(), a.restartCommand(), a.removeCommand(), a.waitCommand(),
	)
	return cmd
}

func (a *app) listCommand() *cobra.Command {
	var pattern string
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the containers within your grants, newest first",
		Example: `  brokerctl containers ls
  brokerctl containers ls --name 'media-*' --state running,paused
  brokerctl containers ls --health unhealthy -o name`,
		Args: cobra.NoArgs,
	}
	patternFlag(cmd, &pattern, "only names that match")
	states := enumFlag[brokerv1.ContainerState](cmd, "state", "only these states", statePrefix)
	healths := enumFlag[brokerv1.ContainerHealth](cmd, "health", "only these healths", healthPrefix)
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		req := &brokerv1.ListContainersRequest{PageSize: pageSize, NamePattern: pattern}
		var err error
		if req.States, err = states(); err != nil {
			return err
		}
		if req.Healths, err = healths(); err != nil {
			return err
		}
		all, err := a.listContainers(ctx, req)
		if err != nil {
			return failed("list containers", err)
		}
		return a.showList(&brokerv1.ListContainersResponse{Containers: all}, namesOf(all, (*brokerv1.Container).GetName),
			func(wide bool) *table { return a.containerTable(all, wide) })
	})
	return cmd
}

// listContainers reads all pages.
func (a *app) listContainers(ctx context.Context, req *brokerv1.ListContainersRequest) ([]*brokerv1.Container, error) {
	return list(ctx, a, func(ctx context.Context, c *client.Client, token string) (*brokerv1.ListContainersResponse, error) {
		req.PageToken = token
		return c.Containers().ListContainers(ctx, req)
	}, (*brokerv1.ListContainersResponse).GetContainers)
}

func (a *app) containerTable(all []*brokerv1.Container, wide bool) *table {
	header := []string{"NAME", "STATE", "HEALTH", "IMAGE", "PORTS", "AGE"}
	if wide {
		header = append(header, "ID", "IMAGE ID", "LABELS")
	}
	t := a.newTable(header...)
	for _, c := range all {
		row := cells(plain, c.GetName(), stateText(c), healthText(c.GetHealth()), c.GetImage(), portsText(c.GetPorts()), age(c.GetCreateTime()))
		row[1].colour, row[2].colour = stateColour(c.GetState()), healthColour(c.GetHealth())
		if wide {
			id := strings.TrimPrefix(c.GetImageId(), "sha256:")
			row = append(row, cells(plain, shortID(c.GetId()), shortID(id), labelsText(c.GetLabels()))...)
		}
		t.addCells(row...)
	}
	return t
}

const (
	statePrefix  = "CONTAINER_STATE_"
	healthPrefix = "CONTAINER_HEALTH_"
)

// stateText is the state, or the engine's word for one this build does not know.
func stateText(c *brokerv1.Container) string {
	if c.GetState() == brokerv1.ContainerState_CONTAINER_STATE_UNSPECIFIED {
		return firstOf(c.GetStateText(), "unknown")
	}
	return enumText(c.GetState(), statePrefix)
}

func stateColour(s brokerv1.ContainerState) colour {
	switch s {
	case brokerv1.ContainerState_CONTAINER_STATE_RUNNING:
		return green
	case brokerv1.ContainerState_CONTAINER_STATE_DEAD:
		return red
	case brokerv1.ContainerState_CONTAINER_STATE_RESTARTING, brokerv1.ContainerState_CONTAINER_STATE_PAUSED:
		return yellow
	}
	return plain
}

func healthText(h brokerv1.ContainerHealth) string {
	switch h {
	case brokerv1.ContainerHealth_CONTAINER_HEALTH_NONE:
		return ""
	case brokerv1.ContainerHealth_CONTAINER_HEALTH_UNSPECIFIED:
		return "unknown"
	}
	return enumText(h, healthPrefix)
}

func healthColour(h brokerv1.ContainerHealth) colour {
	switch h {
	case brokerv1.ContainerHealth_CONTAINER_HEALTH_HEALTHY:
		return green
	case brokerv1.ContainerHealth_CONTAINER_HEALTH_UNHEALTHY:
		return red
	}
	return plain
}

func portsText(ports []*brokerv1.Port) string {
	var texts []string
	for _, p := range ports {
		text := fmt.Sprintf("%d/%s", p.GetContainerPort(), p.GetProtocol())
		if p.GetHostPort() != 0 {
			host := p.GetHostIp()
			if strings.Contains(host, ":") {
				host = "[" + host + "]"
			}
			text = fmt.Sprintf("%s:%d->%s", host, p.GetHostPort(), text)
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, ", ")
}

func labelsText(labels map[string]string) string {
	var texts []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		texts = append(texts, k+"="+labels[k])
	}
	return strings.Join(texts, ",")
}

func (a *app) inspectCommand() *cobra.Command {
	var sources bool
	cmd := &cobra.Command{
		Use:   "inspect NAME",
		Short: "Describe a container",
		Long: `Describe a container: image, state, networks, mounts, limits. Environment
variables are listed by name only; arguments and health-check output are never
shown.`,
		Example: `  brokerctl containers inspect ollama
  brokerctl containers inspect ollama --mount-sources -o yaml`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeContainer(),
	}
	cmd.Flags().BoolVar(&sources, "mount-sources", false, "show the host's side of mounts too; needs containers.inspect_mount_sources")
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		c, err := a.client(ctx)
		if err != nil {
			return err
		}
		ctx, cancel := a.deadline(ctx, 0)
		defer cancel()
		resp, err := c.Containers().InspectContainer(ctx, &brokerv1.InspectContainerRequest{Container: args[0], IncludeMountSources: sources})
		if err != nil {
			return failed("inspect "+args[0], err)
		}
		return a.show(view{
			value: resp,
			names: []string{resp.GetContainer().GetName()},
			text:  func(w io.Writer, _ bool) error { return a.inspectTable(resp).write(w) },
		})
	})
	return cmd
}

func (a *app) inspectTable(r *brokerv1.InspectContainerResponse) *table {
	t := a.newTable()
	row := func(name, format string, args ...any) {
		t.field(name, fmt.Sprintf(format, args...))
	}
	c := r.GetContainer()
	row("Name", "%s", c.GetName())
	row("ID", "%s", c.GetId())
	row("Image", "%s", c.GetImage())
	row("Image ID", "%s", c.GetImageId())
	for _, d := range r.GetImageDigests() {
		row("Image digest", "%s", d)
	}
	state := stateText(c)
	if c.GetState() != brokerv1.ContainerState_CONTAINER_STATE_RUNNING {
		state += fmt.Sprintf(", exit code %d", r.GetExitCode())
	}
	if r.GetOomKilled() {
		state += ", killed for want of memory"
	}
	row("State", "%s", state)
	row("Health", "%s", healthText(c.GetHealth()))
	if n := r.GetHealthFailingStreak(); n > 0 {
		row("Failing checks", "%d in a row", n)
	}
	policy := r.GetRestartPolicy().GetName()
	if n := r.GetRestartPolicy().GetMaximumRetryCount(); n > 0 {
		policy += fmt.Sprintf(", at most %d times", n)
	}
	row("Restart policy", "%s", policy)
	row("Restarts", "%d", r.GetRestartCount())
	row("Created", "%s", shortTime(c.GetCreateTime()))
	row("Started", "%s", shortTime(r.GetStartTime()))
	row("Finished", "%s", shortTime(r.GetFinishTime()))
	row("Ports", "%s", portsText(c.GetPorts()))
	for _, n := range r.GetNetworks() {
		row("Network", "%s %s", n.GetNetwork(), strings.Join(slices.DeleteFunc([]string{n.GetIpv4Address(), n.GetIpv6Address(), n.GetMacAddress()}, func(s string) bool { return s == "" }), " "))
	}
	for _, m := range r.GetMounts() {
		text := m.GetType() + " on " + m.GetDestination()
		if m.GetSource() != "" {
			text += " from " + m.GetSource()
		}
		if m.GetReadOnly() {
			text += ", read-only"
		}
		row("Mount", "%s", text)
	}
	l := r.GetLimits()
	row("Memory limit", "%s", limitText(l.GetMemoryBytes(), func(n int64) string { return binarySize(uint64(n)) }))
	row("CPU limit", "%s", limitText(l.GetNanoCpus(), func(n int64) string { return strconv.FormatFloat(float64(n)/1e9, 'g', 4, 64) }))
	row("Process limit", "%s", limitText(l.GetPids(), func(n int64) string { return strconv.FormatInt(n, 10) }))
	row("Environment", "%s", strings.Join(r.GetEnvironmentKeys(), " "))
	row("Labels", "%s", labelsText(c.GetLabels()))
	return t
}

func limitText(n int64, text func(int64) string) string {
	if n <= 0 {
		return "none"
	}
	return text(n)
}
