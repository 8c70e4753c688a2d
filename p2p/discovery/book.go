package discovery

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/p2p/machine"
)

// Kinds of origins that are not configured. The others are saved, static, dns, srv, http and
// file.
const (
	ByMDNS    = "mdns"
	ByPeer    = "peer"    // another peer named it
	ByInbound = "inbound" // it connected to this node
)

// Origin is who named a contact.
type Origin struct {
	Kind    string
	Machine machine.ID // of the peer that named it, else zero
	Peer    string     // ID of that peer, else ""
}

// group returns whose places and dials a contact takes. Configured ones share none.
func (o Origin) group() group {
	switch o.Kind {
	case ByMDNS:
		return group{kind: ByMDNS}
	case ByPeer, ByInbound:
		return group{kind: ByPeer, machine: o.Machine}
	}
	return group{}
}

type group struct {
	kind    string
	machine machine.ID
}

func (g group) configured() bool { return g.kind == "" }

// places returns how many contacts a group may have in the book.
func (g group) places() int {
	switch g.kind {
	case "":
		return maxContacts
	case ByMDNS:
		return placesMDNS
	}
	return placesByMachine
}

// Contact is a node that may be dialled.
type Contact struct {
	Peer  string // peer ID, "" while unknown
	Addrs []string
	By    Origin
}

// key is the peer ID, or the address of a node whose ID shows when it is dialled.
func (c Contact) key() string {
	if c.Peer != "" || len(c.Addrs) == 0 {
		return c.Peer
	}
	return c.Addrs[0]
}

const (
	// maxContacts bounds the contacts that are configured, and all others together; maxAddrs
	// the addresses of one.
	maxContacts     = 1024
	maxAddrs        = 8
	placesByMachine = 32
	placesMDNS      = 64

	// A peer that names others has dialBurst of them dialled at once, and then one each
	// dialEvery; what can be reached does not count. All peers of one machine together have
	// machineBurst, and then one each machineEvery.
	dialEvery    = time.Second
	dialBurst    = 8
	machineEvery = 250 * time.Millisecond
	machineBurst = 16

	// After so many failures in a row a contact is forgotten; one that is worth it is named
	// again.
	giveUpConfigured = 14
	giveUpNamed      = 6
)

// retry is how long after the n-th failure in a row the next try comes: a peer that was
// lost a moment ago is back soon or not at all.
func retry(failures int) time.Duration {
	steps := [...]time.Duration{1, 2, 3, 3, 3, 5, 5, 10, 10, 30, 60, 120, 300}
	d := steps[min(failures, len(steps)-1)] * time.Second
	return d*4/5 + rand.N(d*2/5)
}

type entry struct {
	Contact
	next      time.Time
	failures  int
	dialling  bool
	connected bool
}

// Book remembers whom to dial and when. What peers name is bounded by the machine that names
// it. It is safe for concurrent use.
type Book struct {
	mu       sync.Mutex
	self     string
	entries  map[string]*entry
	foundBy  map[string]string // of the connected, by peer ID
	byPeer   machine.Rate[string]
	byOrigin machine.Rate[group]
}

// NewBook returns an empty book of the node with this peer ID.
func NewBook(self string) *Book {
	return &Book{
		self: self, entries: make(map[string]*entry), foundBy: make(map[string]string),
		byPeer:   machine.Rate[string]{Every: dialEvery, Burst: dialBurst},
		byOrigin: machine.Rate[group]{Every: machineEvery, Burst: machineBurst},
	}
}

// Found adds contacts and returns how many were new. Known ones get the new addresses first.
// Those that failed are tried again at once if they were seen alive, or if another origin
// knows an address that was not tried.
func (b *Book) Found(alive bool, list ...Contact) (fresh int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range list {
		k := c.key()
		if k == "" || c.Peer == b.self {
			continue
		}
		e := b.entries[k]
		if e == nil && c.Peer == "" {
			e = b.at(c.Addrs[0])
		}
		switch {
		case e == nil:
			if b.makeRoom(c.By) {
				b.add(c)
				fresh++
			}
		default:
			b.again(e, c, alive)
		}
	}
	return fresh
}

