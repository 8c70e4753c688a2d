package config

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// user is the surroundings of an ordinary user with a home.
func user(vars ...string) Env {
	m := map[string]string{"HOME": "/home/u"}
	for _, v := range vars {
		k, x, _ := strings.Cut(v, "=")
		m[k] = x
	}
	return Env{Getenv: func(k string) string { return m[k] }, Root: func() bool { return false }, DefaultFile: "/nonexistent/config.toml"}
}

func load(t *testing.T, env Env, args ...string) (*Config, error) {
	t.Helper()
	set := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	f := Register(set)
	if err := set.Parse(args); err != nil {
		t.Fatal(err)
	}
	return f.Load(env)
}

func file(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestDefaults(t *testing.T) {
	c, err := load(t, user())
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) > 0 {
		t.Errorf("the defaults warn: %q", c.Warnings)
	}
	prefix := func(s string) netip.Prefix { return netip.MustParsePrefix(s) }
	want := &Config{
		Listen: "127.0.0.1:7654", AdminListen: "127.0.0.1:7655", ServerNames: []string{},
		StateDir: "/home/u/.local/state/nixp2p", CacheDir: "/home/u/.cache/nixp2p", CacheSize: 10 << 30, StoreRoot: "/", Priority: 30,
		Upstreams: []string{"https://cache.nixos.org"}, TrustedPublicKeys: []string{officialKey}, ShareKeys: []string{"cache.nixos.org-1"},
		P2P: true, P2PListen: []string{"/ip4/0.0.0.0/tcp/7656", "/ip6/::/tcp/7656"}, MDNS: true, Bootstrap: []string{}, Follow: []string{}, MaxPeers: 256, Leases: true, Delta: true,
		AllowCIDRs: []netip.Prefix{
			prefix("10.0.0.0/8"), prefix("172.16.0.0/12"), prefix("192.168.0.0/16"), prefix("169.254.0.0/16"), prefix("fc00::/7"), prefix("fe80::/10"),
		},
		AllowOnLink: true, LogLevel: slog.LevelInfo, LogFormat: "text",
		Keys: c.Keys, origins: c.origins,
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v\nwant %+v", c, want)
	}
	if !c.Keys.Has("cache.nixos.org-1") {
		t.Error("the key is not in Keys")
	}
}

func TestDirectories(t *testing.T) {
	root := user()
	root.Root = func() bool { return true }
	for _, c := range []struct {
		name         string
		env          Env
		state, cache string
	}{
		{"root", root, "/var/lib/nixp2p", "/var/cache/nixp2p"},
		{"user", user(), "/home/u/.local/state/nixp2p", "/home/u/.cache/nixp2p"},
		{"xdg", user("XDG_STATE_HOME=/s", "XDG_CACHE_HOME=/c"), "/s/nixp2p", "/c/nixp2p"},
		{"xdg relative", user("XDG_STATE_HOME=s", "XDG_CACHE_HOME=c"), "/home/u/.local/state/nixp2p", "/home/u/.cache/nixp2p"},
		{"systemd", user("STATE_DIRECTORY=/var/lib/private/nixp2p:/var/lib/other", "CACHE_DIRECTORY=/x"), "/var/lib/private/nixp2p", "/x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := load(t, c.env)
			if err != nil || got.StateDir != c.state || got.CacheDir != c.cache {
				t.Errorf("%q, %q, %v", got.StateDir, got.CacheDir, err)
			}
		})
	}
	homeless := user("HOME=")
	if _, err := load(t, homeless); len(Problems(err)) != 2 || !strings.Contains(Problems(err)[0].Help, "--state-dir") {
		t.Errorf("without a home: %v", err)
	}
	if c, err := load(t, homeless, "--state-dir", "/a", "--cache-dir", "/b"); err != nil || c.StateDir != "/a" {
		t.Errorf("without a home, but told: %v", err)
	}
}

