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
	// The status was sent before the work; a failure is one of the messages.
	for messages := json.NewDecoder(resp.Body); ; {
		var message struct{ Error string }
		switch err := messages.Decode(&message); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("image %s: %w", tag, err)
		case message.Error != "":
			return fmt.Errorf("image %s: %s", tag, message.Error)
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
