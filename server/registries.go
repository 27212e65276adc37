package server

import (
	"fmt"
	"strings"

	"github.com/gortium/hermes-broker/server/docker"
	"github.com/gortium/hermes-broker/server/imageref"
	"github.com/gortium/hermes-broker/server/rootfile"
	"github.com/gortium/hermes-broker/server/strictyaml"
)

// RegistryConfig is a registry of images that may be used although its name is an
// address, this host or a name of the local network, or that wants credentials.
type RegistryConfig struct {
	Host         strictyaml.At[string] `yaml:"host"`
	Username     strictyaml.At[string] `yaml:"username"`
	PasswordFile strictyaml.At[string] `yaml:"password_file"`
	Pos          strictyaml.Pos        `yaml:"-,pos"`
}

func (r *RegistryConfig) check(fail failFunc, seen map[string]bool) {
	host := r.Host.Value
	pos := r.Host.Pos
	if pos == (strictyaml.Pos{}) {
		pos = r.Pos
	}
	if ref, err := imageref.Parse(host + "/a/b"); err != nil || ref.Registry != host {
		fail(pos, "registries.host: %q is no registry; write one as references in full have it, such as docker.io or 127.0.0.1:5000", host)
	} else if seen[host] {
		fail(pos, "registries.host: %s is there twice", host)
	}
	seen[host] = true
	if (r.Username.Value == "") != (r.PasswordFile.Value == "") {
		fail(pos, "registries: give username and password_file together, or neither")
	}
	if r.PasswordFile.Value != "" {
		checkPath(fail, "registries.password_file", r.PasswordFile)
	}
}

// password reads the registry's password: the first line of its file.
func (r *RegistryConfig) password() (string, error) {
	if r.PasswordFile.Value == "" {
		return "", nil
	}
	data, err := rootfile.Read(r.PasswordFile.Value, rootfile.Options{Secret: true})
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return "", fmt.Errorf("%s: the password in its first line is empty", r.PasswordFile.Value)
	}
	return line, nil
}

// registries are the registered ones with their passwords.
func (c *Config) registries() ([]docker.Registry, error) {
	var all []docker.Registry
	for i := range c.Registries {
		r := &c.Registries[i]
		password, err := r.password()
		if err != nil {
			return nil, err
		}
		all = append(all, docker.Registry{Host: r.Host.Value, Username: r.Username.Value, Password: password})
	}
	return all, nil
}
