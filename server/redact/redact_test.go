package redact

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func mustNew(t testing.TB, extra ...string) *Rules {
	t.Helper()
	rules, err := New(extra)
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

// canaries have one secret of each kind, written so that the text around it
// cannot become a part of it. SECRET is what may not remain.
var canaries = map[string]struct{ before, secret, after string }{
	"key=value":            {"password=", "hunter2", ""},
	"environment":          {"MYSQL_ROOT_PASSWORD=", "pa,ss;w&rd", ""},
	"key: value":           {"secret: ", "abcdef", ""},
	"key => value":         {"'api_key' => '", "abc def", "'"},
	"key := value":         {"passwd := ", "abcdef", ""},
	"JSON":                 {`{"user":"u","password":"`, `a b\"c`, `","level":"info"}`},
	"JSON, camel case":     {`{"accessToken" : "`, `abc def`, `"}`},
	"JSON in a string":     {`{"msg":"{\"client_secret\": \"`, `abc def`, `\"}"}`},
	"single quotes":        {"{'apikey': '", `abc def`, "'}"},
	"query":                {"GET /?x=1&access_token=", "abcdef", ""},
	"authorization":        {"Authorization: Bearer ", "abc", ""},
	"authorization, quote": {`"Authorization": "`, "Basic YTpi", `"`},
	"auth":                 {"X-Auth: ", "abc", ""},
	"pass":                 {"smtp_pass=", "abc", ""},
	"private key":          {"private-key=", "abc", ""},
	"AWS secret":           {"aws_secret_access_key = ", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", ""},
	"AWS secret, JSON":     {`"SecretAccessKey": "`, "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", `"`},
	"Bearer":               {"curl -H Bearer ", "abc123def456", ""},
	"Basic":                {"sent basic ", "dXNlcjpwYXNzd29yZA==", ""},
	"URL":                  {"postgres://user:", "p@ss:word", "@db:5432/x"},
	"URL, no user":         {"redis://:", "secret", "@cache"},
	"AWS key id":           {"", "AKIAIOSFODNN7EXAMPLE", ""},
	"AWS session key id":   {"", "ASIAIOSFODNN7EXAMPLE", ""},
	"GitHub":               {"", "ghp_16C7e42F292c6912E7710c838347Ae178B4a", ""},
	"GitHub server":        {"", "ghs_16C7e42F292c6912E7710c838347Ae178B4a", ""},
	"GitHub fine-grained":  {"", "github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz", ""},
	"GitLab":               {"", "glpat-abcdefghij_klmnopqrst", ""},
	"Slack":                {"", "xoxb-123456789012-abcdefghijkl", ""},
	"Slack app":            {"", "xapp-1-A0123-456-abcdef", ""},
	"Slack web hook":       {"https://", "hooks.slack.com/services/T000/B000/XXXXXXXX", ""},
	"Google":               {"", "AIzaSyA1234567890abcdefghijklmnopqrstuv", ""},
	"Google OAuth":         {"", "ya29.a0AfH6SMBx1234567890abc", ""},
	"Hugging Face":         {"", "hf_abcdefghijABCDEFGHIJ0123456789abcd", ""},
	"Stripe":               {"", "sk_live_abcdefghij0123", ""},
	"OpenAI":               {"", "sk-proj-abc_def-ghijklmnop1234", ""},
	"JWT":                  {"", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-DEF_123", ""},
	"JWT, unsigned":        {"", "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.", ""},
	"PEM, escaped":         {`key "`, `-----BEGIN RSA PRIVATE KEY-----\nMIIE\nJw==\n-----END RSA PRIVATE KEY-----`, `"`},
}

func TestCanaries(t *testing.T) {
	rules := mustNew(t)
	for name, c := range canaries {
		t.Run(name, func(t *testing.T) {
			line := "12:30 " + c.before + c.secret + c.after
			want := "12:30 " + c.before + "[redacted]" + c.after
			if got := string(rules.Stream().Line([]byte(line), false)); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

// TestCanariesInNoise puts each kind between random text, in whole lines and in
// pieces that end after the secret.
func TestCanariesInNoise(t *testing.T) {
	rules := mustNew(t)
	random := rand.New(rand.NewPCG(1, 2))
	noise := func(without string) string {
		const alphabet = "abcdefghijklmnopqrstuvwxyzABCDEF0123456789 .,;:=/@-_\"'{}[]\\\t\x00\xff"
		b := make([]byte, random.IntN(60))
		for i := range b {
			b[i] = alphabet[random.IntN(len(alphabet))]
		}
		return strings.ReplaceAll(string(b), without, "")
	}
	for name, c := range canaries {
		for range 300 {
			stream := rules.Stream()
			line := noise(c.secret) + " " + c.before + c.secret + c.after + " " + noise(c.secret)
			if got := stream.Line([]byte(line), random.IntN(2) == 0); bytes.Contains(got, []byte(c.secret)) {
				t.Fatalf("%s: in  %q\nout %q", name, line, got)
			}
		}
	}
}

func TestLinesThatStay(t *testing.T) {
	rules := mustNew(t)
	for _, line := range []string{
		"",
		"plain text",
		"Failed password for root from 10.0.0.1 port 22 ssh2",
		"password authentication failed",
		"print_info: BOS token = 151643 '<|endoftext|>'",
		"max_tokens: 4096, prompt_tokens=12",
		"token: null",
		`{"auth":true,"token":null,"secret":{"a":1}}`,
		"auth=none",
		"WWW-Authenticate: Basic realm",
		"basic authentication is off, Bearer Authentication. is on",
		"http://registry:5000/v2/ and https://user@host/path?a=b:c@d",
		"image docker.io/library/alpine@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
		"disk-usage-of-the-whole-system-is-high task-0123456789012345678901234567890",
		"-----BEGIN CERTIFICATE-----",
		"----- done -----",
		"eyJ is not a token, eyJabc.def neither",
		"author: somebody, compass: north, bypass=yes",
	} {
		in := []byte(line)
		got := rules.Stream().Line(in, false)
		if string(got) != line {
			t.Errorf("got  %s\nwant %s", got, line)
		}
		if len(in) > 0 && &got[0] != &in[0] {
			t.Errorf("%s: was copied", line)
		}
	}
}

// play gives lines to one stream; a line that ends in | is a piece.
func play(rules *Rules, lines []string) []string {
	stream := rules.Stream()
	out := make([]string, len(lines))
	for i, line := range lines {
		text, partial := strings.CutSuffix(line, "|")
		out[i] = string(stream.Line([]byte(text), partial))
		if partial {
			out[i] += "|"
		}
	}
	return out
}

func TestPieces(t *testing.T) {
	rules := mustNew(t)
	long, phrase := strings.Repeat("a1", 5000), strings.Repeat("a b'", 500)
	tests := []struct {
		name string
		in   []string
		want []string
	}{
		{"value across the end", []string{"password=hun|", "ter2 x"}, []string{"password=[redacted]|", "[redacted] x"}},
		{"before the value", []string{"password=|", "hunter2 x"}, []string{"password=|", "[redacted] x"}},
		{"in the key", []string{"x pass|", "word=hunter2"}, []string{"x pass|", "word=[redacted]"}},
		{"quoted, with spaces", []string{`"password":"one two|`, ` three", "x": "y z"`}, []string{`"password":"[redacted]|`, `[redacted]", "x": "y z"`}},
		{"over three pieces", []string{"password=a|", "b|", "c d"}, []string{"password=[redacted]|", "[redacted]|", "[redacted] d"}},
		{"longer than what is kept", []string{"password=" + long + "|", long + "|", long + " x"},
			[]string{"password=[redacted]|", "[redacted]|", "[redacted] x"}},
		{"quoted, longer than what is kept", []string{`"password":"` + phrase + "|", phrase + "|", phrase + `", "x": "y z"`},
			[]string{`"password":"[redacted]|`, "[redacted]|", `[redacted]", "x": "y z"`}},
		{"after a line of pieces", []string{"password=|", "x", "next"}, []string{"password=|", "[redacted]", "next"}},
		{"ends with the piece", []string{"password=hunter2|", " next"}, []string{"password=[redacted]|", " next"}},
		{"ends with the line", []string{"password=hunter2", "next"}, []string{"password=[redacted]", "next"}},
		{"key in the line before", []string{"password=", "next"}, []string{"password=", "next"}},
		{"token", []string{"a ghp_16C7e4|", "2F292c6912E7710c838347Ae178B4a b"}, []string{"a [redacted]|", "[redacted] b"}},
		{"prefix of a token", []string{"a gh|", "p_16C7e42F292c6912E7710c838347Ae178B4a b"}, []string{"a gh|", "[redacted] b"}},
		{"JWT", []string{"eyJhbGciOiJIUzI1N|", "iJ9.eyJzdWIiOiIxIn0.abc b"}, []string{"[redacted]|", "[redacted] b"}},
		{"URL", []string{"postgres://user:pa|", "ss@db/x"}, []string{"postgres://user:[redacted]|", "[redacted]"}},
		{"bearer", []string{"Bearer abc|", "defghi z"}, []string{"Bearer [redacted]|", "[redacted] z"}},
		{"nothing", []string{"abc |", "def|", "ghi"}, []string{"abc |", "def|", "ghi"}},
		{"redacted only once", []string{"password=a b|", "c|", "d"}, []string{"password=[redacted] b|", "c|", "d"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := play(rules, tt.in); !slices.Equal(got, tt.want) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestPEM(t *testing.T) {
	const body = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"
	tests := []struct {
		name string
		in   []string
		want []string
	}{
		{"lines",
			[]string{"x -----BEGIN PRIVATE KEY-----", body, "Jw==", "-----END PRIVATE KEY----- y", body},
			[]string{"x [redacted]", "[redacted]", "[redacted]", "[redacted] y", body}},
		{"with a prefix of the program",
			[]string{"app: -----BEGIN EC PRIVATE KEY-----", "app: " + body, "app: -----END EC PRIVATE KEY-----", "app: Jw=="},
			[]string{"app: [redacted]", "app: [redacted]", "app: [redacted]", "app: Jw=="}},
		{"other lines in between",
			[]string{"-----BEGIN PRIVATE KEY-----", "GET /index.html 200", body, "-----END PRIVATE KEY-----"},
			[]string{"[redacted]", "GET /index.html 200", "[redacted]", "[redacted]"}},
		{"two keys in a line",
			[]string{`-----BEGIN PRIVATE KEY-----\nab\n-----END PRIVATE KEY-----, -----BEGIN PRIVATE KEY-----\ncd\n-----END PRIVATE KEY-----`, "ab"},
			[]string{"[redacted], [redacted]", "ab"}},
		{"OpenSSH and PGP",
			[]string{"-----BEGIN OPENSSH PRIVATE KEY-----", body, "-----END OPENSSH PRIVATE KEY-----", "-----BEGIN PGP PRIVATE KEY BLOCK-----", body},
			[]string{"[redacted]", "[redacted]", "[redacted]", "[redacted]", "[redacted]"}},
		{"public keys stay",
			[]string{"-----BEGIN PUBLIC KEY-----", body},
			[]string{"-----BEGIN PUBLIC KEY-----", body}},
		{"begin across two pieces",
			[]string{"-----BEGIN PRIV|", `ATE KEY-----\n` + body + "|", body + `\n-----END PRIVATE|`, " KEY----- x", body},
			[]string{"-----BEGIN PRIV|", "[redacted]|", "[redacted] PRIVATE|", "[redacted] x", body}},
		{"end and begin in one piece",
			[]string{"-----BEGIN PRIVATE KEY-----|", body + "-----END PRIVATE KEY----- -----BEGIN PRIVATE KEY-----|", body, body},
			[]string{"[redacted]|", "[redacted] [redacted]|", "[redacted]", "[redacted]"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := play(mustNew(t), tt.in); !slices.Equal(got, tt.want) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestPEMIsBounded(t *testing.T) {
	stream := mustNew(t).Stream()
	stream.Line([]byte("-----BEGIN PRIVATE KEY-----"), false)
	hidden := 0
	for string(stream.Line([]byte("word"), false)) != "word" {
		if hidden++; hidden > 10*maxPEMLines {
			t.Fatal("a BEGIN hides the log for ever")
		}
	}
	if hidden != maxPEMLines {
		t.Errorf("%d lines hidden, want %d", hidden, maxPEMLines)
	}
}

func TestExtra(t *testing.T) {
	rules := mustNew(t, `session=(\w+)`, `card \d{4}`, `(?i)pin:(?:(\d+)|x)`)
	for in, want := range map[string]string{
		"session=abc;":               "session=[redacted];",
		"a card 1234 b":              "a [redacted] b",
		"PIN:12 pin:x":               "PIN:[redacted] [redacted]",
		"session=abc password=def":   "session=[redacted] password=[redacted]",
		"token=session=abc":          "token=[redacted]",
		"card 1234card 5678 session": "[redacted] session",
	} {
		if got := string(rules.Stream().Line([]byte(in), false)); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, tt := range []struct {
		extra []string
		want  string
	}{
		{[]string{"a", "("}, "pattern 2: error parsing regexp"},
		{[]string{"a*"}, `pattern 1 ("a*") matches the empty text`},
		{[]string{strings.Repeat("a", MaxPatternBytes+1)}, "pattern 1 is longer than 1024 bytes"},
		{slices.Repeat([]string{"a"}, MaxPatterns+1), "65 patterns, at most 64 are allowed"},
	} {
		if _, err := New(tt.extra); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
}

// TestEveryRuleIsReached checks that the prefilter lets through all that the
// regular expressions would match.
func TestEveryRuleIsReached(t *testing.T) {
	rules := mustNew(t)
	reached := uint64(0)
	for name, c := range canaries {
		text := []byte(c.before + c.secret + c.after)
		for _, text := range [][]byte{text, bytes.ToUpper(text), bytes.ToLower(text)} {
			hits, keys := rules.prefilter.scan(text, nil)
			reached |= hits
			for i, r := range rules.builtin {
				if r.closed.Match(text) && hits&(1<<i) == 0 {
					t.Errorf("%s: %q matches %q and is not let through", name, r.name, text)
				}
			}
			for at := range text {
				if keyValue.Match(text[at:]) && !slices.Contains(keys, at) {
					t.Errorf("%s: the key at %d of %q is not let through", name, at, text)
				}
			}
		}
	}
	for i, r := range rules.builtin {
		if reached&(1<<i) == 0 {
			t.Errorf("no canary reaches %q", r.name)
		}
	}
}

// TestTimeIsLinear has lines that make a matcher start again and again. Each
// takes some 10 ms; a quadratic one takes many seconds.
func TestTimeIsLinear(t *testing.T) {
	rules := mustNew(t)
	for _, unit := range []string{
		"token", "token ", "token:", "token:token=", "token=\"", "token: bearer ", "auth", "pass\\", "password='x' ", "eyJ", "eyJa-", "eyJa.",
		"://", "://a:", "://a:b@", "bearer ", "sk-", "ghp_", "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----",
		"-----BEGIN PRIVATE KEY----------END PRIVATE KEY-----", "-----", "-----BEGIN ", "\xff", "a",
	} {
		for _, inside := range []bool{false, true} {
			stream := rules.Stream()
			if inside {
				stream.Line([]byte("-----BEGIN PRIVATE KEY-----"), false)
			}
			line := []byte(strings.Repeat(unit, 1<<16/len(unit)))
			start := time.Now()
			stream.Line(line, true)
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("%d bytes of %q took %v", len(line), unit, took)
			}
		}
	}
}

func TestNoAllocationWithoutSecret(t *testing.T) {
	stream := mustNew(t).Stream()
	if n := testing.AllocsPerRun(100, func() { stream.Line(plainLine, false) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
