package lease

import (
	"flag"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/machine"
)

var (
	largeNodes = flag.Int("nodes", 0, "simulate a cold site of so many nodes")
	largePeers = flag.Int("peers", 256, "peers of a node, with -nodes")
	largeKnown = flag.Int("known", 4096, "nodes that a node ranks, with -nodes")
	largeNARs  = flag.Int("nars", 8, "NARs that all want, with -nodes")
)

// named is how many of its peers a node tells to each of them, as package site does.
const named = 32

// TestLargeSite prints how a site of -nodes nodes starts, as docs/scale.md has it.
func TestLargeSite(t *testing.T) {
	if *largeNodes == 0 {
		t.Skip("only with -nodes")
	}
	w := newWorld(t, 1, *largeNodes)
	w.most = time.Hour
	for i, h := range w.nodes {
		h.machine = machine.Of(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
	}
	w.connect(*largePeers)
	known := 0
	for _, h := range w.nodes {
		known += len(h.base)
	}
	want := w.closure(*largeNARs, 100e6, 40e6)
	for _, h := range w.nodes {
		w.after(w.upTo(2*time.Second), func() { h.queue = slices.Clone(want) })
	}
	begin := w.now
	w.run(2*time.Second, func() bool { return false })
	done := w.run(40*time.Second, w.ready)
	_, _, copies := w.egress()
	slices.Sort(w.waits)
	t.Logf("%d nodes, %d peers each, %d nodes known: %.3f copies, all done %v after %.1f s, p50 %.1f s, p99 %.1f s, %.2f messages a NAR and node, %d budgets used up",
		*largeNodes, *largePeers, known / *largeNodes, copies, done, w.now.Sub(begin).Seconds(), w.waits[len(w.waits)/2].Seconds(),
		w.waits[len(w.waits)*99/100].Seconds(), float64(w.messages)/float64(*largeNodes**largeNARs), w.overs)
}

// connect gives each node at most n peers at random. A node knows its peers, and those that they name.
func (w *world) connect(n int) {
	peers := map[*host][]*host{}
	for _, h := range w.nodes {
		for tries := 0; len(peers[h]) < min(n, len(w.nodes)-1) && tries < 20*n; tries++ {
			o := w.nodes[w.rng.IntN(len(w.nodes))]
			if o != h && len(peers[o]) < n && !slices.Contains(peers[h], o) {
				peers[h], peers[o] = append(peers[h], o), append(peers[o], h)
			}
		}
	}
	for _, h := range w.nodes {
		list := slices.Clone(peers[h])
		seen := map[*host]bool{h: true}
		for _, o := range list {
			seen[o] = true
		}
		for _, o := range peers[h] {
			for _, i := range w.rng.Perm(len(peers[o]))[:min(named, len(peers[o]))] {
				if k := peers[o][i]; !seen[k] && len(list) < *largeKnown {
					seen[k] = true
					list = append(list, k)
				}
			}
		}
		h.know(list)
	}
}

// BenchmarkFullEntry is an answer about a NAR of which there is no room for more members.
func BenchmarkFullEntry(b *testing.B) {
	c := NewCoordinator("self")
	now := time.Now()
	var nar nix.NarHash
	r := Request{Verb: Ask, Nar: nar, Size: 5 << 20}
	on := func(i int) machine.ID { return machine.Of(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})) }
	for i := range maxPerNAR {
		c.Handle(NodeID(fmt.Sprintf("node-%05d", i)), on(i), r, nil, now)
		c.Handle(NodeID(fmt.Sprintf("node-%05d", i)), on(i), Request{Verb: Progress, Nar: nar, Size: 5 << 20, Bytes: 1<<20 + int64(i), From: NodeID(fmt.Sprintf("node-%05d", i/4))}, nil, now)
	}
	b.ResetTimer()
	for i := range b.N {
		c.Handle(NodeID(fmt.Sprintf("new-%05d", i)), on(30000+i), r, nil, now)
	}
}
