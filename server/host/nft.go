package host

import "time"

// nft prints what nftables holds.
func (h *Host) nft() *tool {
	return &tool{
		name: "nft", path: h.cfg.Tools.Nft.Value, version: "--version",
		timeout: 20 * time.Second, most: 64 << 20, // 10,000 rules are about 6 MB.
	}
}
