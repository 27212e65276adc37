package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

const (
	backendPrefix     = "FIREWALL_BACKEND_"
	familyPrefix      = "FIREWALL_FAMILY_"
	sourceStatePrefix = "FIREWALL_SOURCE_STATE_"
	reachPrefix       = "REACH_"
)

// beginAgain is how often rules that were changed between two pages are read anew.
const beginAgain = 3

// maxOpenPorts is the most that a summary has.
const maxOpenPorts = 1000

func (a *app) firewallCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "firewall",
		Short: "Look at the host's packet filter",
		RunE:  a.group,
	}
	cmd.AddCommand(a.firewallStatusCommand(), a.firewallRulesCommand())
	return cmd
}

// readFirewall reads all pages, and begins again when the rules were changed
// between two of them.
func (a *app) readFirewall(ctx context.Context, req *brokerv1.FirewallStatusRequest) (*brokerv1.FirewallStatusResponse, error) {
	for again := 0; ; again++ {
		pages, err := list(ctx, a, func(ctx context.Context, c *client.Client, token string) (*brokerv1.FirewallStatusResponse, error) {
			req.PageToken = token
			return c.Firewall().FirewallStatus(ctx, req)
		}, wholePage)
		if client.Reason(err) == brokerv1.ErrorReason_ERROR_REASON_RULES_CHANGED && again < beginAgain {
			continue
		}
		if err != nil {
			return nil, err
		}
		whole := pages[0]
		for _, p := range pages[1:] {
			whole.Rules = append(whole.Rules, p.GetRules()...)
		}
		whole.NextPageToken = ""
		return whole, nil
	}
}

func (a *app) firewallStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the back ends, and what somebody outside can get to",
		Long: `Show the back ends of the packet filter, what they do by default, and the ports
that somebody outside can get to, whether or not anything listens there: brokerctl
sockets shows that. A port is conditional when a rule asks for more than protocol
and port. -o json has the rules too.`,
		Example: `  brokerctl firewall status
  brokerctl firewall status -o wide
  brokerctl firewall status -o json`,
		Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			req := &brokerv1.FirewallStatusRequest{PageSize: pageSize}
			read := a.readFirewall
			if !a.exact() {
				// The text has no rules, and a page has at least one.
				req.PageSize, read = 1, a.firewallPage
			}
			resp, err := read(ctx, req)
			if err != nil {
				return failed("firewall status", err)
			}
			return a.show(view{value: resp, text: func(w io.Writer, wide bool) error { return writeTables(w, a.firewallTables(resp, wide)...) }})
		}),
	}
}

// firewallPage reads one page.
func (a *app) firewallPage(ctx context.Context, req *brokerv1.FirewallStatusRequest) (*brokerv1.FirewallStatusResponse, error) {
	return ask(ctx, a, 0, func(ctx context.Context, c *client.Client) (*brokerv1.FirewallStatusResponse, error) {
		return c.Firewall().FirewallStatus(ctx, req)
	})
}

func (a *app) firewallTables(r *brokerv1.FirewallStatusResponse, wide bool) []*table {
	sources := a.newTable("BACK END", "FAMILY", "STATE", "RULES", "PROBLEM")
	for _, s := range r.GetSources() {
		row := cells(plain, enumText(s.GetBackend(), backendPrefix), knownText(s.GetFamily(), familyPrefix),
			enumText(s.GetState(), sourceStatePrefix), fmt.Sprint(s.GetRules()), s.GetProblem())
		row[2].colour = sourceColour(s.GetState())
		sources.addCells(row...)
	}
	sum := r.GetSummary()
	header := []string{"BACK END", "FAMILY", "CHAIN", "HOOK", "POLICY", "RULES"}
	if wide {
		header = append(header, "PACKETS", "BYTES")
	}
	defaults := a.newTable(header...)
	for _, c := range sum.GetDefaults() {
		row := []string{
			enumText(c.GetBackend(), backendPrefix), familyText(c.GetFamily()), c.GetTable() + "/" + c.GetName(),
			c.GetHook(), c.GetPolicy(), fmt.Sprint(c.GetRules()),
		}
		if wide {
			row = append(row, fmt.Sprint(c.GetPackets()), decimalSize(c.GetBytes()))
		}
		defaults.add(row...)
	}
	all := []*table{sources}
	if len(sum.GetDefaults()) > 0 {
		all = append(all, defaults)
	}
	if why := sum.GetUncertain(); why != "" {
		all = append(all, a.sentence(yellow, "UNCERTAIN: the ports below may not be right, nor be all: %s", why))
	}
	all = append(all, a.openPortsTable(sum.GetOpenPorts()))
	if n := len(sum.GetOpenPorts()); n >= maxOpenPorts {
		all = append(all, a.sentence(yellow, "these are the first %d; there may be more", n))
	}
	rules := int32(0)
	for _, s := range r.GetSources() {
		rules += s.GetRules()
	}
	unused := a.sentence(plain, "%d rules have matched nothing; brokerctl firewall rules --without-hits lists them", sum.GetRulesWithoutHits())
	if sum.GetRulesWithoutHits() == 0 {
		unused = a.sentence(plain, "every rule that counts has matched something")
	}
	if rules == 0 {
		unused = a.sentence(plain, "there are no rules")
	}
	return append(all, unused)
}

