package redact

import (
	"bytes"
	"regexp"
	"strings"
)

// keyLiterals are what the keys of keyValue begin with.
var keyLiterals = []string{
	"pass", "pwd", "secret", "token", "auth", "credential",
	"apikey", "api_key", "api-key",
	"accesskey", "access_key", "access-key",
	"privatekey", "private_key", "private-key",
}

// keyValue is a key, what separates it from its value, and the value in one of
// four groups: in quotes, in escaped quotes (JSON in a string), or bare. The
// scheme of an Authorization header comes before the value.
//
// It is tried only where a key begins, for running it over a whole line costs a
// hundred times as much. A failed try looks no further than the separator, and a
// match is not tried again inside: a line takes linear time.
var keyValue = regexp.MustCompile(`^(?i)` +
	`(password|passwd|passphrase|pass|pwd|secret|token|(?:api|access|private)[_-]?key|authorization|auth|credentials?)` +
	`\\*["']?\s*(?:=>|:=|[:=])\s*` +
	`(?:(?:basic|bearer|digest|negotiate|token|apikey)\s+)?` +
	`(?:"((?:[^"\\]|\\.)+)|'([^']+)|\\+["']([^"'\\]+)|((?:[^\s"'\\]|\\[^"'])+))`)

// findValues appends the spans of values, given where keys may begin.
func findValues(text []byte, keys []int, spans []span) []span {
	done := 0
	for _, at := range keys {
		if at < done {
			continue
		}
		match := keyValue.FindSubmatchIndex(text[at:])
		if match == nil {
			continue
		}
		key := text[at : at+match[3]]
		if isShortKey(key) && at > 0 && isAlphanumeric(text[at-1]) { // compass, oauth
			continue
		}
		for i := 4; i < len(match); i += 2 {
			if match[i] < 0 {
				continue
			}
			value := span{at + match[i], at + match[i+1]}
			done = value.end
			if !isHarmless(key, text[value.start:value.end]) {
				spans = append(spans, value)
			}
		}
	}
	return spans
}

// isShortKey reports whether key is too short to be looked for inside a word.
func isShortKey(key []byte) bool { return len(key) <= len("auth") }

func isAlphanumeric(b byte) bool {
	return '0' <= b && b <= '9' || 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z'
}

// isHarmless reports whether the value of key cannot be a secret.
func isHarmless(key, value []byte) bool {
	value = bytes.Trim(value, "{}[](),;")
	switch strings.ToLower(string(value)) {
	case "", "true", "false", "null", "nil", "none", "undefined":
		return true
	}
	// Models print the numbers of tokens: "BOS token = 151643".
	return bytes.EqualFold(key, []byte("token")) && len(value) < 10 && len(bytes.Trim(value, "0123456789")) == 0
}
