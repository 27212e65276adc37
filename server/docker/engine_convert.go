package docker

import (
	"math"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/api/types/volume"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/imageref"
	"github.com/gortium/hermes-broker/server/page"
)

// infoOf leaves out paths, proxies, registries, labels, the swarm's tokens and the
// counts of what the caller may not list.
func infoOf(in system.Info) *brokerv1.InfoResponse {
	out := &brokerv1.InfoResponse{
		ServerVersion:   in.ServerVersion,
		OperatingSystem: in.OperatingSystem,
		OsType:          in.OSType,
		Architecture:    in.Architecture,
		KernelVersion:   in.KernelVersion,
		Cpus:            int32(in.NCPU),
		MemoryBytes:     in.MemTotal,
		StorageDriver:   in.Driver,
		CgroupDriver:    in.CgroupDriver,
		CgroupVersion:   in.CgroupVersion,
		DefaultRuntime:  in.DefaultRuntime,
		LiveRestore:     in.LiveRestoreEnabled,
		Swarm:           in.Swarm.LocalNodeState != "" && in.Swarm.LocalNodeState != "inactive",
		SystemTime:      timeOf(in.SystemTime),
	}
	for _, o := range in.SecurityOptions {
		// "name=seccomp,profile=/etc/docker/seccomp.json": a path may follow.
		for part := range strings.SplitSeq(o, ",") {
			if name, ok := strings.CutPrefix(part, "name="); ok {
				out.SecurityOptions = append(out.SecurityOptions, name)
			}
		}
	}
	slices.Sort(out.SecurityOptions)
	return out
}

func versionOf(v types.Version) *brokerv1.VersionResponse {
	out := &brokerv1.VersionResponse{
		Version: v.Version, ApiVersion: v.APIVersion, MinApiVersion: v.MinAPIVersion, GitCommit: v.GitCommit, GoVersion: v.GoVersion,
	}
	for _, c := range v.Components {
		if c.Name != "Engine" {
			out.Components = append(out.Components, &brokerv1.EngineComponent{Name: c.Name, Version: c.Version})
		}
	}
	return out
}

// usage is what takes how much, item by item.
type usage struct {
	layers     int64
	images     []*localImage
	containers []usedContainer
	volumes    []usedVolume
	cache      []cacheRecord
}

type usedContainer struct {
	id, name, image string
	state           brokerv1.ContainerState
	size            int64
	created         time.Time
}

type usedVolume struct {
	name  string
	size  int64
	inUse bool
}

type cacheRecord struct {
	id      string
	size    int64
	inUse   bool
	created time.Time
}

func usageOf(u types.DiskUsage) *usage {
	out := &usage{layers: u.LayersSize}
	for _, i := range u.Images {
		out.images = append(out.images, summarised(i))
	}
	for _, c := range u.Containers {
		out.containers = append(out.containers, usedContainer{
			id: c.ID, name: ownName(c.Names), image: c.ImageID, state: stateOf(c.State), size: c.SizeRw, created: time.Unix(c.Created, 0),
		})
	}
	for _, v := range u.Volumes {
		used := usedVolume{name: v.Name}
		if v.UsageData != nil { // -1 is the engine's word for unknown.
			used.size, used.inUse = max(0, v.UsageData.Size), v.UsageData.RefCount != 0
		}
		out.volumes = append(out.volumes, used)
	}
	for _, r := range u.BuildCache {
		out.cache = append(out.cache, cacheRecord{id: r.ID, size: r.Size, inUse: r.InUse, created: r.CreatedAt})
	}
	return out
}

func networksOf(all []network.Summary) []page.Item[*brokerv1.Network] {
	var out []page.Item[*brokerv1.Network]
	for i := range all {
		n := &all[i]
		view := &brokerv1.Network{
			Name: n.Name, Id: n.ID, Driver: n.Driver, Scope: n.Scope, Internal: n.Internal, Ipv6: n.EnableIPv6, CreateTime: timestamppb.New(n.Created),
		}
		for _, c := range n.IPAM.Config {
			view.Subnets = append(view.Subnets, c.Subnet)
		}
		slices.Sort(view.Subnets)
		// Names of networks need not be unique.
		out = append(out, page.Item[*brokerv1.Network]{Key: n.Name + "\x00" + n.ID, Value: view})
	}
	return page.Sort(out)
}

func volumesOf(all []*volume.Volume) []page.Item[*brokerv1.Volume] {
	var out []page.Item[*brokerv1.Volume]
	for _, v := range all {
		out = append(out, page.Item[*brokerv1.Volume]{Key: v.Name, Value: &brokerv1.Volume{Name: v.Name, Driver: v.Driver, Scope: v.Scope, CreateTime: timeOf(v.CreatedAt)}})
	}
	return page.Sort(out)
}

// event is an event with what decides who sees it.
type event struct {
	view *brokerv1.EventsResponse
	// permission and resource are what a caller needs to see it.
	permission, resource string
}

