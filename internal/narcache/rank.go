package narcache

import (
	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// entry is a whole file. Its fields are guarded by Cache.mu, except those that never change.
type entry struct {
	key
	size int64
	tmp  string // where it was written; never changes

	named    bool  // it has its name: written through and renamed
	gone     bool  // out of the index
	unlinked bool  // gone from the disk, but for those who have it open
	proven   bool  // hashed in this process
	refs     int   // who has it open; not evicted meanwhile
	used     int64 // unix seconds of the last use
	stamped  int64 // what the disk knows of used
	hits     int   // uses since it came here

	sibling *entry // another form of the same NAR

	in         *rank
	prev, next *entry
}

// rank is a list of entries, the last used first.
type rank struct {
	first, last *entry
	n           int
	bytes       int64
}

func (r *rank) push(e *entry) {
	e.in, e.prev, e.next = r, nil, r.first
	if r.first != nil {
		r.first.prev = e
	} else {
		r.last = e
	}
	r.first = e
	r.n++
	r.bytes += cost(e.size)
}

func (r *rank) remove(e *entry) {
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		r.first = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		r.last = e.prev
	}
	e.in, e.prev, e.next = nil, nil, nil
	r.n--
	r.bytes -= cost(e.size)
}

const (
	// keptHits is how many reads make an entry one that is used again: the first may belong
	// to the download itself.
	keptHits = 2
	// ghosts is how many NARs are remembered after their eviction. One that comes back was
	// evicted too early.
	ghosts = 8192
)

// ranks decides who is evicted: 2Q, counted in bytes. What came once waits in fresh; what is
// used again moves to kept, which has three quarters of the room at most and gives its last
// back to fresh. Victims come from fresh, so that a scan through many NARs leaves kept alone.
type ranks struct {
	fresh, kept rank
	keptMax     int64
	ghosts      *simplelru.LRU[nix.NarHash, struct{}]
}

func newRanks(max int64) ranks {
	g, _ := simplelru.NewLRU[nix.NarHash, struct{}](ghosts, nil) // fails for sizes below 1 only
	return ranks{keptMax: max / 4 * 3, ghosts: g}
}

func (r *ranks) add(e *entry) {
	if r.ghosts.Remove(e.nar) {
		e.hits = keptHits
		r.keep(e)
		return
	}
	r.fresh.push(e)
}

func (r *ranks) use(e *entry) {
	e.hits++
	e.in.remove(e)
	if e.hits >= keptHits {
		r.keep(e)
	} else {
		r.fresh.push(e)
	}
}

func (r *ranks) keep(e *entry) {
	r.kept.push(e)
	for r.kept.bytes > r.keptMax && r.kept.n > 1 {
		down := r.kept.last
		r.kept.remove(down)
		down.hits = 0
		r.fresh.push(down)
	}
}

func (r *ranks) remove(e *entry) { e.in.remove(e) }

// victim returns who goes next, nil when all are in use.
func (r *ranks) victim() *entry {
	for _, l := range [...]*rank{&r.fresh, &r.kept} {
		for e := l.last; e != nil; e = e.prev {
			if e.refs == 0 {
				return e
			}
		}
	}
	return nil
}

// mourn remembers a victim.
func (r *ranks) mourn(e *entry) { r.ghosts.Add(e.nar, struct{}{}) }
