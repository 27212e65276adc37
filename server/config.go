package server

import (
	"cmp"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gortium/hermes-broker/server/identity"
	"github.com/gortium/hermes-broker/server/policy"
	"github.com/gortium/hermes-broker/server/redact"
	"github.com/gortium/hermes-broker/server/strictyaml"
)

// Config is brokerd's configuration file. docs/configuration.md lists every key
// with its default and meaning.
type Config struct {
	Listen     []Listener            `yaml:"listen"`
	Identity   Identity              `yaml:"identity"`
	Policy     strictyaml.At[string] `yaml:"policy"`
	State      strictyaml.At[string] `yaml:"state"`
	Audit      AuditConfig           `yaml:"audit"`
	Engine     EngineConfig          `yaml:"engine"`
	Host       HostConfig            `yaml:"host"`
	Containers ContainersConfig      `yaml:"containers"`
	Registries []RegistryConfig      `yaml:"registries"`
	Images     ImagesConfig          `yaml:"images"`
	Operations OperationsConfig      `yaml:"operations"`
	Logs       LogsConfig            `yaml:"logs"`
	Limits     LimitsConfig          `yaml:"limits"`
}

// Listener is one address: tcp or unix.
type Listener struct {
	TCP  strictyaml.At[string] `yaml:"tcp"`
	Unix strictyaml.At[string] `yaml:"unix"`
	Mode strictyaml.At[string] `yaml:"mode"`
	Pos  strictyaml.Pos        `yaml:"-,pos"`
}

// Identity is where the broker's certificate and the trust bundle come from:
// files or a Workload API.
type Identity struct {
	Certificate strictyaml.At[string] `yaml:"certificate"`
	Key         strictyaml.At[string] `yaml:"key"`
	Bundle      strictyaml.At[string] `yaml:"bundle"`
	WorkloadAPI strictyaml.At[string] `yaml:"workload_api"`
	// MaxLifetime bounds a caller's certificate.
	MaxLifetime strictyaml.At[time.Duration] `yaml:"max_lifetime"`
}

// AuditConfig is about the audit trail.
type AuditConfig struct {
	Segment strictyaml.At[strictyaml.Bytes] `yaml:"segment"`
	Keep    strictyaml.At[int]              `yaml:"keep"`
	Timeout strictyaml.At[time.Duration]    `yaml:"timeout"`
}

// EngineConfig is about the container engine.
type EngineConfig struct {
	Socket strictyaml.At[string] `yaml:"socket"`
}

// HostConfig is about brokerhost.
type HostConfig struct {
	Socket strictyaml.At[string] `yaml:"socket"`
}

// ContainersConfig is about what is shown of containers.
type ContainersConfig struct {
	Labels []strictyaml.At[string] `yaml:"labels"`
}

// ImagesConfig is about pulling images.
type ImagesConfig struct {
	MinFree strictyaml.At[strictyaml.Bytes] `yaml:"min_free"`
}

// OperationsConfig is about how long operations are kept.
type OperationsConfig struct {
	Retention strictyaml.At[time.Duration] `yaml:"retention"`
	Kept      strictyaml.At[int]           `yaml:"kept"`
}

// LogsConfig is about what is taken out of logs.
type LogsConfig struct {
	Redact []strictyaml.At[string] `yaml:"redact"`
}

// LimitsConfig has a bound for everything a caller can make the broker spend.
type LimitsConfig struct {
	Rate               strictyaml.At[float64]          `yaml:"rate"`
	Burst              strictyaml.At[int]              `yaml:"burst"`
	Calls              strictyaml.At[int]              `yaml:"calls"`
	Streams            strictyaml.At[int]              `yaml:"streams"`
	Changes            strictyaml.At[policy.Budget]    `yaml:"changes"`
	Connections        strictyaml.At[int]              `yaml:"connections"`
	CallerConnections  strictyaml.At[int]              `yaml:"caller_connections"`
	Handshakes         strictyaml.At[int]              `yaml:"handshakes"`
	ConnectionStreams  strictyaml.At[int]              `yaml:"connection_streams"`
	HandshakeTimeout   strictyaml.At[time.Duration]    `yaml:"handshake_timeout"`
	IdleTimeout        strictyaml.At[time.Duration]    `yaml:"idle_timeout"`
	CallTimeout        strictyaml.At[time.Duration]    `yaml:"call_timeout"`
	StreamAge          strictyaml.At[time.Duration]    `yaml:"stream_age"`
	SendTimeout        strictyaml.At[time.Duration]    `yaml:"send_timeout"`
	StopTimeout        strictyaml.At[time.Duration]    `yaml:"stop_timeout"`
	Message            strictyaml.At[strictyaml.Bytes] `yaml:"message"`
	Header             strictyaml.At[strictyaml.Bytes] `yaml:"header"`
	Operations         strictyaml.At[int]              `yaml:"operations"`
	OperationsPerKind  strictyaml.At[int]              `yaml:"operations_per_kind"`
	OperationAge       strictyaml.At[time.Duration]    `yaml:"operation_age"`
	RequestIDs         strictyaml.At[int]              `yaml:"request_ids"`
	RequestIDRetention strictyaml.At[time.Duration]    `yaml:"request_id_retention"`
}

