package localstore

import (
	"cmp"
	"slices"
	"sync"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// index keeps in memory what the database cannot be asked quickly: which rows may be shared, and
// which ids there are, so that vanished rows are noticed. About 140 bytes for each shared row, 110
// for each other.
type index struct {
	mu      sync.RWMutex
	entries []entry                 // by ascending id
	byStore map[nix.StoreHash]int64 // ids of shared rows that are not held
	// families has the newest row of each; those of one lead from each to the next older.
	families map[family]int64
	counts   [classes]int           // by class
	last     int64                  // highest id ever seen; AUTOINCREMENT gives none twice
	loaded   bool                   // all rows were seen at least once
	changes  map[nix.StoreHash]bool // what was offered or withdrawn since the last look, and whether it was shared before
}

type entry struct {
	id    int64
	size  int64
	nar   nix.NarHash
	store nix.StoreHash
	class class
	held  bool // in quarantine

	family family
	older  int64 // id of the next older row of the family; 0: none
}

// offered reports whether an entry is in byStore.
func (e *entry) offered() bool { return e.class == classShared && !e.held }

// clear forgets all rows.
func (x *index) clear() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for h := range x.byStore {
		x.noteChange(h, true)
	}
	x.entries, x.byStore, x.families = nil, make(map[nix.StoreHash]int64), make(map[family]int64)
	x.last, x.loaded, x.counts = 0, false, [classes]int{}
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
		x.join(&e)
		x.entries = append(x.entries, e)
		x.counts[e.class]++
		if e.offered() {
			x.offer(&e)
		}
	}
}

// offer puts an entry into byStore.
func (x *index) offer(e *entry) {
	_, was := x.byStore[e.store] // registered anew before the old row was missed
	x.noteChange(e.store, was)
	x.byStore[e.store] = e.id
}

// withdraw takes an entry out of byStore, if it is there.
func (x *index) withdraw(e *entry) {
	if x.byStore[e.store] == e.id {
		delete(x.byStore, e.store)
		x.noteChange(e.store, true)
	}
}

func (x *index) noteChange(h nix.StoreHash, was bool) {
	if _, known := x.changes[h]; !known {
		x.changes[h] = was
	}
}

// set changes the class of an entry.
func (x *index) set(e *entry, c class, held bool) {
	was := e.offered()
	x.counts[e.class]--
	x.counts[c]++
	e.class, e.held = c, held
	switch is := e.offered(); {
	case was && !is:
		x.withdraw(e)
	case is && !was:
		x.offer(e)
	}
}

// slot returns where the entry of an id is, or would be.
func (x *index) slot(id int64) (int, bool) {
	return slices.BinarySearchFunc(x.entries, id, func(e entry, id int64) int { return cmp.Compare(e.id, id) })
}

// find returns the entry of a row, or nil.
func (x *index) find(id int64) *entry {
	if slot, ok := x.slot(id); ok {
		return &x.entries[slot]
	}
	return nil
}

// reclass changes the class of a row and reports whether it was another before.
func (x *index) reclass(id int64, c class) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.find(id)
	if e == nil || e.class == c {
		return false
	}
	x.set(e, c, e.held)
	return true
}

// hold notes whether a row is in quarantine.
func (x *index) hold(id int64, held bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.find(id); e != nil {
		x.set(e, e.class, held)
	}
}

// retain drops the entries whose ids are not among ids, which it sorts.
func (x *index) retain(ids []int64) {
	slices.Sort(ids)
	x.mu.Lock()
	defer x.mu.Unlock()
	i := 0
	x.entries = slices.DeleteFunc(x.entries, func(e entry) bool {
		for i < len(ids) && ids[i] < e.id {
			i++
		}
		if i < len(ids) && ids[i] == e.id {
			return false
		}
		x.counts[e.class]--
		x.withdraw(&e)
		return true
	})
	x.rejoin()
}

// shared reports whether the path of h may be shown to others. The way to the answer is the same
// for every hash that may not.
func (x *index) shared(h nix.StoreHash) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, ok := x.byStore[h]
	return ok
}

// takeChanges returns what has changed since the last call: in both lists is what was replaced.
func (x *index) takeChanges() (added, removed []nix.StoreHash) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for h, was := range x.changes {
		if was {
			removed = append(removed, h)
		}
		if _, is := x.byStore[h]; is {
			added = append(added, h)
		}
	}
	x.changes = make(map[nix.StoreHash]bool)
	return added, removed
}
