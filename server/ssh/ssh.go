// Package ssh is SshService: how the host's sshd is set up, and what an auditor
// would say to it.
package ssh

import (
	"context"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/internal/hostv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
)

// Service is SshService.
type Service struct {
	brokerv1.UnimplementedSshServiceServer
	read func(ctx context.Context, req *hostv1.ReadRequest) ([]byte, error)
}

// New makes the service; read asks brokerhost for something.
func New(read func(ctx context.Context, req *hostv1.ReadRequest) ([]byte, error)) *Service {
	return &Service{read: read}
}

// SshdConfig implements brokerv1.SshServiceServer.
func (s *Service) SshdConfig(ctx context.Context, _ *brokerv1.SshdConfigRequest) (*brokerv1.SshdConfigResponse, error) {
	data, err := s.read(ctx, &hostv1.ReadRequest{What: &hostv1.ReadRequest_SshdConfig{SshdConfig: &hostv1.SshdConfig{}}})
	if err != nil {
		return nil, err
	}
	c, err := parse(data)
	if err != nil {
		call.Note(ctx, "sshd: "+err.Error())
		return nil, fault.NotUnderstood("sshd", call.ID(ctx))
	}
	return c.response(), nil
}
