package ssh

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
)

const (
	maxSettings = 1000
	maxValue    = 16 << 10
)

// left are settings that say where the host's keys are. hidden are those that can hold a
// command line or a secret.
var (
	left   = map[string]bool{"hostkey": true, "hostcertificate": true, "hostkeyagent": true}
	hidden = map[string]bool{
		"forcecommand": true, "authorizedkeyscommand": true, "authorizedprincipalscommand": true, "setenv": true, "subsystem": true,
	}
)

// config is what `sshd -T` prints: a keyword and a value a line, some more than
// once.
type config struct {
	lines  []*brokerv1.SshdSetting
	values map[string][]string
}

var keyword = regexp.MustCompile(`^[a-z][a-z0-9]{1,63}$`)

func parse(data []byte) (*config, error) {
	c := &config{values: map[string][]string{}}
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		line = strings.TrimSuffix(line, "\n")
		key, value, _ := strings.Cut(line, " ")
		if !keyword.MatchString(key) || len(value) > maxValue {
			return nil, fmt.Errorf("line %d is no setting", n)
		}
		value = strings.ToValidUTF8(value, "\uFFFD")
		c.values[key] = append(c.values[key], value)
		switch {
		case left[key]:
			continue
		case len(c.lines) == maxSettings:
			return nil, fmt.Errorf("more than %d settings", maxSettings)
		}
		s := &brokerv1.SshdSetting{Key: key, Value: value}
		if hidden[key] && value != "none" {
			s.Value, s.Hidden = "", true
		}
		c.lines = append(c.lines, s)
	}
	// Every sshd has these; without them it was something else that spoke.
	for _, key := range []string{"port", "permitrootlogin", "passwordauthentication"} {
		if len(c.values[key]) == 0 {
			return nil, fmt.Errorf("there is no %s", key)
		}
	}
	return c, nil
}

// text is a setting's value; "" when it is not there.
func (c *config) text(key string) string {
	if v := c.values[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// flag is a setting that is yes or no.
func (c *config) flag(key string) *bool {
	switch v := c.text(key); v {
	case "yes", "no":
		yes := v == "yes"
		return &yes
	}
	return nil
}

func (c *config) number(key string) *int32 {
	n, err := strconv.ParseInt(c.text(key), 10, 32)
	if err != nil {
		return nil
	}
	return proto.Int32(int32(n))
}

// seconds is a time; sshd prints all of them in seconds.
func (c *config) seconds(key string) *durationpb.Duration {
	n, err := strconv.ParseInt(c.text(key), 10, 32)
	if err != nil {
		return nil
	}
	return durationpb.New(time.Duration(n) * time.Second)
}

// list is a setting whose value is a list with commas.
func (c *config) list(key string) []string {
	return strings.FieldsFunc(c.text(key), func(r rune) bool { return r == ',' })
}

func (c *config) response() *brokerv1.SshdConfigResponse {
	r := &brokerv1.SshdConfigResponse{
		ListenAddresses:              c.values["listenaddress"],
		PermitRootLogin:              c.text("permitrootlogin"),
		PasswordAuthentication:       c.flag("passwordauthentication"),
		PubkeyAuthentication:         c.flag("pubkeyauthentication"),
		KbdInteractiveAuthentication: c.flag("kbdinteractiveauthentication"),
		HostbasedAuthentication:      c.flag("hostbasedauthentication"),
		PermitEmptyPasswords:         c.flag("permitemptypasswords"),
		UsePam:                       c.flag("usepam"),
		AllowUsers:                   c.values["allowusers"],
		DenyUsers:                    c.values["denyusers"],
		AllowGroups:                  c.values["allowgroups"],
		DenyGroups:                   c.values["denygroups"],
		MaxAuthTries:                 c.number("maxauthtries"),
		MaxSessions:                  c.number("maxsessions"),
		LoginGraceTime:               c.seconds("logingracetime"),
		ClientAliveInterval:          c.seconds("clientaliveinterval"),
		X11Forwarding:                c.flag("x11forwarding"),
		AllowTcpForwarding:           c.text("allowtcpforwarding"),
		AllowAgentForwarding:         c.flag("allowagentforwarding"),
		PermitTunnel:                 c.text("permittunnel"),
		LogLevel:                     c.text("loglevel"),
		Ciphers:                      c.list("ciphers"),
		Macs:                         c.list("macs"),
		KexAlgorithms:                c.list("kexalgorithms"),
		HostKeyAlgorithms:            c.list("hostkeyalgorithms"),
		PubkeyAcceptedAlgorithms:     c.list("pubkeyacceptedalgorithms"),
		Settings:                     c.lines,
		Findings:                     c.findings(),
	}
	for _, p := range c.values["port"] {
		if n, err := strconv.ParseUint(p, 10, 16); err == nil {
			r.Ports = append(r.Ports, uint32(n))
		}
	}
	if m := c.text("authenticationmethods"); m != "any" {
		r.AuthenticationMethods = strings.Fields(m)
	}
	return r
}
