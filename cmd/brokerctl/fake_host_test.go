package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gortium/hermes-broker/api/brokerv1"
)

// fakeHost is the host behind fakeBroker. What a table, a jail or a source is
// called, its calls do.
type fakeHost struct {
	brokerv1.UnimplementedFirewallServiceServer
	brokerv1.UnimplementedJailServiceServer
	brokerv1.UnimplementedJournalServiceServer
	brokerv1.UnimplementedSshServiceServer
	brokerv1.UnimplementedSocketServiceServer
	healthpb.UnimplementedHealthServer

	health error // of the health service
	away   bool  // brokerhost does not answer
	quiet  bool  // nothing is open, uncertain, or to be found
	asked  asked
}

// asked remembers the pages of rules, by table and token, and the streams, by
// source and cursor.
type asked struct {
	sync.Mutex
	pages, streams []string
}

func (h *fakeHost) register(s grpc.ServiceRegistrar) {
	brokerv1.RegisterFirewallServiceServer(s, h)
	brokerv1.RegisterJailServiceServer(s, h)
	brokerv1.RegisterJournalServiceServer(s, h)
	brokerv1.RegisterSshServiceServer(s, h)
	brokerv1.RegisterSocketServiceServer(s, h)
	healthpb.RegisterHealthServer(s, h)
}

func (h *fakeHost) Check(_ context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	switch {
	case h.health != nil:
		return nil, h.health
	case r.GetService() != "hermes.host.v1.HostService":
		return nil, refusal(codes.NotFound, "", "unknown service", 0, nil)
	case h.away:
		return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_NOT_SERVING}, nil
	}
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

// hostRefusal is the error that a reason gives, by the name of a table, a jail or a
// source.
func hostRefusal(name string) error {
	tool := map[string]string{"tool": hostile}
	switch name {
	case "secret":
		return refusal(codes.PermissionDenied, "PERMISSION_DENIED", "not granted "+hostile, 0, nil)
	case "hostless":
		return refusal(codes.Unavailable, "HOST_UNAVAILABLE", "brokerhost does not answer", time.Minute, nil)
	case "busy":
		return refusal(codes.ResourceExhausted, "HOST_BUSY", "as many tools run as may", time.Minute, nil)
	case "toolless":
		return refusal(codes.FailedPrecondition, "TOOL_MISSING", "the host has no such tool", 0, tool)
	case "slow":
		return refusal(codes.DeadlineExceeded, "TOOL_TIMEOUT", "the tool took too long", 0, tool)
	case "large":
		return refusal(codes.ResourceExhausted, "TOOL_OUTPUT_TOO_LARGE", "the tool wrote too much", 0, tool)
	case "broken":
		return refusal(codes.Internal, "TOOL_FAILED", "the tool failed", 0, tool)
	case "odd":
		return refusal(codes.Internal, "TOOL_OUTPUT_INVALID", "what the tool said is not understood", 0, tool)
	case "fail2banless":
		return refusal(codes.FailedPrecondition, "FAIL2BAN_MISSING", "the host has no fail2ban", 0, nil)
	case "stopped":
		return refusal(codes.Unavailable, "FAIL2BAN_STOPPED", "fail2ban does not answer", time.Minute, nil)
	case "half":
		return refusal(codes.Unavailable, "FAIL2BAN_ANSWER_TRUNCATED", "fail2ban hung up", time.Minute, nil)
	case "pickled":
		return refusal(codes.Internal, "FAIL2BAN_ANSWER_INVALID", "fail2ban's answer is none", 0, nil)
	}
	return nil
}

const (
	nft    = brokerv1.FirewallBackend_FIREWALL_BACKEND_IPTABLES_NFT
	legacy = brokerv1.FirewallBackend_FIREWALL_BACKEND_IPTABLES_LEGACY
	tables = brokerv1.FirewallBackend_FIREWALL_BACKEND_NFTABLES
	ipv4   = brokerv1.FirewallFamily_FIREWALL_FAMILY_IPV4
	ipv6   = brokerv1.FirewallFamily_FIREWALL_FAMILY_IPV6
	inet   = brokerv1.FirewallFamily_FIREWALL_FAMILY_INET
)

