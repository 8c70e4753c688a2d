package narcache

import "github.com/nixp2p/nixp2p/internal/nix"

// A delta is coded against the raw NAR of its base, which is here in another form and is no delta itself: so
// a delta is restored in one step, and a base and its members are a star.
//
// A base is not pinned: it could then keep what somebody asks for out of the cache. Instead it goes after
// its members. Using a member counts as using its base, a base is kept if a member is, and when it is the
// turn of a base its members go first (policy.all). A base that has to go for another reason, because it is
// damaged, takes its members along.

// MaxMembers is how many deltas a base may have: all of them are lost with it.
const MaxMembers = 8

// star is how an entry is bound to others. It is guarded by directory.mu.
type star struct {
	base    *entry   // of a delta
	members []*entry // deltas against this one
	copied  bool     // the NAR is here as a delta, too: this one goes first
}

// delta returns the delta that makes a NAR, or nil. The caller holds mu.
func (s *contents) delta(nar nix.NarHash) *entry {
	for e := s.index[nar]; e != nil; e = e.sibling {
		if e.packed() {
			return e
		}
	}
	return nil
}

// whole returns the entry of a NAR that may be the base of others, or nil. The caller holds mu.
func (s *contents) whole(nar nix.NarHash) (best *entry) {
	for e := s.index[nar]; e != nil; e = e.sibling {
		switch {
		case e.packed() || e.copied:
			return nil
		case best == nil || len(e.members) > len(best.members) || len(e.members) == len(best.members) && e.size < best.size:
			best = e
		}
	}
	return best
}

// join binds a delta, which is in the index, to its base. The caller holds mu.
func (s *contents) join(e, base *entry) {
	e.base, base.members = base, append(base.members, e)
	s.policy.place(base) // it is kept if e is
	for o := s.index[e.nar]; o != nil; o = o.sibling {
		if !o.packed() {
			o.copied = true
			s.policy.place(o)
		}
	}
	s.countDelta(e, 1)
	s.trees.most = max(s.trees.most, cost(e.baseSize)) // a cache that is full of what is kept can still restore it
}

// leave undoes join for a delta that is out of the index. The caller holds mu.
func (s *contents) leave(e *entry) {
	if e.base == nil {
		return
	}
	for i, m := range e.base.members {
		if m == e {
			e.base.members = append(e.base.members[:i:i], e.base.members[i+1:]...)
			break
		}
	}
	if !e.base.gone {
		s.policy.place(e.base)
	}
	s.countDelta(e, -1)
	if s.delta(e.nar) != nil {
		return
	}
	for o := s.index[e.nar]; o != nil; o = o.sibling {
		o.copied = false
		s.policy.place(o)
		if !o.named {
			s.queue = append(s.queue, o)
		}
	}
}

// Deltas is what is kept as deltas.
type Deltas struct {
	NARs  int
	Bytes int64 // that they take
	Was   int64 // bytes that the files took in whose place they are
}

func (s *contents) countDelta(e *entry, sign int64) {
	s.deltas.NARs += int(sign)
	s.deltas.Bytes += sign * e.size
	s.deltas.Was += sign * e.was
}
