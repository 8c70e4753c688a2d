package p2p

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/dht"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/verify"
)

const (
	// tellEvery is how long changes are collected before neighbours are told.
	tellEvery = time.Second
	// recount is how often everything is gone through again, in case a change was missed.
	recount = 10 * time.Minute
	// largeNAR are announced in the DHT: smaller ones cost an upstream a round trip and few
	// bytes, and are most of a store.
	largeNAR = 1 << 20
)

// share is what this machine told of itself, beside the inventory: which NARs it announced.
type share struct {
	mu             sync.Mutex
	added, removed []Held // not told yet

	large map[inventory.Key]nix.NarHash
	nars  map[nix.NarHash]int // paths that have this NAR
}

func newShare() *share {
	return &share{large: map[inventory.Key]nix.NarHash{}, nars: map[nix.NarHash]int{}}
}

// Changed says that paths have come to be shared or are not any more. Neighbours are told
// within some seconds. It does not block.
func (n *Node) Changed(added, removed []Held) {
	n.share.mu.Lock()
	defer n.share.mu.Unlock()
	n.share.added = append(n.share.added, added...)
	n.share.removed = append(n.share.removed, removed...)
}

func (s *share) take() (added, removed []Held) {
	s.mu.Lock()
	defer s.mu.Unlock()
	added, removed = s.added, s.removed
	s.added, s.removed = nil, nil
	return added, removed
}

