package strictyaml

import (
	"slices"
	"strconv"
	"strings"
)

// suggest says what an unknown key could have been: the one known key within
// edit distance 2 that is nearest, or else every known key.
func suggest(key string, known []string) string {
	if len(known) == 0 {
		return "no keys are allowed here"
	}
	nearest, best, ties := "", 3, 0
	for _, k := range known {
		switch distance := editDistance(key, k); {
		case distance >= len(k): // nothing of the word is left
		case distance < best:
			nearest, best, ties = k, distance, 1
		case distance == best:
			ties++
		}
	}
	if best <= 2 && ties == 1 {
		return "did you mean " + strconv.Quote(nearest) + "?"
	}
	sorted := slices.Sorted(slices.Values(known))
	return "the known keys are " + strings.Join(sorted, ", ")
}

// editDistance counts the bytes to insert, delete or replace to get from a to b,
// for words that differ in length by at most 2; others are 3 apart.
func editDistance(a, b string) int {
	if max(len(a)-len(b), len(b)-len(a)) > 2 {
		return 3
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

// quote returns a key or a number in quotes, cut to a length fit for a message.
func quote(s string) string {
	const limit = 64 // bytes
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "..."
	}
	return strconv.Quote(s)
}