func (h *fakeHost) FirewallStatus(_ context.Context, r *brokerv1.FirewallStatusRequest) (*brokerv1.FirewallStatusResponse, error) {
	if err := hostRefusal(r.GetTable()); err != nil {
		return nil, err
	}
	h.asked.Lock()
	defer h.asked.Unlock()
	page := r.GetTable() + r.GetPageToken()
	changes := r.GetTable() == "restless" || r.GetTable() == "changed" && !slices.Contains(h.asked.pages, page)
	h.asked.pages = append(h.asked.pages, page)
	if r.GetPageToken() != "" && changes {
		return nil, refusal(codes.Aborted, "RULES_CHANGED", "the rules were changed", 0, nil)
	}
	resp := &brokerv1.FirewallStatusResponse{
		Sources: []*brokerv1.FirewallSource{
			{Backend: nft, Family: ipv4, State: brokerv1.FirewallSourceState_FIREWALL_SOURCE_STATE_ACTIVE, Rules: 3},
			{Backend: legacy, Family: ipv6, State: brokerv1.FirewallSourceState_FIREWALL_SOURCE_STATE_MISSING, Problem: "no such tool"},
			{Backend: tables, State: brokerv1.FirewallSourceState_FIREWALL_SOURCE_STATE_UNREADABLE, Problem: hostile, Rules: 1},
		},
		Chains: []*brokerv1.FirewallChain{{Backend: nft, Family: ipv4, Table: "filter", Name: hostile}},
		Summary: &brokerv1.FirewallSummary{
			Defaults: []*brokerv1.FirewallChain{
				{Backend: nft, Family: ipv4, Table: "filter", Name: "INPUT", Hook: "input", Policy: "drop", Packets: 9, Bytes: 1500, Rules: 3},
				{Backend: tables, Family: inet, Table: hostile, Name: hostile, Hook: hostile, Policy: hostile},
			},
			OpenPorts: []*brokerv1.OpenPorts{
				{Family: ipv4, Protocol: "tcp", FirstPort: 22, LastPort: 22, Reach: brokerv1.Reach_REACH_OPEN,
					Rule: &brokerv1.FirewallRuleRef{Backend: nft, Family: ipv4, Table: "filter", Chain: "INPUT", Number: 1}},
				{Family: ipv4, Protocol: "udp", FirstPort: 8000, LastPort: 8100, Reach: brokerv1.Reach_REACH_CONDITIONAL, ForwardedTo: "198.18.0.2:80"},
				{Family: ipv6, Protocol: hostile, FirstPort: 0, LastPort: 65535, ForwardedTo: hostile,
					Rule: &brokerv1.FirewallRuleRef{Backend: tables, Family: inet, Table: hostile, Chain: hostile, Number: 2}},
			},
			RulesWithoutHits: 2, Uncertain: hostile,
		},
	}
	if h.quiet {
		resp.Summary = &brokerv1.FirewallSummary{}
	}
	all := []*brokerv1.FirewallRule{
		{Backend: nft, Family: ipv4, Table: "filter", Chain: "INPUT", Number: 1, Counted: true, Packets: 1234567, Bytes: 2500000, Protocol: "tcp",
			Source: "! 198.51.100.0/24", InInterface: "eth0", DestinationPorts: "22", Target: "ACCEPT", Comment: "ssh from outside", Text: "-A INPUT -p tcp -j ACCEPT",
			Matches: []*brokerv1.FirewallMatch{{Name: "conntrack", Text: "--ctstate NEW"}, {Name: "addrtype"}}},
		{Backend: nft, Family: ipv4, Table: "filter", Chain: "INPUT", Number: 2, Counted: true, Protocol: "udp", SourcePorts: "53", Target: "DROP"},
		{Backend: nft, Family: ipv4, Table: "nat", Chain: "DOCKER", Number: 1, Counted: true, SourcePorts: "1024:65535", DestinationPorts: "80,443",
			OutInterface: "br0", Destination: "198.18.0.2", Target: "DNAT", TargetOptions: "--to-destination 198.18.0.2:80", GotoTarget: true},
		{Backend: tables, Family: inet, Table: hostile, Chain: hostile, Number: 1, Protocol: hostile, Source: hostile, Destination: hostile,
			InInterface: hostile, OutInterface: hostile, SourcePorts: hostile, DestinationPorts: hostile, Target: hostile, TargetOptions: hostile,
			Comment: hostile, Text: hostile, Matches: []*brokerv1.FirewallMatch{{Name: hostile, Text: hostile}}},
	}
	all = slices.DeleteFunc(all, func(rule *brokerv1.FirewallRule) bool {
		return r.GetBackend() != 0 && r.GetBackend() != rule.GetBackend() || r.GetFamily() != 0 && r.GetFamily() != rule.GetFamily() ||
			r.GetChain() != "" && r.GetChain() != rule.GetChain() || r.GetTable() == "nat" && rule.GetTable() != "nat"
	})
	resp.Rules, resp.NextPageToken = onePage(all, r.GetPageToken())
	return resp, nil
}

