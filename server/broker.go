package server

import (
	"context"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/access"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/freeze"
	"github.com/gortium/hermes-broker/server/policy"
)

// Version is the broker's version, set when a release is linked.
var Version = "devel"

// broker is BrokerService: what a caller may ask about the broker itself.
type broker struct {
	brokerv1.UnimplementedBrokerServiceServer
	policy  func() *policy.Policy
	freeze  *freeze.Switch
	methods *access.Registry
	engine  func(context.Context) (apiVersion string, err error)
	recheck func() // Cuts what a freeze has just ended.
	now     func() time.Time
}

// WhoAmI implements brokerv1.BrokerServiceServer.
func (b *broker) WhoAmI(ctx context.Context, _ *brokerv1.WhoAmIRequest) (*brokerv1.WhoAmIResponse, error) {
	who, p := call.From(ctx), b.policy()
	resp := &brokerv1.WhoAmIResponse{
		SpiffeId:              who.ID,
		Verification:          brokerv1.Verification_VERIFICATION_CERTIFICATE,
		CertificateSerial:     who.Serial,
		CertificateExpireTime: timestamppb.New(who.NotAfter),
		PolicyHash:            p.Hash,
		PeerAddress:           who.Address,
	}
	c := p.Caller(who.ID)
	if c == nil { // The policy was reloaded in this very moment.
		return nil, fault.New(brokerv1.ErrorReason_ERROR_REASON_ACCESS_REVOKED, "the policy no longer names "+who.ID)
	}
	for _, r := range c.Grants {
		resp.Grants = append(resp.Grants, &brokerv1.Grant{Permissions: r.Permissions, Resources: texts(r.On), Budget: r.Budget.String(), Rule: r.Place, RequireDigest: r.RequireDigest})
	}
	for _, r := range c.Denials {
		resp.Denials = append(resp.Denials, &brokerv1.Denial{Permissions: r.Permissions, Resources: texts(r.On), Rule: r.Place})
	}
	if st, frozen := b.freeze.Check(who.ID); frozen {
		resp.Freeze = freezeStatus(st)
	}
	return resp, nil
}

func texts(patterns []policy.Pattern) []string {
	var out []string
	for _, p := range patterns {
		out = append(out, p.String())
	}
	return out
}

// Can implements brokerv1.BrokerServiceServer.
func (b *broker) Can(ctx context.Context, req *brokerv1.CanRequest) (*brokerv1.CanResponse, error) {
	noun, ok := b.methods.Permissions()[req.GetPermission()]
	if !ok {
		return nil, fault.Invalid("permission", "no method asks for it; give one such as containers.restart")
	}
	resource := req.GetResource()
	if resource == "" && access.Single[noun] {
		resource = noun
	}
	m := b.methods.Asking(req.GetPermission())
	if name, ok := strings.CutPrefix(resource, noun+"/"); ok {
		var err error
		if resource, err = m.Called(name); err != nil {
			return nil, fault.Invalid("resource", err.Error())
		}
	}
	if pattern, err := policy.ParsePattern(resource); err != nil || pattern.Noun() != noun ||
		strings.Contains(resource, "*") || (resource == noun && !m.Collection()) {
		return nil, fault.Invalid("resource", "give the thing itself, such as "+noun+"/name")
	}
	who := call.From(ctx).ID
	d := b.policy().Decide(who, req.GetPermission(), resource)
	resp := &brokerv1.CanResponse{Allowed: d.Allowed, Rule: d.Place()}
	switch {
	case d.Allowed:
		resp.Explanation = "granted by " + d.Place()
	case d.Rule != nil:
		resp.Explanation = "denied by " + d.Place() + ", which wins over every grant"
	default:
		resp.Explanation = "no rule grants it"
	}
	_, frozen := b.freeze.Check(who)
	resp.Frozen = frozen && d.Allowed && (m.Changes() || m.Stream && !b.policy().Decide(who, "broker.unfreeze", "broker").Allowed) && !m.WhileFrozen
	return resp, nil
}

const maxFreezeReason = 500

// Freeze implements brokerv1.BrokerServiceServer.
func (b *broker) Freeze(ctx context.Context, req *brokerv1.FreezeRequest) (*brokerv1.FreezeResponse, error) {
	if n := utf8.RuneCountInString(req.GetReason()); n < 1 || n > maxFreezeReason {
		return nil, fault.Invalid("reason", "say why, in 1 to 500 characters; whoever is refused reads it")
	}
	if err := b.known(req.GetCaller()); err != nil {
		return nil, err
	}
	st := freeze.Status{Caller: req.GetCaller(), Reason: req.GetReason(), By: call.From(ctx).ID, At: b.now().UTC()}
	if req.GetValidateOnly() {
		return &brokerv1.FreezeResponse{Freeze: freezeStatus(st)}, nil
	}
	ctx, err := call.Intend(ctx, "freeze "+st.Caller)
	if err != nil {
		return nil, err
	}
	err = b.freeze.Set(st)
	b.recheck()
	if err != nil {
		call.Note(ctx, err.Error())
		return nil, fault.New(brokerv1.ErrorReason_ERROR_REASON_STATE_UNAVAILABLE,
			"frozen, but the freeze cannot be written to disk and ends when brokerd stops; tell whoever looks after the host")
	}
	return &brokerv1.FreezeResponse{Freeze: freezeStatus(st)}, nil
}

// Unfreeze implements brokerv1.BrokerServiceServer.
func (b *broker) Unfreeze(ctx context.Context, req *brokerv1.UnfreezeRequest) (*brokerv1.UnfreezeResponse, error) {
	if !req.GetValidateOnly() {
		ctx, err := call.Intend(ctx, "unfreeze "+req.GetCaller())
		if err != nil {
			return nil, err
		}
		if err := b.freeze.Clear(req.GetCaller()); err != nil {
			call.Note(ctx, err.Error())
			return nil, fault.New(brokerv1.ErrorReason_ERROR_REASON_STATE_UNAVAILABLE,
				"still frozen: the freeze file cannot be written; tell whoever looks after the host")
		}
	}
	resp := &brokerv1.UnfreezeResponse{}
	for _, st := range b.freeze.All() {
		resp.Remaining = append(resp.Remaining, freezeStatus(st))
	}
	return resp, nil
}

// known keeps a typing error from freezing nobody.
func (b *broker) known(caller string) error {
	if caller != "" && b.policy().Caller(caller) == nil {
		return fault.Invalid("caller", "the policy names no such caller; give a whole SPIFFE ID, or nothing for all callers")
	}
	return nil
}

func freezeStatus(st freeze.Status) *brokerv1.FreezeStatus {
	out := &brokerv1.FreezeStatus{Caller: st.Caller, Reason: st.Reason, FrozenBy: st.By}
	if !st.At.IsZero() {
		out.FreezeTime = timestamppb.New(st.At)
	}
	return out
}

// GetVersion implements brokerv1.BrokerServiceServer.
func (b *broker) GetVersion(ctx context.Context, _ *brokerv1.GetVersionRequest) (*brokerv1.GetVersionResponse, error) {
	resp := &brokerv1.GetVersionResponse{Version: Version, GoVersion: runtime.Version(), ServerTime: timestamppb.New(b.now())}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				resp.Revision = s.Value
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if v, err := b.engine(ctx); err == nil {
		resp.EngineAvailable, resp.EngineApiVersion = true, v
	}
	return resp, nil
}
