package server

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/audit"
	"github.com/gortium/hermes-broker/server/identity"
	"github.com/gortium/hermes-broker/server/operation"
	"github.com/gortium/hermes-broker/server/rootfile"
)

// pollInterval is how often files are looked at: with the second that a cut may
// take, a change of the policy is in force, streams and all, well within two.
const pollInterval = 250 * time.Millisecond

// every calls do once per interval until the context ends.
func every(ctx context.Context, interval time.Duration, do func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			do()
		}
	}
}

func (s *Server) watchPolicy(ctx context.Context) {
	every(ctx, pollInterval, func() {
		if stamp, err := rootfile.StampOf(s.cfg.Policy.Value); err == nil && stamp != s.stamp() {
			s.Reload()
		}
	})
}

var errTrustDomain = errors.New("trust_domain cannot change while brokerd runs; restart it")

func (s *Server) stamp() rootfile.Stamp {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	return s.policyStamp
}

// Reload reads the policy anew. A bad one is refused and reported, and the old
// one stays in force. What the new one no longer allows is cut.
func (s *Server) Reload() {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	p, err := s.readPolicy()
	if err == nil && p.TrustDomain != s.policy.Load().TrustDomain {
		err = errTrustDomain
	}
	if err != nil {
		slog.Error("the policy was not reloaded; the old one stays in force", "error", err)
		s.audit.Append(audit.Record{Event: audit.EventReload, Policy: s.policy.Load().Hash, Code: "FailedPrecondition", Detail: "refused: " + err.Error()})
		return
	}
	if p.Hash == s.policy.Load().Hash {
		return
	}
	s.policy.Store(p)
	slog.Info("the policy was reloaded", "hash", p.Hash)
	s.audit.Append(audit.Record{Event: audit.EventReload, Policy: p.Hash, Code: "OK", Detail: "policy"})
	s.recheck()
	// Whom the policy no longer names loses its connections too, when its streams
	// have had a moment to say why they ended.
	time.AfterFunc(sayWhy, func() {
		if s.policy.Load() == p { // Else a later reload gives its own moment.
			s.creds.Sweep(s.now(), func(peer identity.Peer) bool { return p.Caller(peer.ID) != nil })
		}
	})
}

const sayWhy = 250 * time.Millisecond

// recheck cuts connections and calls that would not be let through now.
func (s *Server) recheck() {
	p := s.policy.Load()
	s.chain.Recheck()
	s.creds.Sweep(s.now(), func(peer identity.Peer) bool { return !p.Revoked(peer.Serial) })
}

// watchCalls does so for what time alone ends: certificates, ages, sleepers.
func (s *Server) watchCalls(ctx context.Context) {
	n, healthy := 0, true
	every(ctx, time.Second, func() {
		s.recheck()
		if n++; n%30 == 0 { // A Workload API changes the bundle without a word.
			s.creds.Reverify()
		}
		if err := s.audit.Healthy(); (err == nil) != healthy {
			healthy = err == nil
			slog.Error("the audit trail", "healthy", healthy, "error", err)
		}
	})
}

// watchOperations removes what was kept for long enough. Nothing waits for it: the
// disk may hang.
func (s *Server) watchOperations(ctx context.Context) {
	every(ctx, time.Minute, s.ops.Sweep)
}

// watchEngine keeps the health service true. Nothing else depends on it: calls
// find out by themselves that the engine is down, or back.
func (s *Server) watchEngine(ctx context.Context) {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	up := false
	for n := 0; ; n++ {
		ping, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := s.engine.Ping(ping)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if now := err == nil; now != up {
			up = now
			status := healthv1.HealthCheckResponse_NOT_SERVING
			if up {
				status = healthv1.HealthCheckResponse_SERVING
			}
			s.health.SetServingStatus(engineService, status)
			slog.Info("container engine", "available", up)
			n = 0
		}
		if up && n%30 == 0 { // Again once a minute, for what could not be seen.
			s.lookBack(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// neededBy says which methods need a tool of brokerhost's table, one of several or
// the only one. All of them, and ListeningSockets, need brokerhost.
var neededBy = map[string]string{
	"iptables_nft_save": "FirewallStatus", "ip6tables_nft_save": "FirewallStatus", "iptables_legacy_save": "FirewallStatus",
	"ip6tables_legacy_save": "FirewallStatus", "nft": "FirewallStatus", "sshd": "SshdConfig", "journalctl": "ReadJournal",
	"fail2ban": "Fail2banStatus, GetJail, ListBanned",
}

// watchHost keeps the health service true about brokerhost, and tells the operator
// what is missing. Nothing else depends on it.
func (s *Server) watchHost(ctx context.Context) {
	said := ""
	look := func() {
		ask, cancel := context.WithTimeout(ctx, 10*time.Second)
		tools, err := s.host.Describe(ask)
		cancel()
		if ctx.Err() != nil {
			return
		}
		status, state := healthv1.HealthCheckResponse_SERVING, "answers"
		var lacking []string
		for _, t := range tools {
			if t.GetProblem() != "" {
				lacking = append(lacking, t.GetName()+" ("+neededBy[t.GetName()]+")")
			}
		}
		switch {
		case err != nil:
			status, state = healthv1.HealthCheckResponse_NOT_SERVING, "does not answer"
			lacking = []string{"everything (FirewallStatus, Fail2banStatus, GetJail, ListBanned, ReadJournal, SshdConfig, ListeningSockets)"}
		case len(lacking) > 0:
			state = "answers, and lacks tools"
		}
		s.health.SetServingStatus(hostService, status)
		if now := state + strings.Join(lacking, ", "); now != said {
			said = now
			slog.Info("brokerhost "+state, "missing", strings.Join(lacking, ", "))
		}
	}
	look()
	every(ctx, 5*time.Second, look)
}

// lookBack looks on the engine for what interrupted operations have left there.
func (s *Server) lookBack(ctx context.Context) {
	for _, o := range s.ops.List() {
		v := o.View()
		if v.GetState() != operation.Interrupted || v.GetAftermath() != brokerv1.Aftermath_AFTERMATH_UNSPECIFIED {
			continue
		}
		look, cancel := context.WithTimeout(ctx, 5*time.Second)
		found, err := s.engine.Aftermath(look, v.GetMethod(), v.GetTarget())
		cancel()
		if err != nil {
			slog.Warn("what an interrupted operation has left is not known yet", "operation", v.GetName(), "error", err)
			continue
		}
		if found == brokerv1.Aftermath_AFTERMATH_UNSPECIFIED {
			continue
		}
		if err := o.Found(found); err != nil {
			slog.Error("what an interrupted operation has left cannot be written down", "operation", v.GetName(), "error", err)
		}
	}
}

func (s *Server) identityReloaded(err error) {
	if err != nil {
		slog.Error("the certificates were not reloaded; the last good ones stay in use", "error", err)
		s.audit.Append(audit.Record{Event: audit.EventReload, Code: "FailedPrecondition", Detail: "certificates refused: " + err.Error()})
		return
	}
	slog.Info("the certificates were reloaded")
	s.creds.Reverify()
	s.audit.Append(audit.Record{Event: audit.EventReload, Code: "OK", Detail: "certificates"})
}
