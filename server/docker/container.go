package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/redact"
)

// Containers is ContainerService over the engine.
type Containers struct {
	brokerv1.UnimplementedContainerServiceServer
	engine *engine
	redact *redact.Rules
}

var nameSyntax = regexp.MustCompile(`^` + namePattern + `$`)

// find is the container of this very name. The engine would take an ID, a prefix
// of one, or a link's alias for a name as well.
func (s *Containers) find(ctx context.Context, name string) (*inspected, error) {
	if !nameSyntax.MatchString(name) {
		return nil, fault.Invalid("container", "give a container's name: 2 to 128 of a-z, A-Z, 0-9, _, . and -, the first a letter or digit")
	}
	c, err := s.engine.inspect(ctx, name)
	if err != nil {
		return nil, containerFault(ctx, err, name)
	}
	if c.name != name {
		return nil, notFound(name)
	}
	return c, nil
}

func notFound(name string) error {
	return fault.New(brokerv1.ErrorReason_ERROR_REASON_CONTAINER_NOT_FOUND,
		fmt.Sprintf("no container is named %q; ListContainers shows those that are", name), fault.With("container", name))
}

// InspectContainer implements brokerv1.ContainerServiceServer.
func (s *Containers) InspectContainer(ctx context.Context, req *brokerv1.InspectContainerRequest) (*brokerv1.InspectContainerResponse, error) {
	c, err := s.find(ctx, req.GetContainer())
	if err != nil {
		return nil, err
	}
	// An image may be gone while its container is still there.
	if img, err := s.engine.image(ctx, c.imageID); err == nil {
		c.view.ImageDigests = img.digests
	} else {
		call.Note(ctx, "image digests: "+err.Error())
	}
	if !req.GetIncludeMountSources() {
		for _, m := range c.view.GetMounts() {
			m.Source = ""
		}
	}
	return c.view, nil
}

// Start implements brokerv1.ContainerServiceServer.
func (s *Containers) Start(ctx context.Context, req *brokerv1.StartRequest) (*brokerv1.StartResponse, error) {
	st, err := s.change(ctx, req.GetContainer(), req.GetValidateOnly(), nil, func(ctx context.Context, c *inspected) error {
		return s.engine.start(ctx, c.id)
	})
	return &brokerv1.StartResponse{Container: st}, err
}

// Stop implements brokerv1.ContainerServiceServer.
func (s *Containers) Stop(ctx context.Context, req *brokerv1.StopRequest) (*brokerv1.StopResponse, error) {
	grace, err := graceSeconds(req)
	if err != nil {
		return nil, err
	}
	st, err := s.change(ctx, req.GetContainer(), req.GetValidateOnly(), nil, func(ctx context.Context, c *inspected) error {
		return s.engine.stop(ctx, c.id, grace)
	})
	return &brokerv1.StopResponse{Container: st}, err
}

// Restart implements brokerv1.ContainerServiceServer.
func (s *Containers) Restart(ctx context.Context, req *brokerv1.RestartRequest) (*brokerv1.RestartResponse, error) {
	grace, err := graceSeconds(req)
	if err != nil {
		return nil, err
	}
	st, err := s.change(ctx, req.GetContainer(), req.GetValidateOnly(), nil, func(ctx context.Context, c *inspected) error {
		return s.engine.restart(ctx, c.id, grace)
	})
	return &brokerv1.RestartResponse{Container: st}, err
}

// Remove implements brokerv1.ContainerServiceServer.
func (s *Containers) Remove(ctx context.Context, req *brokerv1.RemoveRequest) (*brokerv1.RemoveResponse, error) {
	var last *inspected
	stopped := func(c *inspected) error {
		last = c
		if want := req.GetExpectedId(); want != "" && want != c.id {
			return wrongState(c, "is not the one with the expected ID any more; inspect it and decide again")
		}
		if c.running && !req.GetForce() {
			return wrongState(c, "is running; stop it first, or use force, which needs containers.remove_force")
		}
		return nil
	}
	st, err := s.change(ctx, req.GetContainer(), req.GetValidateOnly(), stopped, func(ctx context.Context, c *inspected) error {
		return s.engine.remove(ctx, c.id, req.GetForce())
	})
	if st != nil {
		st.State = last.state
	}
	return &brokerv1.RemoveResponse{Container: st}, err
}

