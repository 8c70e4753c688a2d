package rig

import (
	"os"
	"path/filepath"
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
	must(WriteAround(file, "# Doc\n\nmade again\n", "absent", "other"))
	if want := "# Doc\n\nmade again\n\n<!-- other: begin -->\nsecond\n<!-- other: end -->\n"; read() != want {
		t.Errorf("after both were written anew:\n%s", read())
	}
	must(WriteAround(file, "all is new\n", "none"))
	if read() != "all is new\n" {
		t.Errorf("without a section:\n%s", read())
	}
}
