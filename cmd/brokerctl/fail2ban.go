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

func (a *app) fail2banCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fail2ban",
		Short: "Look at fail2ban's jails and whom they ban",
		RunE:  a.group,
	}
	cmd.AddCommand(a.fail2banStatusCommand(), a.jailCommand(), a.bannedCommand())
	return cmd
}

// fail2ban asks for the version and all jails.
func (a *app) fail2ban(ctx context.Context) (*brokerv1.Fail2BanStatusResponse, error) {
	return ask(ctx, a, 0, func(ctx context.Context, c *client.Client) (*brokerv1.Fail2BanStatusResponse, error) {
		return c.Jails().Fail2BanStatus(ctx, &brokerv1.Fail2BanStatusRequest{})
	})
}

func (a *app) fail2banStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show fail2ban's version, and the jails within your grants",
		Long: `Show fail2ban's version, and the jails within your grants: the addresses that
failed lately or are banned now, and the failures and bans since each was started.`,
		Example: "  brokerctl fail2ban status\n  brokerctl fail2ban status -o name",
		Args:    cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			resp, err := a.fail2ban(ctx)
			if err != nil {
				return failed("fail2ban status", err)
			}
			return a.show(view{value: resp, names: namesOf(resp.GetJails(), (*brokerv1.JailCounters).GetName), text: func(w io.Writer, _ bool) error {
				version := a.newTable()
				version.field("Version", resp.GetVersion())
				jails := a.newTable("JAIL", "FAILED", "FAILURES", "BANNED", "BANS")
				for _, j := range resp.GetJails() {
					row := cells(plain, j.GetName(), fmt.Sprint(j.GetCurrentlyFailed()), fmt.Sprint(j.GetTotalFailed()),
						fmt.Sprint(j.GetCurrentlyBanned()), fmt.Sprint(j.GetTotalBanned()))
					if j.GetCurrentlyBanned() > 0 {
						row[3].colour = yellow
					}
					jails.addCells(row...)
				}
				return writeTables(w, version, jails)
			}})
		}),
	}
}

func (a *app) jailCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "jail NAME",
		Short:             "Describe a jail: what it watches, and when it bans",
		Example:           "  brokerctl fail2ban jail sshd\n  brokerctl fail2ban jail sshd -o yaml",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeJail(),
		RunE: a.run(func(ctx context.Context, args []string) error {
			resp, err := ask(ctx, a, 0, func(ctx context.Context, c *client.Client) (*brokerv1.GetJailResponse, error) {
				return c.Jails().GetJail(ctx, &brokerv1.GetJailRequest{Jail: args[0]})
			})
			if err != nil {
				return failed("jail "+args[0], err)
			}
			return a.show(view{
				value: resp,
				names: []string{resp.GetCounters().GetName()},
				text:  func(w io.Writer, _ bool) error { return a.jailTable(resp).write(w) },
			})
		}),
	}
}

func (a *app) jailTable(r *brokerv1.GetJailResponse) *table {
	t := a.newTable()
	c := r.GetCounters()
	t.field("Jail", c.GetName())
	t.field("Banned", fmt.Sprintf("%d now, %d times in all", c.GetCurrentlyBanned(), c.GetTotalBanned()))
	t.field("Failed", fmt.Sprintf("%d addresses lately, %d times in all", c.GetCurrentlyFailed(), c.GetTotalFailed()))
	for _, f := range r.GetLogFiles() {
		t.field("Log file", f)
	}
	if m := r.GetJournalMatches(); m != "" {
		t.field("Journal", m)
	}
	t.field("Bans for", firstOf(durationText(r.GetBanTime()), "ever"))
	t.field("Bans after", fmt.Sprintf("%d failures within %s", r.GetMaxRetry(), firstOf(durationText(r.GetFindTime()), "-")))
	t.field("Never bans", strings.Join(r.GetIgnoredAddresses(), " "))
	return t
}

// durationText is a duration for people; "" when it is not set.
func durationText(d *durationpb.Duration) string {
	if d == nil {
		return ""
	}
	return shortDuration(d.AsDuration())
}

func (a *app) bannedCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "banned NAME",
		Short:             "List the addresses that a jail bans now, by address",
		Example:           "  brokerctl fail2ban banned sshd\n  brokerctl fail2ban banned sshd -o name",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeJail(),
		RunE: a.run(func(ctx context.Context, args []string) error {
			req := &brokerv1.ListBannedRequest{Jail: args[0], PageSize: pageSize}
			all, err := list(ctx, a, func(ctx context.Context, c *client.Client, token string) (*brokerv1.ListBannedResponse, error) {
				req.PageToken = token
				return c.Jails().ListBanned(ctx, req)
			}, (*brokerv1.ListBannedResponse).GetBans)
			if err != nil {
				return failed("banned "+args[0], err)
			}
			return a.showList(&brokerv1.ListBannedResponse{Bans: all}, namesOf(all, (*brokerv1.Ban).GetAddress), func(bool) *table {
				t := a.newTable("ADDRESS", "BANNED", "UNTIL")
				for _, b := range all {
					t.add(b.GetAddress(), shortTime(b.GetBanTime()), firstOf(shortTime(b.GetExpireTime()), "for ever"))
				}
				return t
			})
		}),
	}
}