func at[T any](v T) strictyaml.At[T] { return strictyaml.At[T]{Value: v} }

// Defaults is the configuration of an empty file, less what has no default.
func Defaults() *Config {
	return &Config{
		State:      at("/var/lib/hermes-broker"),
		Policy:     at("/etc/hermes-broker/policy.yaml"),
		Identity:   Identity{MaxLifetime: at(31 * 24 * time.Hour)},
		Audit:      AuditConfig{Segment: at(strictyaml.Bytes(64 << 20)), Timeout: at(5 * time.Second)},
		Engine:     EngineConfig{Socket: at("/run/docker.sock")},
		Host:       HostConfig{Socket: at("/run/hermes-brokerhost/host.sock")},
		Images:     ImagesConfig{MinFree: at(strictyaml.Bytes(1 << 30))},
		Operations: OperationsConfig{Retention: at(24 * time.Hour), Kept: at(500)},
		Limits: LimitsConfig{
			Rate: at(50.0), Burst: at(100), Calls: at(32), Streams: at(64),
			Changes:     at(policy.Budget{Count: 30, Per: time.Minute}),
			Connections: at(1024), CallerConnections: at(16), Handshakes: at(64), ConnectionStreams: at(128),
			HandshakeTimeout: at(5 * time.Second), IdleTimeout: at(15 * time.Minute),
			CallTimeout: at(30 * time.Second), StreamAge: at(time.Hour), SendTimeout: at(30 * time.Second),
			StopTimeout: at(20 * time.Second),
			Message:     at(strictyaml.Bytes(64 << 10)), Header: at(strictyaml.Bytes(16 << 10)),
			Operations: at(4), OperationsPerKind: at(8), OperationAge: at(6 * time.Hour),
			RequestIDs: at(20_000), RequestIDRetention: at(24 * time.Hour),
		},
	}
}

// ParseConfig reads a configuration and reports everything that is wrong with it.
func ParseConfig(path string, data []byte) (*Config, strictyaml.Problems) {
	c := Defaults()
	problems := strictyaml.Decode(path, data, c)
	fail := func(pos strictyaml.Pos, format string, args ...any) { problems.Add(path, pos, format, args...) }
	if len(c.Listen) == 0 {
		fail(strictyaml.Pos{}, "listen: give at least one address, such as - unix: /run/hermes-broker/broker.sock")
	}
	for i := range c.Listen {
		c.Listen[i].check(fail)
	}
	c.Identity.check(fail)
	for _, p := range []struct {
		name string
		at   strictyaml.At[string]
	}{{"policy", c.Policy}, {"state", c.State}, {"engine.socket", c.Engine.Socket}, {"host.socket", c.Host.Socket}} {
		checkPath(fail, p.name, p.at)
	}
	hosts := map[string]bool{}
	for i := range c.Registries {
		c.Registries[i].check(fail, hosts)
	}
	if _, err := redact.New(values(c.Logs.Redact)); err != nil {
		fail(first(c.Logs.Redact), "logs.redact: %v", err)
	}
	c.checkNumbers(fail)
	slices.SortStableFunc(problems, func(a, b strictyaml.Problem) int {
		return cmp.Or(cmp.Compare(a.Pos.Line, b.Pos.Line), cmp.Compare(a.Pos.Column, b.Pos.Column), cmp.Compare(a.Message, b.Message))
	})
	return c, problems
}

type failFunc func(pos strictyaml.Pos, format string, args ...any)

func (l *Listener) check(fail failFunc) {
	tcp, unix := l.TCP.Value != "", l.Unix.Value != ""
	switch {
	case tcp == unix:
		fail(l.Pos, "listen: give each listener one of tcp: host:port and unix: /path")
	case tcp && !isAddrPort(l.TCP.Value):
		fail(l.TCP.Pos, "listen.tcp: %q is no address and port; write one such as 127.0.0.1:7443", l.TCP.Value)
	case tcp && l.Mode.Value != "":
		fail(l.Mode.Pos, "listen.mode: only a unix socket has a mode")
	case unix:
		checkPath(fail, "listen.unix", l.Unix)
		if len(l.Unix.Value) > 107 {
			fail(l.Unix.Pos, "listen.unix: a socket's path has at most 107 characters")
		}
		if _, err := l.mode(); err != nil {
			fail(l.Mode.Pos, "listen.mode: %v", err)
		}
	}
}

// socketMode is octal, and nobody executes a socket.
var socketMode = regexp.MustCompile(`^0[0246]{3}$`)

func isAddrPort(s string) bool {
	_, err := netip.ParseAddrPort(s)
	return err == nil
}

