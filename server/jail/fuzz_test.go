package jail

import (
	"os"
	"path/filepath"
	"testing"
)

// closed reports whether a value is of the closed set, all through.
func closed(v any, depth int) bool {
	var all []any
	switch v := v.(type) {
	case nil, bool, int64, float64, string:
	case list:
		all = v
	case tuple:
		all = v
	default:
		return false
	}
	for _, a := range all {
		if !closed(a, depth+1) {
			return false
		}
	}
	return depth <= maxDepth
}

// FuzzPickle: whatever comes, no panic, little memory, and nothing but the closed
// set; what is made of a value then panics neither.
func FuzzPickle(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.pickle")
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, c := range hostile {
		f.Add([]byte(c.in))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var v any
		var err error
		if n := allocated(func() { v, err = answer(b) }); n > uint64(len(b))*192+8<<20 { // The fuzzer allocates too.
			t.Errorf("%d bytes for %d", n, len(b))
		}
		if err != nil {
			if v != nil {
				t.Errorf("%v and %v", v, err)
			}
			return
		}
		if !closed(v, 0) {
			t.Errorf("%#v", v)
		}
		_, _ = versionOf(v)
		_, _ = namesOf(v)
		_, _ = statusOf(v)
		_, _ = durationOf(v)
		_, _ = countOf(v)
		_, _ = bansOf(v)
		_, _ = stringsOf(v)
	})
}
