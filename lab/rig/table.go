package rig

import (
	"fmt"
	"strings"
)

// Table is a table in Markdown.
type Table struct {
	columns int
	text    strings.Builder
}

// NewTable returns a table with the heads of its columns. Those that begin with ">" hold numbers.
func NewTable(heads ...string) *Table {
	t := &Table{columns: len(heads)}
	line := "|"
	cells := make([]any, 0, len(heads))
	for _, h := range heads {
		name, right := strings.CutPrefix(h, ">")
		cells = append(cells, name)
		if line += " ---"; right {
			line += ":"
		}
		line += " |"
	}
	t.Row(cells...)
	t.text.WriteString(line + "\n")
	return t
}

// Row adds a row; cells that are missing are empty.
func (t *Table) Row(cells ...any) {
	t.text.WriteString("|")
	for i := range t.columns {
		text := ""
		if i < len(cells) {
			text = strings.NewReplacer("\n", " ", "|", "/").Replace(fmt.Sprint(cells[i]))
		}
		t.text.WriteString(" " + text + " |")
	}
	t.text.WriteString("\n")
}

// String returns the table.
func (t *Table) String() string { return t.text.String() }
