package main

import (
	"net/http"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
)

// TestTwins: of several store paths that share one NAR, a node that got them all from its upstream
// shares them all, and a node that has no upstream gets each.
func TestTwins(t *testing.T) {
	t.Parallel()
	key := nixtest.NewKey("cache.example.org-1")
	paths := []nixtest.Path{nixtest.NewPath("one", 5000), nixtest.NewPath("two", 5000), nixtest.NewPath("three", 5000), nixtest.NewPath("other", 5000)}
	for i := 1; i < 3; i++ {
		paths[i].NAR, paths[i].Contents = paths[0].NAR, paths[0].Contents
	}
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: paths, Keys: []nixtest.Key{key}, Compression: nix.XZ})
	common := []string{"--trusted-public-key", key.Public(), "--share-key", key.Name}
	s := newSite(t, 1, append(common, "--upstream", up.URL())...)
	a := s.nodes[0]
	if err := a.fetchAll(paths); err != nil {
		t.Fatal(err)
	}
	b := s.add(append(common, "--upstream", "http://127.0.0.1:1", "--store-root", t.TempDir(), "--mdns=false", "--p2p-listen", "/ip4/127.0.0.1/tcp/0")...)
	s.meshed()
	for _, p := range paths {
		eventually(t, func() bool {
			code, _ := b.get(b.url + "/" + p.Hash().String() + ".narinfo")
			return code == http.StatusOK
		})
		if err := b.fetch(p); err != nil {
			t.Errorf("%s: %v", p.StorePath, err)
		}
	}
}