// TestPrecedence: a list in a flag replaces the file's list, which replaces the default.
func TestPrecedence(t *testing.T) {
	name := file(t, `# a comment
upstream = ["https://a.example", "https://b.example"]
priority = 10
cache-size = "1GiB"
mdns = false
bootstrap = [
  "dns:peers.example",
  "srv:_nixp2p._tcp.example",
]
share-key = []
`)
	c, err := load(t, user(), "--config", name, "--upstream", "https://c.example/", "--upstream=file:///srv/cache", "--priority=20", "--cache-dir", "rel", "--bootstrap=")
	if err != nil {
		t.Fatal(err)
	}
	wd, _ := os.Getwd()
	for _, x := range []struct{ got, want any }{
		{c.Upstreams, []string{"https://c.example", "file:///srv/cache"}},
		{c.Priority, 20}, {c.CacheSize, int64(1 << 30)}, {c.MDNS, false}, {c.P2P, true},
		{c.Bootstrap, []string{}}, {c.ShareKeys, []string{}},
		{c.CacheDir, filepath.Join(wd, "rel")}, {c.File, name},
	} {
		if !reflect.DeepEqual(x.got, x.want) {
			t.Errorf("got %v, want %v", x.got, x.want)
		}
	}
	show := c.TOML()
	for _, want := range []string{
		"priority = 20 # --priority\n",
		"cache-size = \"1GiB\" # " + name + ":4\n",
		"mdns = false # " + name + ":5\n",
		"share-key = [] # " + name + ":10\n",
		"p2p = true # default\n",
		"upstream = [\n  \"https://c.example\",\n  \"file:///srv/cache\",\n] # --upstream\n",
	} {
		if !strings.Contains(show, want) {
			t.Errorf("config show lacks %q:\n%s", want, show)
		}
	}
	if c, err = load(t, user(), "--config="+name); err != nil || len(c.Bootstrap) != 2 {
		t.Errorf("the file's list: %v, %v", c.Bootstrap, err)
	}
}

// TestShowIsAccepted: what config show prints is a configuration of the same effect.
func TestShowIsAccepted(t *testing.T) {
	for _, args := range [][]string{
		nil,
		{"--listen=unix:/run/n \"x\".sock", "--cache-size=1500MB", "--upload-limit=100Mbit/s", "--swarm-key-file=/k\tx", "--p2p=false", "--mdns", "--log-level=WARN"},
		{"--p2p-listen=/ip4/127.0.0.1/tcp/0", "--allow-cidr=on-link", "--allow-cidr=10.1.2.3/16", "--allow-cidr=::1"},
		{"--p2p-listen=/ip6/::1/tcp/0", "--share-key=", "--upstream="},
	} {
		a, err := load(t, user(), args...)
		if err != nil {
			t.Fatal(err)
		}
		b, err := load(t, user("HOME=/elsewhere"), "--config", file(t, a.TOML()))
		if err != nil {
			t.Fatalf("%v\n%s", err, a.TOML())
		}
		if d := a.Diff(b); len(d) > 0 {
			t.Errorf("%q differ:\n%s\n%s", d, a.TOML(), b.TOML())
		}
	}
	a, _ := load(t, user())
	b, _ := load(t, user(), "--priority=31", "--bootstrap=dns:x")
	if d := a.Diff(b); !reflect.DeepEqual(d, []string{"priority", "bootstrap"}) {
		t.Errorf("Diff says %q", d)
	}
}

