package nix

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nixp2p/nixp2p/internal/config"
)

// nix runs a command of Nix, or skips where there is none.
func nix(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip("NIX IS NOT INSTALLED: the Nix files are not evaluated")
	}
	cmd := exec.CommandContext(t.Context(), name, args...)
	home := t.TempDir()
	cmd.Env = append(os.Environ(), "HOME="+home, "NIX_STATE_DIR="+home, "NIX_PATH=")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return stderr.String(), err
	}
	return string(out), nil
}

// eval evaluates an attribute of a file into v. Its store is none: nothing is built.
func eval(t *testing.T, v any, file, attr string, args ...string) {
	t.Helper()
	args = append([]string{"--store", "dummy://", "--eval", "--strict", "--json", "-A", attr, file}, args...)
	out, err := nix(t, "nix-instantiate", args...)
	if err == nil {
		err = json.Unmarshal([]byte(out), v)
	}
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s", file, attr, err, out)
	}
}

// TestModules looks at what eval-test/default.nix says that systems come to.
func TestModules(t *testing.T) {
	var all map[string]json.RawMessage
	eval(t, &all, "eval-test", "all")
	for _, c := range []struct {
		name string
		look func(*testing.T, cases)
	}{
		{"enable", lookEnable}, {"off", lookOff}, {"settings", lookSettings}, {"listens", lookListens}, {"own", lookOwn}, {"wrong", lookWrong},
		{"darwin", lookDarwin}, {"keys", lookKeys}, {"files", lookFiles}, {"proxy", lookProxy},
	} {
		t.Run(c.name, func(t *testing.T) { c.look(t, all) })
	}
}

// cases are what the attributes of eval-test come to.
type cases map[string]json.RawMessage

