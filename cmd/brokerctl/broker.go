package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/internal/termclean"
)

func (a *app) whoamiCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "whoami",
		Short:   "Show how the broker sees you, and your grants",
		Example: "  brokerctl whoami\n  brokerctl whoami -o yaml",
		Args:    cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			c, err := a.client(ctx)
			if err != nil {
				return err
			}
			ctx, cancel := a.deadline(ctx, 0)
			defer cancel()
			me, err := c.Broker().WhoAmI(ctx, &brokerv1.WhoAmIRequest{})
			if err != nil {
				return failed("whoami", err)
			}
			return a.show(view{value: me, names: []string{me.GetSpiffeId()}, text: func(w io.Writer, _ bool) error {
				return a.printIdentity(w, me)
			}})
		}),
	}
}

func (a *app) printIdentity(w io.Writer, me *brokerv1.WhoAmIResponse) error {
	t := a.newTable()
	t.field("Caller", me.GetSpiffeId())
	t.field("Verified by", enumText(me.GetVerification(), "VERIFICATION_"))
	t.field("From", me.GetPeerAddress())
	t.field("Certificate", "serial "+me.GetCertificateSerial())
	if expires := me.GetCertificateExpireTime(); expires != nil {
		t.field("Expires", fmt.Sprintf("%s (in %s)", shortTime(expires), shortDuration(time.Until(expires.AsTime()).Truncate(time.Second))))
	}
	t.field("Policy", shortID(me.GetPolicyHash()))
	if f := me.GetFreeze(); f != nil {
		t.addCells(cell{"Frozen:", bold}, cell{freezeText(f), yellow})
	}
	if err := t.write(w); err != nil {
		return err
	}
	rules := a.newTable("VERDICT", "PERMISSIONS", "ON", "BUDGET", "RULE")
	for _, g := range me.GetGrants() {
		rules.addCells(cell{"allow", green}, cell{strings.Join(g.GetPermissions(), " "), plain},
			cell{strings.Join(g.GetResources(), " "), plain}, cell{g.GetBudget(), plain}, cell{g.GetRule(), plain})
	}
	for _, d := range me.GetDenials() {
		rules.addCells(cell{"deny", red}, cell{firstOf(strings.Join(d.GetPermissions(), " "), "all"), plain},
			cell{strings.Join(d.GetResources(), " "), plain}, cell{}, cell{d.GetRule(), plain})
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	return rules.write(w)
}

func freezeText(f *brokerv1.FreezeStatus) string {
	return fmt.Sprintf("%s, by %s since %s: %s", firstOf(f.GetCaller(), "all callers"), f.GetFrozenBy(), shortTime(f.GetFreezeTime()), f.GetReason())
}

func (a *app) canCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "can PERMISSION [RESOURCE]",
		Short: "Ask whether you may do something, and which rule decides",
		Long: `Ask whether you may do something, and which rule decides. The exit code is 0
when the call would be allowed, 3 when not, 6 when only a freeze stands against it.`,
		Example: `  brokerctl can containers.restart containers/ollama
  brokerctl can broker.freeze`,
		Args: cobra.RangeArgs(1, 2),
		RunE: a.run(func(ctx context.Context, args []string) error {
			req := &brokerv1.CanRequest{Permission: args[0]}
			if len(args) > 1 {
				req.Resource = args[1]
			}
			c, err := a.client(ctx)
			if err != nil {
				return err
			}
			ctx, cancel := a.deadline(ctx, 0)
			defer cancel()
			resp, err := c.Broker().Can(ctx, req)
			if err != nil {
				return failed("can "+strings.Join(args, " "), err)
			}
			if err := a.show(view{value: resp, text: func(w io.Writer, _ bool) error { return printDecision(w, resp) }}); err != nil {
				return err
			}
			switch {
			case !resp.GetAllowed():
				return silent(exitDenied)
			case resp.GetFrozen():
				return silent(exitRefused)
			}
			return nil
		}),
	}
}

func printDecision(w io.Writer, r *brokerv1.CanResponse) error {
	answer := "no"
	if r.GetAllowed() {
		answer = "yes"
		if r.GetFrozen() {
			answer = "not while frozen"
		}
	}
	if r.GetRule() != "" {
		answer += " (" + r.GetRule() + ")"
	}
	if r.GetExplanation() != "" {
		answer += ": " + r.GetExplanation()
	}
	_, err := fmt.Fprintln(w, termclean.String(answer))
	return err
}

