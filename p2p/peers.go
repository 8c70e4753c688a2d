package p2p

import (
	"context"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/pick"
	"github.com/nixp2p/nixp2p/p2p/standing"
)

// remote is a connected peer.
type remote struct {
	id        peer.ID
	key       string // id as text
	since     time.Time
	end       context.CancelFunc // of its session
	in        chan struct{}      // closed when it has been let in
	once      sync.Once
	begun     atomic.Bool
	heardOver atomic.Int32
	busy      atomic.Int32 // transfers, and requests of it
	used      atomic.Int64 // when it was asked or asked last, Unix nanoseconds

	view     inventory.View
	meter    pick.Meter
	sent     metrics.Flow // NAR bytes on the wire
	received metrics.Flow

	table     *table
	lane      // over any of its connections
	mu        sync.Mutex
	lanes     map[string]*lane // by connection
	member    atomic.Bool      // it tells its inventory
	told      atomic.Bool      // it takes ours
	quietTill atomic.Int64     // not asked until then, Unix nanoseconds
	fails     atomic.Int32
	lateTill  atomic.Int64 // the same, for narinfos alone
	lates     atomic.Int32

	// How positives turned out lately: who says yes to everything is not listened to.
	positives, absent atomic.Int32
	mutedTill         atomic.Int64

	leaseless atomic.Bool                 // it does not speak of leases
	knows     atomic.Pointer[[]neighbour] // whom it was connected to lately
}

func newRemote(id peer.ID) *remote {
	r := &remote{id: id, key: id.String(), since: time.Now(), in: make(chan struct{}), end: func() {}}
	r.heard()
	r.used.Store(r.since.UnixNano())
	return r
}

// use notes that somebody needs the connection to this peer until end is called.
func (r *remote) use() (end func()) {
	r.busy.Add(1)
	return func() {
		r.used.Store(time.Now().UnixNano())
		r.busy.Add(-1)
	}
}

// neighbour is a node that a peer says that it is connected to.
type neighbour struct {
	id   peer.ID
	key  string // id as text
	addr string
}

// lane tells when something came last.
type lane struct{ last atomic.Int64 } // Unix nanoseconds

// heard notes that a byte came.
func (l *lane) heard() { l.last.Store(time.Now().UnixNano()) }

// silent returns for how long nothing has come.
func (l *lane) silent() time.Duration {
	return time.Duration(time.Now().UnixNano() - l.last.Load())
}

// laneOf returns the lane of one of the peer's connections: one of them may be dead while
// another lives, as when a machine has left one of two networks.
func (r *remote) laneOf(c network.Conn) *lane {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.lanes[c.ID()]
	if l == nil {
		if r.lanes == nil || len(r.lanes) >= maxLanes {
			r.lanes = make(map[string]*lane) // connections that are gone
		}
		l = &lane{}
		l.heard()
		r.lanes[c.ID()] = l
	}
	return l
}

// maxLanes is more than a peer has connections.
const maxLanes = 64

func (r *remote) letIn() { r.once.Do(func() { close(r.in) }) }

const (
	// margin is what a peer that is well may be late.
	margin = 500 * time.Millisecond
	// quietFirst is how long a peer that did not answer in time is not asked, twice as long
	// each further time, up to quietLast.
	quietFirst = time.Second
	quietLast  = time.Minute

	// A peer of whose last mutedOf positives more than half were none is not listened to.
	mutedOf  = 32
	mutedFor = 10 * time.Minute
)

// slow notes that the peer did not answer in time. That is no guilt, but nobody waits for it
// again at once.
func (r *remote) slow() { quieten(&r.quietTill, &r.fails) }

// late notes that the peer did not answer a short question in time. It may still be the best
// to have a NAR from: a busy machine's is nearer than the upstream's.
func (r *remote) late() { quieten(&r.lateTill, &r.lates) }

func quieten(till *atomic.Int64, times *atomic.Int32) {
	k := min(times.Add(1)-1, 6)
	till.Store(time.Now().Add(min(quietFirst<<k, quietLast)).UnixNano())
}

// drips notes that the peer gave next to nothing for long. All its other NARs would take as long
// to find that out.
func (r *remote) drips() { r.quietTill.Store(time.Now().Add(quietLast).UnixNano()) }

// answered notes that it did.
func (r *remote) answered(d time.Duration) {
	r.meter.Answered(d)
	r.fails.Store(0)
	r.quietTill.Store(0)
	r.lates.Store(0)
	r.lateTill.Store(0)
}

