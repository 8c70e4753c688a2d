package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/config"
)

func whyCommand(u *ui) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "why STORE-PATH", Short: "ask every source for a path and show the answers", Args: oneArg("STORE-PATH", false),
	}
	flags := config.RegisterClient(c.Flags())
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		h, err := parsePathArg(args[0])
		if err != nil {
			return err
		}
		var w admin.Why
		if err := ask(c.Context(), flags, "/api/v1/why/"+h.String(), &w); err != nil {
			return err
		}
		if asJSON {
			return u.json(w)
		}
		return u.why(w)
	}
	return c
}

var resultStyles = map[admin.Result]style{admin.Has: green, admin.Absent: dim, admin.Unavailable: yellow, admin.Invalid: red}

// why prints the answer of each source. It fails if no source has the path.
func (u *ui) why(w admin.Why) error {
	p := u.terminal()
	columns := []column{{head: "SOURCE"}, {head: "ANSWER"}, {head: "TOOK", right: true}}
	var rows [][]cell
	for _, a := range w.Answers {
		rows = append(rows, []cell{
			{text: clean(a.Source)}, {clean(string(a.Result)), resultStyles[a.Result]}, {text: fmt.Sprintf("%.1f ms", a.TookMS)},
		})
	}
	first := ""
	for i, line := range p.table(columns, rows) {
		if i == 0 {
			u.printf("%s\n", line)
			continue
		}
		a := w.Answers[i-1]
		if a.Result == admin.Has && first == "" {
			first = a.Source
		}
		u.beside(p, line, plainWidth(columns, rows), whyDetail(a))
	}
	if first == "" {
		u.printf("no source has %s\n", clean(w.StoreHash))
		return errSilent
	}
	return nil
}

// beside prints a line of a table and a text next to it, wrapped at the width of the terminal.
func (u *ui) beside(p terminal, line string, width int, text string) {
	indent := width + gap
	room := p.width - indent
	if text == "" {
		u.printf("%s\n", line)
		return
	}
	if p.width > 0 && room < p.width/2 {
		// Too narrow for two columns: below.
		u.printf("%s\n", line)
		for _, l := range wrap(text, p.width-gap) {
			u.printf("%*s%s\n", gap, "", l)
		}
		return
	}
	for i, l := range wrap(text, max(room, 0)) {
		if i == 0 {
			u.printf("%s%*s%s\n", line, gap, "", l)
		} else {
			u.printf("%*s%s\n", indent, "", l)
		}
	}
}

// plainWidth is how wide the lines of a table are that ends with a column set to the right.
func plainWidth(columns []column, rows [][]cell) int {
	return len([]rune((terminal{}).table(columns, rows)[0]))
}

func whyDetail(a admin.Answer) string {
	if a.Result != admin.Has {
		return clean(a.Err)
	}
	var parts []string
	if a.StorePath != "" {
		parts = append(parts, a.StorePath, humanSize(a.NarSize), "signed by "+strings.Join(a.Signers, ", "))
	}
	if len(a.Forms) > 0 {
		parts = append(parts, "holds "+strings.Join(a.Forms, ", "))
	}
	return clean(strings.Join(parts, ", "))
}
