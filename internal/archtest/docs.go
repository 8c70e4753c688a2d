package archtest

import (
	"fmt"
	"go/ast"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// section returns the lines of a Markdown text below the heading "## title", up to the
// next one of that level.
func section(text, title string) (lines []string, ok bool) {
	for l := range strings.Lines(text) {
		l = strings.TrimRight(l, "\n")
		switch {
		case l == "## "+title:
			ok = true
		case ok && strings.HasPrefix(l, "## "):
			return lines, true
		case ok:
			lines = append(lines, l)
		}
	}
	return lines, ok
}

// table returns the rows of the first Markdown table in lines without its heading, and
// where its rows begin.
func table(lines []string) (rows []string, first int) {
	for i, l := range lines {
		switch {
		case !strings.HasPrefix(l, "|"):
			if rows != nil {
				return rows, first
			}
		case strings.HasPrefix(strings.ReplaceAll(l, " ", ""), "|---"):
			first, rows = i+1, []string{}
		case rows != nil:
			rows = append(rows, l)
		}
	}
	return rows, first
}

// differ compares the rows of a document's table with those that the code makes.
func differ(have, want []string) (bad []string) {
	for _, w := range want {
		if !slices.Contains(have, w) {
			bad = append(bad, "is missing: "+w)
		}
	}
	for _, h := range have {
		if !slices.Contains(want, h) {
			bad = append(bad, "should not be there: "+h)
		}
	}
	if len(bad) == 0 && !slices.Equal(have, want) {
		bad = append(bad, "the rows are in another order")
	}
	return bad
}

// replaceRows puts rows in place of those of the first table below the heading "## title".
func replaceRows(text, title string, rows []string) (string, error) {
	lines, ok := section(text, title)
	have, first := table(lines)
	if !ok || have == nil {
		return "", fmt.Errorf("no table below ## %s", title)
	}
	old := strings.Join(lines, "\n")
	fresh := strings.Join(slices.Concat(lines[:first], rows, lines[first+len(have):]), "\n")
	head := "## " + title + "\n"
	before, after, _ := strings.Cut(text, head)
	return before + head + strings.Replace(after, old, fresh, 1), nil
}

var roomRow = regexp.MustCompile("^\\| *([0-9–]+) *\\| *`([a-z0-9/]+)` *\\|")

// checkArchitecture compares the table of packages in ARCHITECTURE.md with the rooms.
func checkArchitecture(text string, rooms map[string]room) (bad []string) {
	lines, _ := section(text, "Packages")
	rows, _ := table(lines)
	seen := map[string]bool{}
	for _, row := range rows {
		m := roomRow.FindStringSubmatch(row)
		if m == nil {
			bad = append(bad, "not \"| floor | `package` | …\": "+row)
			continue
		}
		r, ok := rooms[m[2]]
		floor := strconv.Itoa(r.floor)
		if r.floor < 0 {
			floor = "–"
		}
		switch {
		case !ok:
			bad = append(bad, m[2]+": no such room")
		case floor != m[1]:
			bad = append(bad, fmt.Sprintf("%s: is on floor %s, not %s", m[2], floor, m[1]))
		}
		seen[m[2]] = true
	}
	for name := range rooms {
		if !seen[name] {
			bad = append(bad, name+": missing from the table")
		}
	}
	slices.Sort(bad)
	return bad
}

var testName = regexp.MustCompile("`([a-z][a-z0-9/]*)\\.((?:Test|Fuzz)[A-Za-z0-9_]*)`")

// checkTestNames complains about tests named in a document that do not exist.
func checkTestNames(text string, t *tree) (bad []string) {
	have := map[string]bool{}
	for _, s := range t.sources {
		if s.test {
			for _, d := range s.syntax.Decls {
				if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
					have[s.dir+"."+f.Name.Name] = true
				}
			}
		}
	}
	for _, m := range testName.FindAllStringSubmatch(text, -1) {
		if !have[m[1]+"."+m[2]] {
			bad = append(bad, fmt.Sprintf("%s.%s: no such test", m[1], m[2]))
		}
	}
	return bad
}
