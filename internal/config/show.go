package config

import (
	"cmp"
	"fmt"
	"strings"
)

// TOML returns the configuration as a file with the same effect, each value with where it
// came from as a comment.
func (c *Config) TOML() string {
	var b strings.Builder
	for _, o := range options {
		from := cmp.Or(c.origins[o.name], "default")
		fmt.Fprintf(&b, "%s = %s # %s\n", o.name, render(o.get(c)), strings.Trim(quote(from), `"`))
	}
	return b.String()
}

// Values returns the configuration by key, for JSON.
func (c *Config) Values() map[string]any {
	m := map[string]any{}
	for _, o := range options {
		m[o.name] = o.get(c)
	}
	return m
}

// render writes a value as TOML.
func render(v any) string {
	switch v := v.(type) {
	case bool, int:
		return fmt.Sprint(v)
	case string:
		return quote(v)
	case []string:
		all := make([]string, len(v))
		for i, s := range v {
			all[i] = quote(s)
		}
		if len(all) < 2 {
			return "[" + strings.Join(all, "") + "]"
		}
		return "[\n  " + strings.Join(all, ",\n  ") + ",\n]"
	}
	panic(fmt.Sprintf("a value of type %T", v))
}

// quote writes a TOML basic string. A file has only UTF-8 in it; flags may have anything.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, "\\u%04X", r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// Row is a flag as documents name it.
type Row struct {
	Flag    string // with its dashes
	List    bool   // may be repeated
	Default string // Markdown
	Meaning string // Markdown
}

// Rows returns the table of flags.
func Rows() (rows []Row) {
	for i := range options {
		o := &options[i]
		rows = append(rows, Row{"--" + o.name, o.kind == list, defaultText(o), o.meaning})
	}
	return rows
}

// Markdown returns the row of a table with flag, default and meaning.
func (r Row) Markdown() string {
	flag := "`" + r.Flag + "`"
	if r.List {
		flag += " (list)"
	}
	return fmt.Sprintf("| %s | %s | %s |", flag, r.Default, r.Meaning)
}

// none is the default of what is not set.
const none = "–"

func defaultText(o *option) string {
	if o.defText != "" {
		return o.defText
	}
	return "`" + strings.Join(o.def, "`, `") + "`"
}
