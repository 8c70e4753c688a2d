package rig

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

// Documents are written by several commands, each of which owns what is between its marks.

func marks(name string) (begin, end []byte) {
	return []byte("<!-- " + name + ": begin -->"), []byte("<!-- " + name + ": end -->")
}

// section returns where a marked section is in a text, its marks included.
func section(text []byte, name string) (from, to int, ok bool) {
	begin, end := marks(name)
	from = bytes.Index(text, begin)
	if from < 0 {
		return 0, 0, false
	}
	n := bytes.Index(text[from:], end)
	if n < 0 {
		return 0, 0, false
	}
	return from, from + n + len(end), true
}

// WriteSection puts text between the marks of a name in a file, at its end if there are none.
func WriteSection(file, name, text string) error {
	old, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	begin, end := marks(name)
	with := fmt.Appendf(nil, "%s\n%s%s", begin, text, end)
	from, to, ok := section(old, name)
	if !ok {
		old = append(bytes.TrimRight(old, "\n"), "\n\n"...)
		from, to = len(old), len(old)
		with = append(with, '\n')
	}
	return os.WriteFile(file, bytes.Join([][]byte{old[:from], with, old[to:]}, nil), 0o644)
}

// ReplaceRows puts the rows of the tables in text in the place of those with the same first cell in a section, and
// returns how many there were. Those that the section lacks are left out.
func ReplaceRows(file, name, text string) (n int, err error) {
	old, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	from, to, ok := section(old, name)
	if !ok {
		return 0, fmt.Errorf("%s has no section %q", file, name)
	}
	first := func(line string) string {
		cell, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " | ")
		return cell
	}
	rows := map[string]string{}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "| ") && !strings.HasPrefix(line, "| ---") {
			rows[first(line)] = line
		}
	}
	var with strings.Builder
	for line := range strings.Lines(string(old[from:to])) {
		if row, ok := rows[first(line)]; ok && strings.HasPrefix(line, "| ") {
			line, n = row, n+1
		}
		with.WriteString(line)
	}
	return n, os.WriteFile(file, bytes.Join([][]byte{old[:from], []byte(with.String()), old[to:]}, nil), 0o644)
}

// WriteAround writes a file anew, but for the marked sections that other commands put there.
func WriteAround(file, text string, names ...string) error {
	out := append(bytes.TrimRight([]byte(text), "\n"), '\n')
	if old, err := os.ReadFile(file); err == nil {
		for _, name := range names {
			if from, to, ok := section(old, name); ok {
				out = append(append(append(out, '\n'), old[from:to]...), '\n')
			}
		}
	}
	return os.WriteFile(file, out, 0o644)
}