func (c cases) get(t *testing.T, v any, name string) {
	t.Helper()
	if err := json.Unmarshal(c[name], v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// system is what a configuration with the module comes to (eval-test/default.nix).
type system struct {
	Failed, Warnings []string
	TOML, Check      string
	Units            []string
	TCP, UDP         []int
	Nix              struct {
		Substituters   []string
		ConnectTimeout int `json:"connect-timeout"`
		Fallback       *bool
	}
	Sockets  map[string]struct{ ListenStreams, WantedBy []string }
	Services map[string]struct {
		WantedBy       []string
		ServiceConfig  map[string]any
		StopIfChanged  *bool
		ReloadTriggers []string
	}
}

func TestParse(t *testing.T) {
	files := []string{"../flake.nix"}
	for _, pattern := range []string{"*.nix", "*/*.nix"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	if len(files) < 8 {
		t.Fatalf("found %q", files)
	}
	for _, f := range files {
		if out, err := nix(t, "nix-instantiate", "--parse", f); err != nil {
			t.Errorf("%s: %v\n%s", f, err, out)
		}
	}
}

// lookEnable: one line serves an office.
func lookEnable(t *testing.T, c cases) {
	var s system
	c.get(t, &s, "enable")
	if len(s.Failed) > 0 || len(s.Warnings) > 0 {
		t.Errorf("failed %q, warnings %q", s.Failed, s.Warnings)
	}
	if want := []string{"http://127.0.0.1:7654", "https://cache.nixos.org/"}; !slices.Equal(s.Nix.Substituters, want) {
		t.Errorf("substituters %q, want %q", s.Nix.Substituters, want)
	}
	if s.Nix.ConnectTimeout != 5 || s.Nix.Fallback == nil || !*s.Nix.Fallback {
		t.Errorf("nix.settings: %+v", s.Nix)
	}
	if !slices.Equal(s.TCP, []int{7656}) || !slices.Equal(s.UDP, []int{5353}) {
		t.Errorf("the firewall lets in %d and %d", s.TCP, s.UDP)
	}
	if got := s.Sockets["nixp2p"]; !slices.Equal(got.ListenStreams, []string{"", "127.0.0.1:7654"}) || !slices.Equal(got.WantedBy, []string{"sockets.target"}) {
		t.Errorf("socket: %+v", got)
	}
	if got := s.Services["nixp2p"]; !slices.Equal(got.WantedBy, []string{"multi-user.target"}) || len(got.ServiceConfig) > 0 || got.StopIfChanged == nil || *got.StopIfChanged {
		t.Errorf("service: %+v", got)
	}
	if !slices.Equal(s.Units, []string{"/nonexistent"}) {
		t.Errorf("the units come from %q, not from the package", s.Units)
	}
	if s.TOML != "listen = \"127.0.0.1:7654\"\n" {
		t.Errorf("the file repeats defaults: %s", s.TOML)
	}
}

func lookOff(t *testing.T, c cases) {
	var s struct {
		Assertions, Warnings, Packages []any
		Services, Sockets, Etc         map[string]any
		TCP                            []int
		Nix                            map[string]any
	}
	c.get(t, &s, "off")
	if len(s.Assertions)+len(s.Warnings)+len(s.Packages)+len(s.Services)+len(s.Sockets)+len(s.Etc)+len(s.TCP) > 0 ||
		s.Nix["connect-timeout"] != nil || s.Nix["fallback"] != nil || len(s.Nix["substituters"].([]any)) != 1 {
		t.Errorf("a module that is off changes the system: %+v", s)
	}
}

// TestFallback: Nix before 2.13 crashes with it.
func TestFallback(t *testing.T) {
	for version, want := range map[string]bool{"2.8.0": false, "2.12.9": false, "2.13.0": true, "2.91.1": true} {
		var s system
		eval(t, &s, "eval-test", "enable", "--argstr", "nixVersion", version)
		if got := s.Nix.Fallback != nil; got != want {
			t.Errorf("Nix %s: fallback is set: %v", version, got)
		}
	}
}

// lookOwn: the operator's own word counts.
func lookOwn(t *testing.T, c cases) {
	var own struct {
		ConnectTimeout int `json:"connect-timeout"`
		Fallback       bool
	}
	c.get(t, &own, "own")
	if own.ConnectTimeout != 30 || own.Fallback {
		t.Errorf("the operator's own settings do not count: %+v", own)
	}
}

func lookSettings(t *testing.T, c cases) {
	var s system
	c.get(t, &s, "settings")
	for _, want := range []string{
		`cache-size = "50GiB"`, "priority = 20", `upstream = ["https://mirror.example", "https://cache.nixos.org"]`,
	} {
		if !slices.Contains(strings.Split(s.TOML, "\n"), want) {
			t.Errorf("no line %s in\n%s", want, s.TOML)
		}
	}
	if !slices.Equal(s.TCP, []int{7666}) {
		t.Errorf("the firewall lets in %d", s.TCP)
	}
	if got := fmt.Sprint(s.Services["nixp2p"].ServiceConfig["LoadCredential"]); got != "[nixp2p.swarm-key:/run/secrets/swarm]" {
		t.Errorf("LoadCredential=%s", got)
	}
	if got := s.Nix.Substituters[0]; got != "http://127.0.0.1:7700" {
		t.Errorf("the substituter is %s", got)
	}
	for attr, ports := range map[string][2]int{"silent": {0, 0}, "closed": {0, 0}, "alone": {0, 0}, "unicast": {1, 0}} {
		var s system
		if c.get(t, &s, attr); len(s.TCP) != ports[0] || len(s.UDP) != ports[1] {
			t.Errorf("%s: the firewall lets in %d and %d", attr, s.TCP, s.UDP)
		}
		if want := attr == "silent"; want != (len(s.Warnings) == 1) {
			t.Errorf("%s: warnings %q", attr, s.Warnings)
		}
	}
}

// lookListens: several addresses, of which one stands for all: the socket has them all, Nix the
// first as it reaches it, and a change of them restarts the socket.
func lookListens(t *testing.T, c cases) {
	var s system
	c.get(t, &s, "listens")
	if got := s.Sockets["nixp2p"].ListenStreams; !slices.Equal(got, []string{"", "0.0.0.0:7700", "[::1]:7700"}) {
		t.Errorf("the socket listens on %q", got)
	}
	if got := s.Nix.Substituters[0]; got != "http://127.0.0.1:7700" {
		t.Errorf("the substituter is %s", got)
	}
	if !strings.Contains(s.TOML, "listen = \"0.0.0.0:7700\"\n") {
		t.Errorf("the file has\n%s", s.TOML)
	}
	again := s.Services["nixp2p-listen"]
	if reload := fmt.Sprint(again.ServiceConfig["ExecReload"]); !slices.Equal(again.ReloadTriggers, []string{"0.0.0.0:7700 [::1]:7700"}) || !strings.HasSuffix(reload, "/bin/systemctl restart nixp2p.socket nixp2p.service") {
		t.Errorf("a change of the addresses: %+v", again)
	}
	var netrc system
	c.get(t, &netrc, "netrc")
	if got := fmt.Sprint(netrc.Services["nixp2p"].ServiceConfig["LoadCredential"]); got != "[nixp2p.netrc:/run/secrets/netrc]" {
		t.Errorf("LoadCredential=%s", got)
	}
}

// lookWrong: a mistake fails one assertion, whose text names the option and says what to do.
func lookWrong(t *testing.T, c cases) {
	var wrong map[string][]string
	c.get(t, &wrong, "wrong")
	if len(wrong) < 6 {
		t.Errorf("only %d mistakes", len(wrong))
	}
	for name, failed := range wrong {
		if len(failed) != 1 || !strings.HasPrefix(failed[0], "services.nixp2p.") || strings.Count(failed[0], "\n") < 2 {
			t.Errorf("%s: %q", name, failed)
		}
	}
	var warnings []string
	if c.get(t, &warnings, "onlyUs"); len(warnings) != 1 {
		t.Errorf("no other substituter is left: %q", warnings)
	}
}

// TestRefused: what is not of its type, or no option at all.
func TestRefused(t *testing.T) {
	for attr, want := range map[string]string{
		"refused.type": "settings.p2p' is not of type", "refused.level": "settings.log-level' is not of type", "refused.option": "enabled' does not exist",
	} {
		out, err := nix(t, "nix-instantiate", "--store", "dummy://", "--eval", "--strict", "-A", attr, "eval-test")
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v, %s", attr, err, out)
		}
	}
}

// lookProxy: Nix reaches the node past a proxy of the system, and the node reaches its upstreams
// through it.
func lookProxy(t *testing.T, c cases) {
	var s map[string]map[string]struct{ Environment map[string]string }
	c.get(t, &s, "proxy")
	for name, want := range map[string]string{
		"none": "", "plain": "127.0.0.1,::1,localhost", "own": "corp.example,localhost,127.0.0.1,::1",
	} {
		nixp2p, daemon := s[name]["nixp2p"].Environment, s[name]["nix-daemon"].Environment
		if daemon["no_proxy"] != want {
			t.Errorf("%s: no_proxy of nix-daemon is %q, want %q", name, daemon["no_proxy"], want)
		}
		if nixp2p["http_proxy"] != daemon["http_proxy"] || nixp2p["NIX_SSL_CERT_FILE"] != "/etc/corp.pem" || nixp2p["NIX_OTHER"] != "" {
			t.Errorf("%s: environment %v", name, nixp2p)
		}
	}
}

func lookDarwin(t *testing.T, c cases) {
	var s struct {
		Failed []any
		TOML   string
		Daemon struct {
			ProgramArguments []string
			KeepAlive        bool
		}
		Nix struct{ Substituters []string }
	}
	c.get(t, &s, "darwin")
	var other struct {
		Failed, Warnings []any
		Netrc, TOML      string
	}
	c.get(t, &other, "darwinOther")
	if len(other.Failed) > 0 || len(other.Warnings) != 1 || other.Netrc != "/var/lib/nixp2p/netrc" || !strings.Contains(other.TOML, `listen = "127.0.0.1:7700"`) {
		t.Errorf("with the Nix of another installer: %+v", other)
	}
	if len(s.Failed) > 0 || !s.Daemon.KeepAlive || len(s.Nix.Substituters) != 2 || !slices.Equal(s.Daemon.ProgramArguments, []string{"/nonexistent/bin/nixp2p", "serve"}) {
		t.Errorf("%+v", s)
	}
}

// code is a value in Markdown.
var code = regexp.MustCompile("`([^`]+)`")

// lookKeys: each key of the program has a typed option that shows the program's default, and no
// option is without a key.
func lookKeys(t *testing.T, c cases) {
	var have map[string]string
	c.get(t, &have, "keys")
	var want []string
	for _, r := range config.Rows() {
		name := strings.TrimPrefix(r.Flag, "--")
		want = append(want, name)
		if strings.HasSuffix(name, "-dir") || strings.HasSuffix(name, "-file") {
			continue // what a service has is not what a user has
		}
		for _, value := range code.FindAllStringSubmatch(r.Default, -1) {
			if !strings.HasPrefix(value[1], "--") && !strings.Contains(have[name], value[1]) {
				t.Errorf("%s: the option shows the default %s, the program has %s", name, have[name], r.Default)
			}
		}
	}
	slices.Sort(want)
	if got := slices.Sorted(maps.Keys(have)); !slices.Equal(got, want) {
		t.Errorf("options %q\n   keys %q", got, want)
	}
}

// lookFiles: the program takes the files that the modules write, and the check that a build
// makes finds a key that there is not.
func lookFiles(t *testing.T, c cases) {
	program := filepath.Join(t.TempDir(), "nixp2p")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../cmd/nixp2p")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for attr, want := range map[string]string{
		"enable": "ok: ", "settings": "ok: ", "closed": "ok: ", "alone": "ok: ", "unicast": "ok: ", "darwin": "ok: ", "freeform": "color: no such key",
	} {
		var s system
		c.get(t, &s, attr)
		if attr != "darwin" && !strings.Contains(s.Check, `/bin/nixp2p config check "$raw"`) {
			t.Errorf("%s: the build does not check the file: %s", attr, s.Check)
		}
		file := filepath.Join(t.TempDir(), "config.toml")
		if err := os.WriteFile(file, []byte(s.TOML), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), program, "config", "check", file).CombinedOutput()
		if (err == nil) != strings.HasPrefix(want, "ok") || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, %s", attr, err, out)
		}
	}
}

