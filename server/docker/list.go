package docker

import (
	"context"
	"slices"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/page"
)

// ListContainers implements brokerv1.ContainerServiceServer. The caller's scope
// comes first and the filters after it, here and not in the engine, whose
// filters can widen what others narrowed.
func (s *Containers) ListContainers(ctx context.Context, req *brokerv1.ListContainersRequest) (*brokerv1.ListContainersResponse, error) {
	p, err := page.New(req)
	if err == nil {
		err = page.CheckGlob("name_pattern", req.GetNamePattern(), page.NotInNames, 128)
	}
	if err != nil {
		return nil, err
	}
	all, err := s.engine.list(ctx)
	if err != nil {
		return nil, containerFault(ctx, err, "")
	}
	resp := &brokerv1.ListContainersResponse{}
	resp.Containers, resp.NextPageToken = page.Cut(p, all, func(c *brokerv1.Container) bool {
		return call.Visible(ctx, "containers/"+c.GetName()) && wanted(req, c)
	})
	return resp, nil
}

func wanted(req *brokerv1.ListContainersRequest, c *brokerv1.Container) bool {
	return (req.GetNamePattern() == "" || page.Match(req.GetNamePattern(), c.GetName())) &&
		(len(req.GetStates()) == 0 || slices.Contains(req.GetStates(), c.GetState())) &&
		(len(req.GetHealths()) == 0 || slices.Contains(req.GetHealths(), c.GetHealth()))
}
