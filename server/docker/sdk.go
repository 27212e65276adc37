// Package docker is the broker's hand on the container engine.
//
// What it can ask of the engine is the struct engine, a table of functions made
// in newEngine and the two constructors it calls (image_sdk.go, engine_sdk.go);
// the SDK's client, which could do everything, never leaves them, so the linker
// drops what the table does not name. What it then sends goes through a transport
// that knows the same requests once more, by method, path and query
// (transport.go), and lets a change through only with a recorded intent. No type
// of the SDK leaves the files whose names end in sdk.go and convert.go.
package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/page"
)

// engine is everything the broker can ask of the container engine.
type engine struct {
	containerCalls
	imageCalls
	engineCalls
}

// containerCalls are about containers.
type containerCalls struct {
	list    func(ctx context.Context) ([]page.Item[*brokerv1.Container], error)
	inspect func(ctx context.Context, name string) (*inspected, error)
	logs    func(ctx context.Context, id string, q logQuery) (io.ReadCloser, error)
	stats   func(ctx context.Context, id string, stream bool) (samples, error)
	wait    func(ctx context.Context, id string, removed bool) (exitCode int64, err error)

	start   func(ctx context.Context, id string) error
	stop    func(ctx context.Context, id string, graceSeconds *int) error
	restart func(ctx context.Context, id string, graceSeconds *int) error
	remove  func(ctx context.Context, id string, force bool) error
}

// inspected is one container, as far as the broker looks.
type inspected struct {
	id, name, imageID string
	state             brokerv1.ContainerState
	running, terminal bool
	view              *brokerv1.InspectContainerResponse
}

// logQuery is a part of a log.
type logQuery struct {
	stdout, stderr, follow, timestamps bool
	since, until                       time.Time
	tail                               int32
}

// samples gives one sample after the other, io.EOF at the end.
type samples struct {
	next  func() (*brokerv1.ContainerStatsResponse, error)
	close func() error
}

// newEngine fills the table. labels are the keys whose values may be shown.
func newEngine(socket string, labels map[string]bool) (*engine, error) {
	cli, err := client.NewClientWithOpts(
		// What would dial by itself, past the transport, finds nothing there.
		client.WithHost("unix:///dev/null/nope"),
		client.WithHTTPClient(&http.Client{Transport: newTransport(socket), CheckRedirect: client.CheckRedirect}),
		client.WithAPIVersionNegotiation(),
	)
	if err != nil {
		return nil, fmt.Errorf("engine client: %w", err)
	}
	return &engine{newContainerCalls(cli, converter{labels: labels}), newImageCalls(cli), newEngineCalls(cli)}, nil
}

func newContainerCalls(cli *client.Client, conv converter) containerCalls {
	return containerCalls{
		list: func(ctx context.Context) ([]page.Item[*brokerv1.Container], error) {
			all, err := cli.ContainerList(ctx, container.ListOptions{All: true})
			return conv.list(all), err
		},
		inspect: func(ctx context.Context, name string) (*inspected, error) {
			c, err := cli.ContainerInspect(ctx, name)
			if err != nil {
				return nil, err
			}
			return conv.inspect(c)
		},
		logs: func(ctx context.Context, id string, q logQuery) (io.ReadCloser, error) {
			return cli.ContainerLogs(ctx, id, logsOptions(q))
		},
		stats: func(ctx context.Context, id string, stream bool) (samples, error) {
			r, err := cli.ContainerStats(ctx, id, stream)
			if err != nil {
				return samples{}, err
			}
			return conv.stats(r.Body), nil
		},
		wait: func(ctx context.Context, id string, removed bool) (int64, error) {
			condition := container.WaitConditionNotRunning
			if removed {
				condition = container.WaitConditionRemoved
			}
			// The context ends the request, so one of the two always comes.
			result, failed := cli.ContainerWait(ctx, id, condition)
			select {
			case r := <-result:
				if r.Error != nil {
					return 0, errors.New(r.Error.Message)
				}
				return r.StatusCode, nil
			case err := <-failed:
				return 0, err
			}
		},
		start: func(ctx context.Context, id string) error {
			return cli.ContainerStart(ctx, id, container.StartOptions{})
		},
		stop: func(ctx context.Context, id string, grace *int) error {
			return cli.ContainerStop(ctx, id, container.StopOptions{Timeout: grace})
		},
		restart: func(ctx context.Context, id string, grace *int) error {
			return cli.ContainerRestart(ctx, id, container.StopOptions{Timeout: grace})
		},
		remove: func(ctx context.Context, id string, force bool) error {
			return cli.ContainerRemove(ctx, id, container.RemoveOptions{Force: force})
		},
	}
}
