package docker

import (
	"context"
	"io"

	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/registry"
	"github.com/docker/docker/client"
)

// imageCalls are about images. References are canonical, or IDs.
type imageCalls struct {
	images func(ctx context.Context) ([]*localImage, error)
	image  func(ctx context.Context, ref string) (*localImage, error)
	// resolve asks the registry what a reference means.
	resolve func(ctx context.Context, ref, auth string) (digest string, err error)
	// pull gives the engine's messages about the fetch of a reference.
	pull        func(ctx context.Context, ref, auth string) (io.ReadCloser, error)
	removeImage func(ctx context.Context, ref string, force bool) (deleted []string, err error)
}

func newImageCalls(cli *client.Client) imageCalls {
	return imageCalls{
		images: func(ctx context.Context) ([]*localImage, error) {
			all, err := cli.ImageList(ctx, image.ListOptions{})
			return imagesOf(all), err
		},
		image: func(ctx context.Context, ref string) (*localImage, error) {
			img, err := cli.ImageInspect(ctx, ref)
			if err != nil {
				return nil, err
			}
			return inspectedImage(img), nil
		},
		resolve: func(ctx context.Context, ref, auth string) (string, error) {
			d, err := cli.DistributionInspect(ctx, ref, auth)
			return string(d.Descriptor.Digest), err
		},
		pull: func(ctx context.Context, ref, auth string) (io.ReadCloser, error) {
			return cli.ImagePull(ctx, ref, image.PullOptions{RegistryAuth: auth})
		},
		removeImage: func(ctx context.Context, ref string, force bool) ([]string, error) {
			// Untagged parents, which nothing can be made of any more, go as well.
			all, err := cli.ImageRemove(ctx, ref, image.RemoveOptions{Force: force, PruneChildren: true})
			var deleted []string
			for _, d := range all {
				if d.Deleted != "" {
					deleted = append(deleted, d.Deleted)
				}
			}
			return deleted, err
		},
	}
}

// encodeAuth is a registry's credentials as the engine takes them.
func encodeAuth(r Registry) (string, error) {
	if r.Username == "" {
		return "", nil
	}
	return registry.EncodeAuthConfig(registry.AuthConfig{Username: r.Username, Password: r.Password, ServerAddress: r.Host})
}
