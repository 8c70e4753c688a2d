// Package site tracks the connected peers of this node's site: it listens and dials, admits
// peers, keeps a session with each, exchanges inventories, and notices when one is gone.
// Whatever others can make it keep or do is bounded by machine (package machine).
//
// The files build on each other in this order, and none calls one above it: config, addr,
// gate (allowed networks, bans), door (connections that come in), host; peer, table, core
// (what all parts share); liveness, handshake, writer, reader (a session); dials, stream,
// sessions, dialloop, maintain, listen, explain; site.
package site

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/nixp2p/nixp2p/p2p/discovery"
	"github.com/nixp2p/nixp2p/p2p/machine"
)

// Site is the connected peers. It is safe for concurrent use. Run must be running; before
// and after, no peer is connected.
type Site struct {
	core     *core
	sessions *sessions
	loop     *dialLoop
	maintain *maintenance
	dials    *dials
	listener *listener
	parts    hostParts
	ready    chan struct{} // closed when the host is up
	started  atomic.Bool
}

// New returns a Site. It opens no socket and starts nothing.
func New(cfg Config) (*Site, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	parts, err := partsOf(&cfg)
	if err != nil {
		return nil, err
	}
	loop := &dialLoop{mdns: cfg.MDNS, onTwin: cfg.OnTwin}
	for _, b := range cfg.Bootstrap {
		src, err := discovery.Parse(b, cfg.Resolver)
		if err != nil {
			return nil, fmt.Errorf("site: bootstrap: %w", err)
		}
		loop.sources = append(loop.sources, src)
	}
	if cfg.Saved != nil {
		loop.saved = cfg.Saved.Load()
		loop.saved = loop.saved[:min(len(loop.saved), maxSaved)]
	}
	c, err := newCore(&cfg, parts.identity, loop.saved)
	if err != nil {
		return nil, err
	}
	loop.core = c
	parts.door = c.door
	ss := &sessions{
		core: c, local: cfg.Inventory, onLost: cfg.OnLost,
		taken: newInventories(cfg.MaxPeers, cfg.MaxInventoryBytes, c.door.known), name: cfg.Name,
	}
	ss.news.init()
	return &Site{
		core: c, sessions: ss, loop: loop, maintain: &maintenance{ss, cfg.Saved},
		dials: newDials(&c.tasks), listener: newListener(c.self), parts: parts, ready: make(chan struct{}),
	}, nil
}

// partsOf reads what the host is made of.
func partsOf(cfg *Config) (parts hostParts, err error) {
	parts = hostParts{identity: cfg.Identity, maxPeers: cfg.MaxPeers, addrs: &advertiser{loopback: listensOnLoopback(cfg.Listen)}}
	if parts.identity == nil {
		if parts.identity, _, err = crypto.GenerateEd25519Key(rand.Reader); err != nil {
			return parts, fmt.Errorf("site: identity: %w", err)
		}
	}
	for _, l := range cfg.Listen {
		m, err := ma.NewMultiaddr(l)
		if err != nil {
			return parts, fmt.Errorf("site: listen: %w", err)
		}
		parts.listen = append(parts.listen, m)
	}
	return parts, nil
}

func newCore(cfg *Config, key crypto.PrivKey, saved []string) (*core, error) {
	self, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("site: identity: %w", err)
	}
	c := &core{
		self: self, maxPeers: cfg.MaxPeers, keyFile: cfg.SwarmKeyFile,
		reports: reports{cfg.Log, cfg.Events, cfg.Conditions}, metrics: cfg.Metrics,
		gate: newGate(cfg), table: newPeerTable(cfg.Clock), book: discovery.NewBook(self.String()), wake: make(chan struct{}, 1),
	}
	known := make(map[peer.ID]bool)
	for _, s := range saved {
		if _, id, err := parseAddr(s); err == nil && id != "" {
			known[id] = true
		}
	}
	c.door = newDoor(c.gate, cfg.MaxPeers, func(id peer.ID) bool {
		if !known[id] || cfg.Banned == nil {
			return known[id]
		}
		_, banned := cfg.Banned(id.String())
		return !banned
	})
	return c, nil
}

