package server

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/access"
	"github.com/gortium/hermes-broker/server/audit"
	"github.com/gortium/hermes-broker/server/fault"
)

// TestGoldenAccess is the second signature under every declaration: whoever
// changes what a method needs changes testdata/access.golden too, by hand.
func TestGoldenAccess(t *testing.T) {
	methods, err := Methods()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, m := range methods.Methods() {
		resource := m.Noun
		if f := m.ResourceField(); f != "" {
			resource += "/{" + f + "}"
		}
		frozen := ""
		if m.WhileFrozen {
			frozen = " while-frozen"
		}
		if m.Operation != nil {
			frozen += " operation"
		}
		fmt.Fprintf(&b, "%s %s %s %s%s\n", m.Name, strings.Join(m.Permissions(), "+"), strings.TrimPrefix(m.Effect.String(), "EFFECT_"), resource, frozen)
	}
	want, err := os.ReadFile("testdata/access.golden")
	if err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != string(want) {
		t.Errorf("the declarations are not those of testdata/access.golden; if the change is meant, write it there by hand\ngot:\n%s", got)
	}
}

// TestEveryMethodIsDeniedWithoutAGrant calls what is served, method by method,
// as a caller without a grant, with every request it could send.
func TestEveryMethodIsDeniedWithoutAGrant(t *testing.T) {
	r := newRig(t, nothing, nil)
	// In place of the services stand ones that answer Unimplemented to whoever
	// reaches them.
	trapped := grpc.NewServer(append(r.server.chain.Options(), r.server.options()...)...)
	unimplemented.register(r.server.chain.Register(trapped))
	r.socket = r.path("trap.sock")
	l, err := listen(&Listener{Unix: at(r.socket)}, &r.server.cfg.Limits)
	if err != nil {
		t.Fatal(err)
	}
	go trapped.Serve(l)
	defer trapped.Stop()

	for _, id := range []string{hermes, stranger} {
		conn := r.dial(id)
		for _, m := range r.server.methods.Methods() {
			for _, req := range requests(t, m) {
				before := len(calls(r.records()))
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				err := invoke(ctx, conn, m, req)
				cancel()
				if status.Code(err) != codes.PermissionDenied {
					t.Fatalf("%s by %s: %v, want PERMISSION_DENIED", m.Name, id, err)
				}
				if fault.Reason(err) != "PERMISSION_DENIED" {
					t.Errorf("%s: no ErrorInfo: %v", m.Name, err)
				}
				if strings.Contains(err.Error(), "policy.yaml") {
					t.Errorf("%s: the denial shows the policy: %v", m.Name, err)
				}
				var rec []audit.Record
				eventually(t, "an audit record of "+m.Name, func() bool { rec = calls(r.records())[before:]; return len(rec) > 0 })
				if len(rec) != 1 || rec[0].Method != m.Name || rec[0].Code != "PermissionDenied" || rec[0].Caller != id || rec[0].Event != audit.EventCall {
					t.Errorf("%s: records %+v, want exactly one denial", m.Name, rec)
				}
			}
		}
	}
	if n := len(r.engine.Requests()); n > 20 { // Pings.
		t.Errorf("the engine was asked %d times", n)
	}
}

// requests are an empty request, and one with every field set.
func requests(t *testing.T, m *access.Method) []proto.Message {
	t.Helper()
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(m.Name[1:], "/", ".")))
	if err != nil {
		t.Fatal(err)
	}
	empty := dynamicpb.NewMessage(d.(protoreflect.MethodDescriptor).Input())
	full := dynamicpb.NewMessage(d.(protoreflect.MethodDescriptor).Input())
	for i := range full.Descriptor().Fields().Len() {
		fd := full.Descriptor().Fields().Get(i)
		switch {
		case fd.IsList():
		case fd.Kind() == protoreflect.BoolKind:
			full.Set(fd, protoreflect.ValueOfBool(true))
		case fd.Kind() == protoreflect.StringKind:
			full.Set(fd, protoreflect.ValueOfString("some-name"))
		}
	}
	return []proto.Message{empty, full}
}

