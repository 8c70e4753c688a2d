package lease

import (
	"container/list"
	"slices"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

const (
	// silence is how long a node that gets a NAR is believed to be at it without a word.
	silence = 10 * time.Second
	// wholeFor is how long those who have all of a NAR are named; by then their inventories
	// tell it.
	wholeFor = 30 * time.Second
	// heirWait is how long the follower that has most is waited for when the fetcher is
	// gone, before whoever asks goes upstream.
	heirWait = time.Second
	// doubtFor is how long a source that failed somebody is named after the others.
	doubtFor = 10 * time.Second
	// yieldAbove: of two fetchers of the same file one gives way only if that saves more
	// bytes than a change of source is worth.
	yieldAbove = 4 << 20
	// overtake is how far somebody has to be ahead of a fetcher to fetch instead: more than
	// what the one said since its last report may make up.
	overtake = 1 << 20

	// perSource is how many followers are sent to one node, of a NAR that takes some time:
	// as many as it gives it to at once. The others go to these, so that copies multiply.
	// What is small is there before the second in the row could pass it on.
	perSource      = 4
	perSourceSmall = 16
	small          = 1 << 20
)

// limits of a Table, against those who ask for what they do not want: 30 s of a node that
// takes a hundred NARs a second, of 8 such nodes at once. A membership takes about 300 bytes.
// Who is beyond them is told to fetch, and not noted.
type limits struct{ entries, members, perEntry, perNode int }

var defaultLimits = limits{entries: 16 << 10, members: 32 << 10, perEntry: 256, perNode: 4 << 10}

// Table is what a coordinator knows: who has how much of the NARs that it was asked about, and
// who is to fetch each. It is safe for concurrent use. Times given to it may jump back a
// little, as those of concurrent callers do.
type Table struct {
	self   NodeID
	limits limits

	mu      sync.Mutex
	entries map[nix.NarHash]*entry
	order   *list.List // of *entry, the longest untouched first
	members int
	perNode map[NodeID]int
}

// NewTable returns the empty table of the node self.
func NewTable(self NodeID) *Table {
	return &Table{
		self: self, limits: defaultLimits, entries: map[nix.NarHash]*entry{}, order: list.New(), perNode: map[NodeID]int{},
	}
}

// Handle answers any request of a node. Live are the nodes that this one knows to be up.
func (t *Table) Handle(from NodeID, r Request, live []NodeID, now time.Time) Answer {
	switch r.Verb {
	case Ask:
		return t.Ask(from, r, live, now)
	case Progress:
		return t.Progress(from, r, now)
	default:
		t.Release(from, r.Nar)
		return Answer{Kind: Noted}
	}
}

// Ask tells a node that wants a NAR what to do: Fetch if nobody else does, Follow if there
// are sources, Elsewhere if nothing is known here and one of live comes before this node.
func (t *Table) Ask(from NodeID, r Request, live []NodeID, now time.Time) Answer {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.fresh(r.Nar, now)
	if r.Hops < MaxHops && !e.served(from, now) {
		if id, ok := higher(r.Nar, t.self, live, append(slices.Clone(r.Tried), from)...); ok {
			return Answer{Kind: Elsewhere, Node: id}
		}
	}
	m := &member{node: from}
	if !r.Alone {
		e, m = t.enlist(r.Nar, m, now)
	}
	if m.note(r, now); m.leased(now) {
		return Answer{Kind: Fetch, Term: m.until.Sub(now)} // asked again
	}
	m.source, m.until = "", time.Time{}
	e.accuse(from, r.Failed, now)
	if list := e.sources(m, r, now); len(list) > 0 {
		e.heirUntil = time.Time{}
		m.source = list[0].Node
		return Answer{Kind: Follow, Sources: list}
	}
	if heir := e.heir(m, r, now); heir != nil {
		m.source = heir.node
		return Answer{Kind: Follow, Sources: []Source{heir.asSource()}}
	}
	m.until = now.Add(Term)
	if m.entry != nil {
		e.heirUntil = time.Time{}
	}
	return Answer{Kind: Fetch, Term: Term}
}

// Progress notes how far a node is. A fetcher that is unknown here becomes known by it: its
// coordinator may be gone, or never have been there. More bytes renew its lease.
func (t *Table) Progress(from NodeID, r Request, now time.Time) Answer {
	if r.Alone {
		return Answer{Kind: Noted}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fresh(r.Nar, now)
	e, m := t.enlist(r.Nar, &member{node: from}, now)
	if e == nil || m.entry == nil {
		return Answer{Kind: Noted}
	}
	got := max(r.Got, r.Bytes)
	if m.form == r.Form && (r.Bytes < m.bytes || got < m.got) {
		return Answer{Kind: Noted} // an old one, come late
	}
	ahead := m.seen.IsZero() || m.form != r.Form || got > m.got
	m.note(r, now)
	e.accuse(from, r.Failed, now)
	if ahead {
		m.accusers = nil
	}
	m.source = r.From
	switch {
	case m.whole() || r.From != "":
		m.until = time.Time{}
		return Answer{Kind: Noted}
	case ahead:
		m.until = now.Add(Term)
	}
	if !m.leased(now) {
		return Answer{Kind: Noted}
	}
	if senior := e.senior(m, r, now); senior != nil {
		m.until, m.source = time.Time{}, senior.node
		return Answer{Kind: Follow, Sources: []Source{senior.asSource()}}
	}
	return Answer{Kind: Fetch, Term: m.until.Sub(now)}
}

// Release notes that a node has nothing of a NAR any more, and gets none.
func (t *Table) Release(from NodeID, nar nix.NarHash) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.entries[nar]; e != nil {
		t.remove(e, func(m *member) bool { return m.node == from })
	}
}

// Lost notes that a node is gone, or withdraws from everything: its leases end.
func (t *Table) Lost(node NodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.perNode[node] == 0 {
		return
	}
	for el := t.order.Front(); el != nil; {
		e := el.Value.(*entry)
		el = el.Next()
		t.remove(e, func(m *member) bool { return m.node == node })
	}
}

// Expire frees what is over. It is to be called every few seconds; answers do not depend on
// it.
func (t *Table) Expire(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for el := t.order.Front(); el != nil; {
		e := el.Value.(*entry)
		el = el.Next()
		t.remove(e, func(m *member) bool { return m.over(now) })
	}
}

// Len returns how many NARs are known, and how often a node has one or gets it.
func (t *Table) Len() (nars, members int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.entries), t.members
}

