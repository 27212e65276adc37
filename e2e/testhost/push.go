package testhost

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// The media types of what is pushed: those that every engine takes.
const (
	typeManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeConfig   = "application/vnd.docker.container.image.v1+json"
	typeLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// A PushedImage is an image in a Registry, by the digests of its parts.
type PushedImage struct {
	Digest string   // of the manifest: what the tag means
	ID     string   // of the configuration: the ID that the image gets on an engine
	Layers []string // of the layers as they are fetched
}

// A descriptor points at a part of an image.
type descriptor struct {
	MediaType string    `json:"mediaType"`
	Size      int       `json:"size"`
	Digest    string    `json:"digest"`
	Platform  *platform `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// RandomLayer is n bytes that do not compress, for [Registry.Push].
func RandomLayer(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}

// Push makes an image for this machine's platform and gives it to the registry
// under name, "team/app:1"; an image that had the tag loses it. Each of layers
// is the one file of a layer: /0, /1 and so on, executable. /0 is what a
// container of the image runs, so let that be a program if one is to run.
func (r *Registry) Push(ctx context.Context, name string, layers ...[]byte) (PushedImage, error) {
	var image PushedImage
	repository, _, _ := strings.Cut(name, ":")
	var parts []descriptor
	var diffIDs []string
	for i, content := range layers {
		plain, err := tarOf(map[string][]byte{strconv.Itoa(i): content})
		if err != nil {
			return image, err
		}
		unpacked, err := io.ReadAll(plain)
		if err != nil {
			return image, err
		}
		var packed bytes.Buffer
		zip := gzip.NewWriter(&packed)
		zip.Write(unpacked) // a buffer takes all
		zip.Close()
		layer, err := r.upload(ctx, repository, typeLayer, packed.Bytes())
		if err != nil {
			return image, err
		}
		parts, diffIDs = append(parts, layer), append(diffIDs, digestOf(unpacked))
		image.Layers = append(image.Layers, layer.Digest)
	}
	text, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": time.Now().UTC(),
		"config": map[string]any{"Entrypoint": []string{"/0"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		return image, err
	}
	config, err := r.upload(ctx, repository, typeConfig, text)
	if err != nil {
		return image, err
	}
	image.ID = config.Digest
	image.Digest, err = r.putManifest(ctx, name, typeManifest, map[string]any{
		"schemaVersion": 2, "mediaType": typeManifest, "config": config, "layers": parts,
	})
	return image, err
}

// PushIndex gives the registry a list of images for several platforms, with one
// that it holds for this machine's, and returns the list's digest.
func (r *Registry) PushIndex(ctx context.Context, name, digest string) (string, error) {
	repository, _, _ := strings.Cut(name, ":")
	_, text, err := r.manifest(ctx, repository, digest)
	if err != nil {
		return "", err
	}
	return r.putManifest(ctx, name, typeIndex, map[string]any{
		"schemaVersion": 2, "mediaType": typeIndex, "manifests": []descriptor{
			{typeManifest, len(text), digest, &platform{runtime.GOARCH, "linux"}},
		},
	})
}

// Tag moves a tag, "team/app:1", to what the registry holds at a digest.
func (r *Registry) Tag(ctx context.Context, name, digest string) error {
	repository, tag, _ := strings.Cut(name, ":")
	mediaType, text, err := r.manifest(ctx, repository, digest)
	if err != nil {
		return err
	}
	return r.call(ctx, "PUT", "/v2/"+repository+"/manifests/"+tag, mediaType, bytes.NewReader(text), nil)
}

// Delete takes a manifest, and so its tags, out of the registry.
func (r *Registry) Delete(ctx context.Context, repository, digest string) error {
	return r.call(ctx, "DELETE", "/v2/"+repository+"/manifests/"+digest, "", nil, nil)
}

func (r *Registry) manifest(ctx context.Context, repository, digest string) (mediaType string, text []byte, err error) {
	err = r.call(ctx, "GET", "/v2/"+repository+"/manifests/"+digest, "", nil, func(resp *http.Response) (err error) {
		mediaType = resp.Header.Get("Content-Type")
		text, err = io.ReadAll(resp.Body)
		return err
	})
	return mediaType, text, err
}

func (r *Registry) putManifest(ctx context.Context, name, mediaType string, manifest any) (digest string, err error) {
	repository, tag, ok := strings.Cut(name, ":")
	if !ok {
		return "", fmt.Errorf("push %s: want name:tag", name)
	}
	text, err := json.Marshal(manifest)
	if err != nil {
		return "", err
	}
	return digestOf(text), r.call(ctx, "PUT", "/v2/"+repository+"/manifests/"+tag, mediaType, bytes.NewReader(text), nil)
}

// upload gives the registry a blob.
func (r *Registry) upload(ctx context.Context, repository, mediaType string, blob []byte) (descriptor, error) {
	d := descriptor{MediaType: mediaType, Size: len(blob), Digest: digestOf(blob)}
	var to *url.URL
	err := r.call(ctx, "POST", "/v2/"+repository+"/blobs/uploads/", "", nil, func(resp *http.Response) (err error) {
		to, err = resp.Location()
		return err
	})
	if err != nil {
		return d, err
	}
	query := to.Query()
	query.Set("digest", d.Digest)
	return d, r.call(ctx, "PUT", to.EscapedPath()+"?"+query.Encode(), "application/octet-stream", bytes.NewReader(blob), nil)
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }
