package journal

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

const (
	messageBytes = 16 << 10 // Of a message, that are kept.
	fieldBytes   = 512      // Of any other field.
)

var errMalformed = errors.New("malformed entry")

// scanner reads entries as `journalctl -o json` writes them: an object a line, its
// values strings, null, arrays of numbers for what is no text, and arrays of these
// for a field that is there more than once. A value of any length is read in bounded
// memory: what is too long is skipped, which the standard library's reader cannot.
type scanner struct {
	r *bufio.Reader
	// Reused: the value that is being read, of which most bytes are kept.
	value []byte
	most  int
	cut   bool
}

func newScanner(r io.Reader) *scanner { return &scanner{r: bufio.NewReaderSize(r, 64<<10)} }

// idle reports whether the next entry has to be waited for.
func (s *scanner) idle() bool {
	for s.r.Buffered() > 0 {
		if c, _ := s.r.Peek(1); c[0] != '\n' {
			return false
		}
		_, _ = s.r.Discard(1)
	}
	return true
}

// next is the next entry, or io.EOF. What the engine wrote for a container is left
// out: its log driver puts the output of all containers under the engine's own unit,
// and that output is for those who may read the container's logs.
func (s *scanner) next() (*brokerv1.JournalEntry, error) {
	for {
		e, err := s.object()
		if err != nil || e != nil {
			return e, err
		}
	}
}

// object is the next entry, or nil for one that is left out.
func (s *scanner) object() (*brokerv1.JournalEntry, error) {
	switch c, err := s.token(); {
	case err != nil:
		return nil, err
	case c != '{':
		return nil, s.odd(c)
	}
	f := fields{}
	for first := true; ; first = false {
		c, err := s.token()
		switch {
		case err != nil:
			return nil, whole(err)
		case c == '}':
			if _, ofContainer := f["CONTAINER_ID"]; ofContainer {
				return nil, nil
			}
			return f.entry()
		case !first && c == ',':
			if c, err = s.token(); err != nil {
				return nil, whole(err)
			}
		case !first:
			return nil, s.odd(c)
		}
		if c != '"' {
			return nil, s.odd(c)
		}
		if err := s.field(f); err != nil {
			return nil, whole(err)
		}
	}
}

// whole makes the end of input in the middle of an entry an error.
func whole(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it breaks off", errMalformed)
	}
	return err
}

func (s *scanner) odd(c byte) error { return fmt.Errorf("%w: unexpected %q", errMalformed, c) }

// token is the next byte that is no white space.
func (s *scanner) token() (byte, error) {
	for {
		c, err := s.r.ReadByte()
		if err != nil || c != ' ' && c != '\n' && c != '\t' && c != '\r' {
			return c, err
		}
	}
}

// field reads a name behind its quote, and its value.
func (s *scanner) field(f fields) error {
	if err := s.text(fieldBytes); err != nil {
		return err
	}
	name := string(s.value)
	switch c, err := s.token(); {
	case err != nil:
		return err
	case c != ':':
		return s.odd(c)
	}
	keep := fieldBytes
	if name == "MESSAGE" {
		keep = messageBytes
	}
	found, err := s.read(keep, 0)
	if err != nil {
		return err
	}
	if _, twice := f[name]; found && !twice && wanted[name] {
		f[name] = field{string(s.value), s.cut}
	}
	return nil
}

// read reads a value. Of an array of values it keeps the first.
func (s *scanner) read(most, depth int) (found bool, err error) {
	c, err := s.token()
	if err != nil {
		return false, err
	}
	switch {
	case c == '"':
		return true, s.text(most)
	case c == 'n':
		for _, want := range []byte("ull") {
			switch c, err := s.r.ReadByte(); {
			case err != nil:
				return false, err
			case c != want:
				return false, s.odd(c)
			}
		}
		return false, nil
	case c == '[' && depth < 2:
		return s.array(most, depth)
	}
	return false, s.odd(c)
}

// array reads an array behind its bracket: the bytes of one value, or values.
func (s *scanner) array(most, depth int) (found bool, err error) {
	c, err := s.token()
	if err != nil {
		return false, err
	}
	if c == ']' {
		s.begin(most)
		return true, nil
	}
	if c >= '0' && c <= '9' {
		return true, s.numbers(most, c)
	}
	var first []byte
	cut := false
	for {
		if err := s.r.UnreadByte(); err != nil {
			return false, err
		}
		keep := most
		if found {
			keep = 0
		}
		this, err := s.read(keep, depth+1)
		if err != nil {
			return false, err
		}
		if this && !found {
			found, first, cut = true, append([]byte(nil), s.value...), s.cut
		}
		switch c, err := s.token(); {
		case err != nil:
			return false, err
		case c == ']':
			s.value, s.cut = append(s.value[:0], first...), cut
			return found, nil
		case c != ',':
			return false, s.odd(c)
		}
		if _, err := s.token(); err != nil {
			return false, err
		}
	}
}

