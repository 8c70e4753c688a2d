package p2p

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/inventory"
)

const (
	// tellEvery is how long changes are collected before neighbours are told.
	tellEvery = time.Second
	// recount is how often everything is gone through again, in case a change was missed.
	recount = 10 * time.Minute
	// largeNAR are announced in the DHT: smaller ones cost an upstream a round trip and few
	// bytes, and are most of a store.
	largeNAR = 1 << 20
)

// share is what this machine told of itself, beside the inventory: which NARs it announced.
type share struct {
	mu             sync.Mutex
	added, removed []Held // not told yet

	large map[inventory.Key]nix.NarHash
	nars  map[nix.NarHash]int // paths that have this NAR
}

func newShare() *share {
	return &share{large: map[inventory.Key]nix.NarHash{}, nars: map[nix.NarHash]int{}}
}

// Changed says that paths have come to be shared or are not any more. Neighbours are told
// within some seconds. It does not block.
func (n *Node) Changed(added, removed []Held) {
	n.share.mu.Lock()
	defer n.share.mu.Unlock()
	n.share.added = append(n.share.added, added...)
	n.share.removed = append(n.share.removed, removed...)
}

func (s *share) take() (added, removed []Held) {
	s.mu.Lock()
	defer s.mu.Unlock()
	added, removed = s.added, s.removed
	s.added, s.removed = nil, nil
	return added, removed
}

// keepShare tells the neighbours and the DHT what this machine shares.
func (n *Node) keepShare(ctx context.Context) {
	var counted time.Time
	leave := n.leave
	for {
		switch {
		case leave == nil: // it shares nothing any more
		case n.draining.Load():
			leave = nil
			n.withdraw()
		default:
			if time.Since(counted) >= recount {
				n.count(ctx)
				counted = time.Now()
			}
			n.apply(ctx)
		}
		switch news, err := n.own.Flush(time.Now()); {
		case err != nil:
			n.log.Error("no inventory", "err", err)
		case news:
			n.news.fire()
		}
		tick := time.NewTimer(tellEvery)
		select {
		case <-ctx.Done():
		case <-leave:
		case <-tick.C:
		}
		tick.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// withdraw takes back all that was told.
func (n *Node) withdraw() {
	n.own.Replace(nil)
	var gone []nix.NarHash
	for k := range n.share.large {
		gone = n.share.drop(k, gone)
	}
	n.announce(nil, gone)
}

// Drain withdraws this node from the site, which it is about to leave: others are told that it
// shares nothing, and nobody begins an upload or asks it as coordinator any more. It returns
// when the uploads that were going on have ended, or ctx has.
func (n *Node) Drain(ctx context.Context) {
	if !n.draining.CompareAndSwap(false, true) {
		return
	}
	close(n.leave)
	for n.sending.busy() && pause(ctx, drainTick) {
	}
}

const drainTick = 50 * time.Millisecond

// count goes through everything that is shared.
func (n *Node) count(ctx context.Context) {
	keys := map[inventory.Key]struct{}{}
	large := map[inventory.Key]nix.NarHash{}
	if n.cfg.Holder != nil {
		for h := range n.cfg.Holder.Held(ctx) {
			k := inventory.KeyOf(h.Question)
			keys[k] = struct{}{}
			if h.NarSize >= largeNAR {
				large[k] = h.NarHash
			}
		}
	}
	if ctx.Err() != nil {
		return // it may not have been everything
	}
	n.own.Replace(keys)
	var come, gone []nix.NarHash
	for k, nar := range n.share.large {
		if large[k] != nar {
			gone = n.share.drop(k, gone)
		}
	}
	for k, nar := range large {
		come = n.share.put(k, nar, come)
	}
	n.announce(come, gone)
}

// apply works off the changes.
func (n *Node) apply(ctx context.Context) {
	added, removed := n.share.take()
	var come, gone []nix.NarHash
	for _, h := range added {
		k := inventory.KeyOf(h.Question)
		n.own.Add(k)
		if h.NarSize >= largeNAR {
			come = n.share.put(k, h.NarHash, come)
		}
	}
	for _, h := range removed {
		// It may have left the store and still be in the cache.
		if n.cfg.Holder != nil {
			if _, err := n.cfg.Holder.Info(ctx, h.Question); !errors.Is(err, fs.ErrNotExist) {
				continue
			}
		}
		k := inventory.KeyOf(h.Question)
		n.own.Remove(k)
		gone = n.share.drop(k, gone)
	}
	n.announce(come, gone)
}

func (n *Node) announce(come, gone []nix.NarHash) {
	d := n.dht.Load()
	if d == nil {
		return
	}
	if len(come) > 0 {
		d.Provide(come)
	}
	if len(gone) > 0 {
		d.Withdraw(gone)
	}
}

// put notes that the path has this NAR, and appends it to come if no other path has.
func (s *share) put(k inventory.Key, nar nix.NarHash, come []nix.NarHash) []nix.NarHash {
	if old, ok := s.large[k]; ok && old == nar {
		return come
	}
	s.large[k] = nar
	if s.nars[nar]++; s.nars[nar] == 1 {
		come = append(come, nar)
	}
	return come
}

// drop is the reverse of put.
func (s *share) drop(k inventory.Key, gone []nix.NarHash) []nix.NarHash {
	nar, ok := s.large[k]
	if !ok {
		return gone
	}
	delete(s.large, k)
	if s.nars[nar]--; s.nars[nar] <= 0 {
		delete(s.nars, nar)
		gone = append(gone, nar)
	}
	return gone
}