func invoke(ctx context.Context, conn *grpc.ClientConn, m *access.Method, req proto.Message) error {
	if !m.Stream {
		return conn.Invoke(ctx, m.Name, req, &brokerv1.WhoAmIRequest{})
	}
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, m.Name)
	if err != nil {
		return err
	}
	if err := s.SendMsg(req); err != nil && err != io.EOF {
		return err
	}
	_ = s.CloseSend()
	return s.RecvMsg(&brokerv1.WhoAmIRequest{})
}

// calls are the records of calls, of whatever event.
func calls(all []audit.Record) []audit.Record {
	var out []audit.Record
	for _, rec := range all {
		if rec.Method != "" {
			out = append(out, rec)
		}
	}
	return out
}

// TestWhatHasNoMethodIsRefused: the wire names of calls that people would like
// to exist.
func TestWhatHasNoMethodIsRefused(t *testing.T) {
	r := newRig(t, everything, nil)
	for id, want := range map[string]string{hermes: "METHOD_UNKNOWN", stranger: "PERMISSION_DENIED"} {
		conn := r.dial(id)
		for _, name := range []string{"Exec", "Attach", "Copy", "Commit", "Export", "Import", "Load", "Save", "Push", "Tag", "Create", "Run"} {
			err := conn.Invoke(t.Context(), "/hermes.broker.v1.ContainerService/"+name, &brokerv1.StartRequest{Container: "web"}, &brokerv1.StartResponse{})
			if fault.Reason(err) != want {
				t.Errorf("%s by %s: %v, want %s", name, id, err, want)
			}
		}
	}
	eventually(t, "24 records", func() bool { return len(calls(r.records())) == 24 })
}

// TestMalformedRequestsAreRefusedAndRecorded sends bytes that are no message,
// and a message with a field from the future.
func TestMalformedRequestsAreRefusedAndRecorded(t *testing.T) {
	r := newRig(t, everything, nil)
	conn := r.dial(hermes)
	bad := &brokerv1.StartRequest{Container: "web"}
	bad.ProtoReflect().SetUnknown(protoreflect.RawFields{0xfa, 0x3f, 0x01, 'x'}) // Field 1023.
	for _, method := range []string{"/hermes.broker.v1.ContainerService/Start", "/hermes.broker.v1.ContainerService/ListContainers"} {
		err := conn.Invoke(t.Context(), method, bad, &brokerv1.StartResponse{})
		if fault.Reason(err) != "INVALID_ARGUMENT" {
			t.Errorf("%s with an unknown field: %v", method, err)
		}
	}
	raw := &brokerv1.StartRequest{}
	raw.ProtoReflect().SetUnknown(protoreflect.RawFields{0xff, 0xff, 0xff})
	err := conn.Invoke(t.Context(), "/hermes.broker.v1.ContainerService/Start", raw, &brokerv1.StartResponse{})
	// gRPC answers by itself what it cannot read, in its own words.
	if status.Code(err) != codes.Internal {
		t.Errorf("no message: %v", err)
	}
	m := r.server.methods.Method("/hermes.broker.v1.ContainerService/ContainerLogs")
	if err := invoke(t.Context(), conn, m, raw); status.Code(err) != codes.Internal {
		t.Errorf("no message on a stream: %v", err)
	}
	big := &brokerv1.StartRequest{Container: strings.Repeat("x", 65<<10)}
	if err := conn.Invoke(t.Context(), "/hermes.broker.v1.ContainerService/Start", big, &brokerv1.StartResponse{}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("65 KiB: %v", err)
	}
	eventually(t, "five records", func() bool { return len(calls(r.records())) == 5 })
	if r.changes() != 0 {
		t.Error("something reached the engine")
	}
}
