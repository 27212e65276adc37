package chain

import (
	"context"

	"google.golang.org/grpc"

	"github.com/gortium/hermes-broker/server/fault"
)

// Register registers services such that a request that cannot be parsed is
// refused and recorded by the chain too: gRPC parses before it asks interceptors.
func (c *Chain) Register(s grpc.ServiceRegistrar) grpc.ServiceRegistrar { return registrar{s, c} }

type registrar struct {
	grpc.ServiceRegistrar
	chain *Chain
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
					if dec(v) == nil {
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
