package archtest

import (
	"os"
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

func TestFloors(t *testing.T)          { report(t, checkFloors(here(t), rooms)) }
func TestFences(t *testing.T)          { report(t, checkFences(here(t), fences, testOnly)) }
func TestPackageComments(t *testing.T) { report(t, checkComments(here(t))) }
func TestBudgets(t *testing.T)         { report(t, checkBudgets(here(t))) }
func TestPackageNames(t *testing.T)    { report(t, checkNames(here(t))) }
func TestCode(t *testing.T)            { report(t, checkCode(here(t))) }

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

		{"dependency unknown", fence, "verify/a.go", `package verify; import "example.org/x"`, "no owner"},
		{"dependency of another", fence, "verify/a.go", `package verify; import "modernc.org/sqlite"`, "which only localstore"},
		{"dependency of its own", fence, "localstore/a.go", `package localstore; import _ "modernc.org/sqlite"`, ""},
		{"test dependency in code", fence, "verify/a.go", `package verify; import "go.uber.org/goleak"`, "no owner"},
		{"test dependency in a test", fence, "verify/a_test.go", `package verify; import "go.uber.org/goleak"`, ""},
		{"a path that only begins alike", fence, "localstore/a.go", `package localstore; import "modernc.org/sqlite2"`, "no owner"},

		{"comment missing", checkComments, "x/a.go", "package x", "0 package comments"},
		{"comment", checkComments, "x/a.go", doc + "package x", ""},
		{"comment of another", checkComments, "x/a.go", "// Package y is y. It does nothing.\npackage x", "does not begin"},
		{"comment without an end", checkComments, "x/a.go", "// Package x is x. It does all.\npackage x", "does not end"},

		{"function too long", checkBudgets, "x/a.go", "package x\nfunc f() {" + strings.Repeat("\n", 100) + "}\nfunc g() {}\nfunc h() {}\n" + strings.Repeat("func _() {}\n", 20), "f has 101 lines"},
		{"functions too long on the whole", checkBudgets, "x/a.go", "package x\nfunc f() {" + strings.Repeat("\n", 50) + "}\n", "90th percentile is 51"},
		{"file too long", checkBudgets, "x/a.go", "package x" + strings.Repeat("\n", 501), "501 lines"},
		{"long test", checkBudgets, "x/a_test.go", "package x" + strings.Repeat("\n", 501), ""},

		{"name", checkNames, "internal/util/a.go", "package util", "does not say"},

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
		{"sleep in a bubble", checkCode, "verify/a_test.go", `package verify; import ("testing/synctest"; "time"); func f() { synctest.Test(nil, func() { time.Sleep(1) }) }`, ""},
		{"sleep behind a bubble", checkCode, "verify/a_test.go", `package verify; import ("testing/synctest"; "time"); func f() { synctest.Test(nil, nil); time.Sleep(1) }`, "time.Sleep"},
		{"sleep in a test", checkCode, "verify/a_test.go", `package verify; import "time"; func f() { time.Sleep(1) }`, "time.Sleep"},
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

func TestFilesOfAPackage(t *testing.T) {
	files := fstest.MapFS{}
	for i := range maxFiles + 1 {
		files["x/"+strings.Repeat("a", i+1)+".go"] = &fstest.MapFile{Data: []byte("package x\n")}
	}
	tr, err := load(files)
	if err != nil {
		t.Fatal(err)
	}
	if bad := checkBudgets(tr); len(bad) != 1 || !strings.Contains(bad[0], "13 files") {
		t.Errorf("says %q", bad)
	}
}

// TestTableBites: permissions in the table itself keep to the floors.
func TestTableBites(t *testing.T) {
	for _, c := range []struct {
		from, to string
		want     bool // complains
	}{
		{"high", "low", false},
		{"low", "high", true},
		{"low", "beside", true},
		{"low", "low/part", false},
		{"low/part", "low", false},
		{"words", "counters", false},
		{"suite", "high", false},
		{"low", "suite", true},
		{"high", "nowhere", true},
	} {
		table := map[string]room{
			"high": {floor: 3}, "low": {floor: 2}, "beside": {floor: 2}, "low/part": {floor: 2}, "words": {}, "counters": {}, "suite": {floor: floorTest},
		}
		table[c.from] = room{table[c.from].floor, []string{c.to}}
		if bad := checkFloors(&tree{}, table); len(bad) > 0 != c.want {
			t.Errorf("%s may import %s: %q", c.from, c.to, bad)
		}
	}
}