func jails() []*brokerv1.JailCounters {
	return []*brokerv1.JailCounters{
		{Name: "recidive"},
		{Name: "sshd", CurrentlyFailed: 3, TotalFailed: 120, CurrentlyBanned: 2, TotalBanned: 17},
		{Name: hostile},
	}
}

func (h *fakeHost) Fail2BanStatus(context.Context, *brokerv1.Fail2BanStatusRequest) (*brokerv1.Fail2BanStatusResponse, error) {
	if h.away {
		return nil, hostRefusal("hostless")
	}
	return &brokerv1.Fail2BanStatusResponse{Version: "1.1.0" + hostile, Jails: jails()}, nil
}

// refuseJail is the error that belongs to a jail's name.
func refuseJail(name string) error {
	if err := hostRefusal(name); err != nil {
		return err
	}
	if !slices.ContainsFunc(jails(), func(j *brokerv1.JailCounters) bool { return j.GetName() == name }) {
		return refusal(codes.NotFound, "JAIL_NOT_FOUND", "no such jail within reach", 0, map[string]string{"jail": name})
	}
	return nil
}

func (*fakeHost) GetJail(_ context.Context, r *brokerv1.GetJailRequest) (*brokerv1.GetJailResponse, error) {
	if err := refuseJail(r.GetJail()); err != nil {
		return nil, err
	}
	switch r.GetJail() {
	case "recidive":
		return &brokerv1.GetJailResponse{
			Counters: jails()[0], LogFiles: []string{"/var/log/fail2ban.log"}, FindTime: durationpb.New(24 * time.Hour), MaxRetry: 5,
		}, nil
	case hostile:
		return &brokerv1.GetJailResponse{Counters: jails()[2], LogFiles: []string{hostile}, JournalMatches: hostile, IgnoredAddresses: []string{hostile}}, nil
	}
	return &brokerv1.GetJailResponse{
		Counters: jails()[1], JournalMatches: "_SYSTEMD_UNIT=ssh.service + _COMM=sshd", BanTime: durationpb.New(10 * time.Minute),
		FindTime: durationpb.New(10 * time.Minute), MaxRetry: 5, IgnoredAddresses: []string{"127.0.0.0/8", "::1"},
	}, nil
}

func (*fakeHost) ListBanned(_ context.Context, r *brokerv1.ListBannedRequest) (*brokerv1.ListBannedResponse, error) {
	if err := refuseJail(r.GetJail()); err != nil {
		return nil, err
	}
	resp := &brokerv1.ListBannedResponse{}
	resp.Bans, resp.NextPageToken = onePage([]*brokerv1.Ban{
		{Address: "198.51.100.7", BanTime: created, ExpireTime: timestamppb.New(created.AsTime().Add(10 * time.Minute))},
		{Address: "2001:db8::7", BanTime: created},
		{Address: hostile},
	}, r.GetPageToken())
	return resp, nil
}

// testCursor looks like journald's.
func testCursor(n int) string { return fmt.Sprintf("s=0a;i=%d;b=0b;m=0c;t=0d;x=0e", n) }

