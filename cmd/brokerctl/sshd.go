package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

const severityPrefix = "FINDING_SEVERITY_"

func (a *app) sshdCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sshd",
		Short: "Look at how the host's sshd is set up",
		RunE:  a.group,
	}
	cmd.AddCommand(a.sshdConfigCommand())
	return cmd
}

func (a *app) sshdConfigCommand() *cobra.Command {
	var settings bool
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show the configuration that sshd would start with, and what to change",
		Long: `Show the configuration that sshd would start with now, defaults and files
together, and what an auditor would point at. Match blocks are not applied. What
names keys is left out.`,
		Example: `  brokerctl sshd config
  brokerctl sshd config --all
  brokerctl sshd config -o json`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&settings, "all", false, "show every setting too")
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		resp, err := ask(ctx, a, 0, func(ctx context.Context, c *client.Client) (*brokerv1.SshdConfigResponse, error) {
			return c.SSH().SshdConfig(ctx, &brokerv1.SshdConfigRequest{})
		})
		if err != nil {
			return failed("sshd config", err)
		}
		return a.show(view{value: resp, text: func(w io.Writer, wide bool) error {
			tables := []*table{a.sshdTable(resp)}
			if settings {
				tables = append(tables, a.settingsTable(resp.GetSettings()))
			}
			return writeTables(w, append(tables, a.sshdFindings(resp.GetFindings(), wide))...)
		}})
	})
	return cmd
}

// sshdTable has the settings under their names in sshd_config(5).
func (a *app) sshdTable(r *brokerv1.SshdConfigResponse) *table {
	t := a.newTable()
	list := func(name string, words []string, none string) { t.field(name, firstOf(strings.Join(words, " "), none)) }
	flag := func(name string, on *bool) {
		word := "" // This sshd does not have it.
		if on != nil {
			word = yesNo(*on)
		}
		t.field(name, word)
	}
	number := func(name string, n *int32) {
		word := ""
		if n != nil {
			word = fmt.Sprint(*n)
		}
		t.field(name, word)
	}
	span := func(name string, d *durationpb.Duration, zero string) {
		text := durationText(d)
		if d != nil && d.AsDuration() == 0 {
			text = zero
		}
		t.field(name, text)
	}
	t.field("Port", strings.Trim(fmt.Sprint(r.GetPorts()), "[]"))
	list("ListenAddress", r.GetListenAddresses(), "")
	t.field("PermitRootLogin", r.GetPermitRootLogin())
	flag("PasswordAuthentication", r.PasswordAuthentication)
	flag("PubkeyAuthentication", r.PubkeyAuthentication)
	flag("KbdInteractiveAuthentication", r.KbdInteractiveAuthentication)
	flag("HostbasedAuthentication", r.HostbasedAuthentication)
	flag("PermitEmptyPasswords", r.PermitEmptyPasswords)
	flag("UsePAM", r.UsePam)
	list("AuthenticationMethods", r.GetAuthenticationMethods(), "any")
	list("AllowUsers", r.GetAllowUsers(), "all")
	list("DenyUsers", r.GetDenyUsers(), "none")
	list("AllowGroups", r.GetAllowGroups(), "all")
	list("DenyGroups", r.GetDenyGroups(), "none")
	number("MaxAuthTries", r.MaxAuthTries)
	number("MaxSessions", r.MaxSessions)
	span("LoginGraceTime", r.GetLoginGraceTime(), "no limit")
	span("ClientAliveInterval", r.GetClientAliveInterval(), "off")
	flag("X11Forwarding", r.X11Forwarding)
	t.field("AllowTcpForwarding", r.GetAllowTcpForwarding())
	flag("AllowAgentForwarding", r.AllowAgentForwarding)
	t.field("PermitTunnel", r.GetPermitTunnel())
	t.field("LogLevel", r.GetLogLevel())
	list("Ciphers", r.GetCiphers(), "")
	list("MACs", r.GetMacs(), "")
	list("KexAlgorithms", r.GetKexAlgorithms(), "")
	list("HostKeyAlgorithms", r.GetHostKeyAlgorithms(), "")
	list("PubkeyAcceptedAlgorithms", r.GetPubkeyAcceptedAlgorithms(), "")
	return t
}

func (a *app) settingsTable(all []*brokerv1.SshdSetting) *table {
	t := a.newTable("SETTING", "VALUE")
	for _, s := range all {
		value := cell{s.GetValue(), plain}
		if s.GetHidden() {
			value = cell{"(left out)", yellow}
		}
		t.addCells(cell{s.GetKey(), plain}, value)
	}
	return t
}

func (a *app) sshdFindings(all []*brokerv1.SshdFinding, wide bool) *table {
	if len(all) == 0 {
		return a.sentence(green, "nothing that an auditor would point at")
	}
	header := []string{"SEVERITY", "SETTING", "ADVICE", "REFERENCE"}
	if wide {
		header = append(header, "ID")
	}
	t := a.newTable(header...)
	for _, f := range all {
		row := cells(plain, enumText(f.GetSeverity(), severityPrefix), f.GetSetting(), f.GetAdvice(), f.GetReference())
		row[0].colour = severityColour(f.GetSeverity())
		if wide {
			row = append(row, cell{f.GetId(), plain})
		}
		t.addCells(row...)
	}
	return t
}

func severityColour(s brokerv1.FindingSeverity) colour {
	switch s {
	case brokerv1.FindingSeverity_FINDING_SEVERITY_HIGH:
		return red
	case brokerv1.FindingSeverity_FINDING_SEVERITY_MEDIUM:
		return yellow
	}
	return plain
}
