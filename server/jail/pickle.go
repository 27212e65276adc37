package jail

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"

	pickle "github.com/kisielk/og-rek"
)

// A decoded answer is made of nil, bool, int64, float64, string, and these.
type (
	list  []any
	tuple []any
)

const (
	maxDepth = 32      // Of tuples and lists within each other; fail2ban's need six.
	maxWork  = 8 << 20 // Bytes of strings, and workPer for each value, repeated ones each time;
	maxShare = 16      // and for each byte of the answer no more than this.
	workPer  = 8
)

// refusal is what fail2ban says instead of an answer: the exception that its own
// code raised. Its words are for root alone.
type refusal struct{ class, words string }

func (r *refusal) Error() string { return fmt.Sprintf("it is %s: %.200q", r.class, r.words) }

const unknownJail = "fail2ban.exceptions.UnknownJailException"

// errStopping is the answer of a fail2ban that shuts down.
var errStopping = errors.New("it is the word for a shutdown")

// exceptionClass matches the exceptions of fail2ban, and of Python itself, whose
// module was called "exceptions" in Python 2.
var exceptionClass = regexp.MustCompile(`^(?:fail2ban\.exceptions|builtins|exceptions)\.(?:[A-Z][a-zA-Z]{0,60})?(?:Exception|Error)$`)

// isString: fail2ban sends an address as str('192.0.2.1'). The second name is
// Python 2's.
func isString(class string) bool { return class == "builtins.str" || class == "__builtin__.str" }

// isAllowed reports whether an answer may name a class.
func isAllowed(class string) bool { return isString(class) || exceptionClass.MatchString(class) }

// answer decodes an answer, a pickle of (0, value) or (1, exception). A value holds
// nothing outside of the closed set; the exception is a *refusal; any other error
// is what is wrong with the answer, for root's eyes. Whatever answer gives, nothing
// was executed or looked up.
func answer(b []byte) (v any, err error) {
	defer func() {
		if r := recover(); r != nil { // The decoder's own, on what it did not expect.
			v, err = nil, fmt.Errorf("the decoder panics: %.200q", fmt.Sprint(r))
		}
	}()
	if len(b) > maxAnswer {
		return nil, fmt.Errorf("it is longer than %d bytes", maxAnswer)
	}
	if err := scan(b); err != nil {
		return nil, err
	}
	raw, err := pickle.NewDecoder(bytes.NewReader(b)).Decode()
	if err != nil {
		return nil, err
	}
	w := walk{left: min(maxShare*len(b), maxWork)}
	pair, ok := raw.(pickle.Tuple)
	if !ok || len(pair) != 2 {
		v, err := w.value(raw, 0)
		if l, ok := v.(list); ok && len(l) == 1 && l[0] == "SHUTDOWN" {
			err = errStopping
		}
		if err == nil {
			err = fmt.Errorf("it is no pair but %.200q", fmt.Sprint(v))
		}
		return nil, err
	}
	switch pair[0] {
	case int64(0):
		return w.value(pair[1], 0)
	case int64(1):
		return nil, w.exception(pair[1])
	}
	return nil, fmt.Errorf("its code is no 0 or 1 but a %T", pair[0])
}

// walk copies what the decoder made into the closed set. A value that a pickle
// repeats is there once in memory, but each time on the way: the budget bounds it.
type walk struct{ left int }

func (w *walk) value(raw any, depth int) (any, error) {
	if w.left -= workPer; w.left < 0 || depth > maxDepth {
		return nil, errors.New("it holds too much, or too deep")
	}
	switch raw := raw.(type) {
	case pickle.None:
		return nil, nil
	case bool, int64, float64:
		return raw, nil
	case string:
		w.left -= len(raw)
		return raw, nil
	case interface { // A *big.Int: 2^31 and above, and what is too much for int64.
		IsInt64() bool
		Int64() int64
	}:
		if !raw.IsInt64() {
			return nil, errors.New("an integer of more than 64 bits")
		}
		return raw.Int64(), nil
	case []any:
		all, err := w.all(raw, depth)
		if err != nil {
			return nil, err
		}
		return list(all), nil
	case pickle.Tuple:
		all, err := w.all(raw, depth)
		if err != nil {
			return nil, err
		}
		return tuple(all), nil
	case pickle.Call:
		if isString(nameOf(raw.Callable)) && len(raw.Args) == 1 {
			if s, ok := raw.Args[0].(string); ok {
				return w.value(s, depth)
			}
		}
		return nil, fmt.Errorf("a call of %.200q with %d arguments", nameOf(raw.Callable), len(raw.Args))
	case pickle.Class:
		return nil, unknownClass(nameOf(raw))
	}
	return nil, fmt.Errorf("a %T", raw)
}

func (w *walk) all(raw []any, depth int) (all []any, err error) {
	for _, r := range raw {
		v, err := w.value(r, depth+1)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// exception reads the value of an answer with the code 1.
func (w *walk) exception(raw any) error {
	c, ok := raw.(pickle.Call)
	if !ok {
		return fmt.Errorf("its exception is a %T", raw)
	}
	class := nameOf(c.Callable)
	if !exceptionClass.MatchString(class) {
		return fmt.Errorf("its exception is a %.200q", class)
	}
	args, err := w.all(c.Args, 0)
	if err != nil {
		return err
	}
	return &refusal{class: class, words: strings.TrimSpace(fmt.Sprintln(args...))}
}

func nameOf(c pickle.Class) string { return c.Module + "." + c.Name }