var eventActions = map[string]brokerv1.EventAction{
	"create": brokerv1.EventAction_EVENT_ACTION_CREATE, "start": brokerv1.EventAction_EVENT_ACTION_START,
	"restart": brokerv1.EventAction_EVENT_ACTION_RESTART, "stop": brokerv1.EventAction_EVENT_ACTION_STOP,
	"kill": brokerv1.EventAction_EVENT_ACTION_KILL, "die": brokerv1.EventAction_EVENT_ACTION_DIE,
	"oom": brokerv1.EventAction_EVENT_ACTION_OOM, "pause": brokerv1.EventAction_EVENT_ACTION_PAUSE,
	"unpause": brokerv1.EventAction_EVENT_ACTION_UNPAUSE, "rename": brokerv1.EventAction_EVENT_ACTION_RENAME,
	"update": brokerv1.EventAction_EVENT_ACTION_UPDATE, "destroy": brokerv1.EventAction_EVENT_ACTION_DESTROY,
	"remove":      brokerv1.EventAction_EVENT_ACTION_DESTROY,
	"exec_create": brokerv1.EventAction_EVENT_ACTION_EXEC, "exec_start": brokerv1.EventAction_EVENT_ACTION_EXEC,
	"pull": brokerv1.EventAction_EVENT_ACTION_PULL, "tag": brokerv1.EventAction_EVENT_ACTION_TAG,
	"untag": brokerv1.EventAction_EVENT_ACTION_UNTAG, "delete": brokerv1.EventAction_EVENT_ACTION_DELETE,
	"connect": brokerv1.EventAction_EVENT_ACTION_CONNECT, "disconnect": brokerv1.EventAction_EVENT_ACTION_DISCONNECT,
	"mount": brokerv1.EventAction_EVENT_ACTION_MOUNT, "unmount": brokerv1.EventAction_EVENT_ACTION_UNMOUNT,
	"prune": brokerv1.EventAction_EVENT_ACTION_PRUNE, "reload": brokerv1.EventAction_EVENT_ACTION_RELOAD,
}

// actionOf reads the engine's word. What follows it, a command or the output of a
// health check, is read no further than for two fixed words.
func actionOf(text string) (brokerv1.EventAction, string) {
	word, rest, _ := strings.Cut(text, ":")
	if word = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r == '_' || r == '-' {
			return r
		}
		return -1
	}, word); len(word) > 64 {
		word = word[:64]
	}
	switch {
	case word == "health_status" && rest == " healthy":
		return brokerv1.EventAction_EVENT_ACTION_HEALTHY, word
	case word == "health_status" && rest == " unhealthy":
		return brokerv1.EventAction_EVENT_ACTION_UNHEALTHY, word
	}
	return eventActions[word], word
}

// eventOf reads an event, or nil for a kind that nobody is shown.
func eventOf(m events.Message) *event {
	view := &brokerv1.EventsResponse{Id: m.Actor.ID, Name: m.Actor.Attributes["name"]}
	if m.TimeNano > 0 && m.TimeNano < math.MaxInt64 {
		view.EventTime = timestamppb.New(time.Unix(0, m.TimeNano))
	}
	view.Action, view.ActionText = actionOf(string(m.Action))
	e := &event{view: view}
	switch m.Type {
	case events.ContainerEventType:
		view.Kind, e.permission, e.resource = brokerv1.EventKind_EVENT_KIND_CONTAINER, "containers.list", "containers/"+view.Name
	case events.ImageEventType:
		// A pull has the reference for an ID, the rest an ID and maybe a reference.
		view.Kind, e.permission = brokerv1.EventKind_EVENT_KIND_IMAGE, "images.list"
		view.Name = canonicalName(m.Actor.ID, view.Name)
		e.resource = "images/" + view.Name
		if view.Name == "" {
			e.resource = "images/" + view.Id
		}
	case events.NetworkEventType:
		view.Kind, e.permission, e.resource = brokerv1.EventKind_EVENT_KIND_NETWORK, "networks.list", "networks/"+view.Name
	case events.VolumeEventType:
		view.Kind, e.permission = brokerv1.EventKind_EVENT_KIND_VOLUME, "volumes.list"
		view.Name = m.Actor.ID
		e.resource = "volumes/" + view.Name
	case events.DaemonEventType, events.BuilderEventType:
		view.Kind, e.permission, e.resource = brokerv1.EventKind_EVENT_KIND_ENGINE, "engine.events", "engine"
		view.Name = "" // The host's name is the operator's.
	default:
		return nil
	}
	return e
}

// canonicalName is an image's reference among what an event calls it, or "".
func canonicalName(candidates ...string) string {
	for _, c := range candidates {
		if r, err := imageref.Parse(c); err == nil {
			return r.String()
		}
	}
	return ""
}
