package lease

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"slices"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Odd numbers without meaning: the fractions of the golden ratio and of pi.
const (
	stir = 0x9e3779b97f4a7c15
	salt = 0x243f6a8885a308d3
)

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// weight says how much a node is wanted as coordinator for a NAR. With mix(a, b) as the two
// halves of a*b, xored, it is: h = mix(salt ^ length of node, stir); for each 8 bytes w of
// node, little-endian and filled up with zeros, then for each of the four of nar,
// h = mix(h ^ w, stir); and mix(h ^ salt, stir) at the end. All versions and machines must
// agree in it, or a site has several coordinators for each NAR. It is no secret and resists
// nobody who makes himself node IDs until one fits: who wins that way can at most be wrong,
// and coordination fails open.
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

// Outranks tells whether a comes before b for a NAR. It is a total order that all nodes agree
// in, whomever they know.
func Outranks(nar nix.NarHash, a, b NodeID) bool {
	wa, wb := weight(nar, a), weight(nar, b)
	return wa > wb || wa == wb && a < b
}

// Rank returns nodes, each once, in the order in which they are coordinators for a NAR
// (rendezvous hashing: when a node comes or goes, only the NARs that it ranks first for
// change hands).
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

// higher returns the best of nodes that comes before self, leaving out some.
func higher(nar nix.NarHash, self NodeID, nodes []NodeID, but ...NodeID) (best NodeID, ok bool) {
	best = self
	for _, n := range nodes {
		if !slices.Contains(but, n) && Outranks(nar, n, best) {
			best = n
		}
	}
	return best, best != self
}
