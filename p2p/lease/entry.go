package lease

import (
	"cmp"
	"container/list"
	"slices"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// entry is one NAR of a Table. A nil one has no members.
type entry struct {
	nar       nix.NarHash
	place     *list.Element
	members   []*member
	heirUntil time.Time // how long an heir is waited for; zero: none is
}

// member is a node that has a NAR, gets it, or wants it.
type member struct {
	entry *entry // nil: not noted
	node  NodeID

	form             nix.Form
	size, bytes, got int64
	seen             time.Time
	until            time.Time // end of its lease; zero: it has none
	source           NodeID    // whom it follows
	accusers         []NodeID  // whom it failed since it last came forward
	doubted          time.Time // when it last failed somebody
}

func (m *member) note(r Request, now time.Time) {
	m.form, m.size, m.bytes, m.got, m.seen = r.Form, r.Size, r.Bytes, max(r.Got, r.Bytes), now
}

func (m *member) whole() bool               { return m.size > 0 && m.bytes == m.size }
func (m *member) leased(now time.Time) bool { return m.until.After(now) }
func (m *member) part() float64             { return float64(m.bytes) / float64(m.size) }

// over tells that nobody should count on m any more.
func (m *member) over(now time.Time) bool {
	if m.whole() {
		return now.Sub(m.seen) > wholeFor
	}
	return now.Sub(m.seen) > silence && !m.leased(now)
}

func (m *member) asSource() Source {
	return Source{Node: m.node, Form: m.form, Size: m.size, Bytes: m.bytes, Got: m.got}
}

func (e *entry) member(node NodeID) *member {
	if e == nil {
		return nil
	}
	for _, m := range e.members {
		if m.node == node {
			return m
		}
	}
	return nil
}

// served tells that somebody other than node has the NAR or fetches it.
func (e *entry) served(node NodeID, now time.Time) bool {
	return e != nil && slices.ContainsFunc(e.members, func(m *member) bool {
		return m.node != node && (m.whole() || m.leased(now))
	})
}

// accuse notes that sources failed a node.
func (e *entry) accuse(node NodeID, failed []NodeID, now time.Time) {
	for _, f := range failed {
		m := e.member(f)
		if m == nil || f == node || slices.Contains(m.accusers, node) {
			continue
		}
		m.doubted = now
		if len(m.accusers) < maxNamed {
			m.accusers = append(m.accusers, node)
		}
	}
}

// candidate is a member as a source for somebody.
type candidate struct {
	*member
	root      *member // who fetches for it, or has all
	depth     int     // of the tree; 0 fetches, or has all
	followers int
}

// sources lists from whom the asker m can get the whole NAR: those who have it or fetch it,
// and those who follow them. Free ones come first, and are those that already have the form
// that m has a part of; then who has most, so that the tree stays low.
func (e *entry) sources(m *member, r Request, now time.Time) (list []Source) {
	if e == nil {
		return nil
	}
	by, followers := make(map[NodeID]*member, len(e.members)), make(map[NodeID]int, len(e.members))
	for _, c := range e.members {
		by[c.node] = c
		if c.node != m.node && !c.whole() {
			followers[c.source]++
		}
	}
	var all []candidate
	for _, c := range e.members {
		if c.node == m.node || slices.Contains(r.Failed, c.node) {
			continue
		}
		if root, depth := c.root(by, now); c.serves(r, root) {
			all = append(all, candidate{c, root, depth, followers[c.node]})
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int {
		return cmp.Or(
			no(a.followers < a.slots(), b.followers < b.slots()),
			no(r.Bytes == 0 || a.form == r.Form, r.Bytes == 0 || b.form == r.Form),
			no(now.Sub(a.doubted) > doubtFor, now.Sub(b.doubted) > doubtFor),
			cmp.Compare(b.part(), a.part()),
			cmp.Compare(a.depth, b.depth),
			cmp.Compare(a.followers, b.followers),
		)
	})
	for _, c := range all[:min(len(all), MaxSources)] {
		s := c.asSource()
		if c.root.form == s.Form && c.root.size == s.Size {
			// The one who fetches may not be in the list: its slots are taken first.
			s.Got = max(s.Got, c.root.got)
		}
		list = append(list, s)
	}
	return list
}

// no orders what is before what is not.
func no(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	default:
		return 1
	}
}

func (c candidate) slots() int {
	if c.size < small {
		return perSourceSmall
	}
	return perSource
}

// root returns the one who fetches, or has all, for c, and how far it is from c; nil when
// nobody does. Whoever asks has no source at that moment, so that nobody is led to itself.
func (c *member) root(by map[NodeID]*member, now time.Time) (root *member, depth int) {
	for ; c != nil && depth <= len(by); depth++ {
		if c.whole() || c.leased(now) {
			return c, depth
		}
		c = by[c.source]
	}
	return nil, 0
}

// serves tells whether a source for whom root fetches is one for the asker. It is not if root
// failed the asker and others: they are right then, and its lease is a lie or about to end.
// If it failed the asker alone, the way to it over somebody else may be better. And it is not
// if root has to fetch what the asker has already.
func (c *member) serves(r Request, root *member) bool {
	switch {
	case root == nil || slices.Contains(r.Failed, root.node) && len(root.accusers) > 1:
		return false
	case c.form == r.Form && c.bytes > r.Bytes || root.form != r.Form:
		return true
	default:
		return r.Bytes < root.bytes+overtake
	}
}

// heir returns the follower that has more than the asker m, when nobody fetches: it is the one
// to go on, and is waited for a little. Whose lease ended is none. Nil: m is.
func (e *entry) heir(m *member, r Request, now time.Time) (heir *member) {
	if e == nil || !e.heirUntil.IsZero() && !now.Before(e.heirUntil) {
		return nil
	}
	for _, c := range e.members {
		if c.node == m.node || slices.Contains(r.Failed, c.node) || !c.until.IsZero() || c.part() <= m.part() {
			continue
		}
		if heir == nil || c.part() > heir.part() {
			heir = c
		}
	}
	if heir != nil && e.heirUntil.IsZero() {
		e.heirUntil = now.Add(heirWait)
	}
	return heir
}

// senior returns another fetcher of the same file that m gives way to: one that is far ahead,
// or as far and before m in rank. Who is furthest thus never gives way, whatever coordinators
// know, and no two fetchers to each other.
func (e *entry) senior(m *member, r Request, now time.Time) *member {
	if m.size-m.bytes < yieldAbove {
		return nil
	}
	for _, c := range e.members {
		if c != m && c.leased(now) && !slices.Contains(r.Failed, c.node) && yieldsTo(e.nar, m.node, m.form, m.bytes, c.asSource()) {
			return c
		}
	}
	return nil
}

// yieldsTo tells whether a fetcher gives way to another one.
func yieldsTo(nar nix.NarHash, node NodeID, form nix.Form, bytes int64, to Source) bool {
	return to.Form == form && to.Bytes >= bytes && (to.Bytes-bytes >= overtake || Outranks(nar, to.Node, node))
}
