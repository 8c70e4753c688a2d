package site

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/p2p/balance"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/machine"
)

// Peer is a connected peer. It is safe for concurrent use. One that was lost and comes back is
// another Peer.
type Peer struct {
	ID  peer.ID
	Key string // ID as text
	Place
	Since time.Time

	Sent     metrics.Flow // NAR bytes on the wire
	Received metrics.Flow

	session  sessionState
	usage    usage
	activity activity
	told     told
	meter    balance.Meter
	pauses   pauses
	record   positives

	neighbours atomic.Pointer[[]Neighbour]
	pulse      *pulse // of the peer table
}

// Place is where a peer was at its first connection.
type Place struct {
	Machine machine.ID // what the peer may take is counted by it
	Host    machine.ID // what it does wrong is held against it
}

// Neighbour is a node that a peer says it is connected to.
type Neighbour struct {
	ID   peer.ID
	Key  string // ID as text
	Addr string // multiaddr without the ID
}

const (
	// suspectMargin is how late a healthy peer may be.
	suspectMargin = 500 * time.Millisecond
	// slowFirst is how long a peer that did not answer in time is not asked, twice as long
	// after each further failure, up to slowMost.
	slowFirst = time.Second
	slowMost  = time.Minute
)

// newPeer returns a peer on which nothing is known. End ends its session.
func newPeer(id peer.ID, m machine.ID, end context.CancelFunc, at *pulse) *Peer {
	p := &Peer{
		ID: id, Key: id.String(), Place: Place{Machine: m}, Since: time.Now(), pulse: at, activity: activity{any: connActivity{clock: at.clock}},
		pauses: pauses{
			slow: backoff.Delay{First: slowFirst, Most: slowMost},
			late: backoff.Delay{First: slowFirst, Most: slowMost},
		},
	}
	p.told.inventory.Store(new(inventory.Remote))
	p.session.end, p.session.admitted = end, make(chan struct{})
	p.activity.heard()
	p.usage.last.Store(p.Since.UnixNano())
	return p
}

// Name is how people call the peer's machine, "" if it has not told.
func (p *Peer) Name() string {
	if name := p.told.name.Load(); name != nil {
		return *name
	}
	return ""
}

// sessionState is what the two sessions with a peer, one in each direction, have reached.
type sessionState struct {
	end       context.CancelFunc
	admitted  chan struct{} // closed when the peer has proved that it belongs to the site
	once      sync.Once
	takesOurs atomic.Bool // the peer takes this node's inventory
	elsewhere elsewhere   // what the peer is to be told
}

func (s *sessionState) admit() { s.once.Do(func() { close(s.admitted) }) }

// Admitted reports whether the peer may be asked and answered. On an open site every peer may.
func (p *Peer) Admitted() bool {
	select {
	case <-p.session.admitted:
		return true
	default:
		return false
	}
}

// Member reports whether the peer tells this node its inventory. A peer that does not is an
// extra one, beyond the number of peers of one side.
func (p *Peer) Member() bool { return p.told.over.Load() != nil }

// Told reports whether the peer takes this node's inventory.
func (p *Peer) Told() bool { return p.session.takesOurs.Load() }

// usage is when the connection to a peer was last needed.
type usage struct {
	busy  atomic.Int32 // transfers and requests, in both directions
	last  atomic.Int64 // Unix nanoseconds
	touch func()       // may be nil
}

// Use notes that the connection to this peer is needed until end is called.
func (p *Peer) Use() (end func()) {
	p.usage.busy.Add(1)
	return sync.OnceFunc(func() {
		p.usage.last.Store(time.Now().UnixNano())
		p.usage.busy.Add(-1)
		if p.usage.touch != nil {
			p.usage.touch()
		}
	})
}

// unused returns for how long the connection has not been needed.
func (p *Peer) unused() time.Duration {
	if p.usage.busy.Load() > 0 {
		return 0
	}
	return time.Duration(time.Now().UnixNano() - p.usage.last.Load())
}

// activity is when something came last from a peer, over any connection and over each: one
// of them may be dead while another one lives, as when a machine has left one of two networks.
type activity struct {
	any connActivity

	mu    sync.Mutex
	conns map[string]*connActivity // by ID of the connection
}

// connActivity is when something came last over one connection.
type connActivity struct {
	clock *runclock.Clock // while this process has no CPU time, peers seem silent
	last  atomic.Int64    // Unix nanoseconds on it
}

// heard notes that a byte came.
func (c *connActivity) heard() { c.last.Store(c.clock.Now().UnixNano()) }

// silent returns for how long nothing has come.
func (c *connActivity) silent() time.Duration {
	return time.Duration(c.clock.Now().UnixNano() - c.last.Load())
}

func (a *activity) heard() { a.any.heard() }

// maxConns is more than a peer has connections.
const maxConns = 64

