package archtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"regexp"
	"slices"
	"sort"
	"strings"
)

// checkFloors complains about packages that have no room and about imports that the rooms
// do not allow, and about rooms whose own permissions break the house: a floor imports
// only floors below it, and sources do not know each other. Parts of one room (p2p/wire and
// p2p/inventory) may be allowed each other, and so may those of floor 0, none of which does
// anything.
func checkFloors(t *tree, rooms map[string]room) (bad []string) {
	for name, r := range rooms {
		for _, to := range r.may {
			below := r.floor < 0 || rooms[to].floor >= 0 && (rooms[to].floor < r.floor || r.floor == 0)
			part := family(to) == family(name) && rooms[to].floor == r.floor
			if _, ok := rooms[to]; !ok || !below && !part {
				bad = append(bad, fmt.Sprintf("rooms: %s may not be allowed to import %s", name, to))
			}
		}
	}
	by, dirs := t.packages()
	for _, dir := range dirs {
		r, ok := rooms[dir]
		if !ok {
			bad = append(bad, fmt.Sprintf("%s: not in the table of rooms: say on which floor it is and what it may import", dir))
			continue
		}
		for _, s := range by[dir] {
			for _, imp := range s.imports {
				to, ours := strings.CutPrefix(imp, module+"/")
				if !ours || to == dir || slices.Contains(r.may, to) {
					continue
				}
				if s.test && rooms[to].floor == floorTest {
					continue
				}
				bad = append(bad, fmt.Sprintf("%s: imports %s, which floor %d may not", s.name, to, r.floor))
			}
		}
	}
	sort.Strings(bad)
	return bad
}

// checkFences complains about dependencies outside of the rooms that own them.
func checkFences(t *tree, fences map[string][]string, testOnly []string) (bad []string) {
	for _, s := range t.sources {
		for _, imp := range s.imports {
			if !strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") || imp == module || strings.HasPrefix(imp, module+"/") {
				continue
			}
			owners, known := longest(fences, imp)
			if s.test && (known || slices.ContainsFunc(testOnly, func(p string) bool { return strings.HasPrefix(imp, p) })) {
				continue
			}
			switch {
			case !known:
				bad = append(bad, fmt.Sprintf("%s: imports %s, which has no owner in the table of fences", s.name, imp))
			case rooms[s.dir].floor >= 0 && !slices.Contains(owners, "*") && !slices.Contains(owners, s.dir):
				bad = append(bad, fmt.Sprintf("%s: imports %s, which only %s may", s.name, imp, strings.Join(owners, ", ")))
			}
		}
	}
	return bad
}

// family returns the room that a package is a part of: "p2p" of p2p/wire, itself of
// internal/upstream.
func family(name string) string {
	part := strings.Split(name, "/")
	if part[0] == "internal" && len(part) > 1 {
		return part[0] + "/" + part[1]
	}
	return part[0]
}

func longest(fences map[string][]string, imp string) (owners []string, ok bool) {
	n := -1
	for prefix, who := range fences {
		whole := imp == prefix || strings.HasPrefix(imp, strings.TrimSuffix(prefix, "/")+"/")
		if whole && len(prefix) > n {
			n, owners, ok = len(prefix), who, true
		}
	}
	return owners, ok
}

var negation = regexp.MustCompile(`(?i)\b(no|not|nothing|never|neither|nobody|none|nor)\b|n't\b`)

// checkComments wants exactly one package comment, whose first sentence says what the
// package is and whose last, in a part of the program, says what it does not do.
func checkComments(t *tree) (bad []string) {
	by, dirs := t.packages()
	for _, dir := range dirs {
		var docs []string
		name := ""
		for _, s := range by[dir] {
			if s.test {
				continue
			}
			name = s.syntax.Name.Name
			if s.syntax.Doc != nil {
				docs = append(docs, s.syntax.Doc.Text())
			}
		}
		if name == "" {
			continue // tests alone
		}
		if len(docs) != 1 {
			bad = append(bad, fmt.Sprintf("%s: %d package comments, want 1", dir, len(docs)))
			continue
		}
		doc := strings.Join(strings.Fields(docs[0]), " ")
		if name != "main" && !strings.HasPrefix(doc, "Package "+name+" ") {
			bad = append(bad, fmt.Sprintf("%s: the package comment does not begin with \"Package %s \"", dir, name))
		}
		sentences := strings.Split(strings.TrimSuffix(doc, "."), ". ")
		if name != "main" && rooms[dir].floor >= 0 && (len(sentences) < 2 || !negation.MatchString(sentences[len(sentences)-1])) {
			bad = append(bad, fmt.Sprintf("%s: the package comment does not end with what the package does not do", dir))
		}
	}
	return bad
}

