// Package call is what a handler knows of the call it serves.
//
// The chain puts a Scope into the context; handlers ask it which names they may
// show and, before they change anything, for leave to act. A context without a
// Scope allows nothing, so a handler that is reached past the chain can neither
// show nor change anything.
package call

import (
	"context"
	"time"

	"github.com/gortium/hermes-broker/server/fault"
)

// Scope is a call as the chain sees it.
type Scope interface {
	// Visible reports whether the call may show the resource, "containers/db".
	// It asks for the permission that the called method declares.
	Visible(resource string) bool
	// Permits reports whether the caller has a further permission, that the called
	// method does not declare, on a resource: for what a call shows or removes item
	// by item.
	Permits(permission, resource string) bool
	// Denied reports whether a rule forbids the called method's permission on what
	// its resource turned out to be, such as the digest behind a tag.
	Denied(resource string) bool
	// Still reports whether the call would be let through now, for what it does
	// thing by thing. An error is ready for the caller, and means: do no more.
	Still() error
	// Others reports whether the call may be about another caller's object: whether
	// the caller has the permission that the method declares for that. From then
	// on the call depends on it.
	Others() bool
	// Intend records that the call is about to change the target, and returns
	// when the record is on disk. An error is ready for the caller, and means:
	// do nothing.
	Intend(ctx context.Context, target string) error
	// Note adds text for root's eyes to the call's audit record.
	Note(detail string)
	// Caller is who calls.
	Caller() Caller
	// ID names the call in the audit trail.
	ID() string
}

// Caller is a verified caller.
type Caller struct {
	// ID is the SPIFFE ID.
	ID string
	// Serial is the certificate's serial number, lower-case hexadecimal.
	Serial string
	// NotAfter is when the certificate expires.
	NotAfter time.Time
	// Address is where the call came from: "198.18.0.5:40112", or "unix".
	Address string
}

type scopeKey struct{}
type intendedKey struct{}

// With returns a context that carries the scope.
func With(ctx context.Context, s Scope) context.Context {
	return context.WithValue(ctx, scopeKey{}, s)
}

func from(ctx context.Context) Scope {
	if s, ok := ctx.Value(scopeKey{}).(Scope); ok {
		return s
	}
	return nothing{}
}

// Visible reports whether the call may show the resource.
func Visible(ctx context.Context, resource string) bool { return from(ctx).Visible(resource) }

// Permits reports whether the caller has a further permission on a resource.
func Permits(ctx context.Context, permission, resource string) bool {
	return from(ctx).Permits(permission, resource)
}

// Denied reports whether a rule forbids what the resource turned out to be.
func Denied(ctx context.Context, resource string) bool { return from(ctx).Denied(resource) }

// Still reports whether the call would be let through now.
func Still(ctx context.Context) error { return from(ctx).Still() }

// Others reports whether the call may be about another caller's object.
func Others(ctx context.Context) bool { return from(ctx).Others() }

// Note adds text for root's eyes to the call's audit record.
func Note(ctx context.Context, detail string) { from(ctx).Note(detail) }

// From is who calls.
func From(ctx context.Context) Caller { return from(ctx).Caller() }

// ID names the call in the audit trail.
func ID(ctx context.Context) string { return from(ctx).ID() }

// Intend records the intent to change the target. The context it returns is the
// only kind with which the engine's transport lets a change through.
func Intend(ctx context.Context, target string) (context.Context, error) {
	if err := from(ctx).Intend(ctx, target); err != nil {
		return nil, err
	}
	return context.WithValue(ctx, intendedKey{}, true), nil
}

// Intended reports whether the context came from Intend.
func Intended(ctx context.Context) bool { return ctx.Value(intendedKey{}) != nil }

type nothing struct{}

func (nothing) Visible(string) bool                  { return false }
func (nothing) Permits(string, string) bool          { return false }
func (nothing) Denied(string) bool                   { return true }
func (nothing) Others() bool                         { return false }
func (nothing) Still() error                         { return fault.Internal("none") }
func (nothing) Intend(context.Context, string) error { return fault.Internal("none") }
func (nothing) Note(string)                          {}
func (nothing) Caller() Caller                       { return Caller{} }
func (nothing) ID() string                           { return "none" }