// numbers reads the bytes of a value, of which the first digit was read.
func (s *scanner) numbers(most int, c byte) error {
	s.begin(most)
	for n := 0; ; {
		var err error
		switch {
		case c >= '0' && c <= '9':
			if n = n*10 + int(c-'0'); n > 255 {
				return fmt.Errorf("%w: a byte of %d", errMalformed, n)
			}
		case c == ',' || c == ']':
			s.put(byte(n))
			if n = 0; c == ']' {
				return nil
			}
			if c, err = s.token(); err != nil {
				return err
			}
			if c < '0' || c > '9' {
				return s.odd(c)
			}
			continue
		default:
			return s.odd(c)
		}
		// Digits stand together; white space may only follow them.
		if c, err = s.r.ReadByte(); err != nil {
			return err
		}
		if c == ' ' {
			if c, err = s.token(); err != nil {
				return err
			}
			if c != ',' && c != ']' {
				return s.odd(c)
			}
		}
	}
}

func (s *scanner) begin(most int) { s.value, s.most, s.cut = s.value[:0], most, false }

func (s *scanner) put(b ...byte) {
	if len(s.value)+len(b) > s.most {
		s.cut, s.most = true, 0 // Nothing behind the cut, not even what would fit.
		return
	}
	s.value = append(s.value, b...)
}

// text reads a string behind its quote.
func (s *scanner) text(most int) error {
	s.begin(most)
	for {
		c, err := s.r.ReadByte()
		switch {
		case err != nil:
			return err
		case c == '"':
			return nil
		case c == '\\':
			if err := s.escape(); err != nil {
				return err
			}
		case c < ' ':
			return s.odd(c)
		default:
			s.put(c)
		}
	}
}

var escapes = map[byte]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

func (s *scanner) escape() error {
	c, err := s.r.ReadByte()
	if err != nil {
		return err
	}
	if plain, ok := escapes[c]; ok {
		s.put(plain)
		return nil
	}
	if c != 'u' {
		return s.odd(c)
	}
	r, err := s.hex()
	if err != nil {
		return err
	}
	if utf16.IsSurrogate(r) {
		// Its other half must follow; alone it is no character.
		high := r
		r = utf8.RuneError
		if next, _ := s.r.Peek(6); len(next) == 6 && string(next[:2]) == `\u` {
			low, err := strconv.ParseUint(string(next[2:]), 16, 16)
			if pair := utf16.DecodeRune(high, rune(low)); err == nil && pair != utf8.RuneError {
				_, _ = s.r.Discard(6)
				r = pair
			}
		}
	}
	var b [utf8.UTFMax]byte
	s.put(b[:utf8.EncodeRune(b[:], r)]...)
	return nil
}

func (s *scanner) hex() (rune, error) {
	digits, err := s.r.Peek(4)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(string(digits), 16, 16)
	if err != nil {
		return 0, fmt.Errorf("%w: no four hexadecimal digits", errMalformed)
	}
	_, _ = s.r.Discard(4)
	return rune(n), nil
}

// fields are an entry's, by their names in the journal.
type fields map[string]field

type field struct {
	text string
	cut  bool
}

// wanted are the fields that make a typed entry.
var wanted = map[string]bool{
	"MESSAGE": true, "PRIORITY": true, "SYSLOG_IDENTIFIER": true, "_COMM": true, "SYSLOG_PID": true, "_PID": true, "_SYSTEMD_UNIT": true,
	"__CURSOR": true, "__REALTIME_TIMESTAMP": true, "CONTAINER_ID": true,
}

// entry is the typed entry.
func (f fields) entry() (*brokerv1.JournalEntry, error) {
	us, err := strconv.ParseInt(f["__REALTIME_TIMESTAMP"].text, 10, 64)
	if err != nil || us < 0 || !cursorSyntax.MatchString(f["__CURSOR"].text) {
		return nil, fmt.Errorf("%w: no time or no cursor", errMalformed)
	}
	e := &brokerv1.JournalEntry{
		EntryTime: timestamppb.New(time.UnixMicro(us)), Cursor: f["__CURSOR"].text,
		Unit: clean(f["_SYSTEMD_UNIT"].text), Identifier: clean(f["SYSLOG_IDENTIFIER"].text),
		Message: []byte(f["MESSAGE"].text), Truncated: f["MESSAGE"].cut,
	}
	if e.Identifier == "" {
		e.Identifier = clean(f["_COMM"].text)
	}
	// The journal knows who wrote it; of the kernel's and of what came from afar
	// only the writer's word is there.
	for _, name := range []string{"_PID", "SYSLOG_PID"} {
		if pid, err := strconv.ParseInt(f[name].text, 10, 32); err == nil && pid > 0 && e.Pid == 0 {
			e.Pid = pid
		}
	}
	if p, err := strconv.Atoi(f["PRIORITY"].text); err == nil && p >= 0 && p <= 7 {
		e.Priority = brokerv1.JournalPriority(p + 1)
	}
	return e, nil
}

// clean makes text of what may be anything.
func clean(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
