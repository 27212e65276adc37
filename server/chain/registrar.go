package chain

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/identity"
)

// Register registers services such that a request that cannot be parsed is
// refused and recorded by the chain too: gRPC parses before it asks interceptors.
func (c *Chain) Register(s grpc.ServiceRegistrar) grpc.ServiceRegistrar { return registrar{s, c} }

type registrar struct {
	grpc.ServiceRegistrar
	chain *Chain
}

// arrival is a message that was announced.
type arrival struct {
	since  time.Time
	hangUp func()
}

// expect notes that a call's message is still to come, until arrived is called:
// Recheck hangs up on who announces one and does not send it.
func (c *Chain) expect(ctx context.Context) (arrived func()) {
	a := &arrival{since: c.Now()}
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(identity.Info); ok {
			a.hangUp = info.HangUp
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting[a] = struct{}{}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waiting, a)
	}
}

func (r registrar) RegisterService(desc *grpc.ServiceDesc, impl any) {
	d := *desc
	d.Methods = make([]grpc.MethodDesc, len(desc.Methods))
	for i, m := range desc.Methods {
		full := "/" + desc.ServiceName + "/" + m.MethodName
		d.Methods[i] = grpc.MethodDesc{
			MethodName: m.MethodName,
			Handler: func(srv any, ctx context.Context, dec func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
				return m.Handler(srv, ctx, func(v any) error {
					arrived := r.chain.expect(ctx)
					err := dec(v)
					arrived()
					if err == nil {
						return nil
					}
					o := r.chain.open(ctx, full)
					return o.guard(func() error {
						if err := o.admit(); err != nil {
							return err
						}
						return fault.Invalid("request", "it is not a message of this method")
					})
				}, interceptor)
			},
		}
	}
	r.ServiceRegistrar.RegisterService(&d, impl)
}