// Run makes the node live until ctx ends. It waits for a swarm key that cannot be read, and for
// addresses to listen on that are taken. It returns an error when it is called a second time.
func (s *Site) Run(ctx context.Context) error {
	if s.started.Swap(true) {
		return errors.New("site: Run was called before")
	}
	if !s.core.readKeys(ctx) {
		return nil
	}
	h, err := newHost(s.parts)
	if err != nil {
		return fmt.Errorf("site: %w", err)
	}
	sub, err := h.EventBus().Subscribe(new(event.EvtPeerConnectednessChanged), eventbus.BufSize(1024), eventbus.Name("nixp2p"))
	if err != nil {
		_ = h.Close()
		return fmt.Errorf("site: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var parts sync.WaitGroup
	s.core.host.Store(&running{h})
	s.sessions.answer(ctx, h)
	s.answerRequests(ctx, h)
	// Before the first dial, which goes out from the address and port that others can dial.
	listen := &ports{s.core, slices.Clone(s.parts.listen)}
	if listen.open(h) {
		listen.sayListening(h)
	}
	parts.Go(func() { s.sessions.follow(ctx, h, sub) })
	parts.Go(func() { s.loop.run(ctx, h) })
	parts.Go(func() { s.maintain.run(ctx, h) })
	parts.Go(func() { listen.run(ctx, h) })
	parts.Go(func() { s.core.explain(ctx) })
	close(s.ready)
	<-ctx.Done()

	// No new work, then the host with its streams, then those that worked on them.
	s.maintain.save()
	s.core.host.Store(nil)
	_ = s.listener.Close()
	_ = sub.Close()
	_ = h.Close()
	parts.Wait()
	s.core.tasks.Close()
	for _, p := range s.core.table.all() {
		s.core.table.remove(p)
	}
	s.core.metrics.Peers.Set(0)
	return nil
}

// answerRequests gives the requests of admitted peers to the listener.
func (s *Site) answerRequests(ctx context.Context, h host.Host) {
	h.SetStreamHandler(httpProtocol, func(st network.Stream) {
		if p := s.sessions.meet(ctx, h, st.Conn()); p.Admitted() {
			s.listener.take(st, p)
		} else {
			_ = st.Reset()
		}
	})
}

// Ready is closed when the node can be reached, as far as its addresses are free.
func (s *Site) Ready() <-chan struct{} { return s.ready }

// ID returns this node's peer ID.
func (s *Site) ID() peer.ID { return s.core.self }

// Addrs returns the addresses, with the peer ID, under which others reach this node.
func (s *Site) Addrs() []string {
	h := s.core.host.Load()
	if h == nil {
		return nil
	}
	return fullAddrs(s.core.self, h.Addrs())
}

// Peers returns the connected peers, admitted or not. It takes no lock. The caller must not
// change the list.
func (s *Site) Peers() []*Peer { return s.core.table.all() }

// Peer returns a connected peer, nil if it is not connected.
func (s *Site) Peer(id peer.ID) *Peer { return s.core.table.get(id) }

// RoundTrip sends a request to a peer, on a stream of its own. The end of the request's
// context ends the reading of the body as well.
func (s *Site) RoundTrip(p *Peer, req *http.Request) (*http.Response, error) {
	return s.core.roundTrip(p, req)
}

// Listen returns the requests of admitted peers, for an http.Server. PeerOf reads their
// RemoteAddr.
func (s *Site) Listen() net.Listener { return s.listener }

// Connect returns a peer, and dials it if it is not connected: at addr (a multiaddr, "" if it
// is not known), or where another peer said that it is. All callers that want the same peer
// wait for one dial, which goes on when they give up.
func (s *Site) Connect(ctx context.Context, id peer.ID, addr string) (*Peer, error) {
	h := s.core.host.Load()
	if h == nil {
		return nil, errNotRunning
	}
	if p := s.core.table.get(id); p != nil && p.Admitted() {
		return p, nil
	}
	to := peer.AddrInfo{ID: id}
	var m machine.ID
	by, where := s.core.table.namedBy(id)
	if by != nil {
		m = by.Machine
	}
	for _, text := range []string{addr, where} {
		if a, _, err := parseAddr(text); err == nil && s.core.gate.allowedAddr(a) {
			to.Addrs = append(to.Addrs, a)
		}
	}
	d, err := s.dials.start(ctx, h.Host, to, m)
	if err == nil {
		err = d.wait(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("peer %s: %w", id, err)
	}
	p, err := s.core.table.admitted(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("peer %s: %w", id, err)
	}
	return p, nil
}

// Dialing reports whether Connect dials the peer, and not for long yet.
func (s *Site) Dialing(id peer.ID) bool { return s.dials.inProgress(id) }

// Unreachable reports whether Connect failed to reach the peer lately.
func (s *Site) Unreachable(id peer.ID) bool { return s.dials.failed.Has(id) }

// Ban disconnects a peer and keeps it out for some time.
func (s *Site) Ban(id peer.ID, why error, d time.Duration) {
	s.core.log.Debug("peer banned", "peer", id, "err", why)
	s.core.ban(id, d)
}

// Reachable returns the addresses, with the peer ID, of a connected peer that others may dial,
// as far as they are known.
func (s *Site) Reachable(id peer.ID) (list []string) {
	p := s.core.table.get(id)
	if p == nil {
		return nil
	}
	for _, a := range s.core.reachable(p) {
		list = append(list, a+"/p2p/"+p.Key)
	}
	return list
}

// RemoteAddrs returns the other ends of the connections to a peer.
func (s *Site) RemoteAddrs(id peer.ID) []string {
	list := []string{}
	if h := s.core.host.Load(); h != nil {
		for _, c := range h.Network().ConnsToPeer(id) {
			list = append(list, c.RemoteMultiaddr().String())
		}
	}
	return list
}

// FoundBy returns how a connected peer was found.
func (s *Site) FoundBy(id peer.ID) string { return s.core.book.FoundBy(id.String()) }

// Learn takes addresses of nodes, with their IDs, that a peer names, and returns their IDs.
// They are dialled in the background, as far as that peer's machine has places left.
func (s *Site) Learn(by *Peer, addrs []string) (ids []peer.ID) {
	for _, o := range s.core.learn(by, addrs) {
		ids = append(ids, o.ID)
	}
	return ids
}

// Host returns the host for the DHT, nil when the site is not running. On a closed site it
// answers and asks only admitted peers.
func (s *Site) Host() host.Host {
	h := s.core.host.Load()
	switch {
	case h == nil:
		return nil
	case len(s.core.keys) == 0:
		return h.Host
	}
	return admittedHost{h.Host, s.core.table}
}

// InventoryChanged has the peers told what changed in the local inventory.
func (s *Site) InventoryChanged() { s.sessions.news.fire() }

// SetZone says which zone this node is in, "" if none, and tells the peers.
func (s *Site) SetZone(zone string) {
	s.core.zone.Store(&zone)
	s.sessions.news.fire()
}

// Zone returns the zone that this node is in, "" if none.
func (s *Site) Zone() string { return s.core.ownZone() }
