package discovery

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Contact is somebody who may be dialled.
type Contact struct {
	Peer    string // peer ID, "" while unknown
	Addrs   []string
	FoundBy string // saved, static, dns, srv, http, file, mdns, peer, inbound
}

// key is the peer ID, or the address of one whose ID shows when it is dialled.
func (c Contact) key() string {
	if c.Peer != "" || len(c.Addrs) == 0 {
		return c.Peer
	}
	return c.Addrs[0]
}

const (
	// maxContacts bounds what others can make us remember, maxAddrs the addresses of one.
	maxContacts = 1024
	maxAddrs    = 8
	// giveUp is after how many failures in a row somebody is forgotten; the sources name
	// him again if he is worth it.
	giveUp = 14
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

// Book remembers whom to dial and when. It is safe for concurrent use.
type Book struct {
	mu      sync.Mutex
	self    string
	entries map[string]*entry
	foundBy map[string]string // of the connected, by peer ID
}

// NewBook returns an empty book of the node with this peer ID.
func NewBook(self string) *Book {
	return &Book{self: self, entries: make(map[string]*entry), foundBy: make(map[string]string)}
}

// Found adds contacts that somebody named, and tells how many were new. Those that are known
// get the new addresses first and, if they failed, are tried again at once when they were
// seen alive.
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
		if e == nil {
			if len(b.entries) >= maxContacts {
				continue
			}
			e = &entry{Contact: Contact{Peer: c.Peer, FoundBy: c.FoundBy}, connected: b.foundBy[c.Peer] != ""}
			b.entries[k] = e
			fresh++
			if c.FoundBy == viaPeer && b.self > c.Peer {
				// The other one hears of us as well: one of the two dials first.
				e.next = time.Now().Add(courtesy + rand.N(courtesy))
			}
		}
		e.Addrs = merge(c.Addrs, e.Addrs)
		if alive && e.failures > 2 {
			e.failures, e.next = 2, time.Time{}
		}
	}
	return fresh
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

// viaPeer is how those are found whom another peer named.
const viaPeer = "peer"

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

// Due returns at most n contacts whose time has come, and marks them as being dialled.
func (b *Book) Due(now time.Time, n int) []Contact {
	b.mu.Lock()
	defer b.mu.Unlock()
	var due []*entry
	for _, e := range b.entries {
		if !e.dialling && !e.connected && !e.next.After(now) {
			due = append(due, e)
		}
	}
	// Who failed least comes first: a dead address must not keep a living one waiting.
	slices.SortFunc(due, func(x, y *entry) int { return x.failures - y.failures })
	var list []Contact
	for _, e := range due[:min(n, len(due))] {
		e.dialling = true
		c := e.Contact
		c.Addrs = slices.Clone(e.Addrs)
		list = append(list, c)
	}
	return list
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
	if e.failures >= giveUp {
		delete(b.entries, c.key())
	}
}

// selfPause is how long an address that turned out to be our own is left alone.
const selfPause = 30 * time.Minute

// Reached says that dialling c, as Due returned it, led to this peer, perhaps ourselves.
func (b *Book) Reached(c Contact, peer string, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
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
		e = &entry{Contact: Contact{Peer: peer, FoundBy: c.FoundBy}, connected: b.foundBy[peer] != "", next: now.Add(retry(0))}
		b.entries[peer] = e
	}
	e.Addrs = merge(c.Addrs, e.Addrs)
	if b.foundBy[peer] == inbound || b.foundBy[peer] == "" {
		b.foundBy[peer] = c.FoundBy
	}
}

const inbound = "inbound"

// Connected says that there is a connection to peer, whoever dialled.
func (b *Book) Connected(peer string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	by := inbound
	if e := b.entries[peer]; e != nil {
		e.connected, e.failures = true, 0
		by = e.FoundBy
	}
	if b.foundBy[peer] == "" {
		b.foundBy[peer] = by
	}
}

// Lost says that there is no connection any more. With addresses the peer is dialled again
// soon, even if it was the one who came.
func (b *Book) Lost(peer string, addrs []string, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	by := b.foundBy[peer]
	delete(b.foundBy, peer)
	e := b.entries[peer]
	if e == nil {
		if len(addrs) == 0 || len(b.entries) >= maxContacts {
			return
		}
		e = &entry{Contact: Contact{Peer: peer, FoundBy: by}}
		b.entries[peer] = e
	}
	e.Addrs = merge(e.Addrs, addrs)
	e.connected, e.failures, e.next = false, 0, now.Add(retry(0))
}

// Forget drops a peer that is not wanted: it is dialled again only when somebody names it
// after the pause.
func (b *Book) Forget(peer string, now time.Time, pause time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[peer]
	if e == nil {
		e = &entry{Contact: Contact{Peer: peer}}
		b.entries[peer] = e
	}
	e.connected, e.failures, e.next = false, giveUp-1, now.Add(pause)
}

// FoundBy says how a connected peer was found.
func (b *Book) FoundBy(peer string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.foundBy[peer]
}

// Known tells whether somebody is connected, dialled or going to be.
func (b *Book) Known(c Contact) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return c.Peer == b.self || b.entries[c.key()] != nil || b.foundBy[c.Peer] != ""
}

// Len returns how many are known.
func (b *Book) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.entries)
}
