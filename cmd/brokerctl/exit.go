package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
	"github.com/gortium/hermes-broker/internal/termclean"
)

// Exit codes. They are part of the interface: scripts rely on them.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitDenied      = 3
	exitNotFound    = 4
	exitUnavailable = 5
	exitRefused     = 6
	exitDamaged     = 7
	exitUnknown     = 8
	exitInterrupted = 130
)

const exitCodesHelp = `Exit codes:

  0    done; for "can": allowed; for "doctor": nothing failed
  1    failed in a way that no other code stands for
  2    the command line, the configuration or the request is wrong
  3    denied by the policy; for "can": not allowed
  4    no such container, image, operation or jail within reach
  5    the broker, its engine, its audit trail, its state, brokerhost, fail2ban or
       a registry is unavailable; try again
  6    refused for now: frozen, over a rate or a budget, short of space, changed
       meanwhile, or the state of the container, image, registry or host does not
       allow it
  7    "audit verify" found the audit trail damaged
  8    time ran out or the outcome is not known: look before you repeat a change;
       for "wait": the condition did not come true in time
  130  interrupted

Where several things are named, the code is that of the first failure.`

// failure is an error with its exit code and with what to do about it.
type failure struct {
	code int
	hint string
	err  error
}

func (f *failure) Error() string {
	if f.err == nil {
		return "exit code " + strconv.Itoa(f.code)
	}
	return f.err.Error()
}
func (f *failure) Unwrap() error { return f.err }

// fail makes a failure out of words.
func fail(code int, hint, format string, args ...any) error {
	return &failure{code: code, hint: hint, err: fmt.Errorf(format, args...)}
}

// silent ends with a code after everything has been said.
func silent(code int) error { return &failure{code: code} }

func usageError(err error) error {
	return &failure{code: exitUsage, hint: "brokerctl help shows the commands, COMMAND --help their flags", err: err}
}

func connectError(err error) error {
	return &failure{code: exitFailure, hint: "brokerctl doctor says what is wrong with the configuration", err: err}
}

