package host

import "time"

// sshd prints the configuration that it would start with. It has to be run as root.
func (h *Host) sshd() *tool {
	return &tool{
		name: "sshd", path: h.cfg.Tools.Sshd.Value, version: "-V",
		timeout: 5 * time.Second, most: 1 << 20,
	}
}

func (h *Host) sshdArgs() []string {
	if file := h.cfg.SshdConfig.Value; file != "" {
		return []string{"-T", "-f", file}
	}
	return []string{"-T"}
}
