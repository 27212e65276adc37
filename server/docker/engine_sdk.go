package docker

import (
	"context"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/page"
)

// engineCalls are about the engine as a whole.
type engineCalls struct {
	ping func(ctx context.Context) (apiVersion string, err error)
	// info gives root, the folder on the host where the engine keeps its data,
	// beside the view that callers get.
	info      func(ctx context.Context) (view *brokerv1.InfoResponse, root string, err error)
	version   func(ctx context.Context) (*brokerv1.VersionResponse, error)
	diskUsage func(ctx context.Context) (*usage, error)
	networks  func(ctx context.Context) ([]page.Item[*brokerv1.Network], error)
	volumes   func(ctx context.Context) ([]page.Item[*brokerv1.Volume], error)
	// events calls yield with each event until it fails or the context ends.
	events func(ctx context.Context, since, until string, yield func(*event) error) error
	// removeCache removes one record of the build cache, and reports whether it did.
	removeCache func(ctx context.Context, id string) (bool, error)
}

func newEngineCalls(cli *client.Client) engineCalls {
	return engineCalls{
		ping: func(ctx context.Context) (string, error) {
			p, err := cli.Ping(ctx)
			return p.APIVersion, err
		},
		info: func(ctx context.Context) (*brokerv1.InfoResponse, string, error) {
			in, err := cli.Info(ctx)
			if err != nil {
				return nil, "", err
			}
			view := infoOf(in)
			view.ApiVersion = cli.ClientVersion()
			return view, in.DockerRootDir, nil
		},
		version: func(ctx context.Context) (*brokerv1.VersionResponse, error) {
			v, err := cli.ServerVersion(ctx)
			if err != nil {
				return nil, err
			}
			return versionOf(v), nil
		},
		diskUsage: func(ctx context.Context) (*usage, error) {
			u, err := cli.DiskUsage(ctx, types.DiskUsageOptions{})
			if err != nil {
				return nil, err
			}
			return usageOf(u), nil
		},
		networks: func(ctx context.Context) ([]page.Item[*brokerv1.Network], error) {
			all, err := cli.NetworkList(ctx, network.ListOptions{})
			return networksOf(all), err
		},
		volumes: func(ctx context.Context) ([]page.Item[*brokerv1.Volume], error) {
			all, err := cli.VolumeList(ctx, volume.ListOptions{})
			return volumesOf(all.Volumes), err
		},
		events: func(ctx context.Context, since, until string, yield func(*event) error) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel() // Ends the SDK's goroutine.
			messages, failed := cli.Events(ctx, events.ListOptions{Since: since, Until: until})
			for {
				select {
				case m := <-messages:
					if e := eventOf(m); e != nil {
						if err := yield(e); err != nil {
							return err
						}
					}
				case err := <-failed:
					return err
				}
			}
		},
		removeCache: func(ctx context.Context, id string) (bool, error) {
			r, err := cli.BuildCachePrune(ctx, build.CachePruneOptions{All: true, Filters: filters.NewArgs(filters.Arg("id", id))})
			return r != nil && len(r.CachesDeleted) > 0, err
		},
	}
}