// TestFlake evaluates the outputs against inputs that stand in.
func TestFlake(t *testing.T) {
	var s struct {
		Names, Checks []string
		Systems       []string
		Package       string
		Module        []string
	}
	eval(t, &s, "eval-test/flake.nix", "result")
	if want := []string{"checks", "darwinModules", "devShells", "nixosModules", "overlays", "packages"}; !slices.Equal(s.Names, want) {
		t.Errorf("outputs %q, want %q", s.Names, want)
	}
	if want := []string{"modules", "package", "vm"}; !slices.Equal(s.Checks, want) {
		t.Errorf("checks %q, want %q", s.Checks, want)
	}
	if want := []string{"aarch64-darwin", "aarch64-linux", "x86_64-darwin", "x86_64-linux"}; !slices.Equal(s.Systems, want) {
		t.Errorf("systems %q, want %q", s.Systems, want)
	}
	if !strings.Contains(s.Package, "nixp2p-") || len(s.Module) != 2 {
		t.Errorf("%+v", s)
	}
}

// TestVMScript: the driver of the virtual machines is Python that parses.
func TestVMScript(t *testing.T) {
	var script string
	eval(t, &script, "eval-test/flake.nix", "vmScript")
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("NO python3: the script of the virtual machines is not parsed")
	}
	cmd := exec.CommandContext(t.Context(), "python3", "-c", "import ast, sys; ast.parse(sys.stdin.read())")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestVendorHash: package.nix names the dependencies that go.mod does.
func TestVendorHash(t *testing.T) {
	if _, err := exec.LookPath("nix-hash"); err != nil {
		t.Skip("NIX IS NOT INSTALLED: vendorHash is not compared")
	}
	out, err := exec.CommandContext(t.Context(), "./vendor-hash.sh", "--check").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