func (a *app) openPortsTable(ports []*brokerv1.OpenPorts) *table {
	if len(ports) == 0 {
		return a.sentence(plain, "no open ports")
	}
	t := a.newTable("FAMILY", "PROTOCOL", "PORTS", "REACH", "FORWARDED TO", "RULE")
	for _, p := range ports {
		row := cells(plain, familyText(p.GetFamily()), p.GetProtocol(), portRange(p.GetFirstPort(), p.GetLastPort()),
			reachText(p.GetReach()), p.GetForwardedTo(), firstOf(ruleText(p.GetRule()), "by default"))
		row[3].colour = reachColour(p.GetReach())
		t.addCells(row...)
	}
	return t
}

func portRange(first, last uint32) string {
	switch {
	case first == last:
		return fmt.Sprint(first)
	case first <= 1 && last == 65535:
		return "all"
	}
	return fmt.Sprintf("%d-%d", first, last)
}

// ruleText names a rule; "" for none.
func ruleText(r *brokerv1.FirewallRuleRef) string {
	if r == nil {
		return ""
	}
	return fmt.Sprintf("%s %s %s/%s %d", enumText(r.GetBackend(), backendPrefix), familyText(r.GetFamily()), r.GetTable(), r.GetChain(), r.GetNumber())
}

func familyText(f brokerv1.FirewallFamily) string {
	return firstOf(knownText(f, familyPrefix), "unknown")
}

func reachText(r brokerv1.Reach) string { return firstOf(knownText(r, reachPrefix), "unknown") }

func reachColour(r brokerv1.Reach) colour {
	switch r {
	case brokerv1.Reach_REACH_OPEN:
		return yellow
	case brokerv1.Reach_REACH_BLOCKED, brokerv1.Reach_REACH_LOCAL:
		return green
	}
	return plain
}

func sourceColour(s brokerv1.FirewallSourceState) colour {
	switch s {
	case brokerv1.FirewallSourceState_FIREWALL_SOURCE_STATE_ACTIVE:
		return green
	case brokerv1.FirewallSourceState_FIREWALL_SOURCE_STATE_MISSING:
		return yellow
	case brokerv1.FirewallSourceState_FIREWALL_SOURCE_STATE_UNREADABLE:
		return red
	}
	return plain
}