// fresh returns the entry of a NAR without what is over, or nil.
func (t *Table) fresh(nar nix.NarHash, now time.Time) *entry {
	if e := t.entries[nar]; e != nil {
		t.remove(e, func(m *member) bool { return m.over(now) })
	}
	return t.entries[nar]
}

// remove drops members of e, and e with the last of them.
func (t *Table) remove(e *entry, which func(*member) bool) {
	e.members = slices.DeleteFunc(e.members, func(m *member) bool {
		if !which(m) {
			return false
		}
		t.members--
		if t.perNode[m.node]--; t.perNode[m.node] == 0 {
			delete(t.perNode, m.node)
		}
		return true
	})
	if len(e.members) == 0 {
		delete(t.entries, e.nar)
		t.order.Remove(e.place)
	}
}

// enlist returns the member for m's node, making m one if there is room; m without an entry
// of its own means that there was none. The entry is nil only then.
func (t *Table) enlist(nar nix.NarHash, m *member, now time.Time) (*entry, *member) {
	e := t.entries[nar]
	if e != nil {
		t.order.MoveToBack(e.place)
		if known := e.member(m.node); known != nil {
			return e, known
		}
	}
	full := e != nil && len(e.members) >= t.limits.perEntry
	if full || t.perNode[m.node] >= t.limits.perNode || !t.makeRoom(e, now) {
		return e, m
	}
	if e == nil {
		e = &entry{nar: nar}
		e.place = t.order.PushBack(e)
		t.entries[nar] = e
	}
	m.entry = e
	e.members = append(e.members, m)
	t.members++
	t.perNode[m.node]++
	return e, m
}

// makeRoom drops what was longest untouched until there is room for one more member of e, nil
// for a new entry. What somebody fetches is not dropped, so that nobody can end leases by
// asking for much.
func (t *Table) makeRoom(e *entry, now time.Time) bool {
	for t.members >= t.limits.members || e == nil && len(t.entries) >= t.limits.entries {
		oldest := t.order.Front().Value.(*entry)
		if oldest == e || slices.ContainsFunc(oldest.members, func(m *member) bool { return m.leased(now) }) {
			return false
		}
		t.remove(oldest, func(*member) bool { return true })
	}
	return true
}
