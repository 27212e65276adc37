package jail

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/page"
)

var (
	nameSyntax    = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$`)
	versionSyntax = regexp.MustCompile(`^[0-9][0-9a-zA-Z.+~-]{0,63}$`)
	// ignoredSyntax is an address, a network or a name of the DNS.
	ignoredSyntax = regexp.MustCompile(`^[a-zA-Z0-9.:/_-]{1,255}$`)
	banSyntax     = regexp.MustCompile(`^(\S+) \t(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) \+ (-?\d{1,15}) = (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)$`)
)

const (
	maxText     = 4096
	maxSeconds  = 315_576_000_000 // A Duration's.
	lastInstant = 253_402_300_799 // A Timestamp's: the end of the year 9999.
)

func versionOf(v any) (string, error) {
	s, _ := v.(string)
	if !versionSyntax.MatchString(s) {
		return "", errors.New("no version")
	}
	return s, nil
}

// namesOf are the jails of a status, by name, without those whose name is not in
// the grammar. fail2ban joins the names with ", ", so that its count must tell
// whether a name holds that itself: half of such a one can look like a setting,
// "dbfile", that answers in a jail's place.
func namesOf(v any) ([]string, error) {
	f, err := fieldsOf(v)
	if err != nil {
		return nil, err
	}
	n, err := countOf(f["Number of jail"])
	if err != nil {
		return nil, err
	}
	joined, ok := f["Jail list"].(string)
	if !ok {
		return nil, errors.New("no list of jails")
	}
	var names []string
	if joined != "" {
		names = strings.Split(joined, ", ")
	}
	if int64(len(names)) != n {
		return nil, fmt.Errorf("%d names for %d jails", len(names), n)
	}
	names = slices.DeleteFunc(names, func(s string) bool { return !nameSyntax.MatchString(s) })
	slices.Sort(names)
	return slices.Compact(names), nil
}

// status is what "status JAIL" says, the texts as they came.
type status struct {
	counters       *brokerv1.JailCounters
	files, matches []string
}

func statusOf(v any) (*status, error) {
	halves, err := fieldsOf(v)
	if err != nil {
		return nil, err
	}
	filter, err := fieldsOf(halves["Filter"])
	if err != nil {
		return nil, err
	}
	actions, err := fieldsOf(halves["Actions"])
	if err != nil {
		return nil, err
	}
	s := &status{counters: &brokerv1.JailCounters{}}
	for _, c := range []struct {
		to   *int64
		from any
	}{
		{&s.counters.CurrentlyFailed, filter["Currently failed"]},
		{&s.counters.TotalFailed, filter["Total failed"]},
		{&s.counters.CurrentlyBanned, actions["Currently banned"]},
		{&s.counters.TotalBanned, actions["Total banned"]},
	} {
		if *c.to, err = countOf(c.from); err != nil {
			return nil, err
		}
	}
	for label, to := range map[string]*[]string{"File list": &s.files, "Journal matches": &s.matches} {
		if v, there := filter[label]; there { // Each kind of jail has its own.
			if *to, err = stringsOf(v); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

// durationOf is a number of seconds; nil is for ever. Those that were configured
// with a fraction ("1.5h") or in months are floating-point numbers.
func durationOf(v any) (*durationpb.Duration, error) {
	seconds, ok := v.(float64)
	if n, whole := v.(int64); whole {
		seconds, ok = float64(n), true // Exact, as far as a Duration goes.
	}
	switch {
	case !ok:
		return nil, fmt.Errorf("no time but a %T", v)
	case seconds < 0:
		return nil, nil
	case !(seconds <= maxSeconds): // Or not a number.
		return nil, errors.New("a time beyond all bounds")
	}
	whole, fraction := math.Modf(seconds)
	return &durationpb.Duration{Seconds: int64(whole), Nanos: int32(fraction * 1e9)}, nil
}

func countOf(v any) (int64, error) {
	if n, ok := v.(int64); ok && n >= 0 {
		return n, nil
	}
	return 0, fmt.Errorf("no count but a %T", v)
}

// bansOf are the lines of "get JAIL banip --with-time", by address.
func bansOf(v any) ([]page.Item[*brokerv1.Ban], error) {
	if s, ok := v.(string); ok {
		v = list{}
		for line := range strings.Lines(s) {
			v = append(v.(list), strings.TrimSuffix(line, "\n"))
		}
	}
	lines, err := stringsOf(v)
	if err != nil {
		return nil, err
	}
	var bans []page.Item[*brokerv1.Ban]
	for _, line := range lines {
		b, err := banOf(line)
		if err != nil {
			return nil, err
		}
		bans = append(bans, b)
	}
	page.Sort(bans)
	for i := range bans[min(1, len(bans)):] {
		if bans[i].Key == bans[i+1].Key {
			return nil, fmt.Errorf("%s is banned twice", bans[i].Value.GetAddress())
		}
	}
	return bans, nil
}

// banOf reads "ADDRESS \tSTART + SECONDS = END". The times are fail2ban's local
// ones and name no zone: they are the host's, which time.Local must be too. The
// end is counted from the start, so that a change to or from summer time within
// the ban does not move it. SECONDS below zero is for ever, as is an end behind
// the year 9999, which fail2ban does not write.
func banOf(line string) (item page.Item[*brokerv1.Ban], err error) {
	m := banSyntax.FindStringSubmatch(line)
	if m == nil {
		return item, fmt.Errorf("the line %.200q", line)
	}
	prefix, err := netip.ParsePrefix(m[1])
	shown := prefix.String()
	if err != nil {
		addr, err := netip.ParseAddr(m[1])
		if err != nil || addr.Zone() != "" {
			return item, fmt.Errorf("the address %.200q", m[1])
		}
		prefix, shown = netip.PrefixFrom(addr, addr.BitLen()), addr.String()
	}
	start, err := time.ParseInLocation(time.DateTime, m[2], time.Local)
	if err != nil || timestamppb.New(start).CheckValid() != nil {
		return item, fmt.Errorf("the start %q", m[2])
	}
	if _, err := time.Parse(time.DateTime, m[4]); err != nil {
		return item, fmt.Errorf("the end %q", m[4])
	}
	seconds, _ := strconv.ParseInt(m[3], 10, 64) // The pattern keeps it within bounds.
	ban := &brokerv1.Ban{Address: shown, BanTime: timestamppb.New(start)}
	if end := start.Unix() + seconds; seconds >= 0 && end <= lastInstant {
		ban.ExpireTime = &timestamppb.Timestamp{Seconds: end}
	}
	key := append([]byte{byte(prefix.Addr().BitLen())}, prefix.Addr().AsSlice()...)
	return page.Item[*brokerv1.Ban]{Key: string(append(key, byte(prefix.Bits()))), Value: ban}, nil
}

// fieldsOf reads a list of pairs of a name and a value.
func fieldsOf(v any) (map[string]any, error) {
	pairs, ok := v.(list)
	if !ok {
		return nil, fmt.Errorf("no fields but a %T", v)
	}
	fields := map[string]any{}
	for _, p := range pairs {
		pair, _ := p.(tuple)
		if len(pair) != 2 {
			return nil, errors.New("a field that is no pair")
		}
		name, ok := pair[0].(string)
		if _, twice := fields[name]; !ok || twice {
			return nil, fmt.Errorf("a field of the name %.200q", fmt.Sprint(pair[0]))
		}
		fields[name] = pair[1]
	}
	return fields, nil
}

func stringsOf(v any) ([]string, error) {
	all, ok := v.(list)
	if !ok {
		return nil, fmt.Errorf("no list but a %T", v)
	}
	var out []string
	for _, a := range all {
		s, ok := a.(string)
		if !ok {
			return nil, fmt.Errorf("no text but a %T", a)
		}
		out = append(out, s)
	}
	return out, nil
}

// isText reports whether a text is fit to be shown: nothing in it moves a cursor.
func isText(s string) bool {
	return s != "" && len(s) <= maxText && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
