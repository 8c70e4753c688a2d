package main

import (
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// terminal describes where results are printed: a terminal has a width and colours, a file or a
// pipe has neither.
type terminal struct {
	width, height int // 0: no limit
	colour        bool
	interactive   bool
}

// terminal looks at where results go. COLUMNS limits the width anywhere; NO_COLOR turns colours
// off (no-color.org).
func (u *ui) terminal() terminal {
	var p terminal
	if f, ok := u.out.(*os.File); ok && os.Getenv("TERM") != "dumb" {
		if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
			p.interactive, p.width, p.height = true, int(size.Col), int(size.Row)
		}
	}
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		p.width = n
	}
	if p.width > 0 {
		p.width = max(p.width, leastWidth)
	}
	p.colour = p.interactive && os.Getenv("NO_COLOR") == ""
	return p
}

// leastWidth is the narrowest width that lines are cut to.
const leastWidth = 20

// style is how a terminal shows a text: the number of an attribute or a colour.
type style int

const (
	plain  style = 0
	bold   style = 1
	dim    style = 2
	red    style = 31
	green  style = 32
	yellow style = 33
)

func (p terminal) paint(s style, text string) string {
	if !p.colour || s == plain || text == "" {
		return text
	}
	return "\x1b[" + strconv.Itoa(int(s)) + "m" + text + "\x1b[0m"
}

// clean replaces control characters: errors and names may come from other machines, and a
// terminal executes the control sequences that it is sent.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return utf8.RuneError
		}
		return r
	}, s)
}

// cut shortens a text to width letters by dropping its end; 0 is no limit.
func cut(s string, width int) string {
	if width <= 0 || utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}

// wrap breaks a text between words into lines of width letters; a longer word is broken.
func wrap(s string, width int) (lines []string) {
	line := ""
	for _, word := range strings.Fields(s) {
		for width > 0 && utf8.RuneCountInString(word) > width {
			if line != "" {
				lines, line = append(lines, line), ""
			}
			r := []rune(word)
			lines, word = append(lines, string(r[:width])), string(r[width:])
		}
		switch n := utf8.RuneCountInString(line) + 1 + utf8.RuneCountInString(word); {
		case line == "":
			line = word
		case width > 0 && n > width:
			lines, line = append(lines, line), word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}

// cell is one text of a table.
type cell struct {
	text  string
	style style
}

// column says how a column is printed.
type column struct {
	head  string
	right bool // numbers
	// If the width is not enough, columns are dropped, the one with the highest drop first,
	// and then the one with shrink is cut. A column with drop 0 stays.
	drop   int
	shrink bool
}

const (
	gap     = 2  // between columns
	leastOf = 12 // letters of the column that shrinks
)

// table formats rows below the heads of their columns, without heads if all are empty.
func (p terminal) table(columns []column, rows [][]cell) []string {
	shown := make([]int, 0, len(columns)) // indices
	width := make([]int, len(columns))
	heads := make([]cell, len(columns))
	for i, c := range columns {
		shown = append(shown, i)
		heads[i] = cell{c.head, bold}
		width[i] = utf8.RuneCountInString(c.head)
		for _, r := range rows {
			width[i] = max(width[i], utf8.RuneCountInString(r[i].text))
		}
	}
	shown = p.fit(columns, shown, width)
	var lines []string
	for _, r := range append([][]cell{heads}, rows...) {
		var line strings.Builder
		for k, i := range shown {
			text := cut(r[i].text, width[i])
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(text))
			if k > 0 {
				line.WriteString(strings.Repeat(" ", gap))
			}
			if columns[i].right {
				line.WriteString(pad)
			}
			line.WriteString(p.paint(r[i].style, text))
			if !columns[i].right && k < len(shown)-1 {
				line.WriteString(pad)
			}
		}
		lines = append(lines, strings.TrimRight(line.String(), " "))
	}
	if strings.TrimSpace(lines[0]) == "" {
		lines = lines[1:]
	}
	return lines
}

// fit drops columns and narrows the one that shrinks until a line fits.
func (p terminal) fit(columns []column, shown, width []int) []int {
	if p.width == 0 {
		return shown
	}
	for {
		total, shrinks, last := -gap, -1, -1
		for k, i := range shown {
			total += width[i] + gap
			if columns[i].shrink {
				shrinks = i
			}
			if columns[i].drop > 0 && (last < 0 || columns[i].drop > columns[shown[last]].drop) {
				last = k
			}
		}
		over := total - p.width
		if shrinks >= 0 && over > 0 && width[shrinks]-over >= leastOf {
			width[shrinks] -= over
			over = 0
		}
		if over <= 0 || last < 0 {
			if shrinks >= 0 && over > 0 {
				width[shrinks] = max(width[shrinks]-over, 4)
			}
			return shown
		}
		shown = append(shown[:last:last], shown[last+1:]...)
	}
}
