package share

import (
	"cmp"
	"iter"
	"math"
	"slices"
	"sync"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/wire"
	"github.com/nixp2p/nixp2p/verify"
)

// place is where a shared path is. A path may be in several.
type place uint8

const (
	inStore place = 1 << iota
	inCache       // or on its way into it
)

// record is one shared path.
type record struct {
	path  Path
	where place
	info  *verify.Info // of what is in the cache and not among the remembered narinfos yet
	n     uint64       // how many were shared before it, and itself
}

// numbered is the number of a shared path.
type numbered struct {
	n   uint64
	key inventory.Key
}

// largeNAR and more bytes are announced in the DHT: smaller NARs cost an upstream a round trip
// and few bytes, and are most of a store.
const largeNAR = 1 << 20

// set is the one set of shared paths.
type set struct {
	local *inventory.Local // is told of each change

	mu     sync.RWMutex
	byKey  map[inventory.Key]record
	byNar  map[nix.NarHash]inventory.Key
	more   map[nix.NarHash][]inventory.Key // further paths with the same NAR
	listed map[nix.NarHash]bool            // large NARs that came (true) or went since taken
	order  []numbered                      // ascending; with numbers of paths that went
	last   uint64                          // the highest number that was given
}

func newSet(local *inventory.Local) *set {
	return &set{
		local: local, byKey: make(map[inventory.Key]record), byNar: make(map[nix.NarHash]inventory.Key),
		more: make(map[nix.NarHash][]inventory.Key), listed: make(map[nix.NarHash]bool),
	}
}

func keyOf(h nix.StoreHash) inventory.Key { return inventory.KeyOf(h.Question()) }

// Len is part of inventory.Set.
func (s *set) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.byKey)
}

// All is part of inventory.Set.
func (s *set) All(yield func(inventory.Key) bool) {
	s.mu.RLock()
	keys := make([]inventory.Key, 0, len(s.byKey))
	for k := range s.byKey {
		keys = append(keys, k)
	}
	s.mu.RUnlock()
	for _, k := range keys {
		if !yield(k) {
			return
		}
	}
}

// byQuestion returns the path that a question asks for.
func (s *set) byQuestion(q nix.Question) (record, bool) {
	s.mu.RLock()
	r, ok := s.byKey[inventory.KeyOf(q)]
	s.mu.RUnlock()
	// The key is a part of the question.
	return r, ok && r.path.Store.Question() == q
}

// has reports whether a path is in a place.
func (s *set) has(h nix.StoreHash, where place) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r, ok := s.byKey[keyOf(h)]
	return ok && r.path.Store == h && r.where&where != 0
}

// byNAR returns a path that has a NAR, preferably one of the store.
func (s *set) byNAR(nar nix.NarHash) (record, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	k, ok := s.byNar[nar]
	r := s.byKey[k]
	for _, k := range s.more[nar] {
		if x := s.byKey[k]; r.where&inStore == 0 && x.where&inStore != 0 {
			r = x
		}
	}
	return r, ok
}

// add notes that a path is in a place.
func (s *set) add(p Path, where place, info *verify.Info) {
	k := keyOf(p.Store)
	s.mu.Lock()
	r, known := s.byKey[k]
	if known && r.path != p {
		s.unlink(k, r.path)
		r, known = record{}, false
	}
	if !known {
		s.link(k, p)
		s.last++
		r.n = s.last
		s.order = append(s.order, numbered{r.n, k})
		s.compact()
	}
	r.path, r.where = p, r.where|where
	if info != nil {
		r.info = info
	}
	s.byKey[k] = r
	s.mu.Unlock()
	if !known {
		s.local.Changed(k, true)
	}
}

// compact drops the numbers of paths that went, once they are the most. The caller holds mu.
func (s *set) compact() {
	if len(s.order) <= 2*(len(s.byKey)+wire.MaxPage) {
		return
	}
	s.order = slices.DeleteFunc(s.order, func(x numbered) bool { return s.byKey[x.key].n != x.n && x.n != s.last })
}

