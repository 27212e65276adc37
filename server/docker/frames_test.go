package docker

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"
	"testing/iotest"

	brokerv1 "github.com/gortium/hermes-broker/api/brokerv1"
	"github.com/gortium/hermes-broker/server/redact"
)

func FuzzFrames(f *testing.F) {
	f.Add([]byte(frame(1, "one\n")+frame(2, "two\n")+frame(1, "three")), false)
	f.Add([]byte(frame(1, "2026-01-02T03:04:05Z one\n")+frame(3, "error")), true)
	f.Add([]byte("\x01\x00\x00\x00\xff\xff\xff\xff"), false)
	f.Add([]byte(frame(1, "")+frame(2, "\n")+"\x01\x00"), false)
	rules, err := redact.New(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte, timestamps bool) {
		var whole [3]int
		for rest := data; len(rest) >= 8 && (rest[0] == 1 || rest[0] == 2); {
			n := min(int(binary.BigEndian.Uint32(rest[4:8])), len(rest)-8)
			whole[rest[0]] += n
			rest = rest[8+n:]
		}
		for _, over := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.OneByteReader} {
			r := &receiver{}
			b := newBatch(rules, r.Send)
			err := readFrames(over(bytes.NewReader(data)), timestamps, b)
			if failed := b.flush(); failed != nil {
				t.Fatal(failed)
			}
			var came [3]int
			for _, m := range r.got {
				if len(m.GetEntries()) > batchCount {
					t.Errorf("%d entries", len(m.GetEntries()))
				}
				for _, e := range m.GetEntries() {
					stream, text := 1, e.GetStdout()
					if _, ok := e.GetOutput().(*brokerv1.LogEntry_Stderr); ok {
						stream, text = 2, e.GetStderr()
					}
					came[stream] += len(text)
					if !e.GetPartial() {
						came[stream]++
					}
				}
			}
			// What the redactor or a timestamp takes away is not counted here.
			if err == nil && !timestamps && !bytes.Contains(data, []byte(":")) && !bytes.Contains(data, []byte("=")) && whole != came && !redacts(r) {
				t.Errorf("%v bytes came of %v", came, whole)
			}
			if err == nil && came != [3]int{} && whole == [3]int{} {
				t.Errorf("%v bytes came of nothing", came)
			}
		}
	})
}