func TestMistakesInFile(t *testing.T) {
	for _, c := range []struct{ name, text, want, hint string }{
		{"unknown key", "\nlog-level = \"info\"\ncache_sise = 1\n", ":3: cache_sise: no such key", "did you mean cache-size?"},
		{"unknown key, nothing like it", "zzzzzzzzzz = 1\n", ":1: zzzzzzzzzz: no such key", "config show"},
		{"key behind a long list", "upstream = [\n \"https://a\", # ]\n \"https://b\",\n]\n\nfoo = 1\n", ":6: foo", ""},
		{"key behind a long text", "listen = \"\"\"\n127.0.0.1:\\\n  80\"\"\"\nfoo = 1\n", ":4: foo", ""},
		{"table", "p2p = true\n[upstream]\nx = 1\n", ":2: upstream: is not a list", ""},
		{"unknown table", "[peers]\n", ":1: peers: no such key", "no tables"},
		{"syntax", "listen = \"x\nfoo\n", ":1: ", "lines look like"},
		{"twice", "priority = 1\npriority = 2\n", ":2: ", ""},
		{"string for a list", "upstream = \"https://x\"\n", ":1: upstream: is not a list", ""},
		{"number in a list", "upstream = [1]\n", ":1: upstream: 1 in the list", "quotes"},
		{"string for a bool", "p2p = \"yes\"\n", ":1: p2p: is not true or false", ""},
		{"float for a size", "cache-size = 1.5\n", ":1: cache-size: is not a size", ""},
		{"value", "\n\ncache-size = \"10 gigs\"\n", ":3: cache-size: \"10 gigs\" is not a size", "10GiB"},
		{"relative path", "state-dir = \"x\"\n", ":1: state-dir: \"x\" is not an absolute path", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := file(t, c.text)
			got, err := load(t, user(), "--config", name)
			all := Problems(err)
			if len(all) != 1 || !strings.Contains(all[0].Error(), name+c.want) || !strings.Contains(all[0].Help, c.hint) {
				t.Fatalf("got %v, want %s%s", err, name, c.want)
			}
			if got == nil || got.AdminListen != "127.0.0.1:7655" {
				t.Error("no Config to go on with")
			}
		})
	}
	t.Run("all at once", func(t *testing.T) {
		c, err := load(t, user(), "--config", file(t, "foo = 1\npriority = -1\nlisten = \"127.0.0.1:1\"\n"), "--max-peers=0")
		if n := len(Problems(err)); n != 3 || c.Listen != "127.0.0.1:1" || c.Priority != 30 || c.MaxPeers != 256 {
			t.Errorf("%d mistakes: %v; %+v", n, err, c)
		}
	})
}

func TestFileItself(t *testing.T) {
	env := user()
	if _, err := load(t, env, "--config", "/nonexistent/x.toml"); err == nil || !strings.Contains(err.Error(), "/nonexistent/x.toml: no such file") {
		t.Errorf("a file that was asked for: %v", err)
	}
	env.DefaultFile = file(t, "priority = 7\n")
	if c, err := load(t, env); err != nil || c.Priority != 7 || c.File != env.DefaultFile {
		t.Errorf("the default file: %v", err)
	}
	if c, err := load(t, env, "--config="); err != nil || c.Priority != 30 {
		t.Errorf("no file at all: %v", err)
	}
	if _, err := load(t, env, "--config", file(t, strings.Repeat("#\n", maxFile))); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("a huge file: %v", err)
	}
	if _, err := load(t, env, "--config", t.TempDir()); err == nil {
		t.Error("a directory was read")
	}
}

func TestWarnings(t *testing.T) {
	for _, c := range []struct{ arg, want string }{
		{"--listen=0.0.0.0:7654", "other machines"},
		{"--listen=:7654", "other machines"},
		{"--listen=[::]:7654", "other machines"},
		{"--listen=[::1]:7654", ""},
		{"--listen=localhost:7654", ""},
		{"--listen=unix:/run/x", ""},
		{"--admin-listen=192.0.2.1:1", "password"},
		{"--share-key=mine-1", "not the name of a trusted"},
		{"--upstream=https://u:secret@a.example", "u:xxxxx@a.example"},
		{"--priority=41", "cache.nixos.org"},
	} {
		got, err := load(t, user(), c.arg)
		switch {
		case err != nil:
			t.Errorf("%s: %v", c.arg, err)
		case c.want == "" && len(got.Warnings) > 0, c.want != "" && (len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], c.want)):
			t.Errorf("%s warns %q, want %q", c.arg, got.Warnings, c.want)
		}
	}
}

