// Package page cuts lists into pages, and matches the patterns that filter them.
package page

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/gortium/hermes-broker/server/fault"
)

const (
	defaultPage = 50
	maxPage     = 500
	pageBytes   = 1 << 20 // A page ends early rather than exceed this.
	hashLen     = 8
)

// Request is the request of every list.
type Request interface {
	proto.Message
	GetPageSize() int32
	GetPageToken() string
}

// Item is an item of a list with its place in it: items are sorted by key, each
// key is there once and stays with its item.
type Item[T proto.Message] struct {
	Key   string
	Value T
}

// Pager cuts a list into pages. A page begins behind the last item of the one
// before, which may be gone by now. Its token is that item's key and a
// fingerprint of key and filters: it says nothing that the page before did not
// show, so it needs no secret.
type Pager struct {
	req   Request
	size  int
	after string
}

// New reads what page a request asks for.
func New(req Request) (Pager, error) {
	p := Pager{req: req, size: int(req.GetPageSize())}
	switch {
	case p.size < 0:
		return p, fault.Invalid("page_size", "give 1 to 500, or 0 for 50")
	case p.size == 0:
		p.size = defaultPage
	case p.size > maxPage:
		p.size = maxPage
	}
	if req.GetPageToken() == "" {
		return p, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(req.GetPageToken())
	if err == nil && len(b) > hashLen {
		p.after = string(b[hashLen:])
	}
	if p.after == "" || p.token(p.after) != req.GetPageToken() {
		return p, fault.Invalid("page_token", "it is not one of this list; repeat the filters of the page that it came with, or begin again without it")
	}
	return p, nil
}

// After is the key of the last item of the page before, or "". A list whose keys
// say what they were cut from can tell by it that this has changed.
func (p *Pager) After() string { return p.after }

// token asks for the page behind an item.
func (p *Pager) token(key string) string {
	r := proto.Clone(p.req).ProtoReflect()
	for _, name := range []protoreflect.Name{"page_size", "page_token"} {
		r.Clear(r.Descriptor().Fields().ByName(name))
	}
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(r.Interface())
	sum := sha256.Sum256(append(b, key...))
	return base64.RawURLEncoding.EncodeToString(append(sum[:hashLen], key...))
}

// Cut gives the next page of a sorted list, of the items that show lets through.
func Cut[T proto.Message](p Pager, all []Item[T], show func(T) bool) (page []T, nextToken string) {
	bytes, last := 0, ""
	for _, k := range all {
		if p.after != "" && k.Key <= p.after || !show(k.Value) {
			continue
		}
		if bytes += proto.Size(k.Value); len(page) == p.size || bytes > pageBytes && len(page) > 0 {
			return page, p.token(last)
		}
		page, last = append(page, k.Value), k.Key
	}
	return page, ""
}

// CheckGlob refuses a pattern with characters that only look like wildcards.
func CheckGlob(field, pattern, forbidden string, most int) error {
	if strings.ContainsAny(pattern, forbidden) || len(pattern) > most {
		return fault.Invalid(field, fmt.Sprintf(`give at most %d characters of a name; "*" is the only wildcard`, most))
	}
	return nil
}

// What a pattern over names, or over references of images, may not hold.
const (
	NotInNames      = `/?[]{}\`
	NotInReferences = `?[]{}\`
)

// Newest is a key by which the newest comes first.
func Newest(created time.Time, id string) string {
	const sign = 1 << 63 // So that times before 1970 are the older ones.
	b := binary.BigEndian.AppendUint64(nil, ^(uint64(created.Unix()) ^ sign))
	return string(binary.BigEndian.AppendUint32(b, ^uint32(created.Nanosecond()))) + id
}

// Sort sorts items by their keys.
func Sort[T proto.Message](all []Item[T]) []Item[T] {
	slices.SortFunc(all, func(a, b Item[T]) int { return cmp.Compare(a.Key, b.Key) })
	return all
}

// Match matches a glob whose only wildcard is "*", in time proportional to
// the name's length times the number of stars.
func Match(pattern, name string) bool {
	parts := strings.Split(pattern, "*")
	rest, ok := strings.CutPrefix(name, parts[0])
	if !ok || len(parts) == 1 {
		return ok && rest == ""
	}
	for _, p := range parts[1 : len(parts)-1] {
		_, tail, ok := strings.Cut(rest, p)
		if !ok {
			return false
		}
		rest = tail
	}
	return strings.HasSuffix(rest, parts[len(parts)-1])
}
