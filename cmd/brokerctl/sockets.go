package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/client"
)

func (a *app) socketsCommand() *cobra.Command {
	req := &brokerv1.ListeningSocketsRequest{PageSize: pageSize}
	var tcp, udp bool
	cmd := &cobra.Command{
		Use:   "sockets",
		Short: "List what listens on the host, who holds it, and who can get to it",
		Long: `List the TCP sockets that listen and the UDP sockets that are bound and not
connected, by protocol, port and address: who holds them, and whether the packet
filter lets anybody outside get to them.`,
		Example: `  brokerctl sockets
  brokerctl sockets --tcp -o wide
  brokerctl sockets --udp --containers -o json`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&tcp, "tcp", false, "only TCP")
	cmd.Flags().BoolVar(&udp, "udp", false, "only UDP")
	cmd.Flags().BoolVar(&req.IncludeContainers, "containers", false, "those inside the networks of containers too")
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		switch {
		case tcp && udp:
			return fail(exitUsage, "leave out both for both", "--tcp does not go with --udp")
		case tcp:
			req.Protocol = brokerv1.TransportProtocol_TRANSPORT_PROTOCOL_TCP
		case udp:
			req.Protocol = brokerv1.TransportProtocol_TRANSPORT_PROTOCOL_UDP
		}
		pages, err := list(ctx, a, func(ctx context.Context, c *client.Client, token string) (*brokerv1.ListeningSocketsResponse, error) {
			req.PageToken = token
			return c.Sockets().ListeningSockets(ctx, req)
		}, wholePage)
		if err != nil {
			return failed("sockets", err)
		}
		all := &brokerv1.ListeningSocketsResponse{}
		for _, p := range pages {
			all.Sockets = append(all.Sockets, p.GetSockets()...)
			for _, problem := range p.GetProblems() {
				if !slices.Contains(all.Problems, problem) {
					all.Problems = append(all.Problems, problem)
				}
			}
		}
		for _, problem := range all.GetProblems() {
			a.note("note: %s", problem)
		}
		return a.showList(all, nil, func(wide bool) *table { return a.socketTable(all.GetSockets(), wide) })
	})
	return cmd
}

func (a *app) socketTable(all []*brokerv1.ListeningSocket, wide bool) *table {
	header := []string{"PROTO", "ADDRESS", "PORT", "REACH", "PROCESS", "PID", "CONTAINER"}
	if wide {
		header = append(header, "INODE", "UID", "RULE")
	}
	t := a.newTable(header...)
	for _, s := range all {
		process := func(text func(*brokerv1.SocketProcess) string) string {
			return strings.Join(namesOf(s.GetProcesses(), text), ", ")
		}
		row := cells(plain, enumText(s.GetProtocol(), "TRANSPORT_PROTOCOL_"), s.GetAddress(), fmt.Sprint(s.GetPort()), socketReach(s),
			process((*brokerv1.SocketProcess).GetName), process(func(p *brokerv1.SocketProcess) string { return fmt.Sprint(p.GetPid()) }), socketContainer(s))
		row[3].colour = reachColour(s.GetReach())
		if wide {
			inode := ""
			if n := s.GetInode(); n != 0 {
				inode = fmt.Sprint(n)
			}
			row = append(row, cells(plain, inode, fmt.Sprint(s.GetUid()), ruleText(s.GetReachRule()))...)
		}
		t.addCells(row...)
	}
	return t
}

// socketReach is nothing where the host's packet filter has no say.
func socketReach(s *brokerv1.ListeningSocket) string {
	if s.GetContainerNetwork() {
		return knownText(s.GetReach(), reachPrefix)
	}
	return reachText(s.GetReach())
}

func socketContainer(s *brokerv1.ListeningSocket) string {
	text := s.GetContainer()
	if s.GetPublished() {
		text += " (published)"
	}
	if s.GetContainerNetwork() {
		text += " (its own network)"
	}
	return strings.TrimSpace(text)
}
