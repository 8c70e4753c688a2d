package localstore

import (
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Quarantined is a path that is not served because its files are not what its hash says.
type Quarantined struct {
	Path   nix.StorePath
	Since  time.Time
	Reason error
}

// mark is the state of a path in which it is not to be served: one row and one top of the tree.
type mark struct {
	id    int64
	stamp stamp // zero: there was nothing
}

// lastReads is how many openings are remembered, so that a conviction hits the state that was
// read even if the path was repaired meanwhile. More NARs than this are not read at once.
const lastReads = 256

// quarantine holds the paths that are known to be damaged. It is kept in memory only: after a
// restart each is found out again by its first reader.
type quarantine struct {
	mu    sync.Mutex
	paths map[nix.StoreHash]sentence
	reads [lastReads]struct {
		store nix.StoreHash
		mark  mark
	}
	next int
}

type sentence struct {
	Quarantined
	mark mark
}

// reading remembers in which state a path is read.
func (q *quarantine) reading(h nix.StoreHash, m mark) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.reads[q.next].store, q.reads[q.next].mark = h, m
	q.next = (q.next + 1) % lastReads
}

func (q *quarantine) lastRead(h nix.StoreHash) (mark, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range lastReads {
		r := &q.reads[(q.next-1-i+2*lastReads)%lastReads]
		if r.store == h && r.mark.id != 0 {
			return r.mark, true
		}
	}
	return mark{}, false
}

func (q *quarantine) get(h nix.StoreHash) (sentence, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	x, ok := q.paths[h]
	return x, ok
}

// put returns false when the path is held in this state already.
func (q *quarantine) put(h nix.StoreHash, x sentence) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if old, ok := q.paths[h]; ok && old.mark == x.mark {
		return false
	}
	if q.paths == nil {
		q.paths = make(map[nix.StoreHash]sentence)
	}
	q.paths[h] = x
	return true
}

// drop returns false when the path is not, or no longer, held in this state.
func (q *quarantine) drop(h nix.StoreHash, m mark) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if old, ok := q.paths[h]; !ok || old.mark != m {
		return false
	}
	delete(q.paths, h)
	return true
}

func (q *quarantine) list() []sentence {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := make([]sentence, 0, len(q.paths))
	for _, x := range q.paths {
		list = append(list, x)
	}
	return list
}

// quarantine holds a path back from now on.
func (s *Store) quarantine(path nix.StorePath, m mark, reason error) {
	x := sentence{Quarantined{Path: path, Since: time.Now(), Reason: reason}, m}
	if !s.bad.put(path.Hash(), x) {
		return
	}
	s.metrics.StoreQuarantined.Set(float64(len(s.bad.list())))
	s.idx.hold(m.id, true)
	s.poke()
	s.log.Warn("store path is damaged and not served until it is replaced", "path", path.String(), "err", reason)
}

// held tells whether a path is in quarantine, and releases it when it is no longer what it was:
// registered anew, or another top in its place.
func (s *Store) held(h nix.StoreHash, id int64) bool {
	x, ok := s.bad.get(h)
	if !ok {
		return false
	}
	if x.mark.id == id && x.mark.stamp == statTop(s.physical(x.Path)) {
		return true
	}
	s.release(x)
	return false
}

func (s *Store) release(x sentence) {
	if !s.bad.drop(x.Path.Hash(), x.mark) {
		return
	}
	s.metrics.StoreQuarantined.Set(float64(len(s.bad.list())))
	s.idx.hold(x.mark.id, false)
	s.poke()
	s.log.Info("damaged store path was replaced or removed", "path", x.Path.String())
}

// Quarantined returns the paths that are held back.
func (s *Store) Quarantined() []Quarantined {
	list := s.bad.list()
	out := make([]Quarantined, len(list))
	for i, x := range list {
		out[i] = x.Quarantined
	}
	return out
}
