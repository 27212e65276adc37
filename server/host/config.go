package host

import (
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/gortium/hermes-broker/server/rootfile"
	"github.com/gortium/hermes-broker/server/strictyaml"
)

// Config is brokerhost's configuration file. docs/configuration.md lists every key
// with its default and meaning.
type Config struct {
	Socket     strictyaml.At[string] `yaml:"socket"`
	User       strictyaml.At[int]    `yaml:"user"`
	Tools      Tools                 `yaml:"tools"`
	SshdConfig strictyaml.At[string] `yaml:"sshd_config"`
	Journal    strictyaml.At[string] `yaml:"journal"`
	Fail2ban   strictyaml.At[string] `yaml:"fail2ban"`
}

// Tools are the paths of programs.
type Tools struct {
	IptablesNftSave     strictyaml.At[string] `yaml:"iptables_nft_save"`
	Ip6tablesNftSave    strictyaml.At[string] `yaml:"ip6tables_nft_save"`
	IptablesLegacySave  strictyaml.At[string] `yaml:"iptables_legacy_save"`
	Ip6tablesLegacySave strictyaml.At[string] `yaml:"ip6tables_legacy_save"`
	Nft                 strictyaml.At[string] `yaml:"nft"`
	Sshd                strictyaml.At[string] `yaml:"sshd"`
	Journalctl          strictyaml.At[string] `yaml:"journalctl"`
}

func at[T any](v T) strictyaml.At[T] { return strictyaml.At[T]{Value: v} }

// Defaults is the configuration of an empty file: paths as Debian has them.
func Defaults() *Config {
	return &Config{
		Socket: at("/run/hermes-brokerhost/host.sock"),
		Tools: Tools{
			IptablesNftSave: at("/usr/sbin/iptables-nft-save"), Ip6tablesNftSave: at("/usr/sbin/ip6tables-nft-save"),
			IptablesLegacySave: at("/usr/sbin/iptables-legacy-save"), Ip6tablesLegacySave: at("/usr/sbin/ip6tables-legacy-save"),
			Nft: at("/usr/sbin/nft"), Sshd: at("/usr/sbin/sshd"), Journalctl: at("/usr/bin/journalctl"),
		},
		Fail2ban: at("/run/fail2ban/fail2ban.sock"),
	}
}

// LoadConfig reads a configuration file. Only the default file may be missing:
// then everything has its default.
func LoadConfig(path string, mayBeMissing bool) (*Config, error) {
	data, err := rootfile.Read(path, rootfile.Options{})
	if errors.Is(err, fs.ErrNotExist) && mayBeMissing {
		return Defaults(), nil
	}
	if err != nil {
		return nil, err
	}
	cfg, problems := ParseConfig(path, data)
	return cfg, problems.Err()
}

// ParseConfig reads a configuration and reports everything that is wrong with it.
func ParseConfig(path string, data []byte) (*Config, strictyaml.Problems) {
	c := Defaults()
	problems := strictyaml.Decode(path, data, c)
	for _, p := range []struct {
		name     string
		at       strictyaml.At[string]
		optional bool
	}{
		{"socket", c.Socket, false},
		{"tools.iptables_nft_save", c.Tools.IptablesNftSave, false}, {"tools.ip6tables_nft_save", c.Tools.Ip6tablesNftSave, false},
		{"tools.iptables_legacy_save", c.Tools.IptablesLegacySave, false}, {"tools.ip6tables_legacy_save", c.Tools.Ip6tablesLegacySave, false},
		{"tools.nft", c.Tools.Nft, false}, {"tools.sshd", c.Tools.Sshd, false}, {"tools.journalctl", c.Tools.Journalctl, false},
		{"sshd_config", c.SshdConfig, true}, {"journal", c.Journal, true}, {"fail2ban", c.Fail2ban, false},
	} {
		if v := p.at.Value; !(v == "" && p.optional) && (!filepath.IsAbs(v) || filepath.Clean(v) != v) {
			problems.Add(path, p.at.Pos, "%s: %q is no absolute, clean path", p.name, v)
		}
	}
	if len(c.Socket.Value) > 107 {
		problems.Add(path, c.Socket.Pos, "socket: a socket's path has at most 107 characters")
	}
	if c.User.Value < 0 || c.User.Value > 1<<31-2 {
		problems.Add(path, c.User.Pos, "user: give the numeric ID of the user that brokerd runs as")
	}
	return c, problems
}
