package nixconf

import (
	"slices"
	"strings"
)

// Edit is some lines that take the place of others.
type Edit struct {
	Line int      `json:"line"` // from 1, of the old text: the first line that goes, or the one before which others come
	Old  []string `json:"old"`
	New  []string `json:"new"`
}

// diff says how old becomes new. Ends of lines are not told apart.
func diff(old, now string) []Edit {
	a, b := plain(old), plain(now)
	from := 0
	for from < min(len(a), len(b)) && a[from] == b[from] {
		from++
	}
	end := 0
	for end < min(len(a), len(b))-from && a[len(a)-1-end] == b[len(b)-1-end] {
		end++
	}
	return edits(a[from:len(a)-end], b[from:len(b)-end], from+1)
}

// edits pairs lines that stay. What changes is one line at most and one block, so it is enough
// to look for the next line that both have.
func edits(a, b []string, line int) (all []Edit) {
	for len(a) > 0 || len(b) > 0 {
		i, j := next(a, b)
		if i > 0 || j > 0 {
			all = append(all, Edit{line, slices.Clone(a[:i]), slices.Clone(b[:j])})
		}
		a, b, line = a[i:], b[j:], line+i
		for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
			a, b, line = a[1:], b[1:], line+1
		}
	}
	return all
}

// next returns where the next line is that both texts have.
func next(a, b []string) (int, int) {
	for n := range len(a) + len(b) {
		for i := max(0, n-len(b)); i <= min(n, len(a)-1); i++ {
			if j := n - i; j < len(b) && a[i] == b[j] {
				return i, j
			}
		}
	}
	return len(a), len(b)
}

func plain(text string) (lines []string) {
	for l := range strings.Lines(text) {
		lines = append(lines, strings.TrimRight(l, "\r\n"))
	}
	return lines
}
