package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/certs"
)

// hostile is a text that moves the cursor, rings, reorders and hides. A terminal
// must never get it as it is.
const hostile = "evil\x1b[2J\x1b]0;pwned\x07\r\u009b31m\u202egpj\u2066\u200b\u2028end"

// fakeBroker answers from a script of canned containers. What a container's name
// says, its calls do.
type fakeBroker struct {
	brokerv1.UnimplementedContainerServiceServer
	brokerv1.UnimplementedImageServiceServer
	brokerv1.UnimplementedEngineServiceServer
	brokerv1.UnimplementedOperationServiceServer
	brokerv1.UnimplementedBrokerServiceServer

	host    fakeHost
	pulls   pulls
	cancels cancels
	prunes  prunes
}

func refusal(code codes.Code, reason, message string, retry time.Duration, metadata map[string]string) error {
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Domain: "broker.hermes.v1", Reason: reason, Metadata: metadata}}
	if retry > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(retry)})
	}
	s, err := status.New(code, message).WithDetails(details...)
	check(err)
	return s.Err()
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// refuse gives the error that belongs to a container's name.
func refuse(name string) error {
	switch name {
	case "ollama", "media-old", "web", hostile:
		return nil
	case "secret":
		return refusal(codes.PermissionDenied, "PERMISSION_DENIED", "not granted "+hostile, 0, nil)
	case "budget":
		return refusal(codes.ResourceExhausted, "CHANGE_BUDGET_EXHAUSTED", "changed 6 times in the last minute", 90*time.Second, nil)
	case "frozen":
		return refusal(codes.FailedPrecondition, "FROZEN", "the broker is frozen", 0, map[string]string{"freeze_reason": hostile})
	case "engineless":
		return refusal(codes.Unavailable, "ENGINE_UNAVAILABLE", "the engine does not answer", time.Minute, nil)
	case "lost":
		return refusal(codes.Aborted, "OUTCOME_UNKNOWN", "the broker was stopped meanwhile", 0, nil)
	default:
		return refusal(codes.NotFound, "CONTAINER_NOT_FOUND", "no container "+name+" within reach", 0, nil)
	}
}

var created = timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))

func containers() []*brokerv1.Container {
	return []*brokerv1.Container{
		{
			Name: "ollama", Id: strings.Repeat("ab", 32), Image: "docker.io/ollama/ollama:latest", ImageId: "sha256:" + strings.Repeat("cd", 32),
			State: brokerv1.ContainerState_CONTAINER_STATE_RUNNING, StateText: "running", Health: brokerv1.ContainerHealth_CONTAINER_HEALTH_HEALTHY,
			CreateTime: created, Labels: map[string]string{"tier": "llm"},
			Ports: []*brokerv1.Port{{ContainerPort: 11434, HostPort: 11434, HostIp: "127.0.0.1", Protocol: "tcp"}, {ContainerPort: 9, Protocol: "udp"}},
		},
		{
			Name: "media-old", Id: strings.Repeat("12", 32), Image: "media:1",
			State: brokerv1.ContainerState_CONTAINER_STATE_EXITED, Health: brokerv1.ContainerHealth_CONTAINER_HEALTH_NONE, CreateTime: created,
		},
		{Name: hostile, Id: hostile, Image: hostile, StateText: hostile, Labels: map[string]string{hostile: hostile}},
	}
}

func (*fakeBroker) ListContainers(_ context.Context, req *brokerv1.ListContainersRequest) (*brokerv1.ListContainersResponse, error) {
	all := containers()
	if p, ok := strings.CutSuffix(req.GetNamePattern(), "*"); ok || p != "" {
		kept := all[:0]
		for _, c := range all {
			if strings.HasPrefix(c.GetName(), p) {
				kept = append(kept, c)
			}
		}
		all = kept
	}
	if states := req.GetStates(); len(states) > 0 {
		kept := all[:0]
		for _, c := range all {
			if c.GetState() == states[0] {
				kept = append(kept, c)
			}
		}
		all = kept
	}
	resp := &brokerv1.ListContainersResponse{}
	resp.Containers, resp.NextPageToken = onePage(all, req.GetPageToken())
	return resp, nil
}

// onePage gives one thing a page.
func onePage[T any](all []T, token string) (page []T, next string) {
	at := len(token)
	if at < len(all) {
		page = all[at : at+1]
	}
	if at+1 < len(all) {
		next = strings.Repeat("x", at+1)
	}
	return page, next
}

