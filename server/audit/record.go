package audit

import (
	"crypto/rand"
	"encoding/json"
	"time"
)

// Event says what kind of thing a record tells.
type Event string

// Events that the users of the package write.
const (
	EventCall      Event = "call"      // a READ call, or any call that was refused: its only record
	EventStream    Event = "stream"    // a READ call that streams was let through; its call record follows at its end
	EventIntent    Event = "intent"    // a CHANGE or DESTROY is about to take effect
	EventOutcome   Event = "outcome"   // how the call of an intent ended
	EventHandshake Event = "handshake" // a connection that failed to identify itself
	EventStart     Event = "start"     // the daemon started
	EventStop      Event = "stop"      // the daemon stopped in order
	EventReload    Event = "reload"    // policy, catalogue or certificates were read anew, or refused
	EventFreeze    Event = "freeze"    // the freeze file is broken, so everybody is frozen
)

// Events that the log writes about itself.
const (
	EventTorn   Event = "torn"   // the lines before it are what a crash left of a write
	EventGap    Event = "gap"    // Count records were asked for and are not in the log
	EventPruned Event = "pruned" // records through ThroughSeq are about to be removed
	EventOrphan Event = "orphan" // an intent was found without an outcome when the log was opened
)

// Reasons in the records that the log writes about itself.
const (
	ReasonOutcomeUnknown = "OUTCOME_UNKNOWN" // orphan: the effect may or may not have happened
	ReasonNotTaken       = "NOT_TAKEN"       // gap: the queue was full, too many intents open, or the caller had given up
	ReasonWriteFailed    = "WRITE_FAILED"    // gap: the disk refused them; Detail holds the error
)

// Record is one line of the log. The log itself sets Seq, Prev, Hash, Cut,
// OpenFrom and, where it is zero, Time; what a caller puts there is ignored.
// Zero fields other than Seq, Time, Event, Prev and Hash are not written.
//
// A text field is cut at 2 KiB of its written form, Request at 28 KiB. Invalid
// UTF-8 becomes U+FFFD.
type Record struct {
	Seq   uint64    `json:"seq"` // from 1, without a hole
	Time  time.Time `json:"time"`
	Event Event     `json:"event"`
	Call  string    `json:"call,omitempty"` // pairs an intent with its outcome, see NewCallID

	Caller string `json:"caller,omitempty"` // SPIFFE ID
	Serial string `json:"serial,omitempty"` // serial number of the certificate
	Peer   string `json:"peer,omitempty"`   // network address

	Method     string `json:"method,omitempty"`
	Permission string `json:"permission,omitempty"`
	Effect     string `json:"effect,omitempty"`
	Resource   string `json:"resource,omitempty"`
	// Request is the redacted request. What is not valid JSON, or is cut, is
	// written as a JSON string that holds its text.
	Request json.RawMessage `json:"request,omitempty"`
	Target  string          `json:"target,omitempty"` // what Resource was resolved to and is acted on

	Rule   string `json:"rule,omitempty"`   // "policy.yaml:12"
	Policy string `json:"policy,omitempty"` // hash of the policy that decided
	Code   string `json:"code,omitempty"`   // name of the status code
	Reason string `json:"reason,omitempty"`
	// Detail is for root's eyes alone, such as the raw text of an engine error.
	Detail string `json:"detail,omitempty"`

	ValidateOnly bool  `json:"validate_only,omitempty"`
	DurationUS   int64 `json:"duration_us,omitempty"` // microseconds
	// Count is the number of suppressed or lost records this one stands for.
	Count uint64 `json:"count,omitempty"`

	TornBytes  uint64 `json:"torn_bytes,omitempty"`  // torn: length of the fragment
	TornSHA256 string `json:"torn_sha256,omitempty"` // torn: hex SHA-256 of the fragment

	ThroughSeq  uint64 `json:"through_seq,omitempty"`  // pruned: last record of the removed segment
	ThroughHash string `json:"through_hash,omitempty"` // pruned: its hash

	// OpenFrom stands in the first record of a segment: the oldest intent that
	// was open when the segment began. It tells Open how far to read back.
	OpenFrom uint64 `json:"open_from,omitempty"`

	Cut  []string `json:"cut,omitempty"` // names of the fields that were too long
	Prev string   `json:"prev"`
	Hash string   `json:"hash"`
}

// NewCallID returns a random identifier of 26 letters and digits (128 bits of
// crypto/rand), which pairs the intent of a call with its outcome.
func NewCallID() string { return rand.Text() }
