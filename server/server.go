// Package server makes brokerd out of its parts: configuration, identity, the
// chain, the services, and what watches over them.
package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/access"
	"github.com/gortium/hermes-broker/server/audit"
	"github.com/gortium/hermes-broker/server/chain"
	"github.com/gortium/hermes-broker/server/docker"
	"github.com/gortium/hermes-broker/server/firewall"
	"github.com/gortium/hermes-broker/server/freeze"
	"github.com/gortium/hermes-broker/server/hostlink"
	"github.com/gortium/hermes-broker/server/idempotency"
	"github.com/gortium/hermes-broker/server/identity"
	"github.com/gortium/hermes-broker/server/jail"
	"github.com/gortium/hermes-broker/server/journal"
	"github.com/gortium/hermes-broker/server/limits"
	"github.com/gortium/hermes-broker/server/operation"
	"github.com/gortium/hermes-broker/server/policy"
	"github.com/gortium/hermes-broker/server/redact"
	"github.com/gortium/hermes-broker/server/rootfile"
	"github.com/gortium/hermes-broker/server/socket"
	"github.com/gortium/hermes-broker/server/ssh"
)

// Server is a brokerd.
type Server struct {
	cfg     *Config
	now     func() time.Time
	methods *access.Registry
	policy  atomic.Pointer[policy.Policy]
	audit   *audit.Log
	store   *idempotency.Store
	chain   *chain.Chain
	creds   *identity.Credentials
	source  identity.Source
	files   *identity.Files // nil with a Workload API.
	ops     *operation.Store
	engine  *docker.Services
	host    *hostlink.Link
	health  *health.Server
	grpc    *grpc.Server

	reloading   sync.Mutex
	policyStamp rootfile.Stamp
	refused     *limits.Sampler
}

// What the health service calls whatever needs the engine, and brokerhost.
const (
	engineService = "hermes.broker.v1.ContainerService"
	hostService   = "hermes.host.v1.HostService"
)

// services are all services there are.
type services struct {
	broker     brokerv1.BrokerServiceServer
	containers brokerv1.ContainerServiceServer
	images     brokerv1.ImageServiceServer
	engine     brokerv1.EngineServiceServer
	operations brokerv1.OperationServiceServer
	firewall   brokerv1.FirewallServiceServer
	jails      brokerv1.JailServiceServer
	journal    brokerv1.JournalServiceServer
	ssh        brokerv1.SshServiceServer
	sockets    brokerv1.SocketServiceServer
	health     healthv1.HealthServer
}

// unimplemented are services that answer nothing.
var unimplemented = services{
	brokerv1.UnimplementedBrokerServiceServer{}, brokerv1.UnimplementedContainerServiceServer{}, brokerv1.UnimplementedImageServiceServer{},
	brokerv1.UnimplementedEngineServiceServer{}, brokerv1.UnimplementedOperationServiceServer{},
	brokerv1.UnimplementedFirewallServiceServer{}, brokerv1.UnimplementedJailServiceServer{}, brokerv1.UnimplementedJournalServiceServer{},
	brokerv1.UnimplementedSshServiceServer{}, brokerv1.UnimplementedSocketServiceServer{}, healthv1.UnimplementedHealthServer{},
}

func (s services) register(r grpc.ServiceRegistrar) {
	brokerv1.RegisterBrokerServiceServer(r, s.broker)
	brokerv1.RegisterContainerServiceServer(r, s.containers)
	brokerv1.RegisterImageServiceServer(r, s.images)
	brokerv1.RegisterEngineServiceServer(r, s.engine)
	brokerv1.RegisterOperationServiceServer(r, s.operations)
	brokerv1.RegisterFirewallServiceServer(r, s.firewall)
	brokerv1.RegisterJailServiceServer(r, s.jails)
	brokerv1.RegisterJournalServiceServer(r, s.journal)
	brokerv1.RegisterSshServiceServer(r, s.ssh)
	brokerv1.RegisterSocketServiceServer(r, s.sockets)
	healthv1.RegisterHealthServer(r, s.health)
}

// Methods are the declarations of all methods that brokerd serves.
func Methods() (*access.Registry, error) {
	s := grpc.NewServer()
	unimplemented.register(s)
	return access.Load(s.GetServiceInfo())
}

