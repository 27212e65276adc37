package host

import (
	"time"

	"github.com/gortium/hermes-broker/internal/hostv1"
)

// iptablesSave prints the rules of one family and one back end with their
// counters. It makes no table that is not there.
func (h *Host) iptablesSave(what *hostv1.IptablesSave) *tool {
	t := &h.cfg.Tools
	name, path := "iptables_nft_save", t.IptablesNftSave
	switch {
	case what.GetIpv6() && what.GetLegacy():
		name, path = "ip6tables_legacy_save", t.Ip6tablesLegacySave
	case what.GetIpv6():
		name, path = "ip6tables_nft_save", t.Ip6tablesNftSave
	case what.GetLegacy():
		name, path = "iptables_legacy_save", t.IptablesLegacySave
	}
	return &tool{
		name: name, path: path.Value, args: []string{"-c"}, version: "--version",
		timeout: 10 * time.Second, most: 32 << 20, // 10,000 rules are about 1.5 MB.
	}
}
