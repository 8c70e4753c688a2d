package lease

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"slices"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Arbitrary odd numbers: the fractions of the golden ratio and of pi.
const (
	stir = 0x9e3779b97f4a7c15
	salt = 0x243f6a8885a308d3
)

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// weight is the rendezvous hash of a node for a NAR. With mix(a, b) as the two halves of a*b,
// xored, it is: h = mix(salt ^ length of node, stir); for each 8 bytes w of node,
// little-endian and padded with zeros, then for each of the four of nar, h = mix(h ^ w, stir);
// and mix(h ^ salt, stir) at the end. All versions and machines must agree on it, or a site
// has several coordinators for each NAR. It does not resist an attacker who generates node
// IDs until one ranks first: a hostile coordinator can only give wrong answers, and
// coordination fails open.
func weight(nar nix.NarHash, node NodeID) uint64 {
	h := mix(salt^uint64(len(node)), stir)
	for rest := node; rest != ""; {
		var w [8]byte
		n := copy(w[:], rest)
		rest = rest[n:]
		h = mix(h^binary.LittleEndian.Uint64(w[:]), stir)
	}
	for i := 0; i < len(nar); i += 8 {
		h = mix(h^binary.LittleEndian.Uint64(nar[i:]), stir)
	}
	return mix(h^salt, stir)
}

// Outranks reports whether a comes before b for a NAR. It is a total order on which all nodes
// agree, whatever other nodes they know.
func Outranks(nar nix.NarHash, a, b NodeID) bool {
	wa, wb := weight(nar, a), weight(nar, b)
	return wa > wb || wa == wb && a < b
}

// Rank returns nodes, each once, in the order in which they are coordinators for a NAR
// (rendezvous hashing: when a node comes or goes, only the NARs for which it ranks first
// change their coordinator).
func Rank(nar nix.NarHash, nodes []NodeID) []NodeID {
	type ranked struct {
		weight uint64
		node   NodeID
	}
	list := make([]ranked, len(nodes))
	for i, n := range nodes {
		list[i] = ranked{weight(nar, n), n}
	}
	slices.SortFunc(list, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.node, b.node))
	})
	list = slices.Compact(list)
	order := make([]NodeID, len(list))
	for i, r := range list {
		order[i] = r.node
	}
	return order
}

// higher returns the best of nodes, except some, that ranks before self.
func higher(nar nix.NarHash, self NodeID, nodes []NodeID, except ...NodeID) (best NodeID, ok bool) {
	best = self
	for _, n := range nodes {
		if !slices.Contains(except, n) && Outranks(nar, n, best) {
			best = n
		}
	}
	return best, best != self
}