func journalEntries() []*brokerv1.JournalEntry {
	at := func(n int, e *brokerv1.JournalEntry) *brokerv1.JournalEntry {
		e.EntryTime, e.Cursor = timestamppb.New(created.AsTime().Add(time.Duration(n)*time.Second)), testCursor(n)
		return e
	}
	const sshd = "ssh.service"
	return []*brokerv1.JournalEntry{
		at(1, &brokerv1.JournalEntry{Unit: sshd, Identifier: "sshd", Pid: 812, Priority: brokerv1.JournalPriority_JOURNAL_PRIORITY_INFO, Message: []byte("Server listening\ton :: port 22.")}),
		at(2, &brokerv1.JournalEntry{Unit: sshd, Identifier: "sshd", Pid: 813, Priority: brokerv1.JournalPriority_JOURNAL_PRIORITY_ERROR, Message: []byte("no auth"), Truncated: true}),
		at(3, &brokerv1.JournalEntry{Identifier: "ssh.service/sshd", Priority: brokerv1.JournalPriority_JOURNAL_PRIORITY_WARNING, Message: []byte("I am no unit")}),
		at(4, &brokerv1.JournalEntry{Unit: hostile, Identifier: hostile, Pid: 9, Message: []byte(hostile + "\nroot logged in\xff\xc3")}),
	}
}

func (h *fakeHost) ReadJournal(r *brokerv1.ReadJournalRequest, s grpc.ServerStreamingServer[brokerv1.ReadJournalResponse]) error {
	_, name, _ := strings.Cut(r.GetSource(), "/")
	name = strings.TrimSuffix(name, ".service")
	if err := hostRefusal(name); err != nil {
		return err
	}
	if r.GetCursor() != "" && r.GetSince() != nil || r.GetFollow() && r.GetUntil() != nil {
		return refusal(codes.InvalidArgument, "INVALID_ARGUMENT", "one of them", 0, nil)
	}
	h.asked.Lock()
	h.asked.streams = append(h.asked.streams, strings.TrimSpace(name+" "+r.GetCursor()))
	h.asked.Unlock()
	all := journalEntries()
	end := &brokerv1.JournalEnd{Reason: brokerv1.JournalEndReason_JOURNAL_END_REASON_END, Cursor: testCursor(4), Scanned: 4}
	var broken error
	switch name {
	case "": // the kernel says what was asked
		all = []*brokerv1.JournalEntry{proto.CloneOf(all[0])}
		all[0].Unit, all[0].Identifier, all[0].Pid = "", "kernel", 0
		all[0].Message = fmt.Appendf(nil, "since=%t until=%t priority=%v contains=%q matches=%q limit=%d follow=%t cursor=%q", r.GetSince() != nil, r.GetUntil() != nil,
			r.GetPriority(), r.GetContains(), r.GetMatches(), r.GetLimit(), r.GetFollow(), r.GetCursor())
	case "limit":
		all, end.Reason = all[:1], brokerv1.JournalEndReason_JOURNAL_END_REASON_LIMIT
	case "scanned":
		all, end.Reason, end.Scanned = nil, brokerv1.JournalEndReason_JOURNAL_END_REASON_SCANNED, 200000
	case "trap":
		all, end.Reason, end.Cursor = all[:1], brokerv1.JournalEndReason_JOURNAL_END_REASON_LIMIT, "';"+hostile
	case "flaky": // Its streams break before each entry but the first; the last one ends.
		at := slices.IndexFunc(all, func(e *brokerv1.JournalEntry) bool { return e.GetCursor() == r.GetCursor() }) + 1
		broken = []error{
			refusal(codes.Aborted, "STREAM_EXPIRED", "the stream is old", time.Millisecond, nil),
			refusal(codes.Unavailable, "HOST_UNAVAILABLE", "brokerhost was restarted", time.Millisecond, nil),
			refusal(codes.Unavailable, "SHUTTING_DOWN", "the broker is stopping", time.Millisecond, nil),
			nil,
		}[at]
		all = all[at : at+1]
	case "revoked":
		all, broken = all[:1], refusal(codes.PermissionDenied, "ACCESS_REVOKED", "the grant is gone", time.Millisecond, nil)
		if r.GetCursor() != "" {
			all = nil
		}
	case "away": // once with an entry, then never
		all, broken = all[:1], refusal(codes.Unavailable, "HOST_UNAVAILABLE", "brokerhost is gone", time.Millisecond, nil)
		if r.GetCursor() != "" {
			all = nil
		}
	}
	for _, e := range all {
		if err := s.Send(&brokerv1.ReadJournalResponse{Entries: []*brokerv1.JournalEntry{e}}); err != nil {
			return err
		}
	}
	if broken != nil {
		return broken
	}
	return s.Send(&brokerv1.ReadJournalResponse{End: end})
}

