package mirror

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// generation is a list as it was at one time, with what its paths refer to.
type generation struct {
	head
	paths []entry // those of the list in its order, then what they refer to
	tally         // as of the last Follower.keep
}

// tally is what is counted of the paths of a generation, so that to show it costs nothing.
type tally struct {
	bytes int64 // of those that are known
	kept  int
}

func (g *generation) count(kept map[nix.NarHash]struct{}) {
	g.tally = tally{}
	for _, e := range g.paths {
		g.bytes += e.size
		if _, ok := kept[e.nar]; ok {
			g.kept++
		}
	}
}

// head is what a generation is.
type head struct {
	List   string    `json:"list"`
	Seq    uint64    `json:"seq"` // higher is newer
	Found  time.Time `json:"found"`
	From   string    `json:"from"`   // where redirects led
	Digest []byte    `json:"digest"` // of the paths of the list
	Listed int       `json:"listed"` // how many of paths the list has
	// Complete: everything that can be had and has room was here.
	Complete bool `json:"complete"`
}

// entry is one path. nar and size are zero until its narinfo is known.
type entry struct {
	hash nix.StoreHash
	nar  nix.NarHash
	size int64 // bytes, in the form in which it is fetched
}

func (e *entry) known() bool { return e.nar != nix.NarHash{} }

// newGeneration makes a generation of the paths of a list, each once.
func newGeneration(list string, seq uint64, from string, paths []nix.StoreHash) *generation {
	g := &generation{head: head{List: list, Seq: seq, Found: time.Now().UTC(), From: from, Digest: digest(paths)}}
	seen := make(map[nix.StoreHash]bool, len(paths))
	for _, h := range paths {
		if !seen[h] {
			seen[h] = true
			g.paths = append(g.paths, entry{hash: h})
		}
	}
	g.Listed = len(g.paths)
	return g
}

// digest names a set of paths.
func digest(paths []nix.StoreHash) []byte {
	sorted := slices.SortedFunc(slices.Values(paths), func(a, b nix.StoreHash) int { return bytes.Compare(a[:], b[:]) })
	all := sha256.New()
	for _, h := range slices.Compact(sorted) {
		all.Write(h[:])
	}
	return all.Sum(nil)
}

// key is the name of a generation where it is kept.
func (h *head) key() string { return fmt.Sprintf("%s\x00%016x", h.List, h.Seq) }

// A generation is kept as its head in JSON, a newline, and its entries in binary.
const entrySize = len(nix.StoreHash{}) + len(nix.NarHash{}) + 8

func (g *generation) marshal() []byte {
	b, _ := json.Marshal(g.head) // texts and numbers cannot fail
	b = slices.Grow(append(b, '\n'), len(g.paths)*entrySize)
	for _, e := range g.paths {
		b = append(append(b, e.hash[:]...), e.nar[:]...)
		b = binary.LittleEndian.AppendUint64(b, uint64(e.size))
	}
	return b
}

var errGeneration = errors.New("not a generation")

func parseGeneration(b []byte) (*generation, error) {
	text, rest, ok := bytes.Cut(b, []byte("\n"))
	g := &generation{}
	switch err := json.Unmarshal(text, &g.head); {
	case !ok || err != nil:
		return nil, fmt.Errorf("%w: %w", errGeneration, err)
	case len(rest)%entrySize != 0 || g.Listed < 0 || g.Listed > len(rest)/entrySize:
		return nil, errGeneration
	}
	g.paths = make([]entry, 0, len(rest)/entrySize)
	for ; len(rest) > 0; rest = rest[entrySize:] {
		e := entry{hash: nix.StoreHash(rest), nar: nix.NarHash(rest[len(nix.StoreHash{}):])}
		e.size = int64(binary.LittleEndian.Uint64(rest[entrySize-8:]))
		if e.size < 0 {
			return nil, errGeneration
		}
		g.paths = append(g.paths, e)
	}
	return g, nil
}