// prompt tells whether a short question may be answered soon.
func (r *remote) prompt() bool { return r.askable() && r.lateTill.Load() < time.Now().UnixNano() }

// askable tells whether an answer may be expected soon.
func (r *remote) askable() bool {
	return r.quietTill.Load() < time.Now().UnixNano() && (!r.member.Load() || r.silent() < r.table.suspectAfter())
}

// has tells whether the peer's inventory says that it may share what k stands for.
func (r *remote) has(k inventory.Key) bool {
	return r.view.Has(k) && r.mutedTill.Load() < time.Now().UnixNano()
}

// confirmed notes how a positive turned out.
func (r *remote) confirmed(held bool) {
	n := r.positives.Add(1)
	if !held {
		r.absent.Add(1)
	}
	if n < mutedOf {
		return
	}
	if 2*r.absent.Load() > n {
		r.mutedTill.Store(time.Now().Add(mutedFor).UnixNano())
	}
	r.positives.Store(0)
	r.absent.Store(0)
}

// table has the connected peers. Reading the list takes no lock.
type table struct {
	mu   sync.Mutex
	byID map[peer.ID]*remote
	list atomic.Pointer[[]*remote]
}

func (t *table) get(id peer.ID) *remote {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

func (t *table) all() []*remote {
	if l := t.list.Load(); l != nil {
		return *l
	}
	return nil
}

// add puts a peer in unless it is there.
func (t *table) add(id peer.ID) (r *remote, fresh bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.byID[id]; r != nil {
		return r, false
	}
	if t.byID == nil {
		t.byID = make(map[peer.ID]*remote)
	}
	r = newRemote(id)
	r.table = t
	t.byID[id] = r
	t.publish()
	return r, true
}

func (t *table) remove(id peer.ID) *remote {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.byID[id]
	delete(t.byID, id)
	t.publish()
	return r
}

func (t *table) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.byID)
	t.publish()
}

func (t *table) publish() {
	list := make([]*remote, 0, len(t.byID))
	for _, r := range t.byID {
		list = append(list, r)
	}
	t.list.Store(&list)
}

// beat is how often a peer is heard at least.
func (t *table) beat() time.Duration {
	if len(t.all()) > manyPeers {
		return beatMany
	}
	return beatFew
}

// suspectAfter is for how long nothing comes from a peer that is well: one that was heard just
// before the beat is not asked for a ping before the next one.
func (t *table) suspectAfter() time.Duration { return 2*t.beat() + margin }

// members counts those who tell their inventory.
func (t *table) members() (n int) {
	for _, r := range t.all() {
		if r.member.Load() {
			n++
		}
	}
	return n
}

// watch subscribes to connections that come and go.
func (n *Node) watch(h host.Host) (event.Subscription, func(), error) {
	sub, err := h.EventBus().Subscribe(new(event.EvtPeerConnectednessChanged), eventbus.BufSize(1024), eventbus.Name("nixp2p"))
	if err != nil {
		return nil, func() {}, err
	}
	return sub, func() { _ = sub.Close() }, nil
}

// followConnections has a session with every connected peer.
func (n *Node) followConnections(ctx context.Context, sub event.Subscription) {
	var all sync.WaitGroup
	defer all.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-sub.Out():
			if !ok {
				return
			}
			c, ok := e.(event.EvtPeerConnectednessChanged)
			h := n.host.Load()
			if !ok || h == nil {
				continue
			}
			// The event may be old: what counts is how it is now.
			if (*h).Network().Connectedness(c.Peer) == network.Connected {
				n.met(ctx, *h, c.Peer, &all)
			} else {
				n.parted(c.Peer)
			}
			n.cfg.Metrics.Peers.Set(float64(len(n.table.all())))
		}
	}
}

// met makes a peer known, and begins the session with it.
func (n *Node) met(ctx context.Context, h host.Host, id peer.ID, all *sync.WaitGroup) {
	r, fresh := n.table.add(id)
	if !fresh && r.started() {
		return
	}
	ctx, end := context.WithCancel(ctx)
	n.table.mu.Lock()
	r.end = end
	n.table.mu.Unlock()
	n.book.Connected(r.key)
	n.log.Debug("peer connected", "peer", id, "found_by", n.book.FoundBy(r.key))
	all.Go(func() {
		defer end()
		n.session(ctx, h, r)
	})
}

// started tells whether a session was begun: peers come into the table also by a stream that
// is faster than the event.
func (r *remote) started() bool { return r.begun.Swap(true) }

