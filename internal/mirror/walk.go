package mirror

import (
	"context"
	"errors"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
)

// walk is how far the list of a peer was read.
type walk struct {
	since  time.Time
	top    uint64    // the highest number that was read; 0 before the first time
	below  uint64    // what has lower numbers is still to be read; 0: nothing
	walked time.Time // when the end was reached
}

const (
	// batch is how many paths of a peer are enough at a time. One page more is the most; of all peers
	// on one machine maxBatch are taken. It bounds what one that lists a million costs in memory.
	batch    = 512
	maxBatch = 4096
	// maxPages is how many pages of a peer are read at a time, also if none has anything new.
	maxPages = 64
	// pageEvery is slower than a peer allows, so that it never refuses.
	pageEvery = 50 * time.Millisecond
	// walkAgain is how long after its end a list is read again as a whole: what could not be had may
	// be there now, and what was evicted is wanted again if there is room.
	walkAgain = time.Hour
)

// wanted is a path to copy.
type wanted struct {
	source.SharedPath
	from   source.Sharer
	copies int // machines of peers that may have it
	rank   int // place in the list of its peer, among what is wanted
}

var errEndless = errors.New("the list of the peer has no end")

// read reads on in the list of a peer: what is new, and, while the cache has room for more, what was there
// before. It returns where it is then, and what is wanted of what it read.
func (r *Replicator) read(ctx context.Context, p source.Sharer, w walk) (walk, []wanted, error) {
	l := &listing{r: r, from: p, pages: maxPages, seen: make(map[nix.StoreHash]bool)}
	page, err := l.page(ctx, 0)
	if err != nil {
		return w, nil, err
	}
	next := walk{since: p.Since, top: page.First, below: w.below, walked: w.walked}
	whole := w.since != p.Since || w.top > page.First || w.below == 0 && time.Since(w.walked) >= walkAgain
	if whole {
		next.below = page.Next
	} else {
		below := page.Next
		for below > w.top && l.more() && err == nil {
			page, err = l.page(ctx, below)
			below = page.Next
		}
		if below > w.top { // the rest is read later
			next.below = below
		}
	}
	for next.below > 0 && l.more() && err == nil {
		if !r.roomy() && maxPages-l.pages > fullPages {
			break // what is older does not take the place of anything
		}
		page, err = l.page(ctx, next.below)
		next.below = page.Next
	}
	if err != nil {
		return w, nil, err
	}
	if next.below == 0 && (whole || w.below != 0) {
		next.walked = time.Now()
	}
	return next, l.wanted, nil
}

// fullPages is how many pages of a list are read while the cache is full.
const fullPages = 2

// listing is a list that is being read.
type listing struct {
	r      *Replicator
	from   source.Sharer
	pages  int // that may be read still
	wanted []wanted
	seen   map[nix.StoreHash]bool
}

func (l *listing) more() bool { return l.pages > 0 && len(l.wanted) < batch }

// page reads the paths below before, and notes what of them is wanted.
func (l *listing) page(ctx context.Context, before uint64) (source.SharedPage, error) {
	if before > 0 {
		select {
		case <-ctx.Done():
			return source.SharedPage{}, ctx.Err()
		case <-time.After(pageEvery):
		}
	}
	l.pages--
	page, err := l.r.cfg.Page(ctx, l.from.ID, before)
	if err == nil && before > 0 && (page.First >= before || page.Next >= before) {
		err = errEndless
	}
	if err != nil {
		return source.SharedPage{}, err
	}
	for _, s := range page.Paths {
		if s.Size <= 0 || s.Size > l.r.cfg.Room/largest || l.seen[s.Store] || l.r.failed.Has(claim{l.from.Machine, s.Nar}) || l.r.cfg.Have(s) {
			continue
		}
		l.seen[s.Store] = true
		l.wanted = append(l.wanted, wanted{SharedPath: s, from: l.from, copies: l.r.cfg.Copies(s.Store), rank: len(l.wanted)})
	}
	return page, nil
}
