package main

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gortium/hermes-broker/certs"
)

const defaultCADir = "/etc/hermes-broker/ca"

func (a *app) certsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "certs",
		Short: "Make and renew certificates with a local authority",
		Long: `Make and renew certificates with a local authority, for hosts without SPIRE. A
certificate says who calls; what that caller may do is the policy's matter.`,
		RunE: a.group,
	}
	cmd.AddCommand(a.certsInitCommand(), a.certsIssueCommand(), a.certsRenewCommand(), a.certsShowCommand())
	return cmd
}

func caFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "ca", defaultCADir, "folder of the authority")
}

func (a *app) certsInitCommand() *cobra.Command {
	var dir, domain string
	cmd := &cobra.Command{
		Use:     "init --trust-domain NAME",
		Short:   "Make a new authority",
		Example: "  brokerctl certs init --trust-domain home.example",
		Args:    cobra.NoArgs,
	}
	caFlag(cmd, &dir)
	cmd.Flags().StringVar(&domain, "trust-domain", "", "SPIFFE trust domain of every certificate; required")
	var o certs.Options
	cmd.Flags().DurationVar(&o.TTL, "ttl", 0, "how long the authority is valid (default 10 years)")
	cmd.RunE = a.run(func(context.Context, []string) error {
		if err := o.TrustDomain.UnmarshalText([]byte(domain)); err != nil || domain == "" {
			return fail(exitUsage, "for example --trust-domain home.example", "certs init: --trust-domain %q is no trust domain", domain)
		}
		ca, err := certs.Init(dir, o)
		if err != nil {
			return err
		}
		return a.showCertificate(ca.Certificate().Raw, ca.Dir())
	})
	return cmd
}

func (a *app) certsIssueCommand() *cobra.Command {
	var dir, out, name, role string
	var ips []net.IP
	var r certs.Request
	cmd := &cobra.Command{
		Use:   "issue SPIFFE-ID --role ROLE --out FOLDER",
		Short: "Issue a certificate for an agent, an operator or a server",
		Long: `Issue a certificate and its key into a folder, with the bundle its holder needs.
Nothing is overwritten: to replace a certificate use renew.

Roles: agent (24 hours, at most 7 days), operator (30 days, at most 90 days),
server (90 days, at most a year).`,
		Example: `  brokerctl certs issue spiffe://home.example/agent/hermes --role agent --out ./hermes
  brokerctl certs issue spiffe://home.example/broker --role server --dns broker.home.example --ip 198.51.100.7 --out ./server`,
		Args: cobra.ExactArgs(1),
	}
	caFlag(cmd, &dir)
	cmd.Flags().StringVar(&role, "role", string(certs.Agent), "agent, operator or server")
	cmd.Flags().DurationVar(&r.TTL, "ttl", 0, "how long it is valid (default: the role's)")
	cmd.Flags().StringSliceVar(&r.DNS, "dns", nil, "host names of a server")
	cmd.Flags().IPSliceVar(&ips, "ip", nil, "addresses of a server")
	cmd.Flags().StringVar(&out, "out", "", "folder to write NAME.crt, NAME.key and bundle.crt into; required")
	cmd.Flags().StringVar(&name, "name", "", "name of the files (default: the last part of the ID)")
	complete(cmd, "role", string(certs.Agent), string(certs.Operator), string(certs.Server))
	cmd.RunE = a.run(func(_ context.Context, args []string) error {
		if err := r.ID.UnmarshalText([]byte(args[0])); err != nil {
			return fail(exitUsage, "for example spiffe://home.example/agent/hermes", "certs issue: %w", err)
		}
		if out == "" {
			return fail(exitUsage, "for example --out .", "certs issue: --out is required")
		}
		r.Role, r.IPs = certs.Role(role), ips
		name = firstOf(name, args[0][strings.LastIndexByte(args[0], '/')+1:])
		ca, err := certs.Load(dir)
		if err != nil {
			return err
		}
		leaf, err := ca.Issue(r)
		if err != nil {
			return err
		}
		if err := leaf.Write(out, name); err != nil {
			return err
		}
		return a.showCertificate(leaf.Certificate.Raw, filepath.Join(out, name+".crt"))
	})
	return cmd
}

