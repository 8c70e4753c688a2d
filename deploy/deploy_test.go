package deploy

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nixp2p/nixp2p/internal/metrics"
)

// metric is what the daemon says of one of its own.
type metric struct{ labels []string }

var desc = regexp.MustCompile(`fqName: "([^"]*)".*variableLabels: {([^}]*)}`)

// ours are the metrics of this program by name, those of the process included.
func ours(t *testing.T) map[string]metric {
	t.Helper()
	all := map[string]metric{}
	descs := make(chan *prometheus.Desc)
	go func() {
		metrics.New().Registry.Describe(descs)
		close(descs)
	}()
	for d := range descs {
		m := desc.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("cannot read %s", d)
		}
		all[m[1]] = metric{strings.FieldsFunc(m[2], func(r rune) bool { return r == ',' || r == ' ' })}
	}
	if len(all) < 20 {
		t.Fatalf("found %d metrics", len(all))
	}
	return all
}

// given are the labels that Prometheus itself puts on every sample.
var given = []string{"job", "instance"}

var (
	name     = regexp.MustCompile(`\b(?:nixp2p|process|go)_[a-z0-9_]+`)
	selected = regexp.MustCompile(`\b((?:nixp2p|process|go)_[a-z0-9_]+){([^}]*)}`)
	matcher  = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)\s*"`)
	grouping = regexp.MustCompile(`\b(?:by|on|without)\s*\(([^)]*)\)`)
	counted  = regexp.MustCompile(`(rate|increase)\((?:nixp2p|process|go)_[a-z0-9_]+_total(?:{[^}]*})?\[|((?:nixp2p|process|go)_[a-z0-9_]+_total)`)
)

// faults says what is wrong with an expression: names and labels that there are not, and
// counters that are read as if they were gauges.
func faults(all map[string]metric, expr string) (bad []string) {
	labels := slices.Clone(given)
	for _, n := range name.FindAllString(expr, -1) {
		m, ok := all[n]
		if !ok {
			bad = append(bad, "no metric "+n)
		}
		labels = append(labels, m.labels...)
	}
	for _, s := range selected.FindAllStringSubmatch(expr, -1) {
		for _, l := range matcher.FindAllStringSubmatch(s[2], -1) {
			if !slices.Contains(given, l[1]) && !slices.Contains(all[s[1]].labels, l[1]) {
				bad = append(bad, fmt.Sprintf("%s has no label %s", s[1], l[1]))
			}
		}
	}
	for _, g := range grouping.FindAllStringSubmatch(expr, -1) {
		for _, l := range strings.Split(g[1], ",") {
			if l = strings.TrimSpace(l); !slices.Contains(labels, l) {
				bad = append(bad, "grouped by "+l+", which is no label there")
			}
		}
	}
	for _, c := range counted.FindAllStringSubmatch(expr, -1) {
		if c[2] != "" && !strings.Contains(expr, "unless "+c[2]+" offset") {
			bad = append(bad, c[2]+" is a counter: take its rate or increase")
		}
	}
	return bad
}

func TestFaults(t *testing.T) {
	all := map[string]metric{"nixp2p_peers": {}, "nixp2p_x_total": {[]string{"source"}}}
	for _, c := range []struct {
		expr string
		bad  int
	}{
		{`nixp2p_peers{job="a"}`, 0}, {`sum by (source) (rate(nixp2p_x_total{source="a"}[5m]))`, 0}, {`nixp2p_y`, 1},
		{`nixp2p_peers{source="a"}`, 1}, {`sum by (source) (nixp2p_peers)`, 1}, {`nixp2p_x_total > 1`, 1},
	} {
		if bad := faults(all, c.expr); len(bad) != c.bad {
			t.Errorf("%s: %q", c.expr, bad)
		}
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// panel is the part of a Grafana panel that can be wrong without Grafana noticing.
type panel struct {
	ID          int
	Type, Title string
	Description string
	GridPos     struct{ H, W, X, Y int }
	Targets     []struct {
		Expr, RefID string
		Datasource  struct{ UID string }
	}
	FieldConfig struct{ Defaults struct{ Unit string } }
}

// dashboard returns its panels and all its expressions.
func dashboard(t *testing.T) (panels []panel, exprs []string) {
	t.Helper()
	var d struct {
		Panels     []panel
		Templating struct{ List []struct{ Definition string } }
	}
	if err := json.Unmarshal([]byte(read(t, "grafana.json")), &d); err != nil {
		t.Fatal(err)
	}
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			exprs = append(exprs, target.Expr)
		}
	}
	if len(exprs) < 10 || len(d.Templating.List) != 3 {
		t.Fatalf("%d expressions, %d variables", len(exprs), len(d.Templating.List))
	}
	for _, v := range d.Templating.List {
		if s := selector.FindStringSubmatch(v.Definition); s != nil {
			exprs = append(exprs, s[1])
		}
	}
	return d.Panels, exprs
}

