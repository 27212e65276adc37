// Package journal is JournalService: typed entries out of the host's journal.
package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"regexp/syntax"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/internal/hostv1"
	"github.com/gortium/hermes-broker/server/call"
	"github.com/gortium/hermes-broker/server/fault"
	"github.com/gortium/hermes-broker/server/redact"
)

const (
	defaultLimit = 100
	maxLimit     = 10_000
	maxPattern   = 256
	// maxProgram bounds what a regular expression compiles to: the time of a search
	// is its product with the length of the text.
	maxProgram = 256
	// What one call that does not follow may look at.
	maxScanned  = 200_000
	maxScanTime = 20 * time.Second
	// What is held at once while the newest entries are looked for.
	chunkEntries = 2000
	chunkBytes   = 4 << 20
	// What one message holds.
	batchEntries = 256
	batchBytes   = 64 << 10
)

// Service is JournalService.
type Service struct {
	brokerv1.UnimplementedJournalServiceServer
	read   Read
	redact *redact.Rules
	now    func() time.Time
	most   int64 // Entries that one call may look at.
}

// Read asks brokerhost for something, and hands over what is said while it is said.
type Read func(ctx context.Context, req *hostv1.ReadRequest, use func(io.Reader) error) error

// New makes the service.
func New(read Read, rules *redact.Rules) *Service {
	return &Service{read: read, redact: rules, now: time.Now, most: maxScanned}
}

// query is a request that makes sense.
type query struct {
	*hostv1.Journal
	limit int
	match func(message []byte) bool // nil for all.
}

// ReadJournal implements brokerv1.JournalServiceServer.
func (s *Service) ReadJournal(req *brokerv1.ReadJournalRequest, stream brokerv1.JournalService_ReadJournalServer) error {
	q, err := queryOf(req)
	if err != nil {
		return err
	}
	ctx := stream.Context()
	p := &pass{ctx: ctx, service: s, query: q, send: stream.Send, lines: s.redact.Stream(), begun: s.now(), cursor: q.GetCursor()}
	err = s.read(ctx, &hostv1.ReadRequest{What: &hostv1.ReadRequest_Journal{Journal: q.Journal}}, func(r io.Reader) error {
		if q.GetReverse() {
			return p.newest(newScanner(r))
		}
		return p.onward(newScanner(r))
	})
	if errors.Is(err, errMalformed) {
		call.Note(ctx, "journalctl: "+err.Error())
		return fault.NotUnderstood("journalctl", call.ID(ctx))
	}
	return err
}

func queryOf(req *brokerv1.ReadJournalRequest) (*query, error) {
	q := &query{Journal: &hostv1.Journal{
		Since: req.GetSince(), Until: req.GetUntil(), Cursor: req.GetCursor(), Follow: req.GetFollow(),
	}, limit: int(req.GetLimit())}
	noun, name, _ := strings.Cut(req.GetSource(), "/")
	switch noun {
	case "kernel":
		q.Source = &hostv1.Journal_Kernel{Kernel: true}
	case "units":
		q.Source = &hostv1.Journal_Unit{Unit: name}
	case "identifiers":
		q.Source = &hostv1.Journal_Identifier{Identifier: name}
	default: // The chain has looked at it already.
		return nil, fault.Invalid("source", "give kernel, units/NAME or identifiers/NAME")
	}
	for field, t := range map[string]*timestamppb.Timestamp{"since": req.GetSince(), "until": req.GetUntil()} {
		if t != nil && (t.CheckValid() != nil || t.GetSeconds() < 0) {
			return nil, fault.Invalid(field, "give a valid timestamp from 1970 on")
		}
	}
	switch {
	case req.GetUntil() != nil && req.GetFollow():
		return nil, fault.Invalid("until", "it cannot stand together with follow")
	case req.GetUntil() != nil && req.GetSince() != nil && req.GetUntil().AsTime().Before(req.GetSince().AsTime()):
		return nil, fault.Invalid("until", "it is before since")
	case req.GetCursor() != "" && req.GetSince() != nil:
		return nil, fault.Invalid("since", "it cannot stand together with cursor, which says where to begin")
	case req.GetCursor() != "" && !cursorSyntax.MatchString(req.GetCursor()):
		return nil, fault.Invalid("cursor", "give the cursor of an entry, whole and unchanged")
	case q.limit < 0 || q.limit > maxLimit:
		return nil, fault.Invalid("limit", "give 1 to 10000, or 0 for 100")
	case q.limit == 0:
		q.limit = defaultLimit
	}
	if p := req.GetPriority(); p != brokerv1.JournalPriority_JOURNAL_PRIORITY_UNSPECIFIED {
		if _, known := brokerv1.JournalPriority_name[int32(p)]; !known {
			return nil, fault.Invalid("priority", "give EMERGENCY to DEBUG, or nothing for all")
		}
		q.Priority = proto.Int32(int32(p) - 1)
	}
	q.Lines = int32(q.limit)
	q.Reverse = !q.Follow && q.Since == nil && q.Cursor == ""
	return q, q.pattern(req)
}

func compile(pattern string) (*regexp.Regexp, error) {
	tree, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("it is no regular expression in RE2 syntax: %w", err)
	}
	program, err := syntax.Compile(tree.Simplify())
	if err != nil {
		return nil, err
	}
	if len(program.Inst) > maxProgram {
		return nil, errors.New("it is too large when its repetitions are written out; ask for less")
	}
	return regexp.Compile(pattern)
}

// cursorSyntax is what journalctl prints. It is an argument of journalctl's later.
var cursorSyntax = regexp.MustCompile(`^s=[0-9a-f]{32};i=[0-9a-f]{1,16};b=[0-9a-f]{32};m=[0-9a-f]{1,16};t=[0-9a-f]{1,16};x=[0-9a-f]{1,16}$`)

func (q *query) pattern(req *brokerv1.ReadJournalRequest) error {
	switch p := req.GetPattern().(type) {
	case *brokerv1.ReadJournalRequest_Contains:
		if p.Contains == "" || len(p.Contains) > maxPattern {
			return fault.Invalid("contains", "give 1 to 256 bytes")
		}
		q.match = func(message []byte) bool { return strings.Contains(string(message), p.Contains) }
	case *brokerv1.ReadJournalRequest_Matches:
		if p.Matches == "" || len(p.Matches) > maxPattern {
			return fault.Invalid("matches", "give 1 to 256 bytes")
		}
		re, err := compile(p.Matches)
		if err != nil {
			return fault.Invalid("matches", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		}
		q.match = re.Match
	}
	return nil
}