// change is the shape of every change: find the object, check it, have the
// intent recorded, act on the object's ID, and look what became of it.
func (s *Containers) change(ctx context.Context, name string, validateOnly bool, check func(*inspected) error, act func(context.Context, *inspected) error) (*brokerv1.ContainerStatus, error) {
	c, err := s.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if check != nil {
		if err := check(c); err != nil {
			return nil, err
		}
	}
	status := &brokerv1.ContainerStatus{Name: c.name, Id: c.id, State: c.state}
	if validateOnly {
		return status, nil
	}
	if ctx, err = call.Intend(ctx, c.id); err != nil {
		return nil, err
	}
	if err := act(ctx, c); err != nil {
		return nil, containerFault(ctx, err, name)
	}
	status.State = brokerv1.ContainerState_CONTAINER_STATE_UNSPECIFIED
	if after, err := s.engine.inspect(ctx, c.name); err == nil && after.id == c.id {
		status.State = after.state
	}
	return status, nil
}

// graceSeconds is the grace period in the engine's form; nil is the default.
func graceSeconds(req interface {
	GetGrace() *durationpb.Duration
}) (*int, error) {
	if req.GetGrace() == nil {
		return nil, nil
	}
	d := req.GetGrace().AsDuration()
	if d < 0 || d > 300*time.Second || d%time.Second != 0 || req.GetGrace().CheckValid() != nil {
		return nil, fault.Invalid("grace", "give whole seconds from 0 to 300")
	}
	n := int(d / time.Second)
	return &n, nil
}

const (
	defaultWait = 30 * time.Second
	maxWait     = time.Hour
)

// Wait implements brokerv1.ContainerServiceServer.
func (s *Containers) Wait(ctx context.Context, req *brokerv1.WaitRequest) (*brokerv1.WaitResponse, error) {
	timeout := defaultWait
	if req.GetTimeout() != nil {
		timeout = req.GetTimeout().AsDuration()
	}
	if timeout <= 0 || timeout > maxWait {
		return nil, fault.Invalid("timeout", "give more than 0 s and at most 3600 s")
	}
	removed := false
	switch req.GetCondition() {
	case brokerv1.WaitCondition_WAIT_CONDITION_UNSPECIFIED, brokerv1.WaitCondition_WAIT_CONDITION_STOPPED:
	case brokerv1.WaitCondition_WAIT_CONDITION_REMOVED:
		removed = true
	default:
		return nil, fault.Invalid("condition", "give STOPPED or REMOVED")
	}
	c, err := s.find(ctx, req.GetContainer())
	if err != nil {
		return nil, err
	}
	waiting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	code, err := s.engine.wait(waiting, c.id, removed)
	switch {
	case err == nil:
		return &brokerv1.WaitResponse{Met: true, ExitCode: code}, nil
	case ctx.Err() == nil && errors.Is(waiting.Err(), context.DeadlineExceeded):
		return &brokerv1.WaitResponse{}, nil
	}
	return nil, containerFault(ctx, err, req.GetContainer())
}

// ContainerStats implements brokerv1.ContainerServiceServer.
func (s *Containers) ContainerStats(req *brokerv1.ContainerStatsRequest, stream brokerv1.ContainerService_ContainerStatsServer) error {
	ctx := stream.Context()
	c, err := s.find(ctx, req.GetContainer())
	if err != nil {
		return err
	}
	if !c.running {
		return wrongState(c, "is not running, so it uses nothing; start it first")
	}
	all, err := s.engine.stats(ctx, c.id, !req.GetOneShot())
	if err != nil {
		return containerFault(ctx, err, req.GetContainer())
	}
	defer all.close()
	for {
		sample, err := all.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return containerFault(ctx, err, req.GetContainer())
		}
		if err := stream.Send(sample); err != nil {
			return err
		}
	}
}

func wrongState(c *inspected, message string) error {
	return fault.New(brokerv1.ErrorReason_ERROR_REASON_CONTAINER_STATE, "container "+c.name+" "+message, fault.With("state", c.view.GetContainer().GetStateText()))
}
