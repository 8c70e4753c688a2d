package localstore

import (
	"context"
	"iter"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// Share is a path that may be shown to others.
type Share = source.SharedPath

// Public is Info for others: only paths that a share key signed exist. All else is answered from
// memory, in one way: the time of the answer does not tell what is private from what is absent.
func (s *Store) Public(ctx context.Context, h nix.StoreHash) (*verify.Info, error) {
	if !s.idx.shared(h) {
		return nil, absent("info", h)
	}
	info, err := s.Info(ctx, h)
	if err != nil {
		return nil, err
	}
	if !info.SignedByAny(s.share) { // the signature was removed; Info has noted it
		return nil, absent("info", h)
	}
	return info, nil
}

// Listed returns what Shares says of one path. Nothing is read or verified again.
func (s *Store) Listed(h nix.StoreHash) (Share, bool) {
	s.idx.mu.RLock()
	defer s.idx.mu.RUnlock()
	id, ok := s.idx.byStore[h]
	if !ok {
		return Share{}, false
	}
	return s.idx.find(id).share(), true
}

// SharedCount returns how many paths may be shown to others, as far as they were counted yet.
func (s *Store) SharedCount() int {
	s.idx.mu.RLock()
	defer s.idx.mu.RUnlock()
	return len(s.idx.byStore)
}

// Shares returns the paths that may be shown to others. What changes meanwhile may be among
// them or not.
func (s *Store) Shares() iter.Seq[Share] {
	return func(yield func(Share) bool) {
		var batch []Share
		for last, more := int64(0), true; more; {
			batch, last, more = s.idx.shares(batch[:0], last)
			for _, x := range batch {
				if !yield(x) {
					return
				}
			}
		}
	}
}

func (e *entry) share() Share { return Share{Store: e.store, Nar: e.nar, Size: e.size} }

// shares appends some shared rows with ids above last, and returns where to go on, if at all.
func (x *index) shares(batch []Share, last int64) ([]Share, int64, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	slot, ok := x.slot(last)
	if ok {
		slot++
	}
	const most = 1024 // rows looked at under one lock
	rest := x.entries[slot:]
	for i := range rest[:min(most, len(rest))] {
		if rest[i].offered() {
			batch = append(batch, rest[i].share())
		}
		last = rest[i].id
	}
	return batch, last, len(rest) > most
}

// Census counts the rows of the database by who signed them, each once.
type Census struct {
	Mode      string // how the database is read: "live", "snapshot" or "none"
	Complete  bool   // all rows have been looked at
	Rows      int
	Shared    int // signed by a share key
	Trusted   int // signed by a trusted key that is no share key
	Unsigned  int // no signature and no content address: built here
	Untrusted int // signatures, none of which is a trusted key's
	Addressed int // no signature, but a content address: sources, fixed outputs
	NoSize    int // ancient rows without a size
	Invalid   int // rows that cannot be read

	Quarantined int // counted among the others, too
}

// Census counts from memory, so it lags behind the database by what Run has not yet seen.
func (s *Store) Census() Census {
	s.idx.mu.RLock()
	defer s.idx.mu.RUnlock()
	n := &s.idx.counts
	return Census{
		Mode: s.db.cur.Load().mode(), Complete: s.idx.loaded, Rows: len(s.idx.entries),
		Shared: n[classShared], Trusted: n[classTrusted], Unsigned: n[classUnsigned],
		Untrusted: n[classUntrusted], Addressed: n[classCA], NoSize: n[classNoSize], Invalid: n[classInvalid],
		Quarantined: len(s.bad.list()),
	}
}
