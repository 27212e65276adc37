// Package jail is JailService: it reads fail2ban.
//
// fail2ban's answers come from brokerhost, which puts the questions. They are
// pickles, and a pickle is a program: what this package makes of one is data of
// a closed set of types, or an error.
package jail

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/internal/hostv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/page"
)

const (
	maxJails   = 256
	maxFiles   = 256
	maxIgnored = 1000
)

// Service is JailService.
type Service struct {
	brokerv1.UnimplementedJailServiceServer
	read func(context.Context, *hostv1.ReadRequest) ([]byte, error)
}

// New makes a service that puts its questions with read, whose errors are ready
// for the caller.
func New(read func(ctx context.Context, req *hostv1.ReadRequest) ([]byte, error)) *Service {
	return &Service{read: read}
}

// ask puts a question, and reads the answer's value with convert.
func ask[T any](ctx context.Context, s *Service, verb hostv1.Fail2BanVerb, jail string, convert func(any) (T, error)) (t T, err error) {
	b, err := s.read(ctx, &hostv1.ReadRequest{What: &hostv1.ReadRequest_Fail2Ban{Fail2Ban: &hostv1.Fail2Ban{Verb: verb, Jail: jail}}})
	if err != nil {
		return t, err
	}
	v, err := answer(b)
	if err == nil {
		t, err = convert(v)
	}
	var r *refusal
	var class unknownClass
	switch {
	case verb == hostv1.Fail2BanVerb_FAIL2BAN_VERB_IGNORE_IP && errors.As(err, &class) && class == ignoredByFile:
		return t, errByFile
	case err == nil:
		return t, nil
	case errors.Is(err, errStopping):
		return t, fault.New(brokerv1.ErrorReason_ERROR_REASON_FAIL2BAN_STOPPED,
			"fail2ban is shutting down; try again when it is back", fault.RetryAfter(fault.RetryEngine))
	case jail != "" && errors.As(err, &r) && r.class == unknownJail: // It went since it was listed.
		return t, notFound(jail)
	}
	call.Note(ctx, fmt.Sprintf("fail2ban's answer to %s: %v", strings.TrimPrefix(verb.String(), "FAIL2BAN_VERB_"), err))
	return t, fault.New(brokerv1.ErrorReason_ERROR_REASON_FAIL2BAN_ANSWER_INVALID,
		"fail2ban's answer is none that the broker understands, and nothing of it was used; tell the operator the call's ID, "+call.ID(ctx),
		fault.With("call", call.ID(ctx)))
}

// ignoredByFile is what fail2ban 1.1 answers for addresses that stand in a file
// (`ignoreip = file:...`): an object with a state, which is not read.
const ignoredByFile = "fail2ban.server.ipdns.FileIPAddrSet"

var errByFile = errors.New("the ignored addresses are in a file")

// names are all jails, whoever may see them.
func (s *Service) names(ctx context.Context) ([]string, error) {
	return ask(ctx, s, hostv1.Fail2BanVerb_FAIL2BAN_VERB_STATUS, "", namesOf)
}

// find requires a jail of that very name. Without it a setting's name, "dbfile",
// would be answered for like a jail's.
func (s *Service) find(ctx context.Context, name string) error {
	if !nameSyntax.MatchString(name) {
		return fault.Invalid("jail", "give a jail's name: 1 to 64 of a-z, A-Z, 0-9, _, . and -, the first a letter or digit")
	}
	all, err := s.names(ctx)
	if err != nil {
		return err
	}
	if !slices.Contains(all, name) || !visible(ctx, name) {
		return notFound(name)
	}
	return nil
}

func visible(ctx context.Context, name string) bool { return call.Visible(ctx, "jails/"+name) }

func notFound(name string) error {
	return fault.New(brokerv1.ErrorReason_ERROR_REASON_JAIL_NOT_FOUND,
		fmt.Sprintf("no jail is named %q; Fail2banStatus shows those that are", name), fault.With("jail", name))
}

func isNotFound(err error) bool {
	return fault.Reason(err) == fault.Name(brokerv1.ErrorReason_ERROR_REASON_JAIL_NOT_FOUND)
}

