package testhost

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// GuestImage holds the helper program of ./guest as its entry point; a
// container's Cmd is the subcommand and its arguments.
const GuestImage = "hermes-test/guest:latest"

const guestPackage = "github.com/gortium/hermes-broker/e2e/testhost/guest"

// BuildImage makes an image of the given files and nothing else. The files'
// paths are relative to the root; all are executable. changes are Dockerfile
// instructions that configure it, such as `ENTRYPOINT ["/guest"]` or
// `LABEL a=b`. tag is name:tag; an image that had it loses it.
func (h *Host) BuildImage(ctx context.Context, tag string, files map[string][]byte, changes ...string) error {
	layer, err := tarOf(files)
	if err != nil {
		return fmt.Errorf("image %s: %w", tag, err)
	}
	name, version, ok := strings.Cut(tag, ":")
	if !ok {
		return fmt.Errorf("image %s: want name:tag", tag)
	}
	query := url.Values{"fromSrc": {"-"}, "repo": {name}, "tag": {version}, "changes": changes}
	resp, err := h.api.do(ctx, "POST", "/images/create?"+query.Encode(), "application/x-tar", layer)
	if err != nil {
		return fmt.Errorf("image %s: %w", tag, err)
	}
	defer resp.Body.Close()
	if err := failure(resp.Body); err != nil {
		return fmt.Errorf("image %s: %w", tag, err)
	}
	return nil
}

// failure reads the messages of a long request to their end. The status was sent
// before the work; a failure is one of the messages.
func failure(body io.Reader) error {
	for messages := json.NewDecoder(body); ; {
		var message struct{ Error string }
		switch err := messages.Decode(&message); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case message.Error != "":
			return errors.New(message.Error)
		}
	}
}

func tarOf(files map[string][]byte) (io.Reader, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		header := &tar.Header{Name: name, Mode: 0o755, Size: int64(len(files[name]))}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(files[name]); err != nil {
			return nil, err
		}
	}
	return &buf, w.Close()
}

// Build has the engine's BuildKit build an image of the given files by the
// Dockerfile among them. Unlike [Host.BuildImage] that leaves build cache. The
// build has no session, so the Dockerfile can name no base but scratch.
func (h *Host) Build(ctx context.Context, tag string, files map[string][]byte) error {
	folder, err := tarOf(files)
	if err != nil {
		return fmt.Errorf("build %s: %w", tag, err)
	}
	query := url.Values{"version": {"2"}, "t": {tag}}
	resp, err := h.api.do(ctx, "POST", "/build?"+query.Encode(), "application/x-tar", folder)
	if err != nil {
		return fmt.Errorf("build %s: %w", tag, err)
	}
	defer resp.Body.Close()
	if err := failure(resp.Body); err != nil {
		return fmt.Errorf("build %s: %w", tag, err)
	}
	return nil
}

// Pull has the engine pull an image by itself, past every broker.
func (h *Host) Pull(ctx context.Context, reference string) error {
	resp, err := h.api.do(ctx, "POST", "/images/create?"+url.Values{"fromImage": {reference}}.Encode(), "", nil)
	if err != nil {
		return fmt.Errorf("pull %s: %w", reference, err)
	}
	defer resp.Body.Close()
	if err := failure(resp.Body); err != nil {
		return fmt.Errorf("pull %s: %w", reference, err)
	}
	return nil
}

// An Image is what the engine says of one.
type Image struct {
	ID          string `json:"Id"`
	RepoTags    []string
	RepoDigests []string
	Size        int64
}

// Images lists the images on the engine that have a name beginning with prefix;
// an empty prefix lists all, those without a name too.
func (h *Host) Images(ctx context.Context, prefix string) ([]Image, error) {
	var all []Image
	if err := h.API(ctx, "GET", "/images/json", nil, &all); err != nil {
		return nil, err
	}
	begins := func(name string) bool { return strings.HasPrefix(name, prefix) }
	return slices.DeleteFunc(all, func(i Image) bool {
		return prefix != "" && !slices.ContainsFunc(i.RepoTags, begins) && !slices.ContainsFunc(i.RepoDigests, begins)
	}), nil
}

// RemoveImage takes a reference, or by ID all of them, off an image. One that
// does not exist is no error.
func (h *Host) RemoveImage(ctx context.Context, name string) error {
	err := h.API(ctx, "DELETE", "/images/"+name+"?force=1", nil, nil)
	var refused *EngineError
	if errors.As(err, &refused) && refused.Status == http.StatusNotFound {
		return nil
	}
	return err
}

// PruneBuildCache removes all build cache.
func (h *Host) PruneBuildCache(ctx context.Context) error {
	return h.API(ctx, "POST", "/build/prune?all=1", nil, nil)
}

// Guest is the program of [GuestImage], for an image of a test's own.
func (h *Host) Guest() ([]byte, error) { return os.ReadFile(filepath.Join(h.Dir, "guest")) }

// buildGuest compiles the helper program. The working folder has to be in this
// module, as it is for a test.
func buildGuest(ctx context.Context, dir string) ([]byte, error) {
	out := filepath.Join(dir, "guest")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, guestPackage)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if said, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the guest program: %w\n%s", err, said)
	}
	return os.ReadFile(out)
}
