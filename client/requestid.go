package client

import (
	"context"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// NewRequestID returns a new ID for the request_id of one intended change. Who
// means to send a change again when its answer is lost chooses the ID, keeps it,
// and sends the same request under it.
func NewRequestID() string { return uuid.NewString() }

// change is what the generated types of CHANGE and DESTROY requests have in
// common, and no other request has.
type change interface {
	proto.Message
	GetRequestId() string
	GetValidateOnly() bool
}

// withRequestID returns req, or a copy of it with a new request_id where it needs
// one. The caller's message stays as it is, so that using it for two changes
// makes two IDs.
func withRequestID(req any) any {
	c, ok := req.(change)
	if !ok || c.GetRequestId() != "" || c.GetValidateOnly() {
		return req
	}
	filled := proto.Clone(c)
	m := filled.ProtoReflect()
	m.Set(m.Descriptor().Fields().ByName("request_id"), protoreflect.ValueOfString(NewRequestID()))
	return filled
}

func fillUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(ctx, method, withRequestID(req), reply, cc, opts...)
}

func fillStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := stream(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, err
	}
	return filledStream{s}, nil
}

type filledStream struct{ grpc.ClientStream }

func (s filledStream) SendMsg(m any) error { return s.ClientStream.SendMsg(withRequestID(m)) }