// page returns what is shared with numbers below before, or the newest paths if before is 0.
func (s *set) page(before uint64) (p source.SharedPage) {
	most := wire.MaxPage
	if before == 0 {
		before, most = math.MaxUint64, wire.NewestPage
	}
	var last uint64
	s.mu.RLock()
	defer s.mu.RUnlock()
	at, _ := slices.BinarySearchFunc(s.order, before, func(x numbered, n uint64) int { return cmp.Compare(x.n, n) })
	for at--; at >= 0; at-- {
		x := s.order[at]
		r, ok := s.byKey[x.key]
		if !ok || r.n != x.n {
			continue
		}
		if len(p.Paths) == most {
			p.Next = last
			return p
		}
		if len(p.Paths) == 0 {
			p.First = x.n
		}
		p.Paths, last = append(p.Paths, r.path), x.n
	}
	return p
}

// remove notes that a path is not in a place any more.
func (s *set) remove(h nix.StoreHash, where place) {
	k := keyOf(h)
	s.mu.Lock()
	r, ok := s.byKey[k]
	if !ok || r.path.Store != h {
		s.mu.Unlock()
		return
	}
	if r.where &^= where; where&inCache != 0 {
		r.info = nil
	}
	gone := r.where == 0
	if gone {
		delete(s.byKey, k)
		s.unlink(k, r.path)
		s.compact()
	} else {
		s.byKey[k] = r
	}
	s.mu.Unlock()
	if gone {
		s.local.Changed(k, false)
	}
}

// forget drops the narinfo of a path, which is remembered elsewhere.
func (s *set) forget(h nix.StoreHash) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.byKey[keyOf(h)]; ok && r.path.Store == h {
		r.info = nil
		s.byKey[keyOf(h)] = r
	}
}

// link notes that a path has its NAR. The caller holds mu.
func (s *set) link(k inventory.Key, p Path) {
	if _, ok := s.byNar[p.Nar]; ok {
		s.more[p.Nar] = append(s.more[p.Nar], k)
		return
	}
	s.byNar[p.Nar] = k
	if p.Size >= largeNAR {
		s.listed[p.Nar] = true
	}
}

// unlink undoes link. The caller holds mu.
func (s *set) unlink(k inventory.Key, p Path) {
	rest := s.more[p.Nar]
	if s.byNar[p.Nar] == k && len(rest) > 0 {
		s.byNar[p.Nar], rest = rest[0], rest[1:]
	} else if i := slices.Index(rest, k); i >= 0 {
		rest = slices.Delete(rest, i, i+1)
	} else if s.byNar[p.Nar] == k {
		delete(s.byNar, p.Nar)
		if p.Size >= largeNAR {
			s.listed[p.Nar] = false
		}
	}
	if len(rest) == 0 {
		delete(s.more, p.Nar)
	} else {
		s.more[p.Nar] = rest
	}
}

// in returns the paths that are in a place, in the order in which they came. What comes or goes meanwhile may be
// left out. No lock is held while one is looked at.
func (s *set) in(where place) iter.Seq[record] {
	return func(yield func(record) bool) {
		some := make([]record, 0, wire.MaxPage)
		for after, more := uint64(0), true; more; {
			after, more, some = s.next(after, where, some[:0])
			for _, r := range some {
				if !yield(r) {
					return
				}
			}
		}
	}
}

// next appends to some, until it is full, the paths in a place with numbers above after. It returns the number of
// the last path that it looked at, and whether there are more.
func (s *set) next(after uint64, where place, some []record) (last uint64, more bool, list []record) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	at, _ := slices.BinarySearchFunc(s.order, after+1, func(x numbered, n uint64) int { return cmp.Compare(x.n, n) })
	for ; at < len(s.order) && len(some) < cap(some); at++ {
		x := s.order[at]
		if r := s.byKey[x.key]; r.n == x.n && r.where&where != 0 {
			some = append(some, r)
		}
		after = x.n
	}
	return after, at < len(s.order), some
}

// takeLarge returns the large NARs that came and went since the last call.
func (s *set) takeLarge() (came, went []nix.NarHash) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for nar, is := range s.listed {
		if is {
			came = append(came, nar)
		} else {
			went = append(went, nar)
		}
	}
	clear(s.listed)
	return came, went
}