func (b *Book) add(c Contact) {
	e := &entry{Contact: c, connected: b.foundBy[c.Peer] != ""}
	e.Addrs = merge(c.Addrs, nil)
	if c.By.Kind == ByPeer && b.self > c.Peer {
		// The other one hears of this node as well: one of the two dials first.
		e.next = time.Now().Add(courtesy + rand.N(courtesy))
	}
	b.entries[c.key()] = e
}

// again notes that a known contact was named again.
func (b *Book) again(e *entry, c Contact, alive bool) {
	unknown := slices.ContainsFunc(c.Addrs, func(a string) bool { return !slices.Contains(e.Addrs, a) })
	e.Addrs = merge(c.Addrs, e.Addrs)
	switch {
	case c.By.group().configured():
		e.By = c.By
	case unknown && e.failures > 0 && e.By != c.By && !e.By.group().configured():
		e.By, e.failures, e.next = c.By, 0, time.Time{}
	}
	if alive && e.failures > 2 {
		e.failures, e.next = 2, time.Time{}
	}
}

// at returns who is known at an address.
func (b *Book) at(addr string) *entry {
	for _, e := range b.entries {
		if slices.Contains(e.Addrs, addr) {
			return e
		}
	}
	return nil
}

// makeRoom reports whether there is a place for one more contact of this origin. Where there
// is none, a contact of the same group gives way, or one of the group with the most if all
// places are taken: of the peer that named most, at random, rather one that failed.
func (b *Book) makeRoom(by Origin) bool {
	g := by.group()
	own, others := 0, 0 // contacts of this group, and of all that are not configured
	for _, e := range b.entries {
		if e.connected {
			continue
		}
		eg := e.By.group()
		if eg == g {
			own++
		}
		if !eg.configured() {
			others++
		}
	}
	if own < g.places() {
		if g.configured() || others < maxContacts {
			return true
		}
		g = b.largest(g, own)
	}
	return b.evict(g)
}

// largest returns the group, of those that are not configured, that has most contacts.
func (b *Book) largest(g group, own int) group {
	counts := map[group]int{}
	for _, e := range b.entries {
		if !e.connected {
			counts[e.By.group()]++
		}
	}
	for o, n := range counts {
		if n > own && !o.configured() {
			g, own = o, n
		}
	}
	return g
}

func (b *Book) evict(g group) bool {
	named := map[string]int{}
	for _, e := range b.entries {
		if e.By.group() == g && !e.connected {
			named[e.By.Peer]++
		}
	}
	var victim string
	best := -1
	for k, e := range b.entries { // in random order
		if e.By.group() != g || e.connected || e.dialling {
			continue
		}
		score := 2 * named[e.By.Peer]
		if e.failures > 0 {
			score++
		}
		if score > best {
			victim, best = k, score
		}
	}
	delete(b.entries, victim)
	return best >= 0
}

// courtesy is how long the node with the larger ID leaves the dialling to the other: two
// connections cost twice as much as one.
const courtesy = 1500 * time.Millisecond

