package access

import (
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

// method makes a descriptor of a method on StopRequest with the given options.
func method(t *testing.T, a *brokerv1.Access, edit func(*descriptorpb.MethodDescriptorProto)) protoreflect.MethodDescriptor {
	t.Helper()
	opts := &descriptorpb.MethodOptions{}
	if a != nil {
		proto.SetExtension(opts, brokerv1.E_Access, a)
	}
	m := &descriptorpb.MethodDescriptorProto{
		Name: proto.String("Do"), Options: opts,
		InputType: proto.String(".hermes.broker.v1.StopRequest"), OutputType: proto.String(".hermes.broker.v1.StopResponse"),
	}
	if edit != nil {
		edit(m)
	}
	fd, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("test.proto"), Package: proto.String("test"), Syntax: proto.String("proto3"),
		Dependency: []string{"hermes/broker/v1/container_service.proto", "hermes/broker/v1/broker_service.proto", "hermes/broker/v1/operation_service.proto"},
		Service:    []*descriptorpb.ServiceDescriptorProto{{Name: proto.String("S"), Method: []*descriptorpb.MethodDescriptorProto{m}}},
	}, protoregistry.GlobalFiles)
	if err != nil {
		t.Fatal(err)
	}
	return fd.Services().Get(0).Methods().Get(0)
}

func declared(edit func(*brokerv1.Access)) *brokerv1.Access {
	a := &brokerv1.Access{
		Permission: "containers.do", Effect: brokerv1.Effect_EFFECT_CHANGE,
		Resource: &brokerv1.Resource{Kind: brokerv1.Kind_KIND_CONTAINER, Field: "container"},
	}
	if edit != nil {
		edit(a)
	}
	return a
}