func (h *fakeHost) SshdConfig(context.Context, *brokerv1.SshdConfigRequest) (*brokerv1.SshdConfigResponse, error) {
	if h.away {
		return nil, hostRefusal("hostless")
	}
	if h.quiet {
		return &brokerv1.SshdConfigResponse{}, nil
	}
	return &brokerv1.SshdConfigResponse{
		Ports: []uint32{22, 2222}, ListenAddresses: []string{"0.0.0.0:22", "[::]:22"}, PermitRootLogin: "without-password",
		PasswordAuthentication: proto.Bool(true), PubkeyAuthentication: proto.Bool(true), PermitEmptyPasswords: proto.Bool(false),
		AllowUsers: []string{"ada", hostile}, DenyGroups: []string{hostile}, MaxAuthTries: proto.Int32(6), MaxSessions: proto.Int32(0),
		LoginGraceTime: durationpb.New(2 * time.Minute), ClientAliveInterval: durationpb.New(0), AllowTcpForwarding: hostile, LogLevel: "info",
		Ciphers: []string{"chacha20-poly1305@openssh.com", "aes256-ctr", hostile},
		Settings: []*brokerv1.SshdSetting{
			{Key: "port", Value: "22"}, {Key: "authorizedkeyscommand", Hidden: true}, {Key: hostile, Value: hostile},
		},
		Findings: []*brokerv1.SshdFinding{
			{Id: "password-authentication", Severity: brokerv1.FindingSeverity_FINDING_SEVERITY_HIGH, Setting: "passwordauthentication yes",
				Advice: "passwords can be guessed; set no", Reference: "CIS 5.1"},
			{Id: hostile, Severity: brokerv1.FindingSeverity_FINDING_SEVERITY_MEDIUM, Setting: hostile, Advice: hostile, Reference: hostile},
		},
	}, nil
}

func (h *fakeHost) ListeningSockets(_ context.Context, r *brokerv1.ListeningSocketsRequest) (*brokerv1.ListeningSocketsResponse, error) {
	if h.away {
		return nil, hostRefusal("hostless")
	}
	const tcp, udp = brokerv1.TransportProtocol_TRANSPORT_PROTOCOL_TCP, brokerv1.TransportProtocol_TRANSPORT_PROTOCOL_UDP
	all := []*brokerv1.ListeningSocket{
		{Protocol: tcp, Address: "0.0.0.0", Port: 22, Inode: 4711, Processes: []*brokerv1.SocketProcess{{Pid: 1, Name: "systemd"}, {Pid: 812, Name: "sshd"}},
			Reach: brokerv1.Reach_REACH_OPEN, ReachRule: &brokerv1.FirewallRuleRef{Backend: nft, Family: ipv4, Table: "filter", Chain: "INPUT", Number: 1}},
		{Protocol: tcp, Address: "::", Port: 8080, Uid: 1000, Container: "web", Published: true, Reach: brokerv1.Reach_REACH_CONDITIONAL,
			ReachRule: &brokerv1.FirewallRuleRef{Backend: tables, Family: inet, Table: hostile, Chain: hostile, Number: 2}},
		{Protocol: udp, Address: "127.0.0.1", Port: 53, Reach: brokerv1.Reach_REACH_LOCAL},
		{Protocol: udp, Address: hostile, Port: 1, Processes: []*brokerv1.SocketProcess{{Pid: 7, Name: hostile}}, Container: hostile},
	}
	if r.GetIncludeContainers() {
		all = append(all, &brokerv1.ListeningSocket{Protocol: tcp, Address: "0.0.0.0", Port: 80, Container: "web", ContainerNetwork: true})
	}
	all = slices.DeleteFunc(all, func(s *brokerv1.ListeningSocket) bool {
		return r.GetProtocol() != 0 && r.GetProtocol() != s.GetProtocol()
	})
	resp := &brokerv1.ListeningSocketsResponse{Problems: []string{"the packet filter could not be read", hostile}}
	resp.Sockets, resp.NextPageToken = onePage(all, r.GetPageToken())
	return resp, nil
}
