package archtest

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/config"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/prometheus/client_golang/prometheus"
)

var write = flag.Bool("write", false, "write the tables that the code makes into README.md")

func TestArchitecture(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	report(t, checkArchitecture(string(text), rooms))
}

// TestInvariants: each test that a document names exists.
func TestInvariants(t *testing.T) {
	tr := here(t)
	for _, name := range []string{"docs/invariants.md", "docs/first-use.md", "ARCHITECTURE.md"} {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if name == "docs/invariants.md" && strings.Count(string(text), "\n| ") < 40 {
			t.Errorf("%s has lost its table", name)
		}
		report(t, checkTestNames(string(text), tr))
	}
}

func TestReadmeMetrics(t *testing.T) { readmeTable(t, "Metrics", metricRows(t)) }

func TestReadmeFlags(t *testing.T) {
	var rows []string
	for _, r := range config.Rows() {
		rows = append(rows, r.Markdown())
	}
	readmeTable(t, "Flags", rows)
}

// readmeTable compares a table of README.md with the rows that the code makes. A README
// that is not there has nothing wrong in it.
func readmeTable(t *testing.T, title string, want []string) {
	t.Helper()
	name := filepath.Join(root, "README.md")
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("THERE IS NO README.md: its table of " + title + " is not compared")
	}
	if err != nil {
		t.Fatal(err)
	}
	if *write {
		fresh, err := replaceRows(string(text), title, want)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(fresh), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	lines, ok := section(string(text), title)
	if !ok {
		t.Fatalf("README.md has no section \"## %s\"", title)
	}
	have, _ := table(lines)
	report(t, differ(have, want))
	if t.Failed() {
		t.Log("`make readme` writes the rows")
	}
}

var desc = regexp.MustCompile(`fqName: "([^"]*)", help: "([^"]*)",(?: unit: "[^"]*",)? constLabels: {}, variableLabels: {([^}]*)}`)

// metricRows has a row for every field of metrics.Metrics, in the order of the fields.
func metricRows(t *testing.T) (rows []string) {
	t.Helper()
	m := reflect.ValueOf(metrics.New()).Elem()
	for i := range m.NumField() {
		c, ok := m.Field(i).Interface().(prometheus.Collector)
		if !ok || m.Type().Field(i).Name == "Registry" {
			continue
		}
		ch := make(chan *prometheus.Desc, 1)
		c.Describe(ch)
		text := (<-ch).String()
		d := desc.FindStringSubmatch(text)
		if d == nil {
			t.Fatalf("cannot read %s", text)
		}
		labels := ""
		if d[3] != "" {
			labels = "`" + strings.ReplaceAll(d[3], ",", "`, `") + "`"
		}
		rows = append(rows, strings.ReplaceAll(fmt.Sprintf("| `%s` | %s | %s |", d[1], labels, d[2]), "|  |", "| |"))
	}
	if len(rows) < 10 {
		t.Fatalf("found %d metrics", len(rows))
	}
	return rows
}

func TestDocRules(t *testing.T) {
	const text = "# x\n\n## Packages\n\n| floor | package |\n| --- | --- |\n| 0 | `a` | x |\n| – | `b/c` | x |\n\nend\n\n## Next\n\n`a.TestX` `a.FuzzY` `b/c.TestZ`\n"
	rooms := map[string]room{"a": {}, "b/c": {floor: floorTest}}
	report(t, checkArchitecture(text, rooms))

	for _, c := range []struct {
		text, want string
	}{
		{strings.Replace(text, "| 0 |", "| 1 |", 1), "a: is on floor 0, not 1"},
		{strings.Replace(text, "| 0 | `a` | x |\n", "", 1), "a: missing from the table"},
		{strings.Replace(text, "`a` |", "`a` |\n| 0 | `d` |", 1), "d: no such room"},
	} {
		if bad := checkArchitecture(c.text, rooms); len(bad) != 1 || bad[0] != c.want {
			t.Errorf("says %q, want %q", bad, c.want)
		}
	}

	tr := tree{}
	if bad := checkTestNames(text, &tr); len(bad) != 3 {
		t.Errorf("missing tests: %q", bad)
	}

	fresh, err := replaceRows(text, "Packages", []string{"| new |"})
	if want := "# x\n\n## Packages\n\n| floor | package |\n| --- | --- |\n| new |\n\nend\n"; err != nil || !strings.HasPrefix(fresh, want) || !strings.HasSuffix(fresh, "`b/c.TestZ`\n") {
		t.Errorf("%v, %q", err, fresh)
	}
	if bad := differ([]string{"a", "b"}, []string{"b", "c"}); len(bad) != 2 {
		t.Errorf("differences: %q", bad)
	}
	if bad := differ([]string{"a", "b"}, []string{"b", "a"}); len(bad) != 1 {
		t.Errorf("order: %q", bad)
	}
}