// checkBudgets complains about functions, files and packages that are too large. Tests are
// not measured, tables are long.
func checkBudgets(t *tree) (bad []string) {
	var lengths []int
	files := map[string]int{}
	for _, s := range t.sources {
		if s.test {
			continue
		}
		files[s.dir]++
		if s.lines > maxFileLines {
			bad = append(bad, fmt.Sprintf("%s: %d lines, at most %d", s.name, s.lines, maxFileLines))
		}
		for _, d := range s.syntax.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			n := t.line(f.End()) - t.line(f.Pos()) + 1
			lengths = append(lengths, n)
			if n > maxFuncLines {
				bad = append(bad, fmt.Sprintf("%s%s has %d lines, at most %d", t.at(f), f.Name.Name, n, maxFuncLines))
			}
		}
	}
	for dir, n := range files {
		// The commands have a file each.
		if n > maxFiles && !strings.HasPrefix(dir, "cmd/") {
			bad = append(bad, fmt.Sprintf("%s: %d files, at most %d", dir, n, maxFiles))
		}
	}
	sort.Ints(lengths)
	if len(lengths) > 0 {
		if n := lengths[len(lengths)*9/10]; n > p90FuncLines {
			bad = append(bad, fmt.Sprintf("one function in ten has more than %d lines (the 90th percentile is %d)", p90FuncLines, n))
		}
	}
	sort.Strings(bad)
	return bad
}

// checkNames refuses package names that say nothing.
func checkNames(t *tree) (bad []string) {
	_, dirs := t.packages()
	for _, dir := range dirs {
		switch path.Base(dir) {
		case "util", "utils", "common", "types", "helpers", "misc":
			bad = append(bad, dir+": the name does not say what the package is for")
		}
	}
	return bad
}

// checkCode goes through the code for what the house does without: init functions and
// contexts from nowhere (lifetimes have owners), contexts kept in structs, the global
// logger, and tests that sleep.
func checkCode(t *tree) (bad []string) {
	for _, s := range t.sources {
		free := s.test || rooms[s.dir].floor < 0 || strings.HasPrefix(s.dir, "cmd/")
		names := importNames(s)
		bubble := token.NoPos // end of the synctest.Test that we are in: time is not real there
		ast.Inspect(s.syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if is(names, n.Fun, "testing/synctest", "Test") {
					bubble = max(bubble, n.End())
				}
			case *ast.FuncDecl:
				if n.Recv == nil && n.Name.Name == "init" {
					bad = append(bad, t.at(n)+"an init function runs for everybody who imports this")
				}
			case *ast.StructType:
				for _, f := range n.Fields.List {
					if is(names, f.Type, "context", "Context") && !s.test && rooms[s.dir].floor != floorLab {
						bad = append(bad, t.at(f)+"a context in a struct outlives its call")
					}
				}
			case *ast.SelectorExpr:
				switch {
				case !free && is(names, n, "context", "Background", "TODO"):
					bad = append(bad, t.at(n)+"context."+n.Sel.Name+": take the caller's context")
				case !strings.HasPrefix(s.dir, "cmd/") && is(names, n, "log/slog", "Debug", "Info", "Warn", "Error", "DebugContext",
					"InfoContext", "WarnContext", "ErrorContext", "Log", "LogAttrs", "Default", "SetDefault"):
					bad = append(bad, t.at(n)+"slog."+n.Sel.Name+": use the logger that was passed")
				case s.test && n.Pos() >= bubble && is(names, n, "time", "Sleep"):
					bad = append(bad, t.at(n)+"time.Sleep in a test: use testing/synctest or wait for the event")
				}
			}
			return true
		})
	}
	return bad
}

// importNames maps the names under which a file knows its imports to their paths.
func importNames(s *source) map[string]string {
	m := map[string]string{}
	for i, spec := range s.syntax.Imports {
		p := s.imports[i]
		name := path.Base(p)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		m[name] = p
	}
	return m
}

// is tells whether e is pkg.NAME with one of the names.
func is(names map[string]string, e ast.Expr, pkg string, sel ...string) bool {
	x, ok := e.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	id, ok := x.X.(*ast.Ident)
	return ok && names[id.Name] == pkg && slices.Contains(sel, x.Sel.Name)
}
