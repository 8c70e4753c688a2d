package narcache

import (
	"container/list"
	"iter"
	"slices"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// entry is a whole file. Its fields are guarded by directory.mu, except key and size, which never
// change.
type entry struct {
	record
	file     string // where it is now, below the root
	named    bool   // it has its name: written through and renamed
	gone     bool   // out of the index
	unlinked bool   // gone from the disk, but for those who have it open
	intact   bool   // hashed, or written, by this process
	refs     int    // who has it open; not evicted meanwhile
	used     int64  // Unix seconds of the last use
	stamped  int64  // what the disk knows of used
	hits     int    // uses since it came here

	// download and ended are of the download that it came from, as long as other machines may
	// follow that.
	download *Download
	ended    time.Time

	sibling *entry // another form of the same NAR
	star
	spot
}

// spot is the place of an entry among those that may be evicted.
type spot struct {
	in *queue
	at *list.Element // in it
}

// proven reports whether e is known to be the NAR. The caller holds mu.
func (e *entry) proven() bool { return e.intact && (e.decoded || e.form.IsRaw()) }

// peersFollow is how long other machines may follow a download of a file that has ended, as they
// could a moment before: in a cold start all want it at once, and to have each machine decode
// it first, which its own Nix does as well, would cost the site more than the file. They ask for
// a file only if an upstream of their own named it, and prove it before they keep it.
const peersFollow = 30 * time.Second

// followed returns the download that e came from, if other machines may still follow it. The
// caller holds mu.
func (e *entry) followed(now time.Time) *Download {
	if e.download != nil && (e.gone || e.proven() || now.Sub(e.ended) > peersFollow) {
		e.download = nil
	}
	return e.download
}

// queue has entries, the last used first.
type queue struct {
	list.List
	bytes int64
}

func (q *queue) push(e *entry) {
	e.in, e.at = q, q.PushFront(e)
	q.bytes += cost(e.size)
}

func (q *queue) remove(e *entry) {
	q.Remove(e.at)
	q.bytes -= cost(e.size)
}

const (
	// frequentHits is how many reads make an entry one that is used again: the first may belong
	// to the download itself.
	frequentHits = 2
	// maxEvicted is how many NARs are remembered after their eviction. One that comes back was
	// evicted too early.
	maxEvicted = 8192
)

// policy decides what is evicted: 2Q, counted in bytes. What came once waits in recent; what is
// used again moves to frequent, which has three quarters of the room at most and gives its last
// back to recent. Victims come from recent, so that a scan through many NARs leaves frequent alone.
// What somebody said is to be kept waits in kept, and goes last. What is here as a delta, too, goes first.
type policy struct {
	copies, recent, frequent, kept queue
	frequentMax                    int64
	evicted                        *simplelru.LRU[nix.NarHash, struct{}]
	isKept                         func(nix.NarHash) bool // nil: none
}

func newPolicy(max int64, isKept func(nix.NarHash) bool) policy {
	g, _ := simplelru.NewLRU[nix.NarHash, struct{}](maxEvicted, nil) // fails for sizes below 1 only
	return policy{frequentMax: max / 4 * 3, evicted: g, isKept: isKept}
}

// keeps reports whether e is to be kept, or something that is made of it.
func (p *policy) keeps(e *entry) bool {
	return p.isKept != nil && (p.isKept(e.nar) || slices.ContainsFunc(e.members, func(m *entry) bool { return p.isKept(m.nar) }))
}

// fixed returns the queue in which e waits however it is used, nil if there is none.
func (p *policy) fixed(e *entry) *queue {
	switch {
	case e.copied:
		return &p.copies
	case p.keeps(e):
		return &p.kept
	}
	return nil
}

func (p *policy) add(e *entry) {
	if q := p.fixed(e); q != nil {
		q.push(e)
		return
	}
	if p.evicted.Remove(e.nar) {
		e.hits = frequentHits
		p.addFrequent(e)
		return
	}
	p.recent.push(e)
}

// use notes a use of e, which is one of its base, too: that goes after e.
func (p *policy) use(e *entry) {
	if e.base != nil && !e.base.gone {
		p.use(e.base)
	}
	e.hits++
	e.in.remove(e)
	switch q := p.fixed(e); {
	case q != nil:
		q.push(e)
	case e.hits >= frequentHits:
		p.addFrequent(e)
	default:
		p.recent.push(e)
	}
}

// sort moves entries to where they belong after what is kept has changed.
func (p *policy) sort() {
	for _, e := range slices.Collect(p.all()) {
		p.place(e)
	}
}

// place moves e to where it belongs after that has changed.
func (p *policy) place(e *entry) {
	switch q := p.fixed(e); {
	case q == e.in:
	case q != nil:
		e.in.remove(e)
		q.push(e)
	case e.in == &p.kept || e.in == &p.copies:
		e.in.remove(e)
		p.recent.push(e)
	}
}

// takePlace gives e, which is new, the place of an older entry.
func (p *policy) takePlace(e, of *entry) {
	e.hits, e.used, e.stamped = of.hits, of.used, of.stamped
	e.spot = spot{of.in, of.in.InsertBefore(e, of.at)}
	e.in.bytes += cost(e.size)
}

func (p *policy) addFrequent(e *entry) {
	p.frequent.push(e)
	for p.frequent.bytes > p.frequentMax && p.frequent.Len() > 1 {
		down := p.frequent.Back().Value.(*entry)
		p.frequent.remove(down)
		down.hits = 0
		p.recent.push(down)
	}
}

// all returns the entries in the order in which they would be evicted: what is made of a base before it.
func (p *policy) all() iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		early := map[*entry]bool{} // deltas that came with their base
		for _, q := range [...]*queue{&p.copies, &p.recent, &p.frequent, &p.kept} {
			for at := q.Back(); at != nil; at = at.Prev() {
				e := at.Value.(*entry)
				for _, m := range e.members {
					if !early[m] && !yield(m) {
						return
					}
					early[m] = true
				}
				if e.base != nil && early[e] {
					continue
				}
				if e.base != nil {
					early[e] = true
				}
				if !yield(e) {
					return
				}
			}
		}
	}
}

// victim returns what is evicted next, nil if all are in use.
func (p *policy) victim() *entry {
	for e := range p.all() {
		if e.refs == 0 {
			return e
		}
	}
	return nil
}
