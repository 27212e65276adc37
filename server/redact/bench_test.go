package redact

import (
	"fmt"
	"strings"
	"testing"
)

// plainLine is a line of some 100 bytes.
var plainLine = []byte(`2024-05-01T12:30:45.678Z INFO  [worker-3] request handled method=GET path=/api/v1/items status=200 ms`)

func BenchmarkLine(b *testing.B) {
	hostile := []byte(strings.Repeat("token:token=eyJ://a:sk-", 700))
	for _, bb := range []struct {
		name string
		line []byte
	}{
		{fmt.Sprintf("plain-%dB", len(plainLine)), plainLine},
		{"literal only", []byte(`2024-05-01T12:30:45.678Z INFO  [worker-3] token refreshed for http://host/api/v1/items status=200`)},
		{"secret", []byte(`2024-05-01T12:30:45.678Z INFO  [worker-3] login user=someone password=hunter2 path=/api/v1 status=200`)},
		{"hostile 16KiB", hostile},
	} {
		b.Run(bb.name, func(b *testing.B) {
			stream := mustNew(b).Stream()
			b.SetBytes(int64(len(bb.line)))
			b.ReportAllocs()
			for b.Loop() {
				stream.Line(bb.line, false)
			}
		})
	}
}
