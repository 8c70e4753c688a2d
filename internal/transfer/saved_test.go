package transfer

import (
	"net/netip"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// TestSavings: each client is counted once for a NAR, and what an upstream sent is not saved.
func TestSavings(t *testing.T) {
	own, other := netip.Addr{}, netip.MustParseAddr("192.0.2.1")
	type gift struct {
		client              netip.Addr
		upstream, elsewhere float64
		kept                bool
		want                float64
	}
	for _, c := range []struct {
		name       string
		prefetched source.Role
		gifts      []gift
	}{
		{"from a peer, then from the cache", 0, []gift{{own, 0, 1, false, 1}, {own, 0, 1, true, 0}}},
		{"from an upstream, then from the cache", 0, []gift{{own, 1, 0, false, 0}, {own, 0, 1, true, 0}}},
		{"a peer began, an upstream ended", 0, []gift{{own, .75, .25, false, .25}}},
		{"broken off, then whole", 0, []gift{{own, 0, .5, false, .5}, {own, 0, 1, false, .5}, {own, 0, 1, true, 0}}},
		{"in the cache since before the start", 0, []gift{{own, 0, 1, true, 0}, {other, 0, 1, true, 1}, {other, 0, 1, true, 0}}},
		{"an upstream for one client, the cache for the next", 0, []gift{{other, 1, 0, false, 0}, {own, 0, 1, true, 1}}},
		{"prefetched from an upstream", source.Upstream, []gift{{own, 0, 1, true, 0}, {other, 0, 1, true, 1}}},
		{"prefetched from a peer", source.Peer, []gift{{own, 0, 1, true, 1}, {own, 0, 1, true, 0}}},
	} {
		s, nar := newSavings(), nixtest.NewPath("p", 10).NarHash()
		if c.prefetched != source.None {
			s.prefetching(nar)(c.prefetched)
		}
		for i, g := range c.gifts {
			if got := s.give(givenKey{nar, g.client}, g.upstream, g.elsewhere, g.kept); got != g.want {
				t.Errorf("%s: %d: %v saved, want %v", c.name, i, got, g.want)
			}
		}
	}
}

// TestFileSize: what an own upstream said is known, all else is an estimate, and never more than
// the NAR.
func TestFileSize(t *testing.T) {
	key := nixtest.NewKey("k-1")
	keys, err := verify.ParseKeys([]string{key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	p := nixtest.NewPath("p", 100_000)
	up := nixtest.NewUpstream(t, nixtest.UpstreamConfig{Paths: []nixtest.Path{p}, Keys: []nixtest.Key{key}, Compression: nix.Zstd})
	info, err := keys.Open(up.NarInfo(p), p.Hash())
	if err != nil {
		t.Fatal(err)
	}
	file, raw := int64(len(up.File(p))), int64(len(p.NAR))
	says := func(n int64) func() int64 { return func() int64 { return n } }
	s := newSavings()
	if n, known := s.fileSize(info.WithoutHints(), says(0)); known || n != raw*usualFile/100 {
		t.Errorf("nobody knows: %d, %t", n, known)
	}
	if n, known := s.fileSize(info.WithoutHints(), says(777)); known || n != 777 {
		t.Errorf("a peer says: %d, %t", n, known)
	}
	if n, known := s.fileSize(info.WithoutHints(), says(1<<60)); known || n > raw {
		t.Errorf("a peer lies: %d, %t", n, known)
	}
	if n, known := s.fileSize(info, says(0)); !known || n != file {
		t.Errorf("an upstream says: %d, %t; want %d", n, known, file)
	}
	if n, known := s.fileSize(info.WithoutHints(), says(0)); known || n != min(file, raw) {
		t.Errorf("as others: %d, %t; want %d", n, known, file)
	}
}
