package docker

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
)

const (
	defaultPage = 50
	maxPage     = 500
	pageBytes   = 1 << 20 // A page ends early rather than exceed this.
)

// ListContainers implements brokerv1.ContainerServiceServer. The caller's scope
// comes first and the filters after it, here and not in the engine, whose
// filters can widen what others narrowed.
func (s *Containers) ListContainers(ctx context.Context, req *brokerv1.ListContainersRequest) (*brokerv1.ListContainersResponse, error) {
	size := int(req.GetPageSize())
	switch {
	case size < 0:
		return nil, fault.Invalid("page_size", "give 1 to 500, or 0 for 50")
	case size == 0:
		size = defaultPage
	case size > maxPage:
		size = maxPage
	}
	if strings.ContainsAny(req.GetNamePattern(), "/?[]{}\\") || len(req.GetNamePattern()) > 128 {
		return nil, fault.Invalid("name_pattern", `give at most 128 characters of a name; "*" is the only wildcard`)
	}
	after, err := parsePageToken(req)
	if err != nil {
		return nil, err
	}
	all, err := s.engine.list(ctx)
	if err != nil {
		return nil, engineFault(ctx, err, "")
	}
	resp := &brokerv1.ListContainersResponse{}
	bytes := 0
	for i, c := range all {
		if !after.before(c) || !call.Visible(ctx, "containers/"+c.GetName()) || !wanted(req, c.Container) {
			continue
		}
		if bytes += proto.Size(c.Container); len(resp.Containers) == size || (bytes > pageBytes && len(resp.Containers) > 0) {
			resp.NextPageToken = pageToken(req, lastShown(all[:i], resp.Containers))
			break
		}
		resp.Containers = append(resp.Containers, c.Container)
	}
	return resp, nil
}

// lastShown is the listed form of the last container of a page.
func lastShown(all []*listed, page []*brokerv1.Container) *listed {
	i := slices.IndexFunc(all, func(c *listed) bool { return c.Container == page[len(page)-1] })
	return all[i]
}

func wanted(req *brokerv1.ListContainersRequest, c *brokerv1.Container) bool {
	return (req.GetNamePattern() == "" || matchName(req.GetNamePattern(), c.GetName())) &&
		(len(req.GetStates()) == 0 || slices.Contains(req.GetStates(), c.GetState())) &&
		(len(req.GetHealths()) == 0 || slices.Contains(req.GetHealths(), c.GetHealth()))
}

// matchName matches a glob whose only wildcard is "*", in time proportional to
// the name's length times the number of stars.
func matchName(pattern, name string) bool {
	parts := strings.Split(pattern, "*")
	rest, ok := strings.CutPrefix(name, parts[0])
	if !ok || len(parts) == 1 {
		return ok && rest == ""
	}
	for _, p := range parts[1 : len(parts)-1] {
		_, tail, ok := strings.Cut(rest, p)
		if !ok {
			return false
		}
		rest = tail
	}
	return strings.HasSuffix(rest, parts[len(parts)-1])
}

// position is where a page begins: behind a container that may be gone by now.
type position struct {
	created int64
	id      string
}

// before reports whether the container comes after the position.
func (p *position) before(c *listed) bool {
	return p == nil || c.created < p.created || (c.created == p.created && c.GetId() > p.id)
}

// A token is the position and a fingerprint of the filters, in base64. It says
// nothing that the page before did not show, so it needs no secret.
const tokenLen = 8 + 32 + 8

func filterHash(req *brokerv1.ListContainersRequest) []byte {
	r := proto.Clone(req).(*brokerv1.ListContainersRequest)
	r.PageSize, r.PageToken = 0, ""
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	sum := sha256.Sum256(b)
	return sum[:8]
}

func pageToken(req *brokerv1.ListContainersRequest, last *listed) string {
	b := binary.BigEndian.AppendUint64(nil, uint64(last.created))
	id, _ := hex.DecodeString(last.GetId())
	b = append(append(b, id...), filterHash(req)...)
	return base64.RawURLEncoding.EncodeToString(b)
}

func parsePageToken(req *brokerv1.ListContainersRequest) (*position, error) {
	if req.GetPageToken() == "" {
		return nil, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(req.GetPageToken())
	if err != nil || len(b) != tokenLen || string(b[40:]) != string(filterHash(req)) {
		return nil, fault.Invalid("page_token", "it is not one of this list; repeat the filters of the page that it came with, or begin again without it")
	}
	return &position{created: int64(binary.BigEndian.Uint64(b)), id: hex.EncodeToString(b[8:40])}, nil
}
