// Package testhost raises a whole Linux host for the end-to-end suite, the
// benchmarks and the demo: a Docker Engine with its own data, socket, bridge
// and firewall rules, in namespaces of its own.
//
// A program enters its host by running itself again inside new network, mount
// and PID namespaces ([Main] for a test binary, [Enter] for any other). There
//
//   - the only network interfaces are lo and what the engine makes, so nothing
//     that listens, dials or writes a firewall rule can meet the machine's own;
//   - /run is empty and /etc is copy-on-write, so the machine's engine socket
//     cannot be found and its configuration cannot be changed;
//   - every process is in one PID namespace whose init dies with the program
//     that entered. The kernel then ends all the others, so not even kill -9
//     leaves a daemon, a container or a mount behind. What it does leave, the
//     run's folder and empty cgroups, the next run removes.
//
// [Start] raises the engine and refuses to do so anywhere else. One [Host] can
// be up at a time in one namespace: two engines would fight over the bridge.
//
// A [Registry] is a real registry beside it, with a proxy in front of it that
// records what is asked and lets a test make it fail. One can be up at a time.
//
// A [Recorder] stands between a client and the engine, or in place of the
// engine. It needs neither root nor namespaces.
//
// The package needs root, Linux, and dockerd and docker-registry on PATH;
// scripts/install-test-deps installs what is missing. Without them [Main] skips
// the suite with one line on stderr, or fails it when E2E_REQUIRE=1. With
// E2E_ENGINE_ROOT=DIR the engine is taken from the root file system at DIR, which
// is how the suite runs against another release than the machine's.
//
// Images are made from nothing but a static helper program (./guest) and what a
// test makes up: no test reaches a registry of the outside world.
package testhost