func (a *app) freezeCommand() *cobra.Command {
	req := &brokerv1.FreezeRequest{}
	cmd := &cobra.Command{
		Use:   "freeze --reason WHY",
		Short: "Refuse every change until unfreeze, for all callers or one",
		Long: `Refuse every change until unfreeze, for all callers or one, also across a restart
of the broker. Streams of the frozen callers are cut.`,
		Example: `  brokerctl freeze --reason "restart loop, looking into it"
  brokerctl freeze --caller spiffe://home.example/agent/hermes --reason "key lost"`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&req.Caller, "caller", "", "SPIFFE ID of the one caller to freeze (default: all)")
	cmd.Flags().StringVar(&req.Reason, "reason", "", "why, for whoever is refused; required")
	dryRunFlag(cmd, &req.ValidateOnly)
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		if req.GetReason() == "" {
			return fail(exitUsage, `for example --reason "restart loop"`, "freeze: --reason is required")
		}
		c, err := a.client(ctx)
		if err != nil {
			return err
		}
		ctx, cancel := a.deadline(ctx, 0)
		defer cancel()
		a.changing = !req.GetValidateOnly()
		resp, err := c.Broker().Freeze(ctx, req)
		if err != nil {
			return failed("freeze", err)
		}
		return a.show(view{value: resp, text: func(w io.Writer, _ bool) error {
			word := "frozen: "
			if req.GetValidateOnly() {
				word = "would freeze (dry run): "
			}
			_, err := fmt.Fprintln(w, word+termclean.String(freezeText(resp.GetFreeze())))
			return err
		}})
	})
	return cmd
}

func (a *app) unfreezeCommand() *cobra.Command {
	req := &brokerv1.UnfreezeRequest{}
	cmd := &cobra.Command{
		Use:   "unfreeze",
		Short: "End the freeze of all callers, or of one",
		Example: `  brokerctl unfreeze
  brokerctl unfreeze --caller spiffe://home.example/agent/hermes`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&req.Caller, "caller", "", "SPIFFE ID of the one caller whose freeze ends (default: the freeze of all)")
	dryRunFlag(cmd, &req.ValidateOnly)
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		c, err := a.client(ctx)
		if err != nil {
			return err
		}
		ctx, cancel := a.deadline(ctx, 0)
		defer cancel()
		a.changing = !req.GetValidateOnly()
		resp, err := c.Broker().Unfreeze(ctx, req)
		if err != nil {
			return failed("unfreeze", err)
		}
		return a.show(view{value: resp, text: func(w io.Writer, _ bool) error {
			word := "not frozen"
			if req.GetValidateOnly() {
				word = "would unfreeze (dry run)"
			}
			if _, err := fmt.Fprintln(w, word); err != nil {
				return err
			}
			for _, f := range resp.GetRemaining() {
				if _, err := fmt.Fprintln(w, "still frozen: "+termclean.String(freezeText(f))); err != nil {
					return err
				}
			}
			return nil
		}})
	})
	return cmd
}

// versions is what `version` shows.
type versions struct {
	Client versionInfo `json:"client"`
	// Server is the broker's GetVersionResponse, when it answered.
	Server json.RawMessage `json:"server,omitempty"`
	Error  string          `json:"error,omitempty"`
}

type versionInfo struct {
	Version   string `json:"version"`
	Revision  string `json:"revision,omitempty"`
	GoVersion string `json:"go_version"`
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Show the version of brokerctl, and of the broker when it answers",
		Example: "  brokerctl version\n  brokerctl version -o json",
		Args:    cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			v := versions{Client: versionInfo{Version: buildVersion(), Revision: buildSetting("vcs.revision"), GoVersion: runtime.Version()}}
			server, err := a.serverVersion(ctx)
			if err != nil {
				_, v.Error, _ = classify(err)
			} else if v.Server, err = (protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}).Marshal(server); err != nil {
				return err
			}
			return a.show(view{value: v, text: func(w io.Writer, _ bool) error {
				t := a.newTable("PROGRAM", "VERSION", "REVISION", "GO", "ENGINE API")
				t.add("brokerctl", v.Client.Version, shortID(v.Client.Revision), v.Client.GoVersion, "")
				if server != nil {
					api := firstOf(server.GetEngineApiVersion(), "unknown")
					if !server.GetEngineAvailable() {
						api += ", not answering"
					}
					t.add("broker", server.GetVersion(), shortID(server.GetRevision()), server.GetGoVersion(), api)
				}
				if err := t.write(w); err != nil {
					return err
				}
				if v.Error != "" {
					_, err := fmt.Fprintf(a.stderr, "no broker: %s\n", termclean.String(v.Error))
					return err
				}
				return nil
			}})
		}),
	}
}

func (a *app) serverVersion(ctx context.Context) (*brokerv1.GetVersionResponse, error) {
	c, err := a.client(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.deadline(ctx, 0)
	defer cancel()
	return c.Broker().GetVersion(ctx, &brokerv1.GetVersionRequest{})
}

// buildVersion is the module's version, or "devel".
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}

func buildSetting(key string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}