// TestValues goes through each flag with good and bad values.
func TestValues(t *testing.T) {
	const id = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
	const key = "k-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="
	good := map[string][]string{
		"listen":             {"127.0.0.1:0", "[::1]:80", "localhost:7", "unix:/run/x.sock"},
		"admin-listen":       {"127.0.0.1:1"},
		"server-name":        {"cache", "Cache.example.org."},
		"state-dir":          {"/x", "x"},
		"cache-size":         {"0", "1", "1.5TiB", "10 GB", "1g", "4096"},
		"store-root":         {"/", "/mnt"},
		"priority":           {"0", "40"},
		"bucket":             {"", "s3://nix", "s3://nix/a?endpoint=http://[::1]:7070&region=x", " s3://nix "},
		"follow":             {"channel:nixos-unstable", "https://a/list.xz?keep=3", "file:/list", "path:/run/current-system?include=a*,b&exclude=c"},
		"upstream":           {"http://a", "https://a.b:8443/base", "http://[::1]:5000", "file:///srv/x", " https://a ", "https://a/b/?priority=10", "https://u@a", "https://a?trusted=1&want-mass-query=true", "file:///a?"},
		"trusted-public-key": {officialKey, key, " " + key},
		"share-key":          {"a", "cache.example.org-1"},
		"p2p":                {"true", "false"},
		"replicate":          {"true", "false"},
		"leases":             {"true", "false"},
		"delta":              {"true", "false"},
		"p2p-listen":         {"/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/65535"},
		"bootstrap": {
			"/ip4/10.0.0.1/tcp/1", "/ip6/fd00::1/tcp/1/p2p/" + id, "/dns/a.b/tcp/1", "/dns4/a/tcp/1", "/ip6zone/eth0/ip6/fe80::1/tcp/1",
			"/ip4/10.0.0.1/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
			"dns:a", "dns:a.b:1", "srv:_x._tcp.a", "http://a/b?c", "https://a", "file:/a", "file:///a/b",
		},
		"max-peers":      {"1", "65536"},
		"zone":           {"", "auto", "eu-central-1a", "rack_7.B"},
		"swarm-key-file": {"", "/x"},
		"peer-name":      {"", "none", "ada", "ada.example.org"},
		"allow-cidr":     {"10.0.0.0/8", "10.1.2.3", "fd00::/8", "on-link", "0.0.0.0/0"},
		"upload-limit":   {"", "20MB/s", "1.5MiB/s", "100Mbit/s", "1B/s"},
		"log-level":      {"debug", "Info", "WARN", "error"},
		"log-format":     {"text", "json"},
	}
	bad := map[string][]string{
		"listen":             {"", "127.0.0.1", "127.0.0.1:65536", "127.0.0.1:http", "a b:1", "unix:rel", "unix:/" + strings.Repeat("x", 200), "1.2.3.4:+1"},
		"server-name":        {"", "a b", "a:1", "http://a"},
		"peer-name":          {"a b", "a:1", "ä"},
		"admin-listen":       {"unix:/x", "127.0.0.1:7654"}, // the latter is the substituter's
		"cache-size":         {"", "x", "-1", "1.GiB", ".5GiB", "1e9", "10 gigs", "99999999PiB", "1.5.5G", "1GiB/s"},
		"priority":           {"", "-1", "1.5", "99999999"},
		"bucket":             {"nix", "https://nix", "s3:///a", "s3://nix?x=1"},
		"follow":             {"", "nixos-unstable", "channel:", "path:x", "channel:a?keep=0"},
		"upstream":           {"", "a", "s3://b", "ftp://a", "http://", "https:///x", "https://a?priority=x", "https://a?priority=1&priority=2", "file://u@/x", "http://127.0.0.1:7654/?priority=1", "https://a#x", "file://h/x", "file:x", "file:///", "http://127.0.0.1:7654", "https://a:0x1"},
		"trusted-public-key": {"x", "x:y", key + " " + officialKey, strings.TrimSuffix(key, "=")},
		"share-key":          {"a b", key},
		"p2p":                {"", "yes", "1"},
		"replicate":          {"", "yes", "1"},
		"leases":             {"", "yes", "1"},
		"delta":              {"", "yes"},
		"p2p-listen":         {"x", "/ip4/0.0.0.0", "/ip4/0.0.0.0/udp/1/quic-v1", "/ip4/::/tcp/1", "/ip6/1.2.3.4/tcp/1", "/dns/a/tcp/1", "/ip4/1.2.3.4/tcp/1/p2p/" + id, "/ip4/1.2.3.4/tcp/65536", "/ip4/1.2.3.4/tcp/1/", "0.0.0.0:7656"},
		"bootstrap":          {"a", "dns:", "dns:a:b", "srv:", "srv:a:1", "http://", "ftp://a", "file:a", "/ip4/1.2.3.4/tcp/1/p2p/x", "/ip4/1.2.3.4/tcp/1/p2p/" + id + "/x", "/dns/-a/tcp/1", "/ip6zone//ip6/fe80::1/tcp/1", "/ip6/fe80::1%eth0/tcp/1", "/unix/x/tcp/1"},
		"max-peers":          {"0", "-1", "x", "65537"},
		"zone":               {"a b", "zone/1", "é", strings.Repeat("x", 65)},
		"allow-cidr":         {"10/8", "x", "10.0.0.0/33", "fe80::1%eth0", "::ffff:10.0.0.0/104"},
		"upload-limit":       {"0", "20MB", "x/s", "-1MB/s", "0.1B/s"},
		"log-level":          {"", "trace", "info+1"},
		"log-format":         {"xml"},
		"state-dir":          {"a\x00b", "\xff"},
	}
	for _, o := range options {
		if len(good[o.name]) == 0 && o.name != "cache-dir" && o.name != "mdns" {
			t.Errorf("no good values of %s", o.name)
		}
		for _, v := range good[o.name] {
			if _, err := load(t, user(), "--"+o.name+"="+v); err != nil {
				t.Errorf("%s=%q: %v", o.name, v, err)
			}
		}
		for _, v := range bad[o.name] {
			if o.kind == list && v == "" {
				continue // an empty list
			}
			_, err := load(t, user(), "--"+o.name+"="+v)
			all := Problems(err)
			if len(all) != 1 || !strings.HasPrefix(all[0].Error(), "--"+o.name+": ") {
				t.Errorf("%s=%q: %v", o.name, v, err)
			}
		}
	}
	if _, err := load(t, user(), "--trusted-public-key="); err == nil {
		t.Error("no key at all was accepted")
	}
	if _, err := load(t, user(), "--trusted-public-key="+officialKey, "--trusted-public-key="+strings.Replace(officialKey, "6NCH", "7NCH", 1)); err == nil {
		t.Error("two keys of one name were accepted")
	}
}