// status asks for a jail's counters, and what it watches.
func (s *Service) status(ctx context.Context, name string) (*status, error) {
	st, err := ask(ctx, s, hostv1.Fail2BanVerb_FAIL2BAN_VERB_JAIL_STATUS, name, statusOf)
	if err == nil {
		st.counters.Name = name
	}
	return st, err
}

// Fail2BanStatus implements brokerv1.JailServiceServer.
func (s *Service) Fail2BanStatus(ctx context.Context, _ *brokerv1.Fail2BanStatusRequest) (*brokerv1.Fail2BanStatusResponse, error) {
	version, err := ask(ctx, s, hostv1.Fail2BanVerb_FAIL2BAN_VERB_VERSION, "", versionOf)
	if err != nil {
		return nil, err
	}
	names, err := s.names(ctx)
	if err != nil {
		return nil, err
	}
	resp := &brokerv1.Fail2BanStatusResponse{Version: version}
	for _, name := range names {
		if !visible(ctx, name) {
			continue
		}
		if len(resp.Jails) == maxJails {
			break
		}
		st, err := s.status(ctx, name)
		switch {
		case err == nil:
			resp.Jails = append(resp.Jails, st.counters)
		case !isNotFound(err):
			return nil, err
		}
	}
	return resp, nil
}

// GetJail implements brokerv1.JailServiceServer.
func (s *Service) GetJail(ctx context.Context, req *brokerv1.GetJailRequest) (*brokerv1.GetJailResponse, error) {
	name := req.GetJail()
	if err := s.find(ctx, name); err != nil {
		return nil, err
	}
	st, err := s.status(ctx, name)
	if err != nil {
		return nil, err
	}
	resp := &brokerv1.GetJailResponse{
		Counters:       st.counters,
		LogFiles:       fit(ctx, "log files", st.files, isText, maxFiles),
		JournalMatches: strings.Join(fit(ctx, "journal matches", st.matches, isText, 1), ""),
	}
	resp.BanTime, err = ask(ctx, s, hostv1.Fail2BanVerb_FAIL2BAN_VERB_BAN_TIME, name, durationOf)
	if err == nil {
		resp.FindTime, err = ask(ctx, s, hostv1.Fail2BanVerb_FAIL2BAN_VERB_FIND_TIME, name, durationOf)
	}
	if err == nil {
		resp.MaxRetry, err = ask(ctx, s, hostv1.Fail2BanVerb_FAIL2BAN_VERB_MAX_RETRY, name, countOf)
	}
	if err != nil {
		return nil, err
	}
	ignored, err := ask(ctx, s, hostv1.Fail2BanVerb_FAIL2BAN_VERB_IGNORE_IP, name, stringsOf)
	if resp.IgnoredAddressesUnknown = errors.Is(err, errByFile); err != nil && !resp.IgnoredAddressesUnknown {
		return nil, err
	}
	slices.Sort(ignored) // fail2ban keeps them in no order.
	resp.IgnoredAddresses = fit(ctx, "ignored addresses", ignored, ignoredSyntax.MatchString, maxIgnored)
	return resp, nil
}

// fit leaves out what is not fit to be shown, or too much, and tells root of it.
func fit(ctx context.Context, what string, all []string, ok func(string) bool, most int) []string {
	var out []string
	for _, s := range all {
		if len(out) < most && ok(s) {
			out = append(out, s)
		}
	}
	if left := len(all) - len(out); left > 0 {
		call.Note(ctx, fmt.Sprintf("left out of fail2ban's %s: %d", what, left))
	}
	return out
}

// ListBanned implements brokerv1.JailServiceServer.
func (s *Service) ListBanned(ctx context.Context, req *brokerv1.ListBannedRequest) (*brokerv1.ListBannedResponse, error) {
	p, err := page.New(req)
	if err == nil {
		err = s.find(ctx, req.GetJail())
	}
	if err != nil {
		return nil, err
	}
	bans, err := ask(ctx, s, hostv1.Fail2BanVerb_FAIL2BAN_VERB_BANNED, req.GetJail(), bansOf)
	if err != nil {
		return nil, err
	}
	resp := &brokerv1.ListBannedResponse{}
	resp.Bans, resp.NextPageToken = page.Cut(p, bans, func(*brokerv1.Ban) bool { return true })
	return resp, nil
}
