package lease

import (
	"slices"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/machine"
)

const (
	// silence is how long a node that gets a NAR is believed to be at it without a report.
	silence = 10 * time.Second
	// wholeFor is how long those that have all of a NAR are named; by then their inventories
	// list it.
	wholeFor = 30 * time.Second
	// leaseRate is the rate in bytes a second below which a lease runs out.
	leaseRate = 4 << 10
	// yieldAbove: one of two fetchers of the same file gives up only if that saves more bytes
	// than a change of source is worth.
	yieldAbove = 4 << 20
	// overtake is how far a node must be ahead of a fetcher to fetch instead: more than what
	// the fetcher got since its last report.
	overtake = 1 << 20

	// perSource is how many followers are sent to one node: as many as it serves at once. The
	// others go to these, so that copies multiply. A small NAR is there before the second in
	// the row could pass it on.
	perSource      = 4
	perSourceSmall = 16

	// maxMembers bounds a Coordinator: 30 s of a node that takes a hundred NARs a second, of
	// eight such nodes at once. A membership takes about 400 bytes.
	maxMembers = 32 << 10
	// maxPerNAR bounds the members of one NAR, and by that the time that an answer takes: some 1 ms. A
	// site of more nodes that all want the same NAR at once has followers of which the Coordinator knows
	// nothing; nobody follows them.
	maxPerNAR = 1024
)

// Coordinator knows which nodes have how much of the NARs that it was asked about, and which
// one is to fetch each. When it is full, the machine that takes most of it loses the membership
// that made progress longest ago; a newcomer is not refused. It is safe for concurrent use.
// Times given to it may jump back a little, as those of concurrent callers do.
type Coordinator struct {
	self       NodeID
	perNAR     int  // maxPerNAR; less in tests
	neverYield bool // removes the rule, in tests

	mu      sync.Mutex
	entries map[nix.NarHash]*entry
	members *machine.Shares[*member]
}

// NewCoordinator returns the empty Coordinator of the node self.
func NewCoordinator(self NodeID) *Coordinator {
	return &Coordinator{
		self: self, perNAR: maxPerNAR, entries: map[nix.NarHash]*entry{}, members: machine.NewShares[*member](machine.Limits{Total: maxMembers}),
	}
}

// Handle answers any request of a node on a machine, the zero ID for this node itself. Live are the nodes that this one knows to
// be up. It does not fill in addresses.
func (c *Coordinator) Handle(from NodeID, on machine.ID, r Request, live []NodeID, now time.Time) Answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fresh(r.Nar, now)
	switch r.Verb {
	case Ask:
		return c.ask(&member{node: from, machine: on}, r, live, now)
	case Progress:
		return c.progress(&member{node: from, machine: on}, r, now)
	default:
		c.drop(c.entries[r.Nar].member(from))
		return Answer{Kind: Noted}
	}
}

// ask tells a node that wants a NAR what to do: Fetch if no other node does, Follow if there
// are sources, Redirect if nothing is known here and one of live ranks before this node.
func (c *Coordinator) ask(m *member, r Request, live []NodeID, now time.Time) Answer {
	e := c.entries[r.Nar]
	if r.Hops < MaxHops && !e.served(m.node, now) {
		if id, ok := higher(r.Nar, c.self, live, append(slices.Clone(r.Tried), m.node)...); ok {
			return Answer{Kind: Redirect, Node: id}
		}
	}
	if !r.Alone {
		e, m = c.enlist(r.Nar, m, now)
	}
	if m.note(r, now); m.leased(now) {
		return Answer{Kind: Fetch, Term: m.until.Sub(now)} // asked again
	}
	m.source, m.until = "", time.Time{}
	if list := e.sources(m, r, now); len(list) > 0 {
		m.source = list[0].Node
		if m.entry == nil && !r.Alone {
			e.member(m.source).sent++
		}
		return Answer{Kind: Follow, Sources: list}
	}
	m.renew(0, now)
	return Answer{Kind: Fetch, Term: Term}
}

// progress notes how far a node is. A fetcher that is unknown here becomes known by it: its
// coordinator may be gone, or there never was one. Bytes extend its lease by what they are
// worth.
func (c *Coordinator) progress(m *member, r Request, now time.Time) Answer {
	if r.Alone {
		return Answer{Kind: Noted}
	}
	e, m := c.enlist(r.Nar, m, now)
	got := max(r.Got, r.Bytes)
	if m.form == r.Form && (r.Bytes < m.bytes || got < m.got) {
		return Answer{Kind: Noted} // an old one that came late
	}
	more := got - m.got
	if m.form != r.Form {
		more = got
	}
	if m.seen.IsZero() || more > 0 {
		c.members.Use(m)
	}
	m.note(r, now)
	m.source = r.From
	if m.whole() || r.From != "" {
		m.until = time.Time{}
		return Answer{Kind: Noted}
	}
	m.renew(more, now)
	if !m.leased(now) {
		return Answer{Kind: Noted}
	}
	if !c.neverYield {
		if p := e.preferredFetcher(m, r, now); p != nil {
			m.until, m.source = time.Time{}, p.node
			return Answer{Kind: Follow, Sources: []Source{p.asSource()}}
		}
	}
	return Answer{Kind: Fetch, Term: m.until.Sub(now)}
}

// Lost says that a node is gone, or withdraws from everything: its leases end.
func (c *Coordinator) Lost(node NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.entries {
		c.drop(e.member(node))
	}
}

// Expire frees what is over. It is to be called every few seconds; answers do not depend on
// it.
func (c *Coordinator) Expire(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for nar := range c.entries {
		c.fresh(nar, now)
	}
}

// Len returns how many NARs are known, and how often a node has one or gets it.
func (c *Coordinator) Len() (nars, members int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.entries), c.members.Len()
}

// fresh removes what is over from the entry of a NAR.
func (c *Coordinator) fresh(nar nix.NarHash, now time.Time) {
	e := c.entries[nar]
	if e == nil {
		return
	}
	for _, m := range slices.Clone(e.members) {
		if m.over(now) {
			c.drop(m)
		}
	}
}

// drop removes a member, and its entry with the last one. Nil does nothing.
func (c *Coordinator) drop(m *member) {
	if m == nil {
		return
	}
	c.members.Remove(m)
	e := m.entry
	if e.members = slices.DeleteFunc(e.members, func(o *member) bool { return o == m }); len(e.members) == 0 {
		delete(c.entries, e.nar)
	}
}

// enlist returns the member for m's node, making m one. Where there is no room m stays as it is and is
// not remembered: to forget another one in its place would take that one's followers from the tree, and
// they would all fetch.
func (c *Coordinator) enlist(nar nix.NarHash, m *member, now time.Time) (*entry, *member) {
	e := c.entries[nar]
	if known := e.member(m.node); known != nil {
		return e, known
	}
	if e != nil && len(e.members) >= c.perNAR {
		out, ok := e.leastUseful(m.machine, now)
		if !ok {
			return e, m
		}
		c.drop(out)
	}
	gone, _ := c.members.Put(m.machine, m, 1, false)
	for _, g := range gone {
		c.drop(g)
	}
	if e = c.entries[nar]; e == nil {
		e = &entry{nar: nar}
		c.entries[nar] = e
	}
	m.entry = e
	e.members = append(e.members, m)
	return e, m
}
