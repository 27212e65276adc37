package docker

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/image"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/imageref"
)

// localImage is an image on the engine, as far as the broker looks.
type localImage struct {
	id            string
	tags, digests []string // Canonical references.
	odd           bool     // It has references that have no canonical form.
	size, shared  int64    // Bytes; shared with other images.
	created       time.Time
}

// references are all, tags first.
func (i *localImage) references() []string { return slices.Concat(i.tags, i.digests) }

// resources are what policies call the image: its references, or for one without
// any its ID. One that has references, and none that a policy can name, is nobody's.
func (i *localImage) resources() []string {
	all := i.references()
	if len(all) == 0 && !i.odd {
		all = []string{i.id}
	}
	for n := range all {
		all[n] = "images/" + all[n]
	}
	return all
}

func imagesOf(all []image.Summary) []*localImage {
	out := make([]*localImage, 0, len(all))
	for i := range all {
		out = append(out, summarised(&all[i]))
	}
	return out
}

func summarised(s *image.Summary) *localImage {
	out := &localImage{id: s.ID, size: s.Size, shared: max(0, s.SharedSize), created: time.Unix(s.Created, 0)}
	out.tags, out.digests = out.canonical(s.RepoTags), out.canonical(s.RepoDigests)
	return out
}

func inspectedImage(in image.InspectResponse) *localImage {
	created, _ := time.Parse(time.RFC3339Nano, in.Created)
	out := &localImage{id: in.ID, size: in.Size, created: created}
	out.tags, out.digests = out.canonical(in.RepoTags), out.canonical(in.RepoDigests)
	return out
}

// canonical writes the engine's references out in full.
func (i *localImage) canonical(references []string) []string {
	var out []string
	for _, text := range references {
		r, err := imageref.Parse(text)
		switch {
		case err == nil:
			out = append(out, r.String())
		case !strings.HasPrefix(text, "<none>"): // The engine's word for no reference.
			i.odd = true
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// pullMessage is one of the engine's messages about a pull.
type pullMessage struct {
	ID             string `json:"id"`
	Status         string `json:"status"`
	ProgressDetail struct {
		Current int64 `json:"current"`
		Total   int64 `json:"total"`
	} `json:"progressDetail"`
	Error       string `json:"error"`
	ErrorDetail struct {
		Message string `json:"message"`
	} `json:"errorDetail"`
}

var layerStates = map[string]brokerv1.PullLayerState{
	"Pulling fs layer":   brokerv1.PullLayerState_PULL_LAYER_STATE_WAITING,
	"Waiting":            brokerv1.PullLayerState_PULL_LAYER_STATE_WAITING,
	"Downloading":        brokerv1.PullLayerState_PULL_LAYER_STATE_DOWNLOADING,
	"Verifying Checksum": brokerv1.PullLayerState_PULL_LAYER_STATE_DOWNLOADED,
	"Download complete":  brokerv1.PullLayerState_PULL_LAYER_STATE_DOWNLOADED,
	"Extracting":         brokerv1.PullLayerState_PULL_LAYER_STATE_EXTRACTING,
	"Pull complete":      brokerv1.PullLayerState_PULL_LAYER_STATE_DONE,
	"Already exists":     brokerv1.PullLayerState_PULL_LAYER_STATE_EXISTS,
}

// errEngineGone is the end of an answer that the engine did not end.
var errEngineGone = errors.New("the engine's answer broke off")

// readPull reads the engine's messages to their end. A failure comes as one of
// them, since the status was sent before the work.
func readPull(body io.Reader, message func(pullMessage) error) error {
	d := json.NewDecoder(body)
	for {
		var m pullMessage
		err := d.Decode(&m)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("%w: %w", errEngineGone, err)
		case m.Error != "" || m.ErrorDetail.Message != "":
			return errors.New(cmp.Or(m.ErrorDetail.Message, m.Error))
		}
		if err := message(m); err != nil {
			return err
		}
	}
}