// keepShare tells the neighbours and the DHT what this machine shares.
func (n *Node) keepShare(ctx context.Context) {
	var counted time.Time
	leave := n.leave
	for {
		switch {
		case leave == nil: // it shares nothing any more
		case n.draining.Load():
			leave = nil
			n.withdraw()
		default:
			if time.Since(counted) >= recount {
				n.count(ctx)
				counted = time.Now()
			}
			n.apply(ctx)
		}
		switch news, err := n.own.Flush(time.Now()); {
		case err != nil:
			n.log.Error("no inventory", "err", err)
		case news:
			n.news.fire()
		}
		tick := time.NewTimer(tellEvery)
		select {
		case <-ctx.Done():
		case <-leave:
		case <-tick.C:
		}
		tick.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// withdraw takes back all that was told.
func (n *Node) withdraw() {
	n.own.Replace(nil)
	var gone []nix.NarHash
	for k := range n.share.large {
		gone = n.share.drop(k, gone)
	}
	n.announce(nil, gone)
}

// Drain withdraws this node from the site, which it is about to leave: others are told that it
// shares nothing, and nobody begins an upload or asks it as coordinator any more. It returns
// when the uploads that were going on have ended, or ctx has.
func (n *Node) Drain(ctx context.Context) {
	if !n.draining.CompareAndSwap(false, true) {
		return
	}
	close(n.leave)
	for n.sending.busy() && pause(ctx, drainTick) {
	}
}

const drainTick = 50 * time.Millisecond

// count goes through everything that is shared.
func (n *Node) count(ctx context.Context) {
	keys := map[inventory.Key]struct{}{}
	large := map[inventory.Key]nix.NarHash{}
	if n.cfg.Holder != nil {
		for h := range n.cfg.Holder.Held(ctx) {
			k := inventory.KeyOf(h.Question)
			keys[k] = struct{}{}
			if h.NarSize >= largeNAR {
				large[k] = h.NarHash
			}
		}
	}
	if ctx.Err() != nil {
		return // it may not have been everything
	}
	n.own.Replace(keys)
	var come, gone []nix.NarHash
	for k, nar := range n.share.large {
		if large[k] != nar {
			gone = n.share.drop(k, gone)
		}
	}
	for k, nar := range large {
		come = n.share.put(k, nar, come)
	}
	n.announce(come, gone)
}

// apply works off the changes.
func (n *Node) apply(ctx context.Context) {
	added, removed := n.share.take()
	var come, gone []nix.NarHash
	for _, h := range added {
		k := inventory.KeyOf(h.Question)
		n.own.Add(k)
		if h.NarSize >= largeNAR {
			come = n.share.put(k, h.NarHash, come)
		}
	}
	for _, h := range removed {
		// It may have left the store and still be in the cache.
		if n.cfg.Holder != nil {
			if _, err := n.cfg.Holder.Info(ctx, h.Question); !errors.Is(err, fs.ErrNotExist) {
				continue
			}
		}
		k := inventory.KeyOf(h.Question)
		n.own.Remove(k)
		gone = n.share.drop(k, gone)
	}
	n.announce(come, gone)
}

func (n *Node) announce(come, gone []nix.NarHash) {
	d := n.dht.Load()
	if d == nil {
		return
	}
	if len(come) > 0 {
		d.Provide(come)
	}
	if len(gone) > 0 {
		d.Withdraw(gone)
	}
}

// put notes that the path has this NAR, and appends it to come if no other path has.
func (s *share) put(k inventory.Key, nar nix.NarHash, come []nix.NarHash) []nix.NarHash {
	if old, ok := s.large[k]; ok && old == nar {
		return come
	}
	s.large[k] = nar
	if s.nars[nar]++; s.nars[nar] == 1 {
		come = append(come, nar)
	}
	return come
}

// drop is the reverse of put.
func (s *share) drop(k inventory.Key, gone []nix.NarHash) []nix.NarHash {
	nar, ok := s.large[k]
	if !ok {
		return gone
	}
	delete(s.large, k)
	if s.nars[nar]--; s.nars[nar] <= 0 {
		delete(s.nars, nar)
		gone = append(gone, nar)
	}
	return gone
}

const (
	// lookupWait is how long a caller waits for the DHT; the look-up itself goes on for
	// lookupTime and its result is there for the next one.
	lookupWait = 20 * time.Millisecond
	lookupTime = 4 * time.Second
	// foundFor and missedFor are how long a result holds.
	foundFor  = time.Minute
	missedFor = 30 * time.Second
	// maxLookups go on at a time, maxFound results are kept.
	maxLookups = 16
	maxFound   = 1024
	// reach is how many providers are connected to.
	reachMost = 4
)

// Where all nodes exchange inventories the DHT knows nothing that they do not, and costs each of
// them CPU time that a busy site has not: it is for those beyond.

// unheard tells whether there may be a node whose inventory is not known here.
func (n *Node) unheard() bool {
	now := time.Now().UnixNano()
	return n.beyond(func(r *remote) bool { return r.member.Load() && r.mutedTill.Load() < now })
}

// untold tells whether there may be a node that does not get this one's inventory.
func (n *Node) untold() bool {
	return n.beyond(func(r *remote) bool { return r.told.Load() })
}

// beyond tells whether a node is known that is not near: connected, or named by one that is.
func (n *Node) beyond(near func(*remote) bool) bool {
	in := map[peer.ID]bool{n.self: true}
	for _, r := range n.table.all() {
		if !near(r) {
			return true
		}
		in[r.id] = true
	}
	for o := range n.neighbours {
		if !in[o.id] {
			return true
		}
	}
	return false
}

// lookups are those of the DHT, detached from who asked.
type lookups struct {
	mu      sync.Mutex
	byNAR   map[nix.NarHash]*lookup
	running int
}

type lookup struct {
	done  chan struct{}
	peers []peer.ID // valid when done
	until time.Time
}

// providers returns peers that the DHT says have a NAR and that are connected, as far as that
// is known within lookupWait.
func (n *Node) providers(ctx context.Context, nar nix.NarHash) []peer.ID {
	d, h := n.dht.Load(), n.host.Load()
	if d == nil || h == nil || !n.unheard() {
		return nil
	}
	l := n.lookup(ctx, d, *h, nar)
	if l == nil {
		return nil
	}
	t := time.NewTimer(lookupWait)
	defer t.Stop()
	select {
	case <-l.done:
		return l.peers
	case <-t.C:
	case <-ctx.Done():
	}
	return nil
}

// Providers asks the DHT who announced a NAR, and waits for the answer: up to some seconds.
// It is for people who want to know; NAR does not wait. The IDs are of those who could be
// connected to.
func (n *Node) Providers(ctx context.Context, nar nix.NarHash) []string {
	d, h := n.dht.Load(), n.host.Load()
	ids := []string{}
	if d == nil || h == nil {
		return ids
	}
	l := n.lookup(ctx, d, *h, nar)
	if l == nil {
		return ids
	}
	select {
	case <-l.done:
	case <-ctx.Done():
		return ids
	}
	for _, id := range l.peers {
		ids = append(ids, id.String())
	}
	return ids
}

// Find asks the DHT who announced info's NAR and waits for the answer, as far as ctx lets it. It
// tells whether somebody could be connected to, for whom NAR may then be asked. What nobody
// announces, and what no share key signed, is not looked for.
func (n *Node) Find(ctx context.Context, info *verify.Info) bool {
	if !info.SignedByAny(n.cfg.ShareKeys) || info.NarSize() < largeNAR || !n.unheard() {
		return false
	}
	return len(n.Providers(ctx, info.NarHash())) > 0
}

// lookup returns the look-up for a NAR, a new one if there is none; nil when there are too
// many.
func (n *Node) lookup(ctx context.Context, d *dht.DHT, h host.Host, nar nix.NarHash) *lookup {
	ls := &n.lookups
	ls.mu.Lock()
	defer ls.mu.Unlock()
	now := time.Now()
	if l := ls.byNAR[nar]; l != nil && (l.until.IsZero() || l.until.After(now)) {
		return l
	}
	if ls.running >= maxLookups || !n.crew.enter() {
		n.cfg.Metrics.DHTLookups.WithLabelValues("dropped").Inc()
		return nil
	}
	for k, l := range ls.byNAR {
		if len(ls.byNAR) >= maxFound && !l.until.IsZero() || !l.until.IsZero() && l.until.Before(now) {
			delete(ls.byNAR, k)
		}
	}
	if ls.byNAR == nil {
		ls.byNAR = make(map[nix.NarHash]*lookup)
	}
	l := &lookup{done: make(chan struct{})}
	ls.byNAR[nar] = l
	ls.running++
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookupTime)
	go func() {
		defer n.crew.leave()
		defer cancel()
		stop := context.AfterFunc(d.Context(), cancel)
		defer stop()
		peers := n.lookUp(ctx, d, h, nar)
		ls.mu.Lock()
		defer ls.mu.Unlock()
		ls.running--
		l.peers, l.until = peers, time.Now().Add(missedFor)
		result := "none"
		if len(peers) > 0 {
			l.until, result = time.Now().Add(foundFor), "found"
		}
		n.cfg.Metrics.DHTLookups.WithLabelValues(result).Inc()
		close(l.done)
	}()
	return l
}

// lookUp asks the DHT and connects to some of those whom it names.
func (n *Node) lookUp(ctx context.Context, d *dht.DHT, h host.Host, nar nix.NarHash) (ids []peer.ID) {
	start := time.Now()
	for _, p := range d.Find(ctx, nar) {
		if p.ID == n.self || len(ids) >= reachMost || slices.Contains(ids, p.ID) {
			continue
		}
		if h.Network().Connectedness(p.ID) != network.Connected && connect(ctx, h, p) != nil {
			continue
		}
		r, _ := n.table.add(p.ID)
		select {
		case <-r.in:
		case <-ctx.Done():
			if !n.admitted(r) {
				continue
			}
		}
		ids = append(ids, p.ID)
	}
	n.log.Debug("looked up in the DHT", "nar", nar, "took", time.Since(start), "providers", len(ids))
	return ids
}

// dhtConfig says how the DHT works here.
func (n *Node) dhtConfig(h host.Host) dht.Config {
	return dht.Config{Host: siteHost{h, n}, Wanted: n.untold, Log: n.log}
}

// siteHost is the host as the DHT sees it: on a closed site nobody is answered or asked who
// has not been let in.
type siteHost struct {
	host.Host
	n *Node
}

// SetStreamHandler is part of host.Host.
func (s siteHost) SetStreamHandler(id protocol.ID, handle network.StreamHandler) {
	s.Host.SetStreamHandler(id, func(st network.Stream) {
		if !s.n.admitted(s.n.table.get(st.Conn().RemotePeer())) && len(s.n.swarm) > 0 {
			_ = st.Reset()
			return
		}
		handle(st)
	})
}

// NewStream is part of host.Host.
func (s siteHost) NewStream(ctx context.Context, id peer.ID, protocols ...protocol.ID) (network.Stream, error) {
	if len(s.n.swarm) > 0 {
		if err := s.Connect(ctx, peer.AddrInfo{ID: id}); err != nil {
			return nil, err
		}
		r, _ := s.n.table.add(id)
		select {
		case <-r.in:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return s.Host.NewStream(ctx, id, protocols...)
}
