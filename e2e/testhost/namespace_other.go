//go:build !linux

package testhost

// Inside reports whether this process runs in a host's namespaces: never here.
func Inside() bool { return false }

// Enter fails with [ErrUnavailable]: a host takes Linux.
func Enter() (code int, err error) { return 1, available() }

func unmountBelow(string) error { return nil }
