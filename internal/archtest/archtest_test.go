package archtest

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// root is where go.mod is, seen from this package.
const root = "../.."

func here(t *testing.T) *tree {
	t.Helper()
	tr, err := load(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	if len(tr.sources) < 10 {
		t.Fatalf("found %d Go files below %s", len(tr.sources), root)
	}
	return tr
}

func report(t *testing.T, bad []string) {
	t.Helper()
	for _, b := range bad {
		t.Error(b)
	}
}

func TestFloors(t *testing.T) {
	report(t, checkFloors(here(t), rooms))
	report(t, checkTable(rooms))
}

func TestFences(t *testing.T) {
	report(t, checkFences(here(t), fences, testOnly))
	gomod, err := os.ReadFile(root + "/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	report(t, checkFenced(string(gomod), fences))
}

func TestPackageComments(t *testing.T) { report(t, checkComments(here(t))) }
func TestBudgets(t *testing.T)         { report(t, checkBudgets(here(t))) }
func TestPackageNames(t *testing.T)    { report(t, checkNames(here(t))) }
func TestCode(t *testing.T)            { report(t, checkCode(here(t))) }
func TestClock(t *testing.T)           { report(t, checkClock(here(t))) }

// TestLinked: transports that nixp2p does not speak are not linked into it.
func TestLinked(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "./cmd/nixp2p")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for dep := range strings.FieldsSeq(string(out)) {
		if dep == excludedExactly || slices.ContainsFunc(excluded, func(p string) bool { return strings.HasPrefix(dep, p) }) {
			t.Errorf("%s is linked into the program", dep)
		}
	}
}

// TestRulesBite runs every rule over a file that breaks it, and over one that does not.
func TestRulesBite(t *testing.T) {
	const doc = "// Package x is x. It does nothing else.\n"
	floors := func(t *tree) []string { return checkFloors(t, rooms) }
	fence := func(t *tree) []string { return checkFences(t, fences, testOnly) }
	for _, c := range []struct {
		name string
		rule func(*tree) []string
		file string
		text string
		want string // part of the only complaint; "" for none
	}{
		{"room unknown", floors, "internal/attic/a.go", doc + "package attic", "internal/attic: not in the table"},
		{"floor below", floors, "verify/a.go", `package verify; import "github.com/nixp2p/nixp2p/internal/nix"`, ""},
		{"floor above", floors, "internal/nix/a.go", `package nix; import "github.com/nixp2p/nixp2p/verify"`, "imports verify"},
		{"source to source", floors, "localstore/a.go", `package localstore; import "github.com/nixp2p/nixp2p/internal/upstream"`, "imports internal/upstream"},
		{"source to source in a test", floors, "localstore/a_test.go", `package localstore; import "github.com/nixp2p/nixp2p/internal/upstream"`, "imports internal/upstream"},
		{"fixtures in code", floors, "localstore/a.go", `package localstore; import "github.com/nixp2p/nixp2p/internal/nixtest"`, "imports internal/nixtest"},
		{"fixtures in a test", floors, "localstore/a_test.go", `package localstore; import "github.com/nixp2p/nixp2p/internal/nixtest"`, ""},
		{"front to a source", floors, "httpfront/a.go", `package httpfront; import "github.com/nixp2p/nixp2p/localstore"`, "imports localstore"},
		{"front to the resolver", floors, "httpfront/a.go", `package httpfront; import "github.com/nixp2p/nixp2p/internal/resolve"`, ""},
		{"resolver to a source", floors, "internal/resolve/a.go", `package resolve; import "github.com/nixp2p/nixp2p/internal/upstream"`, "imports internal/upstream"},
		{"transfer to the cache", floors, "internal/transfer/a.go", `package transfer; import "github.com/nixp2p/nixp2p/internal/narcache"`, ""},
		{"transfer to peers", floors, "internal/transfer/a.go", `package transfer; import "github.com/nixp2p/nixp2p/p2p"`, "imports p2p"},
		{"part of peers below", floors, "p2p/client/a.go", `package client; import "github.com/nixp2p/nixp2p/p2p/site"`, ""},
		{"part of peers above", floors, "p2p/site/a.go", `package site; import "github.com/nixp2p/nixp2p/p2p/client"`, "imports p2p/client"},
		{"part of peers beside", floors, "p2p/server/a.go", `package server; import "github.com/nixp2p/nixp2p/p2p/client"`, "imports p2p/client"},
		{"part of peers to the whole", floors, "p2p/share/a.go", `package share; import "github.com/nixp2p/nixp2p/p2p"`, "imports p2p"},
		{"lab to the program", floors, "lab/site/a.go", `package site; import "github.com/nixp2p/nixp2p/cmd/nixp2p"`, "imports cmd/nixp2p"},

		{"dependency unknown", fence, "verify/a.go", `package verify; import "example.org/x"`, "no owner"},
		{"dependency of another", fence, "verify/a.go", `package verify; import "modernc.org/sqlite"`, "which only localstore"},
		{"dependency of its own", fence, "localstore/a.go", `package localstore; import _ "modernc.org/sqlite"`, ""},
		{"test dependency in code", fence, "verify/a.go", `package verify; import "go.uber.org/goleak"`, "no owner"},
		{"test dependency in a test", fence, "verify/a_test.go", `package verify; import "go.uber.org/goleak"`, ""},
		{"a path that only begins alike", fence, "localstore/a.go", `package localstore; import "modernc.org/sqlite2"`, "no owner"},

		{"comment missing", checkComments, "x/a.go", "package x", "0 package comments"},
		{"comment", checkComments, "x/a.go", doc + "package x", ""},
		{"comment of another", checkComments, "x/a.go", "// Package y is y. It does nothing.\npackage x", "does not begin"},

		{"function too long", checkBudgets, "x/a.go", "package x\nfunc f() {" + strings.Repeat("\n", 100) + "}\nfunc g() {}\nfunc h() {}\n" + strings.Repeat("func _() {}\n", 20), "f has 101 lines"},
		{"functions too long on the whole", checkBudgets, "x/a.go", "package x\nfunc f() {" + strings.Repeat("\n", 50) + "}\n", "90th percentile is 51"},
		{"file too long", checkBudgets, "x/a.go", "package x" + strings.Repeat("\n", 501), "501 lines"},
		{"long test", checkBudgets, "x/a_test.go", "package x" + strings.Repeat("\n", 501), ""},

		{"methods", checkBudgets, "verify/a.go", "package verify; type t[K any] struct{}\n" + strings.Repeat("func (*t[K]) m() {}\n", 31), "31 methods"},
		{"fields", checkBudgets, "verify/a.go", "package verify; type t struct{ a, b, c, d, e, f, g, h, i, j, k, l, m, n, o int; sync.Mutex }; func (t) x() {}", "16 fields"},
		{"fields of data", checkBudgets, "verify/a.go", "package verify; type t struct{ a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p int }", ""},

		{"name", checkNames, "internal/util/a.go", "package util", "does not tell"},

		{"init", checkCode, "verify/a.go", "package verify; func init() {}", "init function"},
		{"method named init", checkCode, "verify/a.go", "package verify; type t int; func (t) init() {}", ""},
		{"background", checkCode, "verify/a.go", `package verify; import "context"; var c = context.Background()`, "context.Background"},
		{"todo", checkCode, "verify/a.go", `package verify; import "context"; var c = context.TODO()`, "context.TODO"},
		{"background renamed", checkCode, "verify/a.go", `package verify; import c "context"; var x = c.Background()`, "context.Background"},
		{"background in a test", checkCode, "verify/a_test.go", `package verify; import "context"; var c = context.Background()`, ""},
		{"background in cmd", checkCode, "cmd/nixp2p/a.go", `package main; import "context"; var c = context.Background()`, ""},
		{"without cancel", checkCode, "verify/a.go", `package verify; import "context"; func f(c context.Context) { context.WithoutCancel(c) }`, ""},
		{"context kept", checkCode, "verify/a.go", `package verify; import "context"; type t struct { ctx context.Context }`, "in a struct"},
		{"global logger", checkCode, "verify/a.go", `package verify; import "log/slog"; func f() { slog.Info("x") }`, "slog.Info"},
		{"logger passed", checkCode, "verify/a.go", `package verify; import "log/slog"; func f(log *slog.Logger) { log.Info("x", slog.Int("n", 1)) }`, ""},
		{"sleep in a bubble", checkClock, "verify/a_test.go", `package verify; import ("testing/synctest"; "time"); func TestF() { synctest.Test(nil, func() { time.Sleep(1) }) }`, ""},
		{"sleep behind a bubble", checkClock, "verify/a_test.go", `package verify; import ("testing/synctest"; "time"); func TestF() { synctest.Test(nil, nil); time.Sleep(1) }`, "time.Sleep"},
		{"after in a test", checkClock, "verify/a_test.go", `package verify; import "time"; func TestF() { <-time.After(1) }`, "time.After"},
		{"timer in a test", checkClock, "verify/a_test.go", `package verify; import clock "time"; func TestF() { clock.NewTimer(1) }`, "time.NewTimer"},
		{"timer in code", checkClock, "verify/a.go", `package verify; import "time"; func f() { time.NewTimer(1) }`, ""},
		{"wait for a process", checkClock, "cmd/nixp2p/a_test.go", `package main; import "time"; func f() { <-time.After(1) }`, ""},
		{"sleep in a helper", checkClock, "verify/a_test.go", `package verify; import "time"; func f() { time.Sleep(1) }; func TestF() { g := f; g() }`, "time.Sleep"},
		{"sleep in a fake", checkClock, "verify/a_test.go", `package verify; import "time"; type t int; func (t) f() { time.Sleep(1) }; func TestF() { use(t(0)) }`, "time.Sleep"},
		{"sleep in a helper of a bubble", checkClock, "verify/a_test.go", `package verify; import ("testing/synctest"; "time"); func f() { time.Sleep(1) }; func TestF() { synctest.Test(nil, func() { f() }) }`, ""},
		{"sleep in a test", checkClock, "verify/a_test.go", `package verify; import "time"; func TestF() { time.Sleep(1) }`, "time.Sleep"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr, err := load(fstest.MapFS{
				c.file:                        {Data: []byte(c.text)},
				"verify/testdata/broken/a.go": {Data: []byte("not Go, and not looked at")},
			})
			if err != nil {
				t.Fatal(err)
			}
			bad := c.rule(tr)
			switch {
			case c.want == "" && len(bad) > 0:
				t.Errorf("complains: %q", bad)
			case c.want != "" && (len(bad) != 1 || !strings.Contains(bad[0], c.want)):
				t.Errorf("says %q, want one with %q", bad, c.want)
			}
		})
	}
}