// mode is the socket's mode: 0660 unless the file says otherwise.
func (l *Listener) mode() (uint32, error) {
	if l.Mode.Value == "" {
		return 0o660, nil
	}
	if !socketMode.MatchString(l.Mode.Value) {
		return 0, fmt.Errorf(`%q is no mode; write one such as "0660", in quotes`, l.Mode.Value)
	}
	m, err := strconv.ParseUint(l.Mode.Value, 8, 32)
	return uint32(m), err
}

func (i *Identity) check(fail failFunc) {
	files := i.Certificate.Value != "" || i.Key.Value != "" || i.Bundle.Value != ""
	switch api := i.WorkloadAPI.Value; {
	case api != "" && files:
		fail(i.WorkloadAPI.Pos, "identity: give either certificate, key and bundle, or workload_api")
	case api != "" && !strings.HasPrefix(api, "unix:///"):
		fail(i.WorkloadAPI.Pos, "identity.workload_api: %q is no socket; write one such as unix:///run/spire/sockets/agent.sock", api)
	case api == "" && !files:
		fail(strictyaml.Pos{}, "identity: give certificate, key and bundle, or workload_api; `brokerctl certs` makes certificates")
	case api == "":
		for name, p := range map[string]strictyaml.At[string]{"certificate": i.Certificate, "key": i.Key, "bundle": i.Bundle} {
			checkPath(fail, "identity."+name, p)
		}
	}
	if i.MaxLifetime.Value < 0 {
		fail(i.MaxLifetime.Pos, "identity.max_lifetime: give a duration, or 0 for no bound")
	}
}

// paths are the files of a file identity.
func (i *Identity) paths() identity.Paths {
	return identity.Paths{Certificate: i.Certificate.Value, Key: i.Key.Value, Bundle: i.Bundle.Value}
}

func (c *Config) checkNumbers(fail failFunc) {
	l := &c.Limits
	for name, v := range map[string]strictyaml.At[int]{
		"burst": l.Burst, "calls": l.Calls, "streams": l.Streams, "connections": l.Connections, "caller_connections": l.CallerConnections,
		"handshakes": l.Handshakes, "connection_streams": l.ConnectionStreams, "request_ids": l.RequestIDs, "operations": l.Operations, "operations_per_kind": l.OperationsPerKind,
	} {
		if v.Value < 1 || v.Value > 1_000_000 {
			fail(v.Pos, "limits.%s: give 1 to 1000000", name)
		}
	}
	if !(l.Rate.Value > 0 && l.Rate.Value <= 1e6) { // Nor NaN.
		fail(l.Rate.Pos, "limits.rate: give calls a second, more than 0 and at most 1000000")
	}
	for name, v := range map[string]strictyaml.At[time.Duration]{
		"limits.handshake_timeout": l.HandshakeTimeout, "limits.idle_timeout": l.IdleTimeout, "limits.call_timeout": l.CallTimeout,
		"limits.stream_age": l.StreamAge, "limits.send_timeout": l.SendTimeout, "limits.stop_timeout": l.StopTimeout,
		"limits.request_id_retention": l.RequestIDRetention, "limits.operation_age": l.OperationAge, "operations.retention": c.Operations.Retention,
		"audit.timeout": c.Audit.Timeout,
	} {
		if v.Value < 10*time.Millisecond || v.Value > 31*24*time.Hour {
			fail(v.Pos, "%s: give a duration from 10ms to 744h", name)
		}
	}
	for name, v := range map[string]strictyaml.At[strictyaml.Bytes]{"limits.message": l.Message, "limits.header": l.Header} {
		if v.Value < 4<<10 || v.Value > 1<<20 {
			fail(v.Pos, "%s: give 4KiB to 1MiB", name)
		}
	}
	if c.Operations.Kept.Value < 10 || c.Operations.Kept.Value > 100_000 {
		fail(c.Operations.Kept.Pos, "operations.kept: give 10 to 100000")
	}
	if c.Audit.Segment.Value < 64<<10 || c.Audit.Segment.Value > 1<<30 {
		fail(c.Audit.Segment.Pos, "audit.segment: give 64KiB to 1GiB")
	}
	if c.Audit.Keep.Value < 0 || c.Audit.Keep.Value == 1 {
		fail(c.Audit.Keep.Pos, "audit.keep: give 2 or more segments, or 0 to keep all")
	}
}

func checkPath(fail failFunc, name string, p strictyaml.At[string]) {
	if !filepath.IsAbs(p.Value) || filepath.Clean(p.Value) != p.Value {
		fail(p.Pos, "%s: %q is no absolute, clean path", name, p.Value)
	}
}

func values(list []strictyaml.At[string]) []string {
	var out []string
	for _, v := range list {
		out = append(out, v.Value)
	}
	return out
}

func first(list []strictyaml.At[string]) strictyaml.Pos {
	if len(list) == 0 {
		return strictyaml.Pos{}
	}
	return list[0].Pos
}
