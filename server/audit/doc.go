// Package audit is the broker's memory of what was asked of it and what it did:
// an append-only, hash-chained log of JSON lines, kept in segments in one
// folder.
//
// It holds law: no record, no action. Before a CHANGE or DESTROY takes effect
// its intent is given to [Log.Sync], which returns without an error only when
// the record is on stable storage. The outcome closes it. Everything nobody
// waits for goes through [Log.Append], which never waits for the disk.
//
// # What the log promises
//
//   - A sequence number that Sync returned is in the log after a crash.
//   - Sequence numbers run without a hole and none is used twice.
//   - What could not be written is counted: a gap record says how many records
//     are missing and why. An outcome whose intent is in the log is not dropped
//     for a failing disk; it is written when the disk is back.
//   - Nothing written is hidden. The torn line a crash leaves behind stays in
//     place, followed by a torn record that holds its length and SHA-256.
//   - An intent that a dead process left open is closed at the next start by an
//     orphan record: the outcome is unknown, and the log says so.
//   - An old segment is removed only after a pruned record that names it is on
//     disk, and never while an intent in it is open.
//
// # The chain
//
// A line ends in
//
//	,"prev":"<64 hex>","hash":"<64 hex>"}
//
// where hash is the SHA-256 of the bytes of the line before `,"hash":"` and prev
// is the hash of the record before it (64 zeros for sequence number 1).
// [Verify] recomputes it over the bytes as they stand in the file.
//
// The chain is not keyed. It shows damage and clumsy editing by itself; against
// someone who may write to the folder and recompute every hash, or who cuts
// records off the end, it needs a head (see [Log.Head]) that was kept elsewhere.
//
// # What a line may hold
//
// One record is one line of at most 64 KiB, whatever its fields hold: what is
// not printable is written as a \u escape, so the file can be shown on a
// terminal. Fields that are too long are cut and named in the field "cut".
//
// The package knows neither gRPC nor policy. It writes below its folder only,
// redacts nothing (its caller has done so) and logs nothing.
package audit