// New makes a brokerd that does not listen yet. Whatever it needs and cannot
// have is an error, save the container engine, which may come later.
func New(ctx context.Context, cfg *Config) (_ *Server, err error) {
	s := &Server{cfg: cfg, now: time.Now}
	s.refused = limits.NewSampler(s.now)
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.methods, err = Methods(); err != nil {
		return nil, err
	}
	p, err := s.readPolicy()
	if err != nil {
		return nil, err
	}
	s.policy.Store(p)
	if err := s.openState(ctx); err != nil {
		return nil, err
	}
	rules, err := redact.New(values(cfg.Logs.Redact))
	if err != nil {
		return nil, err
	}
	if err := s.openEngine(rules); err != nil {
		return nil, err
	}
	if s.host, err = hostlink.New(cfg.Host.Socket.Value); err != nil {
		return nil, fmt.Errorf("brokerhost: %w", err)
	}
	frozen, err := freeze.Open(filepath.Join(cfg.State.Value, "freeze.json"))
	if err != nil {
		slog.Error("the freeze file is broken, so everybody is frozen", "error", err)
		s.audit.Append(audit.Record{Event: audit.EventFreeze, Detail: err.Error()})
	}
	l := &cfg.Limits
	s.chain = chain.New(chain.Config{
		Methods: s.methods,
		Policy:  s.policy.Load,
		Audit:   s.audit,
		Limits: limits.New(limits.Config{
			Rate: l.Rate.Value, Burst: l.Burst.Value, Calls: l.Calls.Value, Streams: l.Streams.Value,
		}, s.now),
		Freeze:       frozen,
		Requests:     s.store,
		Operations:   s.ops,
		OperationAge: l.OperationAge.Value,
		Budget:       l.Changes.Value,
		CallTimeout:  l.CallTimeout.Value,
		StreamAge:    l.StreamAge.Value,
		SendTimeout:  l.SendTimeout.Value,
		AuditTimeout: cfg.Audit.Timeout.Value,
		Now:          s.now,
	})
	if err := s.openIdentity(ctx); err != nil {
		return nil, err
	}
	s.health = health.NewServer()
	s.health.SetServingStatus(engineService, healthv1.HealthCheckResponse_NOT_SERVING)
	s.health.SetServingStatus(hostService, healthv1.HealthCheckResponse_NOT_SERVING)
	s.grpc = grpc.NewServer(append(s.chain.Options(), s.options()...)...)
	filter := firewall.New(s.host.ReadAll)
	services{
		broker: &broker{
			policy: s.policy.Load, freeze: frozen, methods: s.methods, engine: s.engine.Ping, recheck: s.recheck, now: s.now,
		},
		containers: s.engine.Containers, images: s.engine.Images, engine: s.engine.Engine,
		operations: &operations{store: s.ops, methods: s.methods},
		firewall:   filter, jails: jail.New(s.host.ReadAll), journal: journal.New(s.host.Read, rules), ssh: ssh.New(s.host.ReadAll),
		sockets: socket.New(socket.Config{
			List: s.host.ListSockets, Containers: s.engine.AllContainers,
			Reach: func(ctx context.Context) (socket.Reach, error) {
				view, err := filter.Reach(ctx)
				if err != nil {
					return nil, err
				}
				return view, nil
			},
		}),
		health: s.health,
	}.register(s.chain.Register(s.grpc))
	// What is served is what was declared, and nothing besides.
	if _, err := access.Load(s.grpc.GetServiceInfo()); err != nil {
		return nil, err
	}
	return s, nil
}

// openState opens what must be on disk before anything is served.
func (s *Server) openState(ctx context.Context) (err error) {
	dir := s.cfg.State.Value
	if err := rootfile.MkdirPrivate(dir); err != nil {
		return err
	}
	s.audit, err = audit.Open(audit.Options{
		Dir: filepath.Join(dir, "audit"), SegmentBytes: int64(s.cfg.Audit.Segment.Value), KeepSegments: s.cfg.Audit.Keep.Value, Now: s.now,
	})
	if err != nil {
		return fmt.Errorf("audit trail: %w", err)
	}
	for _, o := range s.audit.Orphans() {
		slog.Warn("a change was under way when brokerd stopped; its outcome is unknown", "call", o.Call, "method", o.Method, "resource", o.Resource)
	}
	l := &s.cfg.Limits
	if s.store, err = idempotency.Open(filepath.Join(dir, "requests.jsonl"), l.RequestIDRetention.Value, l.RequestIDs.Value, s.now); err != nil {
		return err
	}
	s.ops, err = operation.Open(operation.Options{
		Dir: filepath.Join(dir, "operations"), Retention: s.cfg.Operations.Retention.Value, Kept: s.cfg.Operations.Kept.Value,
		PerCaller: l.Operations.Value, PerKind: l.OperationsPerKind.Value, Now: s.now,
	})
	return err
}

func (s *Server) openEngine(rules *redact.Rules) error {
	registries, err := s.cfg.registries()
	if err != nil {
		return fmt.Errorf("registries: %w", err)
	}
	s.engine, err = docker.New(docker.Config{
		Socket: s.cfg.Engine.Socket.Value, Labels: values(s.cfg.Containers.Labels), Redact: rules,
		Registries: registries, MinFree: int64(s.cfg.Images.MinFree.Value),
	})
	return err
}

