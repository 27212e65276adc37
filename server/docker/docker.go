package docker

import (
	"context"
	"sync"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/redact"
)

// Config is what the services need.
type Config struct {
	// Socket is the engine's.
	Socket string
	// Labels are the keys of labels whose values callers may see.
	Labels []string
	// Redact takes secrets out of logs.
	Redact *redact.Rules
	// Registries are those that root has registered.
	Registries []Registry
	// MinFree is how many bytes a pull must leave free where the engine keeps its
	// data; 0 is no bound.
	MinFree int64
}

// Registry is a registry that root has registered, with credentials if it wants
// them.
type Registry struct{ Host, Username, Password string }

// Services are the services over one engine.
type Services struct {
	Containers *Containers
	Images     *Images
	Engine     *Engine
}

// New makes the services. It does not talk to the engine yet.
func New(cfg Config) (*Services, error) {
	labels := map[string]bool{}
	for _, l := range cfg.Labels {
		labels[l] = true
	}
	e, err := newEngine(cfg.Socket, labels)
	if err != nil {
		return nil, err
	}
	disk := &disk{engine: e, free: freeSpace}
	return &Services{
		Containers: &Containers{engine: e, redact: cfg.Redact},
		Images:     newImages(e, disk, cfg.Registries, cfg.MinFree),
		Engine:     &Engine{engine: e, disk: disk},
	}, nil
}

// Ping asks the engine whether it is there, and for its API version.
func (s *Services) Ping(ctx context.Context) (string, error) { return s.Engine.engine.ping(ctx) }

// AllContainers are all containers, for what shows of them no more than the caller
// may list.
func (s *Services) AllContainers(ctx context.Context) ([]*brokerv1.Container, error) {
	items, err := s.Containers.engine.list(ctx)
	if err != nil {
		return nil, wholeFault(ctx, err)
	}
	all := make([]*brokerv1.Container, 0, len(items))
	for _, i := range items {
		all = append(all, i.Value)
	}
	return all, nil
}

// disk is the file system where the engine keeps its data.
type disk struct {
	engine *engine
	free   func(path string) (free, total int64, err error)
	mu     sync.Mutex
	root   string // Once the engine has said it.
}

// space is how much is free there, and how much there is.
func (d *disk) space(ctx context.Context) (free, total int64, err error) {
	d.mu.Lock()
	root := d.root
	d.mu.Unlock()
	if root == "" {
		if _, root, err = d.engine.info(ctx); err != nil {
			return 0, 0, err
		}
		d.mu.Lock()
		d.root = root
		d.mu.Unlock()
	}
	return d.free(root)
}