func TestReadRefusesWhatDeclaresNothingOrNonsense(t *testing.T) {
	if _, err := read(method(t, declared(nil), nil)); err != nil {
		t.Fatalf("a good declaration is refused: %v", err)
	}
	for name, c := range map[string]struct {
		access *brokerv1.Access
		edit   func(*descriptorpb.MethodDescriptorProto)
		want   string
	}{
		"nothing":         {nil, nil, "declares no access"},
		"empty":           {&brokerv1.Access{}, nil, "effect is"},
		"no permission":   {declared(func(a *brokerv1.Access) { a.Permission = "" }), nil, "not of the form"},
		"bad permission":  {declared(func(a *brokerv1.Access) { a.Permission = "containers.*" }), nil, "not of the form"},
		"other noun":      {declared(func(a *brokerv1.Access) { a.Permission = "broker.do" }), nil, "does not begin with"},
		"no effect":       {declared(func(a *brokerv1.Access) { a.Effect = 0 }), nil, "effect is"},
		"unknown effect":  {declared(func(a *brokerv1.Access) { a.Effect = 9 }), nil, "effect is"},
		"no kind":         {declared(func(a *brokerv1.Access) { a.Resource.Kind = 0 }), nil, "resource kind"},
		"no such field":   {declared(func(a *brokerv1.Access) { a.Resource.Field = "nope" }), nil, "no string field"},
		"field no string": {declared(func(a *brokerv1.Access) { a.Resource.Field = "grace" }), nil, "no string field"},
		"change on all":   {declared(func(a *brokerv1.Access) { a.Resource.Field = "" }), nil, "must name its resource"},
		"condition": {declared(func(a *brokerv1.Access) {
			a.Conditions = []*brokerv1.Condition{{Field: "container", Permission: "containers.more"}}
		}), nil, "no bool field"},
		"client stream":       {declared(nil), func(m *descriptorpb.MethodDescriptorProto) { m.ClientStreaming = proto.Bool(true) }, "streams its requests"},
		"others' permission":  {declared(func(a *brokerv1.Access) { a.OthersPermission = "images.do" }), nil, "does not begin with"},
		"stream of no events": {declared(nil), func(m *descriptorpb.MethodDescriptorProto) { m.ServerStreaming = proto.Bool(true) }, "oneof event"},
		"operation nobody can watch": {declared(func(a *brokerv1.Access) { a.Resource.Field = "name" }), func(m *descriptorpb.MethodDescriptorProto) {
			m.ServerStreaming, m.OutputType = proto.Bool(true), proto.String(".hermes.broker.v1.WatchOperationResponse")
		}, "OperationEvent has no"},
		"no request_id": {declared(func(a *brokerv1.Access) { a.Resource.Field = "container" }), func(m *descriptorpb.MethodDescriptorProto) {
			m.InputType = proto.String(".hermes.broker.v1.WaitRequest")
		}, "request_id"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := read(method(t, c.access, c.edit))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func TestLoadRefusesUnknownServices(t *testing.T) {
	if _, err := Load(map[string]grpc.ServiceInfo{"nobody.Knows": {}}); err == nil {
		t.Fatal("a service without a descriptor was loaded")
	}
}

func TestLoadRefusesAPermissionOfTwoKinds(t *testing.T) {
	r := &Registry{methods: map[string]*Method{}, permissions: map[string]string{"containers.do": "images"}, asking: map[string]*Method{}}
	if err := r.add(&Method{Name: "/x", Permission: "containers.do", Noun: "containers"}); err == nil {
		t.Fatal("one permission stands for two kinds of resource")
	}
}

func TestNeedsAndResource(t *testing.T) {
	r, err := Load(map[string]grpc.ServiceInfo{"hermes.broker.v1.ContainerService": {}})
	if err != nil {
		t.Fatal(err)
	}
	m := r.Method("/hermes.broker.v1.ContainerService/Remove")
	for force, want := range map[bool]string{false: "containers.remove", true: "containers.remove containers.remove_force"} {
		req := &brokerv1.RemoveRequest{Container: "db", Force: force}
		var got []string
		for p := range m.Needs(req) {
			got = append(got, p)
		}
		resource, err := m.Resource(req)
		if s := strings.Join(got, " "); s != want || resource != "containers/db" || err != nil {
			t.Errorf("force %v: needs %q on %q, want %q", force, s, resource, want)
		}
	}
}

// TestOneImageIsOneResource: every spelling gives the same resource to decide on.
func TestOneImageIsOneResource(t *testing.T) {
	r, err := Load(map[string]grpc.ServiceInfo{"hermes.broker.v1.ImageService": {}, "hermes.broker.v1.OperationService": {}})
	if err != nil {
		t.Fatal(err)
	}
	pull := r.Method("/hermes.broker.v1.ImageService/Pull")
	for _, spelling := range []string{"alpine", "docker.io/alpine", "index.docker.io/alpine", "library/alpine", "alpine:latest", "docker.io/library/alpine:latest"} {
		if got, err := pull.Resource(&brokerv1.PullRequest{Image: spelling}); got != "images/docker.io/library/alpine:latest" || err != nil {
			t.Errorf("%s: %q, %v", spelling, got, err)
		}
	}
	for _, bad := range []string{"", "Alpine", "a:b@sha256:" + strings.Repeat("0", 64), "a b"} {
		if got, err := pull.Resource(&brokerv1.PullRequest{Image: bad}); got != "images" || err == nil {
			t.Errorf("%q: %q, %v", bad, got, err)
		}
	}
	get := r.Method("/hermes.broker.v1.OperationService/GetOperation")
	id := strings.Repeat("A", 26)
	if got, err := get.Resource(&brokerv1.GetOperationRequest{Name: "operations/" + id}); got != "operations/"+id || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{"", id, "operations/", "operations/../x", "operations/" + id + "/", "operations/" + strings.ToLower(id)} {
		if got, err := get.Resource(&brokerv1.GetOperationRequest{Name: bad}); got != "operations" || err == nil {
			t.Errorf("%q: %q, %v", bad, got, err)
		}
	}
}

func TestRedactedKeepsOnlyWhatIsDeclared(t *testing.T) {
	// No request has an unclassified field; a response has many.
	got := string(Redacted(&brokerv1.ContainerStatus{Name: "canary", Id: "canary"}))
	if strings.Contains(got, "canary") || !strings.Contains(got, `"name":"[redacted]"`) {
		t.Errorf("unclassified fields: %s", got)
	}
	got = string(Redacted(&brokerv1.ContainerLogsRequest{
		Container: "a\"\n\x1b", Since: timestamppb.New(timestamppb.Now().AsTime()), Streams: []brokerv1.LogStream{1, 7}, Tail: 3, Follow: true,
	}))
	for _, want := range []string{`"container":"a\"\n\u001b"`, `"streams":["LOG_STREAM_STDOUT",7]`, `"tail":3`, `"follow":true`, `"since":"20`} {
		if !strings.Contains(got, want) {
			t.Errorf("%s lacks %s", got, want)
		}
	}
	got = string(Redacted(&brokerv1.StopRequest{Container: strings.Repeat("x", 5000), Grace: durationpb.New(5e9)}))
	if len(got) > 700 || !strings.Contains(got, "[cut]") || !strings.Contains(got, `"grace":"5s"`) {
		t.Errorf("%d bytes: %.80s", len(got), got)
	}
}
