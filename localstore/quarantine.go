package localstore

import (
	"maps"
	"slices"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// version is the state of a path in which it is not to be served: one row and one root of the tree.
type version struct {
	id    int64
	stamp stamp // zero: there was nothing
}

// lastReads is how many openings are remembered, so that a report about wrong bytes hits the
// state that was read even if the path was repaired meanwhile. More NARs than this are not read
// at once.
const lastReads = 256

// quarantine holds the paths that are known to be damaged. It is kept in memory only: after a
// restart each is found out again by its first reader.
type quarantine struct {
	mu    sync.Mutex
	paths map[nix.StoreHash]quarantined
	reads *simplelru.LRU[nix.StoreHash, version]
}

// quarantined is a path that is not served because its files are not what its hash says.
type quarantined struct {
	path    nix.StorePath
	version version
}

func newQuarantine() quarantine {
	reads, _ := simplelru.NewLRU[nix.StoreHash, version](lastReads, nil) // fails for sizes below 1 only
	return quarantine{paths: make(map[nix.StoreHash]quarantined), reads: reads}
}

// reading remembers in which state a path is read.
func (q *quarantine) reading(h nix.StoreHash, v version) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.reads.Add(h, v)
}

func (q *quarantine) lastRead(h nix.StoreHash) (version, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.reads.Get(h)
}

func (q *quarantine) list() []quarantined {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Collect(maps.Values(q.paths))
}

// quarantine holds a path back from now on.
func (s *Store) quarantine(path nix.StorePath, m version, reason error) {
	h := path.Hash()
	s.bad.mu.Lock()
	old, known := s.bad.paths[h]
	s.bad.paths[h] = quarantined{path, m}
	s.bad.mu.Unlock()
	if known && old.version == m {
		return
	}
	s.noteHeld(m.id, true)
	s.log.Warn("store path is damaged and not served until it is replaced", "path", path.String(), "err", reason)
}

// held reports whether a path is in quarantine, and releases it when it is no longer what it was:
// registered anew, or another top in its place.
func (s *Store) held(h nix.StoreHash, id int64) bool {
	s.bad.mu.Lock()
	x, ok := s.bad.paths[h]
	s.bad.mu.Unlock()
	if !ok {
		return false
	}
	if x.version.id == id && x.version.stamp == statRootEntry(s.physical(x.path)) {
		return true
	}
	s.release(x)
	return false
}

// release undoes quarantine, unless the path is held in another state by now.
func (s *Store) release(x quarantined) {
	h := x.path.Hash()
	s.bad.mu.Lock()
	mine := s.bad.paths[h].version == x.version
	if mine {
		delete(s.bad.paths, h)
	}
	s.bad.mu.Unlock()
	if !mine {
		return
	}
	s.noteHeld(x.version.id, false)
	s.log.Info("damaged store path was replaced or removed", "path", x.path.String())
}

// noteHeld tells all who count.
func (s *Store) noteHeld(id int64, held bool) {
	s.metrics.StoreQuarantined.Set(float64(len(s.bad.list())))
	s.idx.hold(id, held)
	s.wakeRun()
}