// of returns the activity of one of the peer's connections.
func (a *activity) of(c network.Conn) *connActivity {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.conns[c.ID()]
	if l == nil {
		if a.conns == nil || len(a.conns) >= maxConns {
			a.conns = make(map[string]*connActivity) // the others are gone
		}
		l = &connActivity{clock: a.any.clock}
		l.heard()
		a.conns[c.ID()] = l
	}
	return l
}

// Silent returns for how long nothing has come from the peer.
func (p *Peer) Silent() time.Duration { return p.activity.any.silent() }

// SuspectAfter returns for how long nothing comes from a healthy member: one that was heard
// just before the beat is sent a ping only at the next one.
func (p *Peer) SuspectAfter() time.Duration {
	return 2*time.Duration(p.pulse.beat.Load()) + suspectMargin
}

// Suspect reports whether a member has been silent for longer than a healthy one is.
func (p *Peer) Suspect() bool { return p.Member() && p.Silent() >= p.SuspectAfter() }

// Usable reports whether an answer can be expected soon.
func (p *Peer) Usable() bool { return p.pauses.slow.Ready() && !p.Suspect() }

// UsableForInfo reports whether a short question may be answered soon.
func (p *Peer) UsableForInfo() bool { return p.pauses.late.Ready() && p.Usable() }

// TimedOut notes that the peer did not answer in time. It is not blamed for that, but it is
// not waited for again at once.
func (p *Peer) TimedOut() { p.pauses.slow.Fail() }

// SlowAnswer notes that the peer did not answer a short question in time. It may still be the
// best source of a NAR: a busy machine's is nearer than the upstream's.
func (p *Peer) SlowAnswer() { p.pauses.late.Fail() }

// TooSlow notes that the peer sent next to nothing for a long time. All its other NARs would
// take as long to find that out.
func (p *Peer) TooSlow() { p.pauses.slow.Pause(slowMost) }

// Answered notes that the peer answered within d.
func (p *Peer) Answered(d time.Duration) {
	p.meter.Answered(d)
	p.pauses.slow.Succeed()
	p.pauses.late.Succeed()
}

// Meter returns what was measured of the peer.
func (p *Peer) Meter() *balance.Meter { return &p.meter }

// pauses are for how long a peer is not asked.
type pauses struct {
	slow backoff.Delay // for anything
	late backoff.Delay // for narinfos
}

// told is what a peer has told of what it shares. It changes under the lock of inventories.
type told struct {
	name      atomic.Pointer[string] // of its machine, for people
	inventory atomic.Pointer[inventory.Remote]
	over      atomic.Pointer[hearing] // the session of a member; nil: it is none
	dropped   bool                    // there was no room for the inventory: changes mean nothing
	gone      bool                    // the peer was lost
	zone      atomic.Pointer[string]  // nil before the peer told one
}

// hear has the peer tell its inventory over a session, nil for none. The one before ends.
func (p *Peer) hear(h *hearing) {
	if old := p.told.over.Swap(h); old != nil {
		old.abort()
	}
}

// positives is how the positives of a peer's inventory turned out lately: a peer that says
// yes to everything is not asked.
type positives struct {
	count, absent atomic.Int32
	muted         backoff.Delay
}

// A peer of whose last mutedOf positives more than half were absent is not asked for mutedFor.
const (
	mutedOf  = 32
	mutedFor = 10 * time.Minute
)

// RecordPositive notes how a positive of the peer's inventory turned out.
func (p *Peer) RecordPositive(held bool) {
	n := p.record.count.Add(1)
	if !held {
		p.record.absent.Add(1)
	}
	if n < mutedOf {
		return
	}
	if 2*p.record.absent.Load() > n {
		p.record.muted.Pause(mutedFor)
	}
	p.record.count.Store(0)
	p.record.absent.Store(0)
}

// Muted reports whether the peer's inventory promised too often what it had not.
func (p *Peer) Muted() bool { return !p.record.muted.Ready() }

// Has reports whether the peer's inventory says that it may share what k stands for.
func (p *Peer) Has(k inventory.Key) bool { return p.told.inventory.Load().Has(k) && !p.Muted() }

// drop forgets the peer's inventory.
func (p *Peer) drop() {
	p.told.dropped = true
	p.told.inventory.Store(new(inventory.Remote))
}

// Paths returns about how many paths the peer's inventory has.
func (p *Peer) Paths() int { return p.told.inventory.Load().Count() }

// Zone returns the zone that the peer says it is in, "" if none. It decides who is asked first,
// and nothing else.
func (p *Peer) Zone() string {
	if z := p.told.zone.Load(); z != nil {
		return *z
	}
	return ""
}

// Neighbours returns the nodes that the peer said it is connected to.
func (p *Peer) Neighbours() []Neighbour {
	if l := p.neighbours.Load(); l != nil {
		return *l
	}
	return nil
}