// failed says what was being done when err came.
func failed(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// advice is what an error of the broker means to brokerctl's user.
type advice struct {
	code int
	hint string
}

// adviceFor has every reason of the schema.
var adviceFor = map[brokerv1.ErrorReason]advice{
	brokerv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED:         {exitDenied, "brokerctl whoami lists your grants; ask the operator for one that covers this"},
	brokerv1.ErrorReason_ERROR_REASON_ACCESS_REVOKED:            {exitDenied, "the grant or the certificate is gone; see brokerctl whoami and brokerctl doctor"},
	brokerv1.ErrorReason_ERROR_REASON_FROZEN:                    {exitRefused, "an operator froze changes; brokerctl whoami shows why, brokerctl unfreeze ends it"},
	brokerv1.ErrorReason_ERROR_REASON_RATE_LIMITED:              {exitRefused, "wait, then ask again, less often"},
	brokerv1.ErrorReason_ERROR_REASON_CONCURRENCY_LIMITED:       {exitRefused, "end one of your running calls, streams or operations, then ask again"},
	brokerv1.ErrorReason_ERROR_REASON_CHANGE_BUDGET_EXHAUSTED:   {exitRefused, "this object was changed as often as it may be; find out why it needs it, then wait"},
	brokerv1.ErrorReason_ERROR_REASON_AUDIT_UNAVAILABLE:         {exitUnavailable, "nothing was done; the operator must make room for the audit trail or mend its disk"},
	brokerv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT:          {exitUsage, "correct the value and ask again"},
	brokerv1.ErrorReason_ERROR_REASON_CONTAINER_NOT_FOUND:       {exitNotFound, "brokerctl containers ls lists what you can reach; IDs are not names"},
	brokerv1.ErrorReason_ERROR_REASON_CONTAINER_STATE:           {exitRefused, "brokerctl containers inspect shows the state; stop a running container before rm, or rm --force"},
	brokerv1.ErrorReason_ERROR_REASON_ENGINE_UNAVAILABLE:        {exitUnavailable, "the container engine does not answer; the broker recovers by itself when it does"},
	brokerv1.ErrorReason_ERROR_REASON_ENGINE_ERROR:              {exitFailure, "the engine's own words are in the audit trail: brokerctl audit tail, on the host"},
	brokerv1.ErrorReason_ERROR_REASON_DEADLINE_EXCEEDED:         {exitUnknown, "a change may or may not have happened: look before you repeat it, or allow more with --timeout"},
	brokerv1.ErrorReason_ERROR_REASON_REQUEST_ID_REUSED:         {exitUsage, "use a new request_id for a new request"},
	brokerv1.ErrorReason_ERROR_REASON_REQUEST_IN_PROGRESS:       {exitRefused, "the first request with this ID still runs; ask again with the same one for its answer"},
	brokerv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN:           {exitUnknown, "look whether the change happened (containers inspect, images ls), then repeat it with a new request_id if not"},
	brokerv1.ErrorReason_ERROR_REASON_METHOD_UNKNOWN:            {exitFailure, "the broker has no such method, so nobody can be allowed it; brokerctl call --help lists what there is"},
	brokerv1.ErrorReason_ERROR_REASON_STREAM_EXPIRED:            {exitUnavailable, "the stream reached its maximum age; open it again"},
	brokerv1.ErrorReason_ERROR_REASON_SLOW_READER:               {exitFailure, "the output was read too slowly; write it to a file, or ask for less"},
	brokerv1.ErrorReason_ERROR_REASON_SHUTTING_DOWN:             {exitUnavailable, "the broker is stopping; ask again in a moment"},
	brokerv1.ErrorReason_ERROR_REASON_INTERNAL:                  {exitFailure, "a defect of the broker; the operator finds the call in the audit trail"},
	brokerv1.ErrorReason_ERROR_REASON_CANCELLED:                 {exitInterrupted, "the call was broken off; a change may have happened: look before you repeat it"},
	brokerv1.ErrorReason_ERROR_REASON_STATE_UNAVAILABLE:         {exitUnavailable, "nothing was done; the operator must mend the disk of the broker's state folder"},
	brokerv1.ErrorReason_ERROR_REASON_IMAGE_NOT_FOUND:           {exitNotFound, "brokerctl images ls lists what is here; for a pull, check the name and the tag at the registry"},
	brokerv1.ErrorReason_ERROR_REASON_IMAGE_IN_USE:              {exitRefused, "brokerctl images ls shows by what; remove that container first, or use --force if it is stopped"},
	brokerv1.ErrorReason_ERROR_REASON_REGISTRY_NOT_REGISTERED:   {exitRefused, "ask root to name this registry under registries in brokerd.yaml"},
	brokerv1.ErrorReason_ERROR_REASON_REGISTRY_DENIED:           {exitRefused, "ask root for credentials under registries in brokerd.yaml; to some registries an image that is not there looks the same"},
	brokerv1.ErrorReason_ERROR_REASON_REGISTRY_UNAVAILABLE:      {exitUnavailable, "pull again; layers that arrived whole need not come again"},
	brokerv1.ErrorReason_ERROR_REASON_INSUFFICIENT_SPACE:        {exitRefused, "brokerctl engine df shows what takes space, brokerctl engine prune frees some"},
	brokerv1.ErrorReason_ERROR_REASON_OPERATION_NOT_FOUND:       {exitNotFound, "brokerctl ops ls lists the operations that are kept"},
	brokerv1.ErrorReason_ERROR_REASON_OPERATION_INTERRUPTED:     {exitUnknown, "brokerctl ops show says what was found of it; then begin it again if you still want it"},
	brokerv1.ErrorReason_ERROR_REASON_OPERATION_CANCELLED:       {exitFailure, "begin it again if you still want it; with --detach it does not hang on this command"},
	brokerv1.ErrorReason_ERROR_REASON_PLAN_CHANGED:              {exitRefused, "it is no longer what was shown, and stays; ask again and look at what is shown now"},
	brokerv1.ErrorReason_ERROR_REASON_HOST_UNAVAILABLE:          {exitUnavailable, "brokerhost, which reads the host's own state, does not answer; the broker recovers by itself when it does"},
	brokerv1.ErrorReason_ERROR_REASON_TOOL_MISSING:              {exitRefused, "the operator finds why with brokerhost check, on the host"},
	brokerv1.ErrorReason_ERROR_REASON_TOOL_TIMEOUT:              {exitUnknown, "nothing was changed; ask again, or for less at a time"},
	brokerv1.ErrorReason_ERROR_REASON_TOOL_OUTPUT_TOO_LARGE:     {exitRefused, "ask for less at a time; of the journal with --since, --until or -n"},
	brokerv1.ErrorReason_ERROR_REASON_TOOL_FAILED:               {exitFailure, "the tool's own words are in the audit trail: brokerctl audit tail, on the host"},
	brokerv1.ErrorReason_ERROR_REASON_TOOL_OUTPUT_INVALID:       {exitFailure, "where is in the audit trail: brokerctl audit tail, on the host"},
	brokerv1.ErrorReason_ERROR_REASON_HOST_BUSY:                 {exitRefused, "as many of the host's tools run as may at once; ask again"},
	brokerv1.ErrorReason_ERROR_REASON_FAIL2BAN_MISSING:          {exitRefused, "the host has no fail2ban, or its socket is elsewhere: brokerhost check, on the host"},
	brokerv1.ErrorReason_ERROR_REASON_FAIL2BAN_STOPPED:          {exitUnavailable, "fail2ban was stopped or has died: brokerctl journal units/fail2ban.service; start it and ask again"},
	brokerv1.ErrorReason_ERROR_REASON_JAIL_NOT_FOUND:            {exitNotFound, "brokerctl fail2ban status lists the jails that you can reach"},
	brokerv1.ErrorReason_ERROR_REASON_FAIL2BAN_ANSWER_TRUNCATED: {exitUnavailable, "fail2ban hung up in the middle; ask again"},
	brokerv1.ErrorReason_ERROR_REASON_FAIL2BAN_ANSWER_INVALID:   {exitFailure, "nothing of the answer was used; the operator must look at fail2ban"},
	brokerv1.ErrorReason_ERROR_REASON_RULES_CHANGED:             {exitRefused, "somebody is changing the rules; ask again when that is over"},
}

// adviceForCode is for errors without a reason: those of the connection, of this
// side's deadline, or of a server that is no broker.
var adviceForCode = map[codes.Code]advice{
	codes.Unavailable:        {exitUnavailable, "brokerctl doctor tests the way to the broker step by step"},
	codes.DeadlineExceeded:   {exitUnknown, "a change may or may not have happened: look before you repeat it, or allow more with --timeout"},
	codes.Canceled:           {exitInterrupted, "a change may have happened: look before you repeat it"},
	codes.PermissionDenied:   {exitDenied, "brokerctl whoami lists your grants"},
	codes.Unauthenticated:    {exitDenied, "brokerctl doctor checks the certificate"},
	codes.InvalidArgument:    {exitUsage, "correct the value and ask again"},
	codes.NotFound:           {exitNotFound, "the ls commands list what you can reach"},
	codes.FailedPrecondition: {exitRefused, "brokerctl whoami and brokerctl containers inspect show the state"},
	codes.ResourceExhausted:  {exitRefused, "wait, or ask for less at a time"},
	codes.Aborted:            {exitRefused, "ask again"},
	codes.Unimplemented:      {exitFailure, "the server has no such method; brokerctl version compares the versions"},
}

// classify finds the exit code, the words and the hint for an error.
func classify(err error) (code int, why, hint string) {
	var f *failure
	if errors.As(err, &f) {
		return f.code, err.Error(), f.hint
	}
	var remote interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &remote) {
		if errors.Is(err, context.Canceled) {
			return exitInterrupted, "interrupted", ""
		}
		return exitFailure, err.Error(), ""
	}
	st := remote.GRPCStatus()
	// What was being done stands before the status in err's text.
	what, _, _ := strings.Cut(err.Error(), "rpc error: ")
	why = what + st.Message()
	reason := client.Reason(err)
	adv, ok := adviceFor[reason]
	if !ok {
		if adv, ok = adviceForCode[st.Code()]; !ok {
			adv = advice{exitFailure, "brokerctl doctor looks for the cause"}
		}
		return adv.code, why + " [" + st.Code().String() + "]", adv.hint
	}
	why += " [" + strings.TrimPrefix(reason.String(), "ERROR_REASON_") + "]"
	hint = adv.hint
	if after, ok := client.RetryAfter(err); ok {
		hint += fmt.Sprintf(" (in %s)", shortDuration(after))
	}
	metadata := client.ErrorMetadata(err)
	for _, key := range slices.Sorted(maps.Keys(metadata)) {
		if !strings.Contains(why, metadata[key]) {
			why += fmt.Sprintf(" %s=%s", key, metadata[key])
		}
	}
	return adv.code, why, hint
}

// report prints an error, if there is one, and returns the exit code.
func (a *app) report(ctx context.Context, err error) int {
	if err == nil {
		return exitOK
	}
	code, why, hint := classify(err)
	if f := (*failure)(nil); errors.As(err, &f) && f.err == nil {
		return code
	}
	if ctx.Err() != nil {
		fmt.Fprintln(a.stderr, "brokerctl: interrupted")
		if a.changing {
			fmt.Fprintln(a.stderr, "hint: a change was under way and may have happened: look before you repeat it")
		}
		return exitInterrupted
	}
	fmt.Fprintf(a.stderr, "brokerctl: %s\n", termclean.String(why))
	if hint != "" {
		fmt.Fprintf(a.stderr, "hint: %s\n", termclean.String(hint))
	}
	return code
}