func (s *Server) openIdentity(ctx context.Context) (err error) {
	id := &s.cfg.Identity
	if id.WorkloadAPI.Value != "" {
		source, err := identity.NewWorkloadAPI(ctx, id.WorkloadAPI.Value)
		if err != nil {
			return fmt.Errorf("identity: %w", err)
		}
		s.source = source
	} else {
		if s.files, err = identity.NewFiles(id.paths()); err != nil {
			return fmt.Errorf("identity: %w", err)
		}
		s.source = s.files
	}
	svid, err := s.source.GetX509SVID()
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	if td := s.policy.Load().TrustDomain; svid.ID.TrustDomain().Name() != td {
		return fmt.Errorf("identity: the broker's certificate is of the trust domain %s, the policy of %s", svid.ID.TrustDomain().Name(), td)
	}
	s.creds = identity.NewCredentials(s.source, identity.Rules{
		TrustDomain: func() string { return s.policy.Load().TrustDomain },
		Revoked:     func(serial string) bool { return s.policy.Load().Revoked(serial) },
		MaxLifetime: id.MaxLifetime.Value,
		Now:         s.now,
	}, s.cfg.Limits.CallerConnections.Value, s.handshakeFailed)
	return nil
}

func (s *Server) handshakeFailed(f identity.Failure) {
	host, _, err := net.SplitHostPort(f.Address)
	if err != nil {
		host = f.Address
	}
	if skipped, ok := s.refused.Take(host); ok {
		s.audit.Append(audit.Record{
			Event: audit.EventHandshake, Code: "Unauthenticated", Peer: f.Address, Caller: f.Claimed, Serial: f.Serial, Detail: f.Reason, Count: uint64(skipped),
		})
	}
}

// options bounds what gRPC leaves without bounds.
func (s *Server) options() []grpc.ServerOption {
	l := &s.cfg.Limits
	return []grpc.ServerOption{
		grpc.Creds(s.creds),
		grpc.ConnectionTimeout(l.HandshakeTimeout.Value),
		grpc.MaxConcurrentStreams(uint32(l.ConnectionStreams.Value)),
		grpc.MaxRecvMsgSize(int(l.Message.Value)),
		grpc.MaxSendMsgSize(4 << 20),
		grpc.MaxHeaderListSize(uint32(l.Header.Value)),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: l.IdleTimeout.Value, Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 20 * time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	}
}

// Serve listens and serves until the context ends, then stops: running streams
// are told to go, running calls may end within limits.stop_timeout.
func (s *Server) Serve(ctx context.Context) error {
	defer s.close()
	var listeners []net.Listener
	for i := range s.cfg.Listen {
		l, err := listen(&s.cfg.Listen[i], &s.cfg.Limits)
		if err != nil {
			for _, open := range listeners {
				_ = open.Close()
			}
			return err
		}
		listeners = append(listeners, l)
	}
	s.audit.Append(audit.Record{Event: audit.EventStart, Policy: s.policy.Load().Hash, Detail: "brokerd " + Version})

	watching, stopWatching := context.WithCancel(ctx)
	var watchers sync.WaitGroup
	watchers.Go(func() { s.watchPolicy(watching) })
	watchers.Go(func() { s.watchCalls(watching) })
	watchers.Go(func() { s.watchEngine(watching) })
	watchers.Go(func() { s.watchHost(watching) })
	go s.watchOperations(watching)
	if s.files != nil {
		watchers.Go(func() { s.files.Watch(watching, pollInterval, s.identityReloaded) })
	}
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		slog.Info("serving", "network", l.Addr().Network(), "address", l.Addr().String())
		go func() { failed <- s.grpc.Serve(l) }()
	}
	var err error
	select {
	case <-ctx.Done():
		slog.Info("stopping")
	case err = <-failed:
	}
	s.stop()
	stopWatching()
	watchers.Wait()
	s.audit.Append(audit.Record{Event: audit.EventStop})
	return err
}

func (s *Server) stop() {
	s.health.Shutdown()
	done := make(chan struct{})
	go func() { s.grpc.GracefulStop(); close(done) }()
	s.chain.CutAll()
	select {
	case <-done:
	case <-time.After(s.cfg.Limits.StopTimeout.Value):
		slog.Warn("calls still run; stopping without them")
		// Not grpc.Stop alone: it would wait for handlers too.
		go s.grpc.Stop()
		select {
		case <-done:
		case <-time.After(time.Second):
		}
	}
	s.chain.WaitForWork(time.Second)
}

func (s *Server) close() {
	if closer, ok := s.source.(interface{ Close() error }); ok && s.files == nil {
		_ = closer.Close()
	}
	if s.audit != nil {
		ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Audit.Timeout.Value)
		defer cancel()
		if err := s.audit.Close(ctx); err != nil {
			slog.Error("the audit trail was not closed", "error", err)
		}
	}
	if s.store != nil {
		_ = s.store.Close()
	}
	if s.host != nil {
		_ = s.host.Close()
	}
}
