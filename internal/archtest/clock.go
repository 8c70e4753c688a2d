package archtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"slices"
	"strings"
)

// waits are the functions of package time that wait on the clock.
var waits = []string{"Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"}

// testFunc is a function of a package's tests, with what it does outside of synctest bubbles.
type testFunc struct {
	waits []string // complaints
	names []string // of everything that it refers to
}

// checkClock reports tests that wait on the real clock, directly or through helpers. In a bubble
// of testing/synctest time is not real, also for helpers that are only called there.
func checkClock(t *tree) (bad []string) {
	by, dirs := t.packages()
	for _, dir := range dirs {
		funcs := map[string][]*testFunc{}
		var todo []string
		for _, s := range by[dir] {
			if !s.test || slices.ContainsFunc(realClock, func(p string) bool { return strings.HasPrefix(s.name, p) }) {
				continue
			}
			for _, d := range s.syntax.Decls {
				f, ok := d.(*ast.FuncDecl)
				if !ok {
					continue
				}
				tf := t.testFunc(s, f)
				name := f.Name.Name
				funcs[name] = append(funcs[name], tf)
				if f.Recv != nil { // called through an interface: reached if its type is
					name = receiver(f.Recv.List[0].Type)
					funcs[name] = append(funcs[name], tf)
				} else if isTest(name) {
					todo = append(todo, name)
				}
			}
		}
		seen := map[string]bool{}
		for len(todo) > 0 {
			name := todo[0]
			todo = todo[1:]
			if seen[name] {
				continue
			}
			seen[name] = true
			for _, f := range funcs[name] {
				bad = append(bad, f.waits...)
				todo = append(todo, f.names...)
			}
		}
	}
	slices.Sort(bad)
	return slices.Compact(bad)
}

func isTest(name string) bool {
	return slices.ContainsFunc([]string{"Test", "Benchmark", "Fuzz", "Example"}, func(p string) bool { return strings.HasPrefix(name, p) })
}

// testFunc looks through a function.
func (t *tree) testFunc(s *source, f *ast.FuncDecl) *testFunc {
	tf := &testFunc{}
	imports := importNames(s)
	bubble := token.NoPos // end of the call of synctest.Test that we are in
	ast.Inspect(f, func(n ast.Node) bool {
		if n == nil || n.Pos() < bubble {
			return true
		}
		switch n := n.(type) {
		case *ast.CallExpr:
			if is(imports, n.Fun, "testing/synctest", "Test") {
				bubble = max(bubble, n.End())
			}
		case *ast.SelectorExpr:
			if is(imports, n, "time", waits...) {
				tf.waits = append(tf.waits, fmt.Sprintf("%stime.%s in a test: use testing/synctest, or wait for the event", t.at(n), n.Sel.Name))
			}
		case *ast.Ident:
			tf.names = append(tf.names, n.Name)
		}
		return true
	})
	return tf
}