func (*fakeBroker) InspectContainer(_ context.Context, req *brokerv1.InspectContainerRequest) (*brokerv1.InspectContainerResponse, error) {
	if err := refuse(req.GetContainer()); err != nil {
		return nil, err
	}
	if req.GetContainer() == hostile {
		return &brokerv1.InspectContainerResponse{
			Container: containers()[2], ImageDigests: []string{hostile}, RestartPolicy: &brokerv1.RestartPolicy{Name: hostile},
			Networks:        []*brokerv1.NetworkAttachment{{Network: hostile, Ipv4Address: hostile}},
			Mounts:          []*brokerv1.Mount{{Type: hostile, Destination: hostile}},
			EnvironmentKeys: []string{hostile},
		}, nil
	}
	mount := &brokerv1.Mount{Type: "bind", Destination: "/models", ReadOnly: true}
	if req.GetIncludeMountSources() {
		mount.Source = "/srv/models"
	}
	return &brokerv1.InspectContainerResponse{
		Container: containers()[0], ImageDigests: []string{"ollama/ollama@sha256:" + strings.Repeat("ef", 32)}, RestartCount: 3,
		RestartPolicy: &brokerv1.RestartPolicy{Name: "on-failure", MaximumRetryCount: 5}, StartTime: created,
		Networks:        []*brokerv1.NetworkAttachment{{Network: "home", Ipv4Address: "198.18.0.5"}},
		Mounts:          []*brokerv1.Mount{mount},
		Limits:          &brokerv1.ResourceLimits{MemoryBytes: 2 << 30, NanoCpus: 1500000000},
		EnvironmentKeys: []string{"HOME", "OLLAMA_HOST"},
	}, nil
}

func (*fakeBroker) ContainerLogs(req *brokerv1.ContainerLogsRequest, s grpc.ServerStreamingServer[brokerv1.ContainerLogsResponse]) error {
	if err := refuse(req.GetContainer()); err != nil {
		return err
	}
	if req.GetContainer() == "web" { // says what was asked
		line := fmt.Sprintf("follow=%t tail=%d since=%t until=%t streams=%v", req.GetFollow(), req.GetTail(), req.GetSince() != nil, req.GetUntil() != nil, req.GetStreams())
		return s.Send(&brokerv1.ContainerLogsResponse{Entries: []*brokerv1.LogEntry{{Output: &brokerv1.LogEntry_Stdout{Stdout: []byte(line)}}}})
	}
	return s.Send(&brokerv1.ContainerLogsResponse{Entries: []*brokerv1.LogEntry{
		{LogTime: created, Output: &brokerv1.LogEntry_Stdout{Stdout: []byte("ready\ton :11434 ")}, Partial: true},
		{LogTime: created, Output: &brokerv1.LogEntry_Stdout{Stdout: []byte(hostile + "\xff")}},
		{LogTime: created, Output: &brokerv1.LogEntry_Stderr{Stderr: []byte("oops\x1b[1A")}},
	}})
}

