package lease

import (
	"cmp"
	"slices"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/machine"
)

// entry is one NAR of a Coordinator. A nil one has no members.
type entry struct {
	nar     nix.NarHash
	members []*member
}

// member is a node that has a NAR, gets it, or wants it.
type member struct {
	entry   *entry // nil: not recorded
	node    NodeID
	machine machine.ID

	form             nix.Form
	size, bytes, got int64
	seen             time.Time
	until            time.Time // end of its lease; zero: it has none
	source           NodeID    // it follows
	sent             int       // nodes that were sent to it first and are not members
}

func (m *member) note(r Request, now time.Time) {
	m.form, m.size, m.bytes, m.got, m.seen = r.Form, r.Size, r.Bytes, max(r.Got, r.Bytes), now
}

func (m *member) whole() bool               { return m.size > 0 && m.bytes == m.size }
func (m *member) leased(now time.Time) bool { return m.until.After(now) }
func (m *member) part() float64             { return float64(m.bytes) / float64(m.size) }

// renew extends the lease by what the bytes are worth that came since the last report. A node
// that had none gets one.
func (m *member) renew(bytes int64, now time.Time) {
	switch {
	case m.until.IsZero():
		m.until = now.Add(Term)
	case bytes > 0:
		worth := float64(bytes) / leaseRate
		m.until = m.until.Add(time.Duration(min(worth, Term.Seconds()) * float64(time.Second)))
		if most := now.Add(Term); m.until.After(most) || worth >= Term.Seconds() {
			m.until = most
		}
	}
}

// over reports whether m is to be forgotten.
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

// served reports whether another node has the NAR or fetches it.
func (e *entry) served(node NodeID, now time.Time) bool {
	return e != nil && slices.ContainsFunc(e.members, func(m *member) bool {
		return m.node != node && (m.whole() || m.leased(now))
	})
}

// candidate is a member as a source for another one.
type candidate struct {
	*member
	depth     int // of the tree; 0 fetches, or has all
	followers int
}

// sources lists from whom the asker m can get the whole NAR: nodes that have it or fetch it,
// and those that follow them. Those in the asker's form come first, then those that have a free
// slot, then those that have most, so that the tree stays low.
func (e *entry) sources(m *member, r Request, now time.Time) []Source {
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
		// Another size of the same form is a mistake of one of them.
		if c.node == m.node || slices.Contains(r.Failed, c.node) || c.form == r.Form && c.size != r.Size {
			continue
		}
		if root, depth := c.root(by, now); c.serves(r, root) {
			all = append(all, candidate{c, depth, followers[c.node] + c.sent})
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int {
		return cmp.Or(
			first(a.form == r.Form, b.form == r.Form),
			first(a.followers < a.slots(), b.followers < b.slots()),
			cmp.Compare(b.part(), a.part()),
			cmp.Compare(a.depth, b.depth),
			cmp.Compare(a.followers, b.followers),
		)
	})
	var list []Source
	for _, c := range spread(all) {
		list = append(list, c.asSource())
	}
	return list
}

// spread returns at most MaxSources candidates. If there are more, no machine has more than a
// quarter of the places while others are left.
func spread(all []candidate) (chosen []candidate) {
	if len(all) <= MaxSources {
		return all
	}
	perMachine := map[machine.ID]int{}
	var rest []candidate
	for _, c := range all {
		if perMachine[c.machine]++; perMachine[c.machine] > MaxSources/4 {
			rest = append(rest, c)
		} else {
			chosen = append(chosen, c)
		}
	}
	return append(chosen, rest...)[:MaxSources]
}

// first orders what is true before what is not.
func first(a, b bool) int {
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
	if c.size < smallNAR {
		return perSourceSmall
	}
	return perSource
}

// maxDepth is how far a node may be from the one that fetches. With four followers each, ten steps are
// enough for a million nodes. Members that say that they follow each other have no root, and finding that
// out takes no longer than this.
const maxDepth = 32

// root returns the node that fetches, or has all, for m, and how far it is from m; nil if there
// is none. The asker has no source at that moment, so that no node is led to itself.
func (m *member) root(by map[NodeID]*member, now time.Time) (root *member, depth int) {
	for ; m != nil && depth <= maxDepth; depth++ {
		if m.whole() || m.leased(now) {
			return m, depth
		}
		m = by[m.source]
	}
	return nil, 0
}

// serves reports whether a source for which root fetches is one for the asker. It is not if
// root failed the asker, whose word counts for itself only. And it is not if root has to fetch
// what the asker has already.
func (m *member) serves(r Request, root *member) bool {
	switch {
	case root == nil || slices.Contains(r.Failed, root.node):
		return false
	case m.form == r.Form && m.bytes > r.Bytes || root.form != r.Form:
		return true
	default:
		return r.Bytes < root.bytes+overtake
	}
}

// preferredFetcher returns another fetcher of the same file that m leaves it to: one that is far
// ahead, or as far and before m in rank. The one that is furthest thus never gives up, whatever
// coordinators know, and no two fetchers give up for each other.
func (e *entry) preferredFetcher(m *member, r Request, now time.Time) *member {
	if m.size-m.bytes < yieldAbove {
		return nil
	}
	for _, c := range e.members {
		if c != m && c.leased(now) && !slices.Contains(r.Failed, c.node) &&
			yieldsTo(e.nar, m.node, source.Sized{Form: m.form, Size: m.size}, m.bytes, c.asSource()) {
			return c
		}
	}
	return nil
}

// yieldsTo reports whether a fetcher leaves fetching to another one.
func yieldsTo(nar nix.NarHash, node NodeID, form source.Sized, bytes int64, to Source) bool {
	return to.Form == form.Form && to.Size == form.Size && to.Bytes >= bytes &&
		(to.Bytes-bytes >= overtake || Outranks(nar, to.Node, node))
}

// leastUseful returns the member that gives way to a newcomer on a machine: of the machine that has most
// of the members, the one that was heard of longest ago; those that fetch or have all come last. There is
// none if no machine has more than the newcomer's would have.
func (e *entry) leastUseful(newcomer machine.ID, now time.Time) (out *member, ok bool) {
	count := map[machine.ID]int{}
	for _, m := range e.members {
		count[m.machine]++
	}
	out = slices.MinFunc(e.members, func(a, b *member) int {
		return cmp.Or(
			cmp.Compare(count[b.machine], count[a.machine]),
			first(!a.leased(now) && !a.whole(), !b.leased(now) && !b.whole()),
			a.seen.Compare(b.seen),
		)
	})
	return out, count[out.machine] > count[newcomer]+1
}
