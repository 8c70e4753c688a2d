package localstore

import (
	"cmp"
	"slices"
	"sync"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// index keeps in memory what the database cannot be asked quickly: which rows may be shared, by
// store hash and by NAR hash, and which ids there are, so that vanished rows are noticed. About
// 150 bytes for each shared row, 80 for each other.
type index struct {
	mu      sync.RWMutex
	entries []entry                  // by ascending id
	byStore map[nix.StoreHash]uint32 // slots of shared rows that are not held
	byNar   map[nix.NarHash]uint32   // the first of them with this NAR; entry.next leads on
	live    int                      // entries that are not gone
	counts  [classes]int             // by class
	last    int64                    // highest id ever seen; AUTOINCREMENT gives none twice
	loaded  bool                     // all rows were seen at least once
	news    []news                   // in the order in which it happened
}

type entry struct {
	id    int64
	size  int64
	nar   nix.NarHash
	store nix.StoreHash
	next  uint32 // slot + 1 of another shared row with the same NAR, 0 for none
	class class
	held  bool // in quarantine
}

type news struct {
	store nix.StoreHash
	added bool
}

// offered tells that an entry is in the maps.
func (e *entry) offered() bool { return e.class == classShared && !e.held }

func (x *index) reset() {
	x.entries, x.byStore, x.byNar = nil, make(map[nix.StoreHash]uint32), make(map[nix.NarHash]uint32)
	x.live, x.last, x.loaded, x.counts = 0, 0, false, [classes]int{}
}

// clear forgets all rows.
func (x *index) clear() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for h := range x.byStore {
		x.news = append(x.news, news{h, false})
	}
	x.reset()
}

// add appends rows whose ids are above all others'.
func (x *index) add(batch []entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range batch {
		if e.id <= x.last {
			continue
		}
		x.last = e.id
		x.entries = append(x.entries, e)
		x.live++
		x.counts[e.class]++
		if e.offered() {
			x.offer(uint32(len(x.entries) - 1))
		}
	}
}

// offer puts an entry into the maps.
func (x *index) offer(slot uint32) {
	e := &x.entries[slot]
	if old, ok := x.byStore[e.store]; ok { // registered anew before the old row was missed
		x.withdraw(old)
	}
	x.byStore[e.store] = slot
	e.next = 0
	if first, ok := x.byNar[e.nar]; ok {
		e.next = first + 1
	}
	x.byNar[e.nar] = slot
	x.news = append(x.news, news{e.store, true})
}

// withdraw takes an entry out of the maps, if it is there.
func (x *index) withdraw(slot uint32) {
	e := &x.entries[slot]
	if at, ok := x.byStore[e.store]; !ok || at != slot {
		return
	}
	delete(x.byStore, e.store)
	x.news = append(x.news, news{e.store, false})
	first := x.byNar[e.nar]
	switch {
	case first != slot:
		at := &x.entries[first]
		for at.next != slot+1 {
			at = &x.entries[at.next-1]
		}
		at.next = e.next
	case e.next == 0:
		delete(x.byNar, e.nar)
	default:
		x.byNar[e.nar] = e.next - 1
	}
	e.next = 0
}

// set changes what an entry is worth.
func (x *index) set(slot uint32, c class, held bool) {
	e := &x.entries[slot]
	was := e.offered()
	x.counts[e.class]--
	x.counts[c]++
	e.class, e.held = c, held
	switch is := e.offered(); {
	case was && !is:
		x.withdraw(slot)
	case is && !was:
		x.offer(slot)
	}
}

// slot returns where the entry of an id is, or would be.
func (x *index) slot(id int64) (int, bool) {
	return slices.BinarySearchFunc(x.entries, id, func(e entry, id int64) int { return cmp.Compare(e.id, id) })
}

// find returns the slot of a row that is not gone.
func (x *index) find(id int64) (uint32, bool) {
	slot, ok := x.slot(id)
	return uint32(slot), ok && x.entries[slot].class != classGone
}

// reclass says that a row turned out to be worth something else, and whether that is news.
func (x *index) reclass(id int64, c class) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	slot, ok := x.find(id)
	if !ok || x.entries[slot].class == c {
		return false
	}
	x.set(slot, c, x.entries[slot].held)
	return true
}

// hold says that a row is, or is no longer, in quarantine.
func (x *index) hold(id int64, held bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if slot, ok := x.find(id); ok {
		x.set(slot, x.entries[slot].class, held)
	}
}

// retain drops the entries whose ids are not among ids, which it sorts. Ids above the highest
// one seen belong to rows that were not read yet.
func (x *index) retain(ids []int64) {
	slices.Sort(ids)
	x.mu.Lock()
	defer x.mu.Unlock()
	i := 0
	for slot := range x.entries {
		e := &x.entries[slot]
		for i < len(ids) && ids[i] < e.id {
			i++
		}
		if e.class == classGone || i < len(ids) && ids[i] == e.id {
			continue
		}
		x.set(uint32(slot), classGone, false)
		x.live--
	}
	if gone := len(x.entries) - x.live; gone > 1000 && gone > x.live/2 {
		x.compact()
	}
}

// compact frees the places of entries that are gone.
func (x *index) compact() {
	kept := make([]entry, 0, x.live)
	for _, e := range x.entries {
		if e.class != classGone {
			e.next = 0
			kept = append(kept, e)
		}
	}
	x.entries = kept
	x.counts[classGone] = 0
	clear(x.byStore)
	clear(x.byNar)
	known := x.news
	for slot := range x.entries {
		if x.entries[slot].offered() {
			x.offer(uint32(slot))
		}
	}
	x.news = known
}

// shared tells whether the path of h may be shown to others. The way to the answer is the same
// for every hash that may not.
func (x *index) shared(h nix.StoreHash) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, ok := x.byStore[h]
	return ok
}

// agrees tells whether the index has h as shared, or not, as it should. An entry that is held is
// the quarantine's business.
func (x *index) agrees(h nix.StoreHash, shared bool) bool { return x.shared(h) == shared }

// byNAR returns the store hashes of the shared rows with this NAR.
func (x *index) byNAR(nar nix.NarHash) (hashes []nix.StoreHash) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	slot, ok := x.byNar[nar]
	if !ok {
		return nil
	}
	for next := slot + 1; next != 0; next = x.entries[next-1].next {
		hashes = append(hashes, x.entries[next-1].store)
	}
	return hashes
}

// tell returns what has changed since the last call: in both lists is what was replaced.
func (x *index) tell() (added, removed []nix.StoreHash) {
	x.mu.Lock()
	list := x.news
	x.news = nil
	x.mu.Unlock()
	type ends struct{ first, last bool }
	seen := make(map[nix.StoreHash]ends, len(list))
	for _, n := range list {
		e, ok := seen[n.store]
		if !ok {
			e.first = n.added
		}
		e.last = n.added
		seen[n.store] = e
	}
	for h, e := range seen {
		if !e.first {
			removed = append(removed, h)
		}
		if e.last {
			added = append(added, h)
		}
	}
	return added, removed
}