func (a *app) certsRenewCommand() *cobra.Command {
	var dir, key string
	cmd := &cobra.Command{
		Use:   "renew CERTIFICATE",
		Short: "Replace a certificate and its key by new ones of the same name",
		Example: `  brokerctl certs renew ./hermes/hermes.crt
  brokerctl certs renew ./hermes/hermes.crt --key-file ./hermes/hermes.key`,
		Args: cobra.ExactArgs(1),
	}
	caFlag(cmd, &dir)
	cmd.Flags().StringVar(&key, "key-file", "", "its private key (default: NAME.key for NAME.crt)")
	cmd.RunE = a.run(func(_ context.Context, args []string) error {
		key = firstOf(key, strings.TrimSuffix(args[0], filepath.Ext(args[0]))+".key")
		ca, err := certs.Load(dir)
		if err != nil {
			return err
		}
		leaf, err := ca.Renew(args[0], key)
		if err != nil {
			return err
		}
		return a.showCertificate(leaf.Certificate.Raw, args[0])
	})
	return cmd
}

func (a *app) certsShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "show FILE",
		Short:   "Describe a certificate and what is wrong with it",
		Example: "  brokerctl certs show ./hermes/hermes.crt",
		Args:    cobra.ExactArgs(1),
		RunE: a.run(func(_ context.Context, args []string) error {
			info, err := certs.Show(args[0])
			if err != nil {
				return err
			}
			return a.showInfo(info, args[0])
		}),
	}
}

// showCertificate describes what was just made, at path.
func (a *app) showCertificate(der []byte, path string) error {
	info, err := certs.Describe(encodePEM(der), time.Now())
	if err != nil {
		return err
	}
	return a.showInfo(info, path)
}

func (a *app) showInfo(info certs.Info, path string) error {
	return a.show(view{value: certificateJSON(info, path), names: []string{path}, text: func(w io.Writer, _ bool) error {
		t := a.newTable()
		row := func(name, value string) {
			if value != "" {
				t.addCells(cell{name + ":", bold}, cell{value, plain})
			}
		}
		row("Path", path)
		row("ID", info.ID)
		kind := strings.Join(info.Usage, " ")
		if info.CA {
			kind = "authority"
		}
		row("For", kind)
		row("Serial", info.Serial)
		row("From", info.NotBefore.Local().Format(time.RFC3339))
		row("Until", fmt.Sprintf("%s (in %s)", info.NotAfter.Local().Format(time.RFC3339), shortDuration(info.Remaining)))
		row("Issuer", info.Issuer)
		row("DNS", strings.Join(info.DNS, " "))
		row("IP", strings.Join(info.IPs, " "))
		row("Key", info.KeyType)
		row("SHA-256", info.SHA256)
		for _, p := range info.Problems {
			t.addCells(cell{"Problem:", bold}, cell{p, red})
		}
		return t.write(w)
	}})
}

// certificate is certs.Info as JSON.
type certificate struct {
	Path      string    `json:"path"`
	ID        string    `json:"id"`
	CA        bool      `json:"ca"`
	Usage     []string  `json:"usage"`
	Serial    string    `json:"serial"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Issuer    string    `json:"issuer"`
	DNS       []string  `json:"dns"`
	IPs       []string  `json:"ips"`
	KeyType   string    `json:"key_type"`
	SHA256    string    `json:"sha256"`
	Problems  []string  `json:"problems"`
}

func certificateJSON(i certs.Info, path string) certificate {
	list := func(s []string) []string { return append([]string{}, s...) }
	return certificate{
		Path: path, ID: i.ID, CA: i.CA, Usage: list(i.Usage), Serial: i.Serial, NotBefore: i.NotBefore, NotAfter: i.NotAfter,
		Issuer: i.Issuer, DNS: list(i.DNS), IPs: list(i.IPs), KeyType: i.KeyType, SHA256: i.SHA256, Problems: list(i.Problems),
	}
}

func encodePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