func (a *app) firewallRulesCommand() *cobra.Command {
	req := &brokerv1.FirewallStatusRequest{PageSize: pageSize}
	var unused bool
	cmd := &cobra.Command{
		Use:   "rules",
		Short: "List the rules of the packet filter in their order, with counters",
		Long: `List the rules of the packet filter in their order, with counters. A rule of
nftables counts only when it says so; else its counters are "-". -o wide has each
rule in its tool's own words.`,
		Example: `  brokerctl firewall rules
  brokerctl firewall rules --backend iptables-nft --table filter --chain INPUT
  brokerctl firewall rules --without-hits -o wide`,
		Args: cobra.NoArgs,
	}
	backend := choiceFlag[brokerv1.FirewallBackend](cmd, "backend", "only rules of this back end", backendPrefix)
	family := choiceFlag[brokerv1.FirewallFamily](cmd, "family", "only rules of this family", familyPrefix)
	f := cmd.Flags()
	f.StringVar(&req.Table, "table", "", "only rules of tables of exactly this name")
	f.StringVar(&req.Chain, "chain", "", "only rules of chains of exactly this name")
	f.BoolVar(&unused, "without-hits", false, "only rules that count and have matched nothing since they were made")
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		var err error
		if req.Backend, err = backend(); err != nil {
			return err
		}
		if req.Family, err = family(); err != nil {
			return err
		}
		resp, err := a.readFirewall(ctx, req)
		if err != nil {
			return failed("firewall rules", err)
		}
		if unused {
			resp.Rules = slices.DeleteFunc(resp.Rules, func(r *brokerv1.FirewallRule) bool { return !r.GetCounted() || r.GetPackets() > 0 })
		}
		a.noteUnread(resp.GetSources(), req.GetBackend())
		return a.show(view{value: resp, text: func(w io.Writer, wide bool) error { return a.rulesTable(resp.GetRules(), wide).write(w) }})
	})
	return cmd
}

// noteUnread says which rules may be missing. Many hosts lack a tool; that is said
// to whoever asks for its back end.
func (a *app) noteUnread(sources []*brokerv1.FirewallSource, asked brokerv1.FirewallBackend) {
	for _, s := range sources {
		unreadable := s.GetState() == brokerv1.FirewallSourceState_FIREWALL_SOURCE_STATE_UNREADABLE && (asked == 0 || asked == s.GetBackend())
		missing := s.GetState() == brokerv1.FirewallSourceState_FIREWALL_SOURCE_STATE_MISSING && asked == s.GetBackend()
		if unreadable || missing {
			a.note("note: rules may be missing: %s %s: %s", enumText(s.GetBackend(), backendPrefix), familyText(s.GetFamily()), firstOf(s.GetProblem(), enumText(s.GetState(), sourceStatePrefix)))
		}
	}
}

func (a *app) rulesTable(all []*brokerv1.FirewallRule, wide bool) *table {
	header := []string{"BACK END", "FAMILY", "CHAIN", "NUM", "PACKETS", "BYTES", "TARGET", "PROTO", "IN", "OUT", "SOURCE", "DESTINATION", "PORTS", "MATCHES", "COMMENT"}
	if wide {
		header = append(header, "RULE")
	}
	t := a.newTable(header...)
	for _, r := range all {
		packets, size := "", ""
		if r.GetCounted() {
			packets, size = fmt.Sprint(r.GetPackets()), decimalSize(r.GetBytes())
		}
		row := cells(plain, enumText(r.GetBackend(), backendPrefix), familyText(r.GetFamily()), r.GetTable()+"/"+r.GetChain(), fmt.Sprint(r.GetNumber()),
			packets, size, targetText(r), r.GetProtocol(), r.GetInInterface(), r.GetOutInterface(), r.GetSource(), r.GetDestination(),
			rulePorts(r), matchesText(r.GetMatches()), r.GetComment())
		row[6].colour = targetColour(r.GetTarget())
		if wide {
			row = append(row, cell{r.GetText(), plain})
		}
		t.addCells(row...)
	}
	return t
}

func targetText(r *brokerv1.FirewallRule) string {
	text := strings.TrimSpace(r.GetTarget() + " " + r.GetTargetOptions())
	if r.GetGotoTarget() {
		return "goto " + text
	}
	return text
}

func targetColour(target string) colour {
	switch strings.ToLower(target) {
	case "accept":
		return green
	case "drop", "reject":
		return red
	}
	return plain
}

func rulePorts(r *brokerv1.FirewallRule) string {
	if r.GetSourcePorts() == "" {
		return r.GetDestinationPorts()
	}
	return strings.TrimSuffix("from "+r.GetSourcePorts()+" to "+r.GetDestinationPorts(), " to ")
}

func matchesText(all []*brokerv1.FirewallMatch) string {
	var texts []string
	for _, m := range all {
		texts = append(texts, strings.TrimSpace(m.GetName()+" "+m.GetText()))
	}
	return strings.Join(texts, "; ")
}
