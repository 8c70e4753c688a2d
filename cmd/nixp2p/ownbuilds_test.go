package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

// ownBuild is a package of two paths, the larger one of which refers to the other.
const ownBuild = `let
	drv = attrs: derivation ({ system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/bin:/usr/bin"; } // attrs);
	lib = drv { name = "NAME-lib"; args = [ "-c" "head -c 3000000 /bin/sh > $out; head -c 400000 /bin/sh >> $out" ]; };
in drv { name = "NAME"; args = [ "-c" "mkdir $out; echo ${lib} > $out/lib; head -c 90000 /bin/sh > $out/program" ]; }
`

// build builds and returns the path. It is signed if key names a file with a secret key.
func build(t *testing.T, c *realnix.Client, name, key string) string {
	t.Helper()
	c.Settings = map[string]string{
		"sandbox": "true", "sandbox-fallback": "false", "fsync-metadata": "false",
		"sandbox-paths": "/bin /usr /lib /lib64", "secret-key-files": key,
	}
	file := filepath.Join(c.Dir, name+".nix")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(ownBuild, "NAME", name)), 0o600); err != nil {
		t.Fatal(err)
	}
	res, err := c.Run(t.Context(), "nix-build", "--no-out-link", file)
	if err != nil {
		t.Fatal(err)
	}
	return res.Lines()[0]
}

// awaitInfo asks a node until it knows a path: inventories come a moment after a build.
func (d *process) awaitInfo(storePath string) {
	d.t.Helper()
	for limit := time.Now().Add(2 * time.Minute); ; <-time.After(200 * time.Millisecond) {
		status, _ := d.get(d.url + "/" + hashOf(storePath) + ".narinfo")
		if status == 200 {
			return
		}
		if time.Now().After(limit) {
			d.t.Fatalf("%s: %d\n%s", storePath, status, d.logText())
		}
	}
}

// TestOwnBuilds: what Nix built and signed on one machine of a site without any cache server is
// substituted on another one, and, when both have left, from the mirror. What was built without the
// key stays where it is.
func TestOwnBuilds(t *testing.T) {
	t.Parallel()
	realnix.FindCorpus(t, realnix.Params{}) // this machine's Nix can build
	nix := realnix.Find(t)
	builder := nix.TempClient(t)
	secret, public := filepath.Join(builder.Dir, "secret"), filepath.Join(builder.Dir, "public")
	if _, err := builder.Run(t.Context(), "nix-store", "--generate-binary-cache-key", "site-1", secret, public); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(public)
	if err != nil {
		t.Fatal(err)
	}
	key := strings.TrimSpace(string(text))
	private, own := build(t, builder, "private", ""), build(t, builder, "own", secret)
	paths, err := builder.Closure(t.Context(), own)
	if err != nil || len(paths) != 2 || len(paths[0].Sigs) != 1 || len(paths[1].Sigs) != 1 {
		t.Fatalf("%+v, %v", paths, err)
	}

	s := &site{t: t}
	node := func(root string, flags ...string) *process {
		return s.add(append(flags, "--store-root", root, "--mdns=false", "--p2p-listen", "/ip4/127.0.0.1/tcp/0",
			"--upstream", "http://127.0.0.1:1", "--trusted-public-key", key, "--share-key", "site-1")...)
	}
	substitute := func(t *testing.T, c *realnix.Client, d *process) {
		t.Helper()
		for _, p := range paths { // a peer tells what came to it within some seconds
			d.awaitInfo(p.StorePath)
		}
		c.Substituters = []string{d.url}
		if _, err := c.Realise(t.Context(), own); err != nil {
			t.Fatalf("%v\n%s", err, d.logText())
		}
		if res, err := c.VerifyAll(t.Context()); err != nil {
			t.Errorf("verify: %v\n%s", err, res.Stderr)
		}
		if got, err := c.Closure(t.Context(), own); err != nil || len(got) != 2 || got[0].Sigs[0] != paths[0].Sigs[0] {
			t.Errorf("%+v, %v", got, err)
		}
		if status, _ := d.get(d.url + "/" + hashOf(private) + ".narinfo"); status != 404 {
			t.Errorf("what nobody signed is shown to another machine: %d", status)
		}
	}
	mirror := node(t.TempDir(), "--replicate")
	a := node(builder.Root)
	clientB := nix.TempClient(t, key)
	b := node(clientB.Root)
	s.meshed()
	substitute(t, clientB, b)
	mirror.awaitCopied(2)
	if status, _ := mirror.get(mirror.url + "/" + hashOf(private) + ".narinfo"); status != 404 {
		t.Errorf("what nobody signed is on the mirror: %d", status)
	}
	a.stop()
	b.stop()
	for _, v := range append([]realnix.Variant{{}}, realnix.Variants()...) {
		t.Run("C"+v.Name, func(t *testing.T) {
			nix := nix
			if v.Name != "" {
				nix = realnix.FindVariant(t, v)
			}
			client := nix.TempClient(t, key)
			s.t, s.nodes = t, []*process{mirror}
			substitute(t, client, node(client.Root))
		})
	}
}
