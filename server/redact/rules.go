package redact

import (
	"bytes"
	"regexp"
)

// rule is one kind of secret that is known by its own shape.
type rule struct {
	name string
	// literals: a text without any of them has no such secret. Case is ignored,
	// and each has at least 3 bytes.
	literals []string
	// closed finds a whole secret. The groups are what is replaced, or without
	// groups the whole match.
	closed *regexp.Regexp
	// open finds the beginning of a secret at the end of a piece, or is nil.
	open *regexp.Regexp
	// needs is a byte that closed cannot match without, or 0.
	needs byte
	// keep reports that a match of closed is no secret after all, or is nil.
	keep func(text []byte, match []int) bool
}

func (r *rule) find(text []byte, open bool, spans []span) []span {
	if r.needs == 0 || bytes.IndexByte(text, r.needs) >= 0 {
		for _, match := range r.closed.FindAllSubmatchIndex(text, -1) {
			if r.keep == nil || !r.keep(text, match) {
				spans = appendGroups(spans, match)
			}
		}
	}
	if open && r.open != nil {
		if match := r.open.FindSubmatchIndex(text); match != nil {
			spans = appendGroups(spans, match)
		}
	}
	return spans
}

// token is the rule for tokens that begin with what the pattern prefix matches,
// followed by at least least characters of a class.
func token(name, prefix, class, least string, literals ...string) rule {
	return rule{
		name:     name,
		literals: literals,
		closed:   regexp.MustCompile(prefix + class + `{` + least + `,}`),
		open:     regexp.MustCompile(prefix + class + `*\z`),
	}
}

const (
	alnum = `[A-Za-z0-9]`
	word  = `[A-Za-z0-9_-]` // base64url
)

func builtinRules() []rule {
	return []rule{
		{
			name:     "HTTP credentials",
			literals: []string{"bearer", "basic"},
			closed:   regexp.MustCompile(`(?i)\b(?:bearer|basic)\s+([a-z0-9+/=._~-]{8,})`),
			open:     regexp.MustCompile(`(?i)\b(?:bearer|basic)\s+([a-z0-9+/=._~-]*)\z`),
			keep:     isOrdinaryWord,
		},
		{
			name:     "password in a URL",
			literals: []string{"://"},
			// To the last @ before the path: passwords contain it, too.
			closed: regexp.MustCompile(`://[^\s/?#"'@:]*:([^\s/?#"']+)@`),
			open:   regexp.MustCompile(`://[^\s/?#"'@:]*:([^\s/?#"']*)\z`),
			needs:  '@',
		},
		token("AWS key id", `A[KS]IA`, `[A-Z0-9]`, "16", "akia", "asia"),
		token("GitHub", `gh[pousr]_`, alnum, "20", "ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
		token("GitHub, fine-grained", `github_pat_`, `[A-Za-z0-9_]`, "20", "github_pat_"),
		token("GitLab", `glpat-`, word, "20", "glpat-"),
		token("Slack", `xox[a-z]-`, `[A-Za-z0-9-]`, "10", "xox"),
		token("Slack app", `xapp-`, `[A-Za-z0-9-]`, "10", "xapp-"),
		token("Slack web hook", `hooks\.slack\.com/(?:services|workflows)/`, `[A-Za-z0-9/]`, "10", "hooks.slack.com"),
		token("Google API key", `AIza`, word, "35", "aiza"),
		token("Google OAuth", `(?:ya29\.|GOCSPX-)`, `[A-Za-z0-9._-]`, "20", "ya29.", "gocspx-"),
		token("Hugging Face", `\bhf_`, alnum, "30", "hf_"),
		token("Stripe", `\b[rs]k_(?:live|test)_`, alnum, "10", "sk_live_", "sk_test_", "rk_live_", "rk_test_"),
		token("OpenAI and alike", `\bsk-`, word, "20", "sk-"),
		{
			name:     "JSON Web Token",
			literals: []string{"eyj"},
			closed:   regexp.MustCompile(`eyJ` + word + `+(?:\.` + word + `*){2,4}`),
			open:     regexp.MustCompile(`eyJ[A-Za-z0-9_.-]*\z`),
		},
	}
}

// isOrdinaryWord reports whether what follows Bearer or Basic is a word of the
// language ("basic authentication"), and no credentials.
func isOrdinaryWord(text []byte, match []int) bool {
	value := bytes.TrimRight(text[match[2]:match[3]], ".")
	if len(value) == 0 || len(value) >= 20 {
		return false
	}
	for _, b := range value[1:] {
		if (b < 'a' || b > 'z') && b != '-' {
			return false
		}
	}
	return true
}
