package main

import (
	"fmt"
	"net"
	"net/http"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

// twins are three paths with the same contents, and one with others.
func twins() []nixtest.Path {
	paths := []nixtest.Path{nixtest.NewPath("one", 5000), nixtest.NewPath("two", 5000), nixtest.NewPath("three", 5000), nixtest.NewPath("other", 5000)}
	for i := 1; i < 3; i++ {
		paths[i].NAR, paths[i].Contents = paths[0].NAR, paths[0].Contents
	}
	return paths
}

// askFor requests narinfos alone.
func (d *process) askFor(paths ...nixtest.Path) {
	d.t.Helper()
	for _, p := range paths {
		if code, _ := d.get(d.url + "/" + p.Hash().String() + ".narinfo"); code != http.StatusOK {
			d.t.Fatalf("%s: %d\n%s", p.StorePath, code, d.logText())
		}
	}
}

// TestTwins: of several store paths that share one NAR, a node that has the NAR in its cache shares all
// whose narinfos it knows, however it came to both, and a node that has no upstream gets each.
func TestTwins(t *testing.T) {
	t.Parallel()
	key := nixtest.NewKey("cache.example.org-1")
	paths := twins()
	fetch := func(t *testing.T, a *process, paths ...nixtest.Path) {
		t.Helper()
		if err := a.fetchAll(paths); err != nil {
			t.Fatal(err)
		}
	}
	all := func(t *testing.T, a *process) { fetch(t, a, paths...) }
	for _, c := range []struct {
		what        string
		compression nix.Compression
		directory   bool
		has         func(t *testing.T, a *process)
	}{
		{"xz", nix.XZ, false, all},
		{"raw", nix.None, false, all},
		{"zstd in a directory", nix.Zstd, true, all},
		{"one NAR was requested", nix.XZ, false, func(t *testing.T, a *process) {
			a.askFor(paths...)
			fetch(t, a, paths[0], paths[3])
		}},
		{"narinfos were requested after the NAR", nix.XZ, true, func(t *testing.T, a *process) {
			fetch(t, a, paths[0], paths[3])
			a.askFor(paths...)
		}},
		{"restarted", nix.Zstd, false, func(t *testing.T, a *process) {
			all(t, a)
			a.restart(a.args...)
		}},
		{"restarted, then narinfos were requested", nix.None, true, func(t *testing.T, a *process) {
			fetch(t, a, paths[0], paths[3])
			a.restart(a.args...)
			a.askFor(paths...)
		}},
		{"killed, then fetched again", nix.XZ, false, func(t *testing.T, a *process) {
			fetch(t, a, paths[1])
			a.kill()
			a.start()
			all(t, a)
		}},
		{"removed from the cache, then fetched again", nix.XZ, false, func(t *testing.T, a *process) {
			all(t, a)
			if _, errs, code := command(t, "gc", "--config", "/dev/null", "--admin-listen", orAny(a.admin), "--state-dir", a.dir+"/state", "--cache-dir", a.dir+"/cache", "--max-size", "0"); code != 0 {
				t.Fatal(errs)
			}
			all(t, a)
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			cfg := nixtest.UpstreamConfig{Paths: paths, Keys: []nixtest.Key{key}, Compression: c.compression}
			from := ""
			if c.directory {
				dir := t.TempDir()
				nixtest.WriteCache(t, dir, cfg)
				from = "file://" + dir
			} else {
				from = nixtest.NewUpstream(t, cfg).URL()
			}
			s := &site{t: t}
			add := func(upstream string) *process {
				l, err := net.Listen("tcp4", "127.0.0.1:0") // the port stays the same over a restart
				if err != nil {
					t.Fatal(err)
				}
				_ = l.Close()
				return s.add("--trusted-public-key", key.Public(), "--share-key", key.Name, "--upstream", upstream, "--store-root", t.TempDir(),
					"--mdns=false", "--p2p-listen", fmt.Sprint("/ip4/127.0.0.1/tcp/", l.Addr().(*net.TCPAddr).Port))
			}
			c.has(t, add(from))
			b := add("http://127.0.0.1:1")
			s.meshed()
			for _, p := range paths {
				b.awaitInfo(p.StorePath.String())
				if err := b.fetch(p); err != nil {
					t.Errorf("%s: %v", p.StorePath, err)
				}
			}
			if c.what != "xz" {
				return
			}
			eachNix(t, func(t *testing.T, nix *realnix.Nix) {
				client := nix.TempClient(t, key.Public())
				client.Substituters = []string{b.url}
				if _, err := client.Realise(t.Context(), storePaths(paths)...); err != nil {
					t.Errorf("%v\n%s", err, b.logText())
				}
			})
		})
	}
}