// parted forgets a peer that is not connected any more.
func (n *Node) parted(id peer.ID) {
	r := n.table.remove(id)
	if r == nil {
		return
	}
	r.end()
	if d := n.dht.Load(); d != nil {
		d.Remove(id)
	}
	var addrs []string
	if h := n.host.Load(); h != nil {
		addrs = dialable((*h).Peerstore().Addrs(id))
	}
	if !n.gate.isShut(id) {
		n.book.Lost(r.key, addrs, time.Now())
	}
	n.coordinator.Lost(nodeID(id))
	n.log.Debug("peer disconnected", "peer", id)
	n.wakeFinder()
}

// PeerStatus is what is known of one connected peer, for status pages.
type PeerStatus struct {
	ID            string   `json:"id"`
	Addresses     []string `json:"addresses"`
	FoundBy       string   `json:"found_by"`
	RTT           float64  `json:"rtt_ms"`
	Paths         int      `json:"paths"`
	SentBytes     int64    `json:"sent_bytes"`
	ReceivedBytes int64    `json:"received_bytes"`
	// Standing is "good", "silent", "muted" (its inventory promised what it had not),
	// "guest" (connected without inventories), or "liar: " and why.
	Standing string `json:"standing"`
	// Bytes a second of the last seconds.
	Sending   int64 `json:"sending_bytes_per_second"`
	Receiving int64 `json:"receiving_bytes_per_second"`
}

// Peers returns the connected peers, and those who lied and are not connected, by ID.
func (n *Node) Peers() []PeerStatus {
	list := []PeerStatus{}
	seen := map[string]bool{}
	h := n.host.Load()
	for _, r := range n.table.all() {
		seen[r.key] = true
		s := PeerStatus{
			ID: r.key, Addresses: []string{}, FoundBy: n.book.FoundBy(r.key), Paths: r.view.Count(),
			RTT:       math.Round(float64(r.meter.RTT())/float64(time.Microsecond)) / 1000,
			SentBytes: r.sent.Load(), ReceivedBytes: r.received.Load(), Standing: n.standingOf(r),
			Sending: r.sent.Rate(r.since), Receiving: r.received.Rate(r.since),
		}
		if h != nil {
			for _, c := range (*h).Network().ConnsToPeer(r.id) {
				s.Addresses = append(s.Addresses, c.RemoteMultiaddr().String())
			}
		}
		list = append(list, s)
	}
	for _, l := range n.standing.Liars() {
		if !seen[l.Peer] {
			list = append(list, PeerStatus{ID: l.Peer, Addresses: []string{}, Standing: "liar: " + l.Reason})
		}
	}
	slices.SortFunc(list, func(a, b PeerStatus) int { return strings.Compare(a.ID, b.ID) })
	return list
}

func (n *Node) standingOf(r *remote) string {
	now := time.Now().UnixNano()
	if l, ok := n.standing.Lied(r.key); ok {
		return "liar: " + l.Reason
	}
	switch {
	case r.mutedTill.Load() > now:
		return "muted"
	case !r.member.Load():
		return "guest"
	case r.silent() > r.table.suspectAfter() || r.quietTill.Load() > now:
		return "silent"
	}
	return "good"
}

// countStandings brings the metric up to date.
func (n *Node) countStandings() {
	counts := map[string]int{"good": 0, "silent": 0, "muted": 0, "guest": 0, "liar": len(n.standing.Liars())}
	for _, r := range n.table.all() {
		if s := n.standingOf(r); !strings.HasPrefix(s, "liar") {
			counts[s]++
		}
	}
	for s, k := range counts {
		n.cfg.Metrics.PeersByStanding.WithLabelValues(s).Set(float64(k))
	}
}

// Giver returns the ID of the peer from which a NAR comes at the moment, "" when none does.
func (n *Node) Giver(nar nix.NarHash, form nix.Form) string {
	return n.trails.Giving(standing.Stream{Nar: nar, Form: form})
}

// Positive tells whether some peer's inventory says that it may share the path. It costs a
// few microseconds.
func (n *Node) Positive(h nix.StoreHash) bool {
	k := inventory.KeyOf(h.Question())
	for _, r := range n.table.all() {
		if r.has(k) {
			return true
		}
	}
	return false
}

// Holders returns the IDs of the connected peers whose inventory says that they may share
// the path.
func (n *Node) Holders(h nix.StoreHash) []string {
	ids := []string{}
	for _, r := range n.holders(nil, inventory.KeyOf(h.Question())) {
		ids = append(ids, r.key)
	}
	slices.Sort(ids)
	return ids
}
