package main

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"
)

// maxRequestBytes bounds a request that is read from stdin.
const maxRequestBytes = 1 << 20

func (a *app) callCommand() *cobra.Command {
	var raw bool
	cmd := &cobra.Command{
		Use:   "call SERVICE/METHOD [JSON|-]",
		Short: "Call any method of the API with JSON",
		Long: `Call any method of the API with a request in JSON, or - to read it from stdin.
The answer is JSON; a stream's messages come one a line, until it ends or Ctrl-C.
A change without a request_id gets one. Nothing is previewed: the broker does what
the request says, if you may.

--raw sends an empty request to a method that the API does not have, to see what
the broker says.

Methods:
  ` + strings.Join(methodNames(), "\n  "),
		Example: `  brokerctl call BrokerService/WhoAmI
  brokerctl call ContainerService/Restart '{"container": "ollama", "validate_only": true}'
  brokerctl call ContainerService/ContainerStats '{"container": "ollama"}'
  brokerctl call --raw hermes.broker.v1.ContainerService/Exec`,
		Args: cobra.RangeArgs(1, 2),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return methodNames(), cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().BoolVar(&raw, "raw", false, "send an empty request even if there is no such method")
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		method, ok := findMethod(args[0])
		if !ok && !raw {
			return unknownMethod(args[0])
		}
		c, err := a.client(ctx)
		if err != nil {
			return err
		}
		if !ok {
			ctx, cancel := a.deadline(ctx, 0)
			defer cancel()
			err := c.Conn().Invoke(ctx, "/"+strings.TrimPrefix(args[0], "/"), &emptypb.Empty{}, &emptypb.Empty{})
			return failed("call "+args[0], err)
		}
		body := "{}"
		if len(args) > 1 {
			body = args[1]
		}
		req, err := a.request(method, body)
		if err != nil {
			return failed("call "+methodPath(method), err)
		}
		return failed("call "+methodPath(method), a.invoke(ctx, c.Conn(), method, req))
	})
	return cmd
}

// services are what call knows: the API that is linked in, and the health service
// beside it.
func services() []protoreflect.ServiceDescriptor {
	var all []protoreflect.ServiceDescriptor
	add := func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			all = append(all, file.Services().Get(i))
		}
		return true
	}
	protoregistry.GlobalFiles.RangeFilesByPackage("hermes.broker.v1", add)
	add(healthpb.File_grpc_health_v1_health_proto)
	slices.SortFunc(all, func(a, b protoreflect.ServiceDescriptor) int {
		return strings.Compare(string(a.FullName()), string(b.FullName()))
	})
	return all
}

func methods() []protoreflect.MethodDescriptor {
	var all []protoreflect.MethodDescriptor
	for _, s := range services() {
		for i := range s.Methods().Len() {
			all = append(all, s.Methods().Get(i))
		}
	}
	return all
}

func methodPath(m protoreflect.MethodDescriptor) string {
	return string(m.Parent().FullName()) + "/" + string(m.Name())
}

func methodNames() (names []string) {
	for _, m := range methods() {
		names = append(names, methodPath(m))
	}
	return names
}

// findMethod takes the full path, or one whose service lacks its package.
func findMethod(path string) (protoreflect.MethodDescriptor, bool) {
	path = strings.TrimPrefix(path, "/")
	for _, m := range methods() {
		if full := methodPath(m); full == path || strings.HasSuffix(full, "."+path) {
			return m, true
		}
	}
	return nil, false
}

func unknownMethod(path string) error {
	word := strings.ToLower(methodName(path))
	near := slices.DeleteFunc(methodNames(), func(name string) bool {
		n := strings.ToLower(methodName(name))
		return !strings.Contains(n, word) && !strings.Contains(word, n) && distance(n, word) > 2
	})
	hint := "brokerctl call --help lists the methods; --raw asks the broker all the same"
	if len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return fail(exitUsage, hint, "call: the API has no method %q", path)
}

// distance is the number of letters to change, add or drop between two words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

// request reads a method's request.
func (a *app) request(m protoreflect.MethodDescriptor, body string) (proto.Message, error) {
	if body == "-" {
		data, err := io.ReadAll(io.LimitReader(a.stdin, maxRequestBytes+1))
		if err != nil {
			return nil, err
		}
		if len(data) > maxRequestBytes {
			return nil, fail(exitUsage, "", "the request is over %d bytes", maxRequestBytes)
		}
		body = string(data)
	}
	req, err := newMessage(m.Input())
	if err != nil {
		return nil, err
	}
	if err := protojson.Unmarshal([]byte(body), req); err != nil {
		return nil, fail(exitUsage, "fields are named as in the .proto files", "the request: %w", err)
	}
	return req, nil
}

// newMessage makes a message of the generated type: the client knows those.
func newMessage(d protoreflect.MessageDescriptor) (proto.Message, error) {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		return nil, err
	}
	return t.New().Interface(), nil
}

func (a *app) invoke(ctx context.Context, conn grpc.ClientConnInterface, m protoreflect.MethodDescriptor, req proto.Message) error {
	if a.format != formatYAML {
		a.format = formatJSON
	}
	resp, err := newMessage(m.Output())
	if err != nil {
		return err
	}
	_, a.changing = req.(interface{ GetRequestId() string })
	if !m.IsStreamingServer() {
		ctx, cancel := a.deadline(ctx, 0)
		defer cancel()
		if err := conn.Invoke(ctx, "/"+methodPath(m), req, resp); err != nil {
			return err
		}
		return a.show(view{value: resp})
	}
	if a.timeoutSet {
		var cancel context.CancelFunc
		ctx, cancel = a.deadline(ctx, 0)
		defer cancel()
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/"+methodPath(m))
	if err != nil {
		return err
	}
	if err := stream.SendMsg(req); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		proto.Reset(resp)
		if err := stream.RecvMsg(resp); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := a.showNext(view{value: resp}); err != nil {
			return err
		}
	}
}
