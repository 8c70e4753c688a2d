package rig

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSections(t *testing.T) {
	file := filepath.Join(t.TempDir(), "doc.md")
	read := func() string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(file, []byte("# Doc\n\nmade by one\n"), 0o644))
	must(WriteSection(file, "other", "first\n"))
	if want := "# Doc\n\nmade by one\n\n<!-- other: begin -->\nfirst\n<!-- other: end -->\n"; read() != want {
		t.Errorf("a new section:\n%s", read())
	}
	must(WriteSection(file, "other", "second\n"))
	must(WriteSection(file, "table", "| a | b |\n| --- | --- |\n| x | 1 |\n| y | 2 |\n"))
	n, err := ReplaceRows(file, "table", "| a | b |\n| --- | --- |\n| y | 3 |\n| z | 4 |\n")
	must(err)
	if want := "| x | 1 |\n| y | 3 |\n<!--"; n != 2 || !strings.Contains(read(), want) {
		t.Errorf("%d rows replaced:\n%s", n, read())
	}
	if _, err := ReplaceRows(file, "absent", ""); err == nil {
		t.Error("rows of a section that is not there")
	}
	must(WriteAround(file, "# Doc\n\nmade again\n", "absent", "other"))
	if want := "# Doc\n\nmade again\n\n<!-- other: begin -->\nsecond\n<!-- other: end -->\n"; read() != want {
		t.Errorf("after both were written anew:\n%s", read())
	}
	must(WriteAround(file, "all is new\n", "none"))
	if read() != "all is new\n" {
		t.Errorf("without a section:\n%s", read())
	}
}
