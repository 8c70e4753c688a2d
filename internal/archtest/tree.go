package archtest

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"sort"
	"strconv"
	"strings"
)

// source is one parsed Go file.
type source struct {
	name    string // path in the module, slash-separated
	dir     string // package path in the module
	test    bool
	lines   int
	syntax  *ast.File
	imports []string
}

// tree is all Go files of a module.
type tree struct {
	fset    *token.FileSet
	sources []*source
}

// load parses every Go file below root, apart from testdata, hidden directories and other
// modules. Build
// constraints do not matter: a rule holds on every platform.
func load(root fs.FS) (*tree, error) {
	t := &tree{fset: token.NewFileSet()}
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := path.Base(name)
		if d.IsDir() {
			if name != "." && (base == "testdata" || base == "vendor" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_")) {
				return fs.SkipDir
			}
			if _, err := fs.Stat(root, path.Join(name, "go.mod")); err == nil && name != "." {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(base, ".go") || !d.Type().IsRegular() {
			return nil
		}
		return t.add(root, name)
	})
	return t, err
}

func (t *tree) add(root fs.FS, name string) error {
	text, err := fs.ReadFile(root, name)
	if err != nil {
		return err
	}
	f, err := parser.ParseFile(t.fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return fmt.Errorf("parse: %w", err)
	}
	s := &source{
		name: name, dir: path.Dir(name), test: strings.HasSuffix(name, "_test.go"),
		lines: bytes.Count(text, []byte("\n")), syntax: f,
	}
	for _, i := range f.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			return fmt.Errorf("%s: import %s: %w", name, i.Path.Value, err)
		}
		s.imports = append(s.imports, p)
	}
	t.sources = append(t.sources, s)
	return nil
}

// packages returns the sources by directory, and the sorted directories.
func (t *tree) packages() (map[string][]*source, []string) {
	by := map[string][]*source{}
	for _, s := range t.sources {
		by[s.dir] = append(by[s.dir], s)
	}
	var dirs []string
	for d := range by {
		dirs = append(dirs, d)
	}
	sort.Strings(dirs)
	return by, dirs
}

func (t *tree) line(p token.Pos) int { return t.fset.Position(p).Line }

// at is "file:line: " for a complaint.
func (t *tree) at(n ast.Node) string {
	p := t.fset.Position(n.Pos())
	return fmt.Sprintf("%s:%d: ", p.Filename, p.Line)
}