// TestTableBites: the exceptions in the table are checked themselves.
func TestTableBites(t *testing.T) {
	for _, c := range []struct {
		from, to string
		want     string // part of the only complaint; "" for none
	}{
		{"high", "low", "anyway"},
		{"low", "high", "above it"},
		{"low", "beside", ""},
		{"mid", "low", ""},
		{"low", "nowhere", "does not exist"},
	} {
		table := map[string]room{"high": {floor: 5}, "mid": {floor: 3}, "low": {floor: 2}, "beside": {floor: 2}}
		table[c.from] = room{floor: table[c.from].floor, also: []string{c.to}}
		bad := checkTable(table)
		if c.want == "" && len(bad) > 0 || c.want != "" && (len(bad) != 1 || !strings.Contains(bad[0], c.want)) {
			t.Errorf("%s may import %s: %q", c.from, c.to, bad)
		}
	}
	const gomod = "module x\n\nrequire (\n\texample.org/a/v2 v2.0.0\n\texample.org/b v1.0.0 // indirect\n)\n\nrequire example.org/c v1.0.0\n"
	fences := map[string][]string{"example.org/a": nil, "example.org/a/v2/sub": nil, "example.org/b": nil, "example.org/c": nil, "example.org/": nil, "example.org/d": nil, "example.org/bb": nil}
	if bad := checkFenced(gomod, fences); len(bad) != 2 || !strings.Contains(bad[0], "example.org/bb") || !strings.Contains(bad[1], "example.org/d") {
		t.Errorf("fences: %q", bad)
	}
}
