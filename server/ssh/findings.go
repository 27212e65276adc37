package ssh

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

const (
	low    = brokerv1.FindingSeverity_FINDING_SEVERITY_LOW
	medium = brokerv1.FindingSeverity_FINDING_SEVERITY_MEDIUM
	high   = brokerv1.FindingSeverity_FINDING_SEVERITY_HIGH

	cis     = "CIS Debian Linux 12 Benchmark, "
	mozilla = "Mozilla OpenSSH guidelines, "
)

// rule is something that an auditor looks at. wrong gives the part of the value
// that is bad, or "".
type rule struct {
	id        string
	severity  brokerv1.FindingSeverity
	key       string
	wrong     func(c *config, value string) string
	advice    string
	reference string
}

func is(bad ...string) func(*config, string) string {
	return func(_ *config, value string) string {
		if slices.Contains(bad, value) {
			return value
		}
		return ""
	}
}

// over is for a number that may be at most so large, and not 0 where that means
// no bound.
func over(most int, zero bool) func(*config, string) string {
	return func(_ *config, value string) string {
		if n, err := strconv.Atoi(value); err == nil && (n > most || n == 0 && zero) {
			return value
		}
		return ""
	}
}

// among is for a list in which there may be none of some algorithms.
func among(bad func(string) bool) func(*config, string) string {
	return func(_ *config, value string) string {
		var found []string
		for name := range strings.SplitSeq(value, ",") {
			if bad(name) {
				found = append(found, name)
			}
		}
		return strings.Join(found, ",")
	}
}

var rules = []rule{
	{"empty-passwords", high, "permitemptypasswords", is("yes"),
		"accounts without a password can be entered by anybody; set PermitEmptyPasswords no",
		cis + "Ensure sshd PermitEmptyPasswords is disabled"},
	{"root-login", high, "permitrootlogin", is("yes"),
		"root can log in by every method, so that who did it is not known; set PermitRootLogin no, or prohibit-password at least",
		cis + "Ensure sshd PermitRootLogin is disabled"},
	{"root-login-by-key", low, "permitrootlogin", is("without-password", "prohibit-password", "forced-commands-only"),
		"root can log in by key; set PermitRootLogin no when another account can become root",
		cis + "Ensure sshd PermitRootLogin is disabled"},
	{"password-authentication", medium, "passwordauthentication", is("yes"),
		"passwords can be guessed from anywhere; set PasswordAuthentication no and log in by key",
		mozilla + "modern configuration: password based logins are disabled"},
	{"keyboard-interactive-authentication", medium, "kbdinteractiveauthentication", func(c *config, value string) string {
		if value == "yes" && c.text("usepam") == "yes" {
			return value
		}
		return ""
	},
		"with UsePAM this mostly asks for a password, also where PasswordAuthentication is off; set KbdInteractiveAuthentication no unless it is for a second factor",
		"sshd_config(5), UsePAM"},
	{"host-based-authentication", high, "hostbasedauthentication", is("yes"),
		"whoever is root on a trusted host is every user here; set HostbasedAuthentication no",
		cis + "Ensure sshd HostbasedAuthentication is disabled"},
	{"rhosts", medium, "ignorerhosts", is("no"),
		"a file in a user's home says whom to trust; set IgnoreRhosts yes",
		cis + "Ensure sshd IgnoreRhosts is enabled"},
	{"user-environment", medium, "permituserenvironment", func(_ *config, value string) string {
		if value != "no" && value != "" {
			return value
		}
		return ""
	},
		"a user can set variables such as LD_PRELOAD and so pass a forced command; set PermitUserEnvironment no",
		cis + "Ensure sshd PermitUserEnvironment is disabled"},
	{"strict-modes", high, "strictmodes", is("no"),
		"keys are taken from files that others can write; set StrictModes yes",
		"sshd_config(5), StrictModes"},
	{"auth-tries", low, "maxauthtries", over(4, false),
		"many attempts on one connection; set MaxAuthTries 4 or less",
		cis + "Ensure sshd MaxAuthTries is set to 4 or less"},
	{"login-grace-time", low, "logingracetime", over(60, true),
		"connections that do not log in are held for long, or for ever with 0; set LoginGraceTime 60 or less",
		cis + "Ensure sshd LoginGraceTime is configured"},
	{"x11-forwarding", low, "x11forwarding", is("yes"),
		"a user's display is open to this host; set X11Forwarding no on a server",
		cis + "Ensure sshd DisableForwarding is enabled"},
	{"tunnel", medium, "permittunnel", is("yes", "point-to-point", "ethernet"),
		"a user can join networks through this host; set PermitTunnel no",
		"sshd_config(5), PermitTunnel"},
	{"log-level", low, "loglevel", is("QUIET", "FATAL", "ERROR"),
		"logins leave no record; set LogLevel INFO or VERBOSE",
		cis + "Ensure sshd LogLevel is configured"},
	{"access", low, "port", func(c *config, value string) string {
		if len(c.values["allowusers"])+len(c.values["allowgroups"])+len(c.values["denyusers"])+len(c.values["denygroups"]) == 0 {
			return value
		}
		return ""
	},
		"every account may log in; name those that may with AllowUsers or AllowGroups",
		cis + "Ensure sshd access is configured"},
	{"weak-ciphers", high, "ciphers", among(func(name string) bool {
		return strings.HasSuffix(name, "-cbc") || strings.HasPrefix(name, "arcfour") || strings.HasPrefix(name, "rijndael-cbc")
	}),
		"these ciphers are broken (CBC as used here: CVE-2008-5161; RC4: RFC 8758); leave them out of Ciphers",
		cis + "Ensure sshd Ciphers are configured"},
	{"weak-macs", medium, "macs", among(func(name string) bool {
		return strings.HasPrefix(name, "hmac-md5") || strings.HasPrefix(name, "hmac-ripemd") || strings.Contains(name, "umac-64") || strings.HasPrefix(name, "hmac-sha1-96")
	}),
		"these MACs rest on broken hashes or are too short; leave them out of MACs",
		cis + "Ensure sshd MACs are configured"},
	{"weak-key-exchange", medium, "kexalgorithms", among(func(name string) bool { return strings.HasSuffix(name, "-sha1") }),
		"these key exchanges use SHA-1, some with groups that can be broken; leave them out of KexAlgorithms",
		"RFC 9142, section 4"},
	{"dsa-host-keys", high, "hostkeyalgorithms", among(func(name string) bool { return strings.HasPrefix(name, "ssh-dss") }),
		"DSA keys of 1024 bits can be broken; leave ssh-dss out of HostKeyAlgorithms",
		"NIST SP 800-131A"},
}

// findings are what the rules find, the worst first.
func (c *config) findings() []*brokerv1.SshdFinding {
	var found []*brokerv1.SshdFinding
	for _, r := range rules {
		if len(c.values[r.key]) == 0 {
			continue
		}
		if bad := r.wrong(c, c.text(r.key)); bad != "" {
			found = append(found, &brokerv1.SshdFinding{
				Id: r.id, Severity: r.severity, Setting: fmt.Sprintf("%s %s", r.key, bad), Advice: r.advice, Reference: r.reference,
			})
		}
	}
	slices.SortStableFunc(found, func(a, b *brokerv1.SshdFinding) int { return int(b.GetSeverity() - a.GetSeverity()) })
	return found
}
