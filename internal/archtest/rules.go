package archtest

import (
	"fmt"
	"go/ast"
	"path"
	"regexp"
	"slices"
	"sort"
	"strings"
)

// checkFloors reports packages that are not in the table, imports that go up or across, and
// imports of a lower floor that the table does not allow.
func checkFloors(t *tree, rooms map[string]room) (bad []string) {
	by, dirs := t.packages()
	for _, dir := range dirs {
		r, ok := rooms[dir]
		if !ok {
			bad = append(bad, dir+": not in the table of rooms: add its floor")
			continue
		}
		for _, s := range by[dir] {
			for _, imp := range s.imports {
				to, ours := strings.CutPrefix(imp, module+"/")
				if !ours || to == dir || s.test && (rooms[to].floor == floorTest || rooms[to].floor >= 0 && rooms[to].floor < r.floor) {
					continue
				}
				if _, ok := rooms[to]; !ok || !allowed(dir, to, rooms) {
					bad = append(bad, fmt.Sprintf("%s: imports %s, which floor %d may not", s.name, to, r.floor))
				}
			}
		}
	}
	sort.Strings(bad)
	return bad
}

// allowed reports whether the package from may import the package to.
func allowed(from, to string, rooms map[string]room) bool {
	a, b := rooms[from], rooms[to]
	switch {
	case slices.Contains(a.also, to):
		return true
	case a.floor == floorLab:
		return to != "cmd/nixp2p"
	case a.floor == floorTest:
		return b.floor != floorLab && to != "cmd/nixp2p"
	case b.floor < 0:
		return false
	case a.floor == b.floor:
		return a.floor == 0 || family(from) == family(to) && b.rank < a.rank
	case b.floor == 2 && (a.floor == 3 || a.floor == 4):
		return false
	}
	return b.floor < a.floor
}

// checkTable reports exceptions in the table that are none, or break the rule they are in.
func checkTable(rooms map[string]room) (bad []string) {
	for name, r := range rooms {
		for _, to := range r.also {
			plain := map[string]room{}
			for n, x := range rooms {
				plain[n] = room{floor: x.floor, rank: x.rank}
			}
			switch x, ok := rooms[to]; {
			case !ok:
				bad = append(bad, fmt.Sprintf("%s: may import %s, which does not exist", name, to))
			case x.floor > r.floor:
				bad = append(bad, fmt.Sprintf("%s: may import %s, which is above it", name, to))
			case slices.Contains(x.also, name):
				bad = append(bad, fmt.Sprintf("%s and %s may import each other", name, to))
			case allowed(name, to, plain):
				bad = append(bad, fmt.Sprintf("%s: may import %s anyway", name, to))
			}
		}
	}
	sort.Strings(bad)
	return bad
}

var requirement = regexp.MustCompile(`(?m)^(?:require)?\s+(\S+\.\S+/\S+|\S+\.\S+) v[^/\n]*(// indirect)?$`)

// checkFenced reports fences around dependencies that go.mod does not require.
func checkFenced(gomod string, fences map[string][]string) (bad []string) {
	var have []string
	for _, m := range requirement.FindAllStringSubmatch(gomod, -1) {
		have = append(have, m[1])
	}
	for prefix := range fences {
		p := strings.TrimSuffix(prefix, "/")
		if !slices.ContainsFunc(have, func(m string) bool {
			return m == p || strings.HasPrefix(m, p+"/") || strings.HasPrefix(p, m+"/")
		}) {
			bad = append(bad, fmt.Sprintf("fences: %s is not in go.mod", prefix))
		}
	}
	sort.Strings(bad)
	return bad
}