func merge(fresh, old []string) []string {
	var all []string
	for _, a := range slices.Concat(fresh, old) {
		if len(all) < maxAddrs && !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all
}

// Due returns a contact whose time has come, and marks it as being dialled.
func (b *Book) Due(now time.Time) (Contact, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	named := map[string]int{}
	var due []*entry
	for _, e := range b.entries {
		if e.connected || e.dialling {
			continue
		}
		named[e.By.Peer]++
		if !e.next.After(now) && b.mayDial(e.By) {
			due = append(due, e)
		}
	}
	if len(due) == 0 {
		return Contact{}, false
	}
	// A dead address must not keep a living one waiting, nor a peer that names many one that
	// names few.
	e := slices.MinFunc(due, func(x, y *entry) int {
		return cmp.Or(cmp.Compare(x.failures, y.failures), cmp.Compare(named[x.By.Peer], named[y.By.Peer]))
	})
	e.dialling = true
	if g := e.By.group(); !g.configured() {
		b.byOrigin.Allow(g)
		if e.By.Peer != "" {
			b.byPeer.Allow(e.By.Peer)
		}
	}
	c := e.Contact
	c.Addrs = slices.Clone(e.Addrs)
	return c, true
}

func (b *Book) mayDial(by Origin) bool {
	g := by.group()
	return g.configured() || b.byOrigin.Ready(g) && (by.Peer == "" || b.byPeer.Ready(by.Peer))
}

// Failed says that dialling c, as Due returned it, led to nothing.
func (b *Book) Failed(c Contact, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[c.key()]
	if e == nil {
		return
	}
	e.dialling = false
	if e.connected {
		return
	}
	e.failures++
	e.next = now.Add(retry(e.failures))
	if e.failures >= giveUpConfigured || e.failures >= giveUpNamed && !e.By.group().configured() {
		delete(b.entries, c.key())
	}
}

// selfPause is how long an address that turned out to be our own is left alone.
const selfPause = 30 * time.Minute

// Reached says that dialling c, as Due returned it, led to this peer, perhaps ourselves.
func (b *Book) Reached(c Contact, peer string, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if g := c.By.group(); !g.configured() {
		b.byOrigin.Return(g)
		b.byPeer.Return(c.By.Peer)
	}
	if e := b.entries[c.key()]; e != nil {
		e.dialling = false
		// Until Connected is called, or because the connection ended at once.
		e.next = now.Add(retry(e.failures))
	}
	if c.Peer == peer {
		return
	}
	delete(b.entries, c.key())
	if peer == b.self {
		// It stays known, so that it is not dialled again at every look.
		b.entries[c.key()] = &entry{Contact: c, next: now.Add(selfPause)}
		return
	}
	e := b.entries[peer]
	if e == nil {
		e = &entry{Contact: Contact{Peer: peer, By: c.By}, connected: b.foundBy[peer] != "", next: now.Add(retry(0))}
		b.entries[peer] = e
	}
	e.Addrs = merge(c.Addrs, e.Addrs)
	if b.foundBy[peer] == ByInbound || b.foundBy[peer] == "" {
		b.foundBy[peer] = c.By.Kind
	}
}

// Connected says that there is a connection to peer, whichever side dialled.
func (b *Book) Connected(peer string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	by := ByInbound
	if e := b.entries[peer]; e != nil {
		e.connected, e.failures = true, 0
		by = e.By.Kind
	}
	if b.foundBy[peer] == "" {
		b.foundBy[peer] = by
	}
}

// Lost says that there is no connection to peer, on machine m, any more. With addresses it is
// dialled again soon, even if it was the side that dialled.
func (b *Book) Lost(peer string, m machine.ID, addrs []string, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.foundBy, peer)
	e := b.entries[peer]
	if e == nil || !e.By.group().configured() {
		delete(b.entries, peer)
		by := Origin{Kind: ByInbound, Machine: m, Peer: peer}
		if e == nil {
			e = &entry{Contact: Contact{Peer: peer, By: by}}
		}
		if e.By.Kind != ByMDNS {
			e.By.Machine, e.By.Peer = m, peer // from now on it answers for itself
		}
		e.connected = false
		if len(addrs)+len(e.Addrs) == 0 || !b.makeRoom(e.By) {
			return
		}
		b.entries[peer] = e
	}
	e.Addrs = merge(e.Addrs, addrs)
	e.connected, e.failures, e.next = false, 0, now.Add(retry(0))
}

// Forget drops a peer, for one that is banned.
func (b *Book) Forget(peer string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.entries, peer)
}

// Postpone lets a peer that is in the book not be dialled for some time.
func (b *Book) Postpone(peer string, now time.Time, pause time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.entries[peer]; e != nil {
		e.next = now.Add(pause)
	}
}

// Addrs returns where a peer is said to be.
func (b *Book) Addrs(peer string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.entries[peer]; e != nil {
		return slices.Clone(e.Addrs)
	}
	return nil
}

// FoundBy returns how a connected peer was found.
func (b *Book) FoundBy(peer string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.foundBy[peer]
}

// Known reports whether a node is connected, being dialled or going to be.
func (b *Book) Known(c Contact) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return c.Peer == b.self || b.entries[c.key()] != nil || b.foundBy[c.Peer] != ""
}

// Len returns how many contacts are known.
func (b *Book) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.entries)
}