var selector = regexp.MustCompile(`^label_values\((.*), [a-z]+\)$`)

// TestDashboard: it uses our metrics as they are, shows all of them, and nothing lies on
// something else.
func TestDashboard(t *testing.T) {
	all := ours(t)
	panels, exprs := dashboard(t)
	shown := map[string]bool{}
	for _, e := range exprs {
		for _, bad := range faults(all, e) {
			t.Errorf("%s: %s", e, bad)
		}
		for _, n := range name.FindAllString(e, -1) {
			shown[n] = true
		}
	}
	for n := range all {
		if strings.HasPrefix(n, "nixp2p_") && !shown[n] {
			t.Errorf("%s is on no panel", n)
		}
	}
	ids, taken := map[int]bool{}, map[[2]int]string{}
	for _, p := range panels {
		if ids[p.ID] || p.Title == "" {
			t.Errorf("panel %d %q: same ID as another, or no title", p.ID, p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other, ok := taken[[2]int{x, y}]; ok || x >= 24 {
					t.Fatalf("%q lies on %q or over the edge", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if len(p.Targets) == 0 || p.Description == "" || p.FieldConfig.Defaults.Unit == "" {
			t.Errorf("%q: no expression, description or unit", p.Title)
		}
		for _, target := range p.Targets {
			if target.Datasource.UID != "${datasource}" {
				t.Errorf("%q: data source %q", p.Title, target.Datasource.UID)
			}
		}
	}
}

// rules reads the alerts and their expressions. The file keeps to one style, so that no YAML
// library is needed: promtool reads it for what it is.
func rules(t *testing.T) (alerts, exprs []string) {
	t.Helper()
	lines := strings.Split(read(t, "alerts.yaml"), "\n")
	for i, l := range lines {
		if a, ok := strings.CutPrefix(l, "      - alert: "); ok {
			alerts = append(alerts, a)
		}
		e, ok := strings.CutPrefix(l, "        expr: ")
		if !ok {
			continue
		}
		if e == ">-" {
			e = ""
			for _, more := range lines[i+1:] {
				if !strings.HasPrefix(more, "          ") {
					break
				}
				e += " " + strings.TrimSpace(more)
			}
		}
		exprs = append(exprs, e)
	}
	if len(alerts) < 5 || len(alerts) != len(exprs) {
		t.Fatalf("%d alerts, %d expressions", len(alerts), len(exprs))
	}
	return alerts, exprs
}

// TestAlerts: they use our metrics as they are, and each is tried both ways.
func TestAlerts(t *testing.T) {
	all := ours(t)
	alerts, exprs := rules(t)
	for _, e := range exprs {
		for _, bad := range faults(all, e) {
			t.Errorf("%s: %s", e, bad)
		}
	}
	for _, bad := range faults(all, strings.Join(name.FindAllString(read(t, "alerts_test.yaml"), -1), " ")) {
		if !strings.Contains(bad, "counter") {
			t.Errorf("alerts_test.yaml: %s", bad)
		}
	}
	tests := read(t, "alerts_test.yaml")
	for _, a := range alerts {
		if !strings.Contains(tests, "- {eval_time: ") || !regexp.MustCompile(`eval_time: \w+, alertname: `+a+`}`).MatchString(tests) {
			t.Errorf("%s is never shown silent", a)
		}
		if !regexp.MustCompile(`alertname: ` + a + `\n        exp_alerts:`).MatchString(tests) {
			t.Errorf("%s is never shown firing", a)
		}
	}
}

// TestPromtool lets Prometheus itself judge: the alerts, their unit tests, and the expressions
// of the dashboard.
func TestPromtool(t *testing.T) {
	tool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("NIXP2P_REQUIRE_NIX") != "" {
			t.Fatal("promtool is missing where everything should be installed (.ci/deps)")
		}
		t.Skip("THERE IS NO promtool (Debian: prometheus): alerts and dashboard are not checked by Prometheus")
	}
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	run("check", "rules", "alerts.yaml")
	run("test", "rules", "alerts_test.yaml")

	var text strings.Builder
	text.WriteString("groups:\n- name: dashboard\n  rules:\n")
	_, exprs := dashboard(t)
	for i, e := range exprs {
		e = strings.NewReplacer("$__rate_interval", "5m", "$__range", "1h").Replace(e)
		fmt.Fprintf(&text, "  - record: dashboard:%d\n    expr: %q\n", i, e)
	}
	file := filepath.Join(t.TempDir(), "dashboard.yaml")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	run("check", "rules", file)
}
