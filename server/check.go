package server

import (
	"errors"
	"fmt"
	"time"

	"github.com/gortium/hermes-broker/server/access"
	"github.com/gortium/hermes-broker/server/identity"
	"github.com/gortium/hermes-broker/server/policy"
	"github.com/gortium/hermes-broker/server/rootfile"
	"github.com/gortium/hermes-broker/server/strictyaml"
)

func (s *Server) readPolicy() (*policy.Policy, error) {
	path := s.cfg.Policy.Value
	stamp, _ := rootfile.StampOf(path)
	s.policyStamp = stamp // From before the read: a write in between is seen later.
	data, err := rootfile.Read(path, rootfile.Options{})
	if err != nil {
		return nil, err
	}
	p, problems := policy.Parse(path, data, s.methods.Permissions(), access.Single)
	return p, problems.Err()
}

// Check says everything that is wrong with a configuration and the files it
// names, without starting.
func Check(path string) strictyaml.Problems {
	var problems strictyaml.Problems
	note := func(file string, err error) {
		var more strictyaml.Problems
		switch {
		case err == nil:
		case errors.As(err, &more):
			problems = append(problems, more...)
		default:
			problems.Add(file, strictyaml.Pos{}, "%v", err)
		}
	}
	cfg, err := LoadConfig(path)
	note(path, err)
	s := &Server{cfg: cfg, now: time.Now}
	if s.methods, err = Methods(); err != nil {
		note("brokerd", err)
		return problems
	}
	if cfg == nil {
		return problems
	}
	p, err := s.readPolicy()
	note(cfg.Policy.Value, err)
	for i := range cfg.Registries {
		_, err := cfg.Registries[i].password()
		note(cfg.Registries[i].PasswordFile.Value, err)
	}
	if cfg.Identity.WorkloadAPI.Value != "" || cfg.Identity.Certificate.Value == "" {
		return problems
	}
	files, err := identity.NewFiles(cfg.Identity.paths())
	if err != nil {
		note(cfg.Identity.Certificate.Value, err)
		return problems
	}
	svid, _ := files.GetX509SVID()
	if p != nil && svid.ID.TrustDomain().Name() != p.TrustDomain {
		note(cfg.Identity.Certificate.Value, fmt.Errorf("is of the trust domain %s, the policy of %s", svid.ID.TrustDomain().Name(), p.TrustDomain))
	}
	return problems
}

// LoadConfig reads a configuration file. With problems in the file it returns
// what could be read and a strictyaml.Problems.
func LoadConfig(path string) (*Config, error) {
	data, err := rootfile.Read(path, rootfile.Options{})
	if err != nil {
		return nil, err
	}
	cfg, problems := ParseConfig(path, data)
	return cfg, problems.Err()
}
