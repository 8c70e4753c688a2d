package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// terminal describes where results are printed: a terminal has a width and colours, a file or a
// pipe has neither.
type terminal struct {
	width, height int // 0: no limit
	colour        bool
}

// terminal looks at where results go. NO_COLOR turns colours off (no-color.org).
func (u *ui) terminal() (p terminal) {
	if f, ok := u.out.(*os.File); ok && onTerminal(f) {
		p.colour = os.Getenv("NO_COLOR") == ""
		if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
			p.width, p.height = int(size.Col), int(size.Row)
		}
	}
	return p
}

// style is how a terminal shows a text (ECMA-48, SGR).
type style int

const (
	plain  style = 0
	bold   style = 1
	dim    style = 2
	red    style = 31
	green  style = 32
	yellow style = 33
)

// paint writes codes of the same length for all styles, so that columns stay aligned.
func (p terminal) paint(s style, text string) string {
	if !p.colour {
		return text
	}
	return fmt.Sprintf("\x1b[%02dm%s\x1b[00m", s, text)
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

// letters are those of a line, each with the codes around it.
var letters = regexp.MustCompile(`(?:\x1b\[\d\dm)*[^\x1b](?:\x1b\[\d\dm)*`)

// cut shortens lines to the width of the terminal.
func (p terminal) cut(lines []string) []string {
	for i, l := range lines {
		if at := letters.FindAllStringIndex(l, p.width+1); p.width > 0 && len(at) > p.width {
			lines[i] = l[:at[p.width-1][0]] + p.paint(plain, "…")
		}
	}
	return lines
}

// cell is one text of a table.
type cell struct {
	text  string
	style style
}

// table aligns rows below the heads of their columns, if there are any.
func (p terminal) table(heads []string, rows [][]cell) []string {
	if heads != nil {
		var top []cell
		for _, h := range heads {
			top = append(top, cell{h, bold})
		}
		rows = append([][]cell{top}, rows...)
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		for i, c := range r {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, p.paint(c.style, clean(c.text)))
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush() // b takes everything
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	return lines
}

// onTerminal reports whether w is a terminal that can move its cursor.
func onTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&fs.ModeCharDevice != 0
}

// liveLine is a line that changes. Where the cursor does not move, it is printed every few seconds.
type liveLine struct {
	out         io.Writer
	live, drawn bool
	last        time.Time
}

func (l *liveLine) show(text string) {
	every := 5 * time.Second
	if l.live {
		every = 100 * time.Millisecond
	}
	if time.Since(l.last) < every {
		return
	}
	l.erase()
	l.last, l.drawn = time.Now(), l.live
	if !l.live {
		text += "\n"
	}
	fmt.Fprint(l.out, text)
}

func (l *liveLine) erase() {
	if l.drawn {
		fmt.Fprint(l.out, "\r\x1b[K")
		l.drawn = false
	}
}