func (*fakeBroker) ContainerStats(req *brokerv1.ContainerStatsRequest, s grpc.ServerStreamingServer[brokerv1.ContainerStatsResponse]) error {
	if err := refuse(req.GetContainer()); err != nil {
		return err
	}
	n := 3
	if req.GetOneShot() {
		n = 1
	}
	for i := range n {
		err := s.Send(&brokerv1.ContainerStatsResponse{
			SampleTime: created, CpuPercent: 12.5 * float64(i+1), OnlineCpus: 2, MemoryBytes: 512 << 20, MemoryLimitBytes: 2 << 30,
			NetworkReceiveBytes: 1500, NetworkTransmitBytes: 2500000, Pids: 7,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// changeTo checks a change as the broker does and gives the container's status.
func changeTo(name, id string, validateOnly bool, after brokerv1.ContainerState) (*brokerv1.ContainerStatus, error) {
	if err := refuse(name); err != nil {
		return nil, err
	}
	if err := checkRequestID(id, validateOnly); err != nil {
		return nil, err
	}
	c := &brokerv1.ContainerStatus{Name: name, Id: strings.Repeat("ab", 32), State: after}
	if validateOnly {
		c.State = brokerv1.ContainerState_CONTAINER_STATE_EXITED
	}
	return c, nil
}

func checkRequestID(id string, validateOnly bool) error {
	if (id == "") != validateOnly {
		return refusal(codes.InvalidArgument, "INVALID_ARGUMENT", "request_id: required unless validate_only", 0, map[string]string{"field": "request_id"})
	}
	return nil
}

const (
	running = brokerv1.ContainerState_CONTAINER_STATE_RUNNING
	exited  = brokerv1.ContainerState_CONTAINER_STATE_EXITED
)

func (*fakeBroker) Start(_ context.Context, r *brokerv1.StartRequest) (*brokerv1.StartResponse, error) {
	c, err := changeTo(r.GetContainer(), r.GetRequestId(), r.GetValidateOnly(), running)
	return &brokerv1.StartResponse{Container: c}, err
}

func (*fakeBroker) Stop(_ context.Context, r *brokerv1.StopRequest) (*brokerv1.StopResponse, error) {
	if g := r.GetGrace(); g != nil && g.AsDuration() > 300*time.Second {
		return nil, refusal(codes.InvalidArgument, "INVALID_ARGUMENT", "grace: want 0 to 300 s", 0, map[string]string{"field": "grace"})
	}
	c, err := changeTo(r.GetContainer(), r.GetRequestId(), r.GetValidateOnly(), exited)
	return &brokerv1.StopResponse{Container: c}, err
}

func (*fakeBroker) Restart(_ context.Context, r *brokerv1.RestartRequest) (*brokerv1.RestartResponse, error) {
	c, err := changeTo(r.GetContainer(), r.GetRequestId(), r.GetValidateOnly(), running)
	return &brokerv1.RestartResponse{Container: c}, err
}

func (*fakeBroker) Remove(_ context.Context, r *brokerv1.RemoveRequest) (*brokerv1.RemoveResponse, error) {
	if r.GetContainer() == "ollama" && !r.GetForce() {
		return nil, refusal(codes.FailedPrecondition, "CONTAINER_STATE", "the container is running", 0, map[string]string{"state": "running"})
	}
	c, err := changeTo(r.GetContainer(), r.GetRequestId(), r.GetValidateOnly(), exited)
	return &brokerv1.RemoveResponse{Container: c}, err
}

func (*fakeBroker) Wait(_ context.Context, r *brokerv1.WaitRequest) (*brokerv1.WaitResponse, error) {
	if err := refuse(r.GetContainer()); err != nil {
		return nil, err
	}
	return &brokerv1.WaitResponse{Met: r.GetContainer() != "ollama", ExitCode: 137}, nil
}

func (*fakeBroker) WhoAmI(context.Context, *brokerv1.WhoAmIRequest) (*brokerv1.WhoAmIResponse, error) {
	return &brokerv1.WhoAmIResponse{
		SpiffeId: callerID, Verification: brokerv1.Verification_VERIFICATION_CERTIFICATE, CertificateSerial: "0badcafe",
		CertificateExpireTime: timestamppb.New(time.Now().Add(time.Hour)), PolicyHash: strings.Repeat("9f", 32), PeerAddress: "unix",
		Grants:  []*brokerv1.Grant{{Permissions: []string{"containers.list", "containers.restart"}, Resources: []string{"containers/*"}, Budget: "6/minute", Rule: "policy.yaml:12"}},
		Denials: []*brokerv1.Denial{{Resources: []string{"containers/hermes"}, Rule: "policy.yaml:20"}},
	}, nil
}

func (*fakeBroker) Can(_ context.Context, r *brokerv1.CanRequest) (*brokerv1.CanResponse, error) {
	switch r.GetResource() {
	case "containers/ollama":
		return &brokerv1.CanResponse{Allowed: true, Rule: "policy.yaml:12", Explanation: "granted"}, nil
	case "containers/frozen":
		return &brokerv1.CanResponse{Allowed: true, Frozen: true, Rule: "policy.yaml:12"}, nil
	}
	return &brokerv1.CanResponse{Explanation: "no grant matches " + hostile}, nil
}

func (*fakeBroker) Freeze(_ context.Context, r *brokerv1.FreezeRequest) (*brokerv1.FreezeResponse, error) {
	return &brokerv1.FreezeResponse{Freeze: &brokerv1.FreezeStatus{Caller: r.GetCaller(), Reason: r.GetReason(), FrozenBy: callerID, FreezeTime: created}}, nil
}

func (*fakeBroker) Unfreeze(context.Context, *brokerv1.UnfreezeRequest) (*brokerv1.UnfreezeResponse, error) {
	return &brokerv1.UnfreezeResponse{Remaining: []*brokerv1.FreezeStatus{{Caller: "spiffe://home.example/agent/other", Reason: hostile, FrozenBy: callerID, FreezeTime: created}}}, nil
}

func (*fakeBroker) GetVersion(context.Context, *brokerv1.GetVersionRequest) (*brokerv1.GetVersionResponse, error) {
	return &brokerv1.GetVersionResponse{
		Version: "v0.1.0", Revision: strings.Repeat("c0", 20), GoVersion: "go1.26.8", EngineAvailable: true, EngineApiVersion: "1.41",
		ServerTime: timestamppb.Now(),
	}, nil
}

// serveFake serves over mutual TLS until stop is called, in the broker's way with
// methods that do not exist.
func serveFake(fake *fakeBroker, lis net.Listener, ca *certs.CA, leaf *certs.Leaf) (stop func()) {
	pool := x509.NewCertPool()
	pool.AddCert(ca.Certificate())
	s := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{
			Certificates: []tls.Certificate{leaf.TLS()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS13,
		})),
		grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
			return refusal(codes.Unimplemented, "METHOD_UNKNOWN", "no such method", 0, nil)
		}),
	)
	brokerv1.RegisterContainerServiceServer(s, fake)
	brokerv1.RegisterImageServiceServer(s, fake)
	brokerv1.RegisterEngineServiceServer(s, fake)
	brokerv1.RegisterOperationServiceServer(s, fake)
	brokerv1.RegisterBrokerServiceServer(s, fake)
	fake.host.register(s)
	go func() { _ = s.Serve(lis) }() // ends with Stop
	return s.Stop
}
