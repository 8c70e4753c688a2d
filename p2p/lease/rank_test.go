package lease

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/nixp2p/nixp2p/internal/nix"
)

func nodes(n int) (list []NodeID) {
	for i := range n {
		list = append(list, NodeID(fmt.Sprintf("\x00$\x08\x01\x12 key of node %d", i)))
	}
	return list
}

func narOf(n uint64) (nar nix.NarHash) {
	rng := rand.New(rand.NewPCG(n, 1))
	for i := 0; i < len(nar); i += 8 {
		binary.LittleEndian.PutUint64(nar[i:], rng.Uint64())
	}
	return nar
}

// TestWeight holds the numbers: a change of them divides every site that has both versions.
func TestWeight(t *testing.T) {
	nar := nix.NarHash{}
	for i := range nar {
		nar[i] = byte(i)
	}
	for node, want := range map[NodeID]uint64{
		"":  0x47c263b129f7134c,
		"a": 0xc451f1f68ee0004f, "12345678": 0x2da60fd5242284f6, "123456789": 0x7da9f7bbf3f894, "a node with a long name": 0xd2ac6d701c7c97ff,
	} {
		if got := weight(nar, node); got != want {
			t.Errorf("weight of %q is %#x, want %#x", node, got, want)
		}
	}
}

func TestRankSpreads(t *testing.T) {
	const nars = 20000
	all := nodes(32)
	first, moved := map[NodeID]int{}, 0
	for i := range nars {
		nar := narOf(uint64(i))
		order := Rank(nar, all)
		first[order[0]]++
		if len(order) != len(all) {
			t.Fatalf("%d of %d nodes", len(order), len(all))
		}
		// Without its second nobody else's place changes.
		rest := Rank(nar, slices.DeleteFunc(slices.Clone(all), func(n NodeID) bool { return n == order[1] }))
		if !slices.Equal(rest, slices.Delete(slices.Clone(order), 1, 2)) {
			moved++
		}
	}
	if moved > 0 {
		t.Errorf("%d times the order of others changed", moved)
	}
	for n, k := range first {
		if mean := nars / len(all); k < mean*3/4 || k > mean*5/4 {
			t.Errorf("%q is first %d times, the mean is %d", n, k, mean)
		}
	}
}

func TestRankAgrees(t *testing.T) {
	all := nodes(9)
	for i := range 200 {
		nar := narOf(uint64(i))
		order := Rank(nar, all)
		twice := append(slices.Clone(all), all...)
		slices.Reverse(twice)
		if !slices.Equal(Rank(nar, twice), order) {
			t.Fatal("the order depends on that of the question")
		}
		for j := range order[1:] {
			if !Outranks(nar, order[j], order[j+1]) || Outranks(nar, order[j+1], order[j]) {
				t.Fatal("Outranks and Rank differ")
			}
		}
		if best, ok := higher(nar, order[3], all, order[0]); !ok || best != order[1] {
			t.Fatal("not the best but one")
		}
		if _, ok := higher(nar, order[0], all); ok {
			t.Fatal("somebody is higher than the first")
		}
	}
	if got := Rank(narOf(1), nil); len(got) != 0 {
		t.Errorf("%v out of nobody", got)
	}
}

func BenchmarkRank64(b *testing.B) {
	all, nar := nodes(64), narOf(1)
	for b.Loop() {
		Rank(nar, all)
	}
}
