package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gortium/hermes-broker/api/brokerv1"
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
	var states, healths []string
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the containers within your grants, newest first",
		Example: `  brokerctl containers ls
  brokerctl containers ls --name 'media-*' --state running,paused
  brokerctl containers ls --health unhealthy -o name`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&pattern, "name", "", `only names that match; "*" is any run of characters`)
	cmd.Flags().StringSliceVar(&states, "state", nil, "only these states: "+strings.Join(enumWords(brokerv1.ContainerState_name, statePrefix), ", "))
	cmd.Flags().StringSliceVar(&healths, "health", nil, "only these healths: "+strings.Join(enumWords(brokerv1.ContainerHealth_name, healthPrefix), ", "))
	complete(cmd, "state", enumWords(brokerv1.ContainerState_name, statePrefix)...)
	complete(cmd, "health", enumWords(brokerv1.ContainerHealth_name, healthPrefix)...)
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		req := &brokerv1.ListContainersRequest{PageSize: 500, NamePattern: pattern}
		for _, s := range states {
			v, err := enumValue(brokerv1.ContainerState_value, statePrefix, "--state", s)
			if err != nil {
				return err
			}
			req.States = append(req.States, brokerv1.ContainerState(v))
		}
		for _, h := range healths {
			v, err := enumValue(brokerv1.ContainerHealth_value, healthPrefix, "--health", h)
			if err != nil {
				return err
			}
			req.Healths = append(req.Healths, brokerv1.ContainerHealth(v))
		}
		all, err := a.list(ctx, req)
		if err != nil {
			return failed("list containers", err)
		}
		return a.show(view{
			value: &brokerv1.ListContainersResponse{Containers: all},
			names: containerNames(all),
			text:  func(w io.Writer, wide bool) error { return a.containerTable(all, wide).write(w) },
		})
	})
	return cmd
}

// list reads all pages.
func (a *app) list(ctx context.Context, req *brokerv1.ListContainersRequest) ([]*brokerv1.Container, error) {
	c, err := a.client(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.deadline(ctx, 0)
	defer cancel()
	all := []*brokerv1.Container{}
	for {
		page, err := c.Containers().ListContainers(ctx, req)
		if err != nil {
			return nil, err
		}
		all = append(all, page.GetContainers()...)
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			return all, nil
		}
	}
}

func containerNames(all []*brokerv1.Container) []string {
	names := []string{}
	for _, c := range all {
		names = append(names, c.GetName())
	}
	return names
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

// enumWords are the values that a flag takes, in the order of the schema.
func enumWords(names map[int32]string, prefix string) (words []string) {
	for _, n := range slices.Sorted(maps.Keys(names)) {
		if n != 0 {
			words = append(words, strings.ToLower(strings.TrimPrefix(names[n], prefix)))
		}
	}
	return words
}

func enumValue(values map[string]int32, prefix, flag, word string) (int32, error) {
	v, ok := values[prefix+strings.ToUpper(word)]
	if !ok || v == 0 {
		return 0, fail(exitUsage, "--help of the command lists the values", "%s: unknown value %q", flag, word)
	}
	return v, nil
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
		ValidArgsFunction: a.completeContainer,
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
		t.addCells(cell{name + ":", bold}, cell{fmt.Sprintf(format, args...), plain})
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

// complete offers fixed words for a flag.
func complete(cmd *cobra.Command, flag string, words ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // The flag does not exist: a defect, met by every run.
	}
}

// containerName is the grammar of names. A shell evaluates what completion
// offers, so nothing else is offered.
var containerName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// completeContainer offers the names of live containers, unless the broker does
// not answer soon.
func (a *app) completeContainer(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	const patience = 2 * time.Second
	if prefix != "" && !containerName.MatchString(prefix) || len(args) > 0 && strings.HasSuffix(cmd.Use, " NAME") {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), patience)
	defer cancel()
	all, err := a.list(ctx, &brokerv1.ListContainersRequest{PageSize: 500, NamePattern: prefix + "*"})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := slices.DeleteFunc(containerNames(all), func(n string) bool {
		return !containerName.MatchString(n) || slices.Contains(args, n)
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}
