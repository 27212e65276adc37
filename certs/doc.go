// Package certs is the broker's small local certificate authority: one
// directory that holds a key, and the certificates of the agents, operators and
// servers of one SPIFFE trust domain. It is for hosts that do not run SPIRE.
//
// What it may do: read and write the directories it is given. It opens no
// socket, starts no process, logs nothing and keeps no global state.
//
// What it promises:
//
//   - Every key is ECDSA P-256, made here, and in a file that is born 0600: no
//     other user can read it at any time, whatever the umask.
//   - A certificate from [CA.Issue] has exactly one URI SAN, the requested
//     SPIFFE ID of this trust domain, and exactly one extended key usage:
//     clientAuth for agents and operators, serverAuth for servers. An agent's
//     stolen key can therefore never stand in for the broker.
//   - Nothing is overwritten, except a certificate and its key by [CA.Renew],
//     and that only for who holds the old key. Symbolic links are never
//     followed to a file that is written or trusted.
//   - Files appear whole or not at all. A renewal that is cut short leaves a
//     certificate and a key that visibly do not match, and the next renewal
//     finishes it.
//   - A request that cannot be met as asked is an error. Nothing is shortened,
//     dropped or guessed.
//
// What it does not do: revoke (remove the caller from the broker's policy, or
// list the serial number there), rotate the authority itself, or grant any
// right. A certificate says who calls; the policy says what the caller may do.
// That is also why agents and operators cannot be told apart by certificate.
//
// Deliberately bad certificates, for tests, come from the package certstest.
package certs