func TestUpstreamText(t *testing.T) {
	for in, want := range map[string]string{
		"https://a/":                           "https://a",
		"https://u:p@a/b//?priority=3":         "https://u:p@a/b?priority=3",
		"file:///a/?compression=xz&priority=3": "file:///a?priority=3", "https://a?trusted=1": "https://a",
		"file:///srv/x/": "file:///srv/x",
	} {
		if got, err := parseUpstream(in); err != nil || got != want {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
}

func TestAllowCIDR(t *testing.T) {
	c, _ := load(t, user(), "--p2p-listen=/ip4/127.0.0.1/tcp/0")
	if n := len(c.AllowCIDRs); n != 8 || !c.AllowOnLink {
		t.Errorf("with a loopback address: %v", c.AllowCIDRs)
	}
	c, _ = load(t, user(), "--p2p-listen=/ip4/127.0.0.1/tcp/0", "--allow-cidr=10.1.2.3/8")
	if len(c.AllowCIDRs) != 1 || c.AllowCIDRs[0].String() != "10.0.0.0/8" || c.AllowOnLink {
		t.Errorf("told: %v", c.AllowCIDRs)
	}
}

func TestClientFlags(t *testing.T) {
	set := pflag.NewFlagSet("status", pflag.ContinueOnError)
	f := RegisterClient(set)
	if err := set.Parse([]string{"--admin-listen", "127.0.0.1:9"}); err != nil {
		t.Fatal(err)
	}
	c, err := f.Load(user())
	if err != nil || c.AdminListen != "127.0.0.1:9" {
		t.Errorf("%v, %v", c, err)
	}
	if set.Lookup("upstream") != nil {
		t.Error("a client has flags of the node")
	}
}

// TestHelp: each flag is in the help with its default.
func TestHelp(t *testing.T) {
	set := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	Register(set)
	help := set.FlagUsages()
	for _, want := range []string{"--listen ADDR", "(default 127.0.0.1:7654)", "--upstream URL", "--config FILE", "--p2p"} {
		if !strings.Contains(help, want) {
			t.Errorf("the help lacks %q:\n%s", want, help)
		}
	}
	if len(Rows()) != 28 {
		t.Errorf("%d flags", len(Rows()))
	}
}