// checkFences reports dependencies that are imported outside of the packages that own them.
func checkFences(t *tree, fences map[string][]string, testOnly []string) (bad []string) {
	for _, s := range t.sources {
		outside := s.test || rooms[s.dir].floor < 0
		for _, imp := range s.imports {
			if !strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") || imp == module || strings.HasPrefix(imp, module+"/") {
				continue
			}
			owners, known := longest(fences, imp)
			if outside && (known || slices.ContainsFunc(testOnly, func(p string) bool { return strings.HasPrefix(imp, p) })) {
				continue
			}
			switch {
			case !known:
				bad = append(bad, fmt.Sprintf("%s: imports %s, which has no owner in the table of fences", s.name, imp))
			case !slices.Contains(owners, "*") && !slices.Contains(owners, s.dir):
				bad = append(bad, fmt.Sprintf("%s: imports %s, which only %s may", s.name, imp, strings.Join(owners, ", ")))
			}
		}
	}
	return bad
}

// family returns the package of which another one is a part: p2p of p2p/wire.
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

// checkComments wants exactly one package comment, which begins with the name.
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
		switch {
		case name == "": // only tests
		case len(docs) != 1:
			bad = append(bad, fmt.Sprintf("%s: %d package comments, want 1", dir, len(docs)))
		case name != "main" && !strings.HasPrefix(docs[0], "Package "+name+" "):
			bad = append(bad, fmt.Sprintf("%s: the package comment does not begin with \"Package %s \"", dir, name))
		}
	}
	return bad
}

// checkBudgets reports functions, files and types that are too large. Tests are not measured.
func checkBudgets(t *tree) (bad []string) {
	var lengths []int
	for _, s := range t.sources {
		if s.test {
			continue
		}
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
	bad = append(bad, checkTypes(t)...)
	sort.Ints(lengths)
	if len(lengths) > 0 {
		if n := lengths[len(lengths)*9/10]; n > p90FuncLines {
			bad = append(bad, fmt.Sprintf("one function in ten has more than %d lines (the 90th percentile is %d)", p90FuncLines, n))
		}
	}
	sort.Strings(bad)
	return bad
}

// checkTypes reports types with too many methods, and types with methods that have too many
// fields.
func checkTypes(t *tree) (bad []string) {
	methods, fields := map[string]int{}, map[string]int{}
	for _, s := range t.sources {
		if s.test || rooms[s.dir].floor < 0 {
			continue
		}
		for _, d := range s.syntax.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv != nil {
					methods[s.dir+"."+receiver(d.Recv.List[0].Type)]++
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if ts, ok := spec.(*ast.TypeSpec); ok {
						if st, ok := ts.Type.(*ast.StructType); ok {
							fields[s.dir+"."+ts.Name.Name] = countFields(st)
						}
					}
				}
			}
		}
	}
	for name, n := range methods {
		if n > maxMethods {
			bad = append(bad, fmt.Sprintf("%s has %d methods, at most %d", name, n, maxMethods))
		}
		if fields[name] > maxFields && !slices.Contains(tables, name) && !strings.HasSuffix(name, ".Config") {
			bad = append(bad, fmt.Sprintf("%s has %d fields, at most %d", name, fields[name], maxFields))
		}
	}
	return bad
}

func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

func countFields(st *ast.StructType) (n int) {
	for _, f := range st.Fields.List {
		n += max(len(f.Names), 1)
	}
	return n
}

// checkNames reports package names that mean nothing.
func checkNames(t *tree) (bad []string) {
	_, dirs := t.packages()
	for _, dir := range dirs {
		switch path.Base(dir) {
		case "util", "utils", "common", "types", "helpers", "misc":
			bad = append(bad, dir+": the name does not tell what the package is for")
		}
	}
	return bad
}

// checkCode reports init functions, contexts that are not the caller's, contexts in structs, and
// the global logger.
func checkCode(t *tree) (bad []string) {
	for _, s := range t.sources {
		free := s.test || rooms[s.dir].floor < 0 || strings.HasPrefix(s.dir, "cmd/")
		names := importNames(s)
		ast.Inspect(s.syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Recv == nil && n.Name.Name == "init" {
					bad = append(bad, t.at(n)+"an init function runs in every program that imports this")
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

// is reports whether e is pkg.NAME with one of the names.
func is(names map[string]string, e ast.Expr, pkg string, sel ...string) bool {
	x, ok := e.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	id, ok := x.X.(*ast.Ident)
	return ok && names[id.Name] == pkg && slices.Contains(sel, x.Sel.Name)
}
