package narcache

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/internal/source"
)

// reserve counts n bytes, after evicting what has to go for them.
func (dir *directory) reserve(n int64) error {
	return dir.makeRoom(n, func(s *contents) (limit, idle int64) {
		return dir.max - min(s.trees.unused(), dir.max/treeShare), s.idle
	})
}

// reserveTree is reserve for a tree. What is kept does not go for it, and the room that trees once made
// stays theirs: whoever asks for deltas again and again does not turn the cache over.
func (dir *directory) reserveTree(n int64) error {
	dir.mu.Lock()
	t := &dir.state.trees
	fits := t.used+n <= dir.max/treeShare
	if fits {
		t.used += n
	}
	dir.mu.Unlock()
	if !fits {
		return fmt.Errorf("%d bytes beside other trees: %w", n, ErrDoesNotFit)
	}
	err := dir.makeRoom(n, func(s *contents) (limit, idle int64) { return dir.max, s.idle - s.policy.kept.bytes })
	dir.mu.Lock()
	defer dir.mu.Unlock()
	if err != nil {
		t.used -= n
		return err
	}
	t.most = max(t.most, t.used)
	return nil
}

// releaseTree undoes reserveTree.
func (dir *directory) releaseTree(n int64) {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	dir.state.trees.used -= n
	dir.count(-n)
}

// trees is the room of NARs that are decoded to be read at any place, in bytes.
type trees struct{ used, most int64 }

// unused is what is left to other trees.
func (t trees) unused() int64 { return t.most - min(t.used, t.most) }

// makeRoom counts n bytes, after evicting what has to go for them. With them no more than limit bytes are
// used, and idle bytes may go.
func (dir *directory) makeRoom(n int64, room func(s *contents) (limit, idle int64)) error {
	dir.space.Lock()
	defer dir.space.Unlock()
	for {
		victim, err := dir.take(n, room)
		if victim == nil {
			return err
		}
		if err := dir.destroy(victim); err != nil {
			return err
		}
	}
}

// take counts n bytes if they fit. If evicting would make them fit, it returns what is evicted
// first; the caller destroys it.
func (dir *directory) take(n int64, room func(s *contents) (limit, idle int64)) (victim *entry, err error) {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	s := &dir.state
	limit, idle := room(s)
	switch {
	case s.used+n <= limit:
		dir.count(n)
		return nil, nil
	case s.used-max(idle, 0)+n > limit: // what cannot fit costs nobody its place
		return nil, fmt.Errorf("%d bytes: %w", n, ErrDoesNotFit)
	default:
		return s.evict(), nil
	}
}

// evict detaches the next victim; there is one while idle > 0. The caller holds mu, and destroys
// it after releasing mu.
func (s *contents) evict() *entry {
	e := s.policy.victim()
	if !e.copied {
		s.policy.evicted.Add(e.nar, struct{}{})
	}
	s.detach(e)
	return e
}

// trim evicts until at most max bytes are used, as far as they are not in use, and returns what
// it evicted.
func (dir *directory) trim(max int64) []Item {
	removed := []Item{}
	dir.space.Lock()
	defer dir.space.Unlock()
	for {
		dir.mu.Lock()
		if dir.state.used <= max || dir.state.idle == 0 {
			dir.mu.Unlock()
			return removed
		}
		e := dir.state.evict()
		dir.mu.Unlock()
		if dir.destroy(e) != nil {
			return removed
		}
		removed = append(removed, e.item(dir.state.policy.keeps(e)))
	}
}

// degradedFor is how long nothing is written after the disk failed: long enough not to try in
// vain for every NAR, short enough to be back soon after somebody made room.
const degradedFor = 30 * time.Second

// health is whether the disk takes what is written.
type health struct {
	cfg     *Config
	failing atomic.Bool
	rest    backoff.Delay
}

// failed notes that the disk failed, reports it once an episode, and returns the error to return.
func (h *health) failed(operation string, err error) error {
	h.rest.Fail()
	if !h.failing.Swap(true) {
		h.show(1)
		h.cfg.Events.Send(source.Event{Kind: source.CacheFailed, Source: source.Cache, Err: err})
	}
	h.cfg.Conditions.Report(h.cfg.Log, "cache", source.Condition{
		Part: source.PartCache, Text: fmt.Sprintf("the NAR cache in %s does not work: %s: %v; NARs are passed through and not kept", h.cfg.Dir, operation, err),
		Hint: "is the disk full, or the directory not writable for the service? it is tried again every 30 s",
	})
	return fmt.Errorf("narcache: %s: %w: %w", operation, ErrDegraded, err)
}

// reopened notes that the directory could be opened.
func (h *health) reopened() {
	h.rest.Succeed()
	h.recovered()
}

// recovered notes that a file was written through.
func (h *health) recovered() {
	// What was written before the failure proves nothing.
	if h.rest.Ready() && h.failing.Swap(false) {
		h.rest.Succeed()
		h.show(0)
		h.cfg.Conditions.Over(h.cfg.Log, "cache")
	}
}

func (h *health) show(v float64) {
	if m := h.cfg.Metrics; m != nil {
		m.CacheDegraded.Set(v)
	}
}

// degraded reports whether nothing is to be written for now.
func (h *health) degraded() bool { return !h.rest.Ready() }
