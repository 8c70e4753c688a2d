package main

import (
	"fmt"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
)

// TestRequestsCounted: how many narinfos the upstream is asked for, by Nix alone and with a node, as
// docs/how-it-works.md says.
func TestRequestsCounted(t *testing.T) {
	t.Parallel()
	const n = 12
	key := nixtest.NewKey("cache.example.org-1")
	var here, nowhere []nixtest.Path
	for i := range n {
		here = append(here, nixtest.NewPath(fmt.Sprint("here", i), 1000))
		nowhere = append(nowhere, nixtest.NewPath(fmt.Sprint("nowhere", i), 1000))
	}
	for _, c := range []struct {
		what   string
		paths  []nixtest.Path
		node   bool // in the list
		too    bool // the upstream is in the list behind the node
		second bool // another client has asked the same node before
		want   int
	}{
		{"what the upstream has, Nix alone", here, false, false, false, n},
		{"through a node", here, true, true, false, n},
		{"through a node that another client has asked", here, true, true, true, 0},
		{"what nobody has, Nix alone", nowhere, false, false, false, n},
		{"with a node before the upstream", nowhere, true, true, false, 2 * n},
		{"with a node alone", nowhere, true, false, false, n},
		{"with a node alone that another client has asked", nowhere, true, false, true, 0},
		{"with a node before the upstream, another client has asked it", nowhere, true, true, true, n},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			eachNix(t, func(t *testing.T, nix *realnix.Nix) {
				up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: here, Keys: []nixtest.Key{key}})
				var list []string
				if c.node {
					d := startDaemon(t, "--p2p=false", "--upstream", up.URL(), "--store-root", t.TempDir(), "--trusted-public-key", key.Public(), "--share-key", key.Name)
					list = append(list, d.url)
				}
				if !c.node || c.too {
					list = append(list, up.URL())
				}
				ask := func() {
					client := nix.TempClient(t, key.Public())
					client.Substituters, client.Settings = list, map[string]string{"narinfo-cache-negative-ttl": "3600"} // the default
					_, err := client.Realise(t.Context(), storePaths(c.paths)...)
					if found := err == nil; found != (&c.paths[0] == &here[0]) {
						t.Fatal(err)
					}
				}
				if c.second {
					ask()
				}
				before := up.Requests(nixtest.NarInfo)
				ask()
				if got := up.Requests(nixtest.NarInfo) - before; got != c.want {
					t.Errorf("%d narinfo requests, want %d", got, c.want)
				}
			})
		})
	}
}
