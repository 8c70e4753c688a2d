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

// Rowf adds a row whose cells the format separates by "|".
func (t *Table) Rowf(format string, args ...any) {
	for i, a := range args {
		if text, ok := a.(string); ok {
			args[i] = strings.ReplaceAll(text, "|", "/")
		}
	}
	var cells []any
	for text := range strings.SplitSeq(fmt.Sprintf(format, args...), "|") {
		cells = append(cells, text)
	}
	t.Row(cells...)
}

// Plain keeps signs of a text from being taken as markup.
func Plain(s string) string {
	return strings.NewReplacer("\n", " ", "|z|", "absolute z", "|", "/", "*", "\\*", "<", "&lt;").Replace(s)
}

// String returns the table.
func (t *Table) String() string { return t.text.String() }
