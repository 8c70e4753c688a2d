package standing

import (
	"slices"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Trails remember from whom the bytes of a NAR came, until it is known whether they were
// right. The zero value is empty; it is safe for concurrent use.
type Trails struct {
	mu     sync.Mutex
	trails map[Stream]*trail
}

// Stream is one form of a NAR.
type Stream struct {
	Nar  nix.NarHash
	Form nix.Form
}

type trail struct {
	peers  []string // who may have a part in it
	last   []string // of these, who gave the last stretch without a gap
	given  []Given
	part   bool // others sent the beginning
	mixed  bool // several transfers at a time: nobody can tell whose bytes went where
	active int
	at     time.Time
}

// trailFor is how long after its end a transfer may be judged; maxTrails bounds the memory.
const (
	trailFor  = 10 * time.Minute
	maxTrails = 4096
)

// Began notes that a transfer begins at byte off.
func (e *Trails) Began(k Stream, off int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.trails == nil {
		e.trails = make(map[Stream]*trail)
	}
	t := e.trails[k]
	if t == nil || t.active == 0 && off == 0 {
		if len(e.trails) >= maxTrails {
			e.sweep()
		}
		t = &trail{part: off > 0}
		e.trails[k] = t
	} else if t.active > 0 || !t.goesOn(off) {
		// Others gave what is between, or both give at the same time: who was there before may
		// have a part in this stream, or in another one that nobody judged.
		t.part, t.last = t.part || off > 0, nil
	}
	t.mixed = t.mixed || t.active > 0
	t.active++
	t.at = time.Now()
}

// goesOn tells whether bytes from off on continue what the last one gave.
func (t *trail) goesOn(off int64) bool {
	return off > 0 && len(t.given) > 0 && t.given[len(t.given)-1].To == off
}

func (e *Trails) sweep() {
	for k, t := range e.trails {
		if t.active == 0 && (time.Since(t.at) > trailFor || len(e.trails) >= maxTrails) {
			delete(e.trails, k)
		}
	}
}

// Contributed notes that bytes came from peer.
func (e *Trails) Contributed(k Stream, peer string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.trails[k]
	if t == nil {
		return
	}
	if !slices.Contains(t.peers, peer) {
		t.peers = append(t.peers, peer)
	}
	if !slices.Contains(t.last, peer) {
		t.last = append(t.last, peer)
	}
}

// Giving returns the peer that contributed to a transfer last, "" when none is under way.
func (e *Trails) Giving(k Stream) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.trails[k]; t != nil && t.active > 0 && len(t.peers) > 0 {
		return t.peers[len(t.peers)-1]
	}
	return ""
}

// Gave notes what a contributor gave, when it gives no more.
func (e *Trails) Gave(k Stream, g Given) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.trails[k]; t != nil && len(t.given) < maxGiven {
		t.given = append(t.given, g)
	}
}

// Given returns what the contributors gave.
func (e *Trails) Given(k Stream) []Given {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.trails[k]; t != nil {
		return slices.Clone(t.given)
	}
	return nil
}

// Ended notes that a transfer is over.
func (e *Trails) Ended(k Stream) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.trails[k]; t != nil {
		t.active--
		t.at = time.Now()
	}
}

// Last returns who gave the last stretch without a gap: these gave right bytes when the stream was
// right, which nobody knows of who was there before.
func (e *Trails) Last(k Stream) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.trails[k]; t != nil && !t.mixed {
		return slices.Clone(t.last)
	}
	return nil
}

// Guilty returns who contributed, and whether the only one sent everything.
func (e *Trails) Guilty(k Stream) (peers []string, alone bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.trails[k]
	if t == nil {
		return nil, false
	}
	return slices.Clone(t.peers), len(t.peers) == 1 && !t.part
}
