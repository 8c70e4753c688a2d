package site

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/p2p/machine"
)

// pulse is how it is told whether a peer is silent.
type pulse struct {
	beat  atomic.Int64    // how often a peer is heard at least, in nanoseconds
	clock *runclock.Clock // of silence; nil: the ordinary one
}

// peerTable has the connected peers. Reading the list takes no lock.
type peerTable struct {
	mu   sync.Mutex
	byID map[peer.ID]*Peer
	list atomic.Pointer[[]*Peer]
	pulse

	changed signal // a peer came, was admitted or left
}

const (
	// beatFew is how often a peer is heard at least, beatMany the same with more than manyPeers:
	// an idle machine would do little else there, and one silent peer matters less.
	beatFew   = time.Second
	beatMany  = 2 * time.Second
	manyPeers = 32
)

func newPeerTable(clock *runclock.Clock) *peerTable {
	t := &peerTable{byID: make(map[peer.ID]*Peer), pulse: pulse{clock: clock}}
	t.changed.init()
	t.publish()
	return t
}

func (t *peerTable) get(id peer.ID) *Peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

// all returns the peers. The caller must not change the list.
func (t *peerTable) all() []*Peer { return *t.list.Load() }

// add puts in the peer that make returns, unless one with this ID is there, and reports
// whether it did.
func (t *peerTable) add(id peer.ID, make func() *Peer) (p *Peer, fresh bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.byID[id]; p != nil {
		return p, false
	}
	p = make()
	t.byID[id] = p
	t.publish()
	return p, true
}

// remove takes a peer out and reports whether it was in.
func (t *peerTable) remove(p *Peer) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID[p.ID] != p {
		return false
	}
	delete(t.byID, p.ID)
	t.publish()
	return true
}

func (t *peerTable) publish() {
	list := make([]*Peer, 0, len(t.byID))
	for _, p := range t.byID {
		list = append(list, p)
	}
	beat := beatFew
	if len(list) > manyPeers {
		beat = beatMany
	}
	t.beat.Store(int64(beat))
	t.list.Store(&list)
	t.changed.fire()
}

// admit notes that a peer has proved that it belongs to the site.
func (t *peerTable) admit(p *Peer) {
	p.session.admit()
	t.changed.fire()
}

// admitted waits until a peer that is connected has been admitted.
func (t *peerTable) admitted(ctx context.Context, id peer.ID) (*Peer, error) {
	for {
		changed := t.changed.next()
		if p := t.get(id); p != nil && p.Admitted() {
			return p, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// members counts the peers that tell their inventory.
func (t *peerTable) members() (n int) {
	for _, p := range t.all() {
		if p.Member() {
			n++
		}
	}
	return n
}

// full reports whether there are most members. A machine that has most of them does not keep
// this node from looking for others, unless all are on this machine.
func (t *peerTable) full(most int) bool {
	n, on := 0, map[machine.ID]int{}
	for _, p := range t.all() {
		if !p.Member() {
			continue
		}
		if on[p.Machine]++; on[p.Machine] <= max(most/2, 1) || p.Machine.Loopback() {
			n++
		}
	}
	return n >= most
}

// namedBy returns the peer that names another node as its neighbour, and where that is.
func (t *peerTable) namedBy(id peer.ID) (by *Peer, addr string) {
	for _, p := range t.all() {
		for _, o := range p.Neighbours() {
			if o.ID == id {
				return p, o.Addr
			}
		}
	}
	return nil, ""
}

// fewPeers: of fewer it cannot be told whether they or this machine are cut off.
const fewPeers = 3

// isolated reports whether most peers are silent: then it is this machine that hears nothing.
func (t *peerTable) isolated() bool {
	silent, all := 0, t.all()
	for _, p := range all {
		if p.Silent() > p.SuspectAfter() {
			silent++
		}
	}
	return len(all) >= fewPeers && 2*silent > len(all)
}

// shuffled returns the peers in random order.
func shuffled(list []*Peer) []*Peer {
	list = slices.Clone(list)
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// signal wakes all that wait for the next event.
type signal struct {
	mu sync.Mutex
	c  chan struct{}
}

func (s *signal) init() { s.c = make(chan struct{}) }

// next returns a channel that is closed at the next event.
func (s *signal) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.c
}

func (s *signal) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.c)
	s.c = make(chan struct{})
}
