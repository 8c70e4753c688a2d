package site

import (
	"context"
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"

	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

const (
	// againAfter is when a session that broke is opened again, foreignAfter the same with a
	// peer that has no sessions: a program of another kind, or a much older or newer one.
	againAfter   = time.Second
	foreignAfter = time.Minute
)

// sessions keeps a session with every connected peer.
type sessions struct {
	*core
	taken  *inventories
	local  *inventory.Local
	news   signal // the local inventory or the zone has changed
	onLost func(*Peer)
	name   string // of this machine, for peers; "" if names are not exchanged
}

// follow has a session with every peer that is connected, until ctx ends.
func (s *sessions) follow(ctx context.Context, h host.Host, sub event.Subscription) {
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-sub.Out():
			if !ok {
				return
			}
			c, ok := e.(event.EvtPeerConnectednessChanged)
			if !ok {
				continue
			}
			// The event may be old: what counts is how it is now.
			if conns := h.Network().ConnsToPeer(c.Peer); len(conns) > 0 {
				s.meet(ctx, h, conns[0])
			} else if p := s.table.get(c.Peer); p != nil {
				s.lost(p)
			}
		}
	}
}

// meet returns the peer at the other end of a connection. The first call for a connected peer
// makes it known and starts its session: there is never a second one.
func (s *sessions) meet(ctx context.Context, h host.Host, conn network.Conn) *Peer {
	id := conn.RemotePeer()
	if p := s.table.get(id); p != nil {
		return p
	}
	ctx, end := context.WithCancel(ctx)
	p, fresh := s.table.add(id, func() *Peer {
		p := newPeer(id, machine.OfMultiaddr(conn.RemoteMultiaddr()), end, &s.table.pulse)
		p.Host = machine.HostOf(conn.RemoteMultiaddr())
		p.usage.touch = func() {
			s.door.use(id)
			s.taken.use(p)
		}
		if len(s.keys) == 0 {
			p.session.admit()
		}
		return p
	})
	if !fresh {
		end()
		return p
	}
	s.book.Connected(p.Key)
	s.seenAt(id, s.book.Addrs(p.Key))
	s.metrics.Peers.Set(float64(len(s.table.all())))
	s.log.Debug("peer connected", "peer", id, "found_by", s.book.FoundBy(p.Key))
	if !s.tasks.Go(func() { s.keep(ctx, h, p) }) {
		end()
	}
	return p
}

// lost forgets a peer that is not connected any more.
func (s *sessions) lost(p *Peer) {
	if !s.table.remove(p) {
		return
	}
	p.session.end()
	s.taken.lost(p)
	if !s.gate.bans.Has(p.ID) {
		s.book.Lost(p.Key, p.Machine, s.reachable(p), time.Now())
	}
	s.metrics.Peers.Set(float64(len(s.table.all())))
	s.log.Debug("peer disconnected", "peer", p.ID)
	if s.onLost != nil {
		s.onLost(p)
	}
	s.wakeDialLoop()
}

// keep keeps a session open while the peer is connected.
func (s *sessions) keep(ctx context.Context, h host.Host, p *Peer) {
	defer p.session.end()
	for ctx.Err() == nil {
		at := addressOf(h, p) // afterwards it may be gone
		err := s.once(ctx, h, p)
		if ctx.Err() != nil {
			return
		}
		s.metrics.PeerSessionsEnded.WithLabelValues(reasonOf(err)).Inc()
		wait := againAfter
		switch {
		case errors.Is(err, errNotAdmitted):
			s.strangeSite(at)
			pause(ctx, refusalTime) // the other side is told by its own session
			s.ban(p.ID, unadmittedBan)
			return
		case errors.Is(err, errDead):
			s.log.Debug("peer is silent", "peer", p.ID, "silent", p.Silent())
			s.disconnect(p.ID)
			return
		case errors.Is(err, errDeadConn):
			wait = 0
		case errors.Is(err, errFull):
			wait = fullAfter
		case errors.As(err, new(multistream.ErrNotSupported[protocol.ID])):
			wait = foreignAfter
		case errors.Is(err, wire.ErrFrame):
			s.violated(p, err)
			return
		}
		s.log.Debug("session ended", "peer", p.ID, "err", err)
		if !pause(ctx, wait) {
			return
		}
	}
}

// refusalTime is how long a connection outlives a refusal on it.
const refusalTime = time.Second

// strangeFor is how long a node of another site is shown.
const strangeFor = 10 * time.Minute

// strangeSite reports a node that has another secret, or none where this one has one. Only the last
// one is kept: others can make any number.
func (s *sessions) strangeSite(at string) {
	text := "there is a nixp2p at " + at + " with another swarm key, or without one: it is no peer"
	if len(s.keys) == 0 {
		text = "there is a nixp2p at " + at + " with a swarm key, and this one has none: it is no peer"
	}
	c := source.Condition{Part: source.PartPeers, Text: text, Hint: "machines of one site have the same --swarm-key-file; those of different sites need nothing"}
	s.conditions.ReportFor(s.log, "other-site", c, strangeFor)
}

// addressOf returns where a peer is, for people.
func addressOf(h host.Host, p *Peer) string {
	if conns := h.Network().ConnsToPeer(p.ID); len(conns) > 0 {
		if ip, ok := machine.Addr(conns[0].RemoteMultiaddr()); ok {
			return ip.String()
		}
	}
	return "an unknown address"
}

// reasonOf returns the metric label for why a session ended.
func reasonOf(err error) string {
	switch {
	case errors.Is(err, errNotAdmitted):
		return "stranger"
	case errors.Is(err, errDead), errors.Is(err, errDeadConn):
		return "silent"
	case errors.Is(err, errFull):
		return "full"
	case errors.Is(err, wire.ErrFrame), errors.As(err, new(multistream.ErrNotSupported[protocol.ID])):
		return "protocol"
	}
	return "lost"
}

// once opens a session and keeps it until it breaks.
func (s *sessions) once(ctx context.Context, h host.Host, p *Peer) error {
	sctx, cancel := context.WithTimeout(network.WithNoDial(ctx, "session"), handshakeTime)
	st, err := h.NewStream(sctx, p.ID, siteProtocol)
	cancel()
	if err != nil {
		return err
	}
	defer func() { _ = st.Reset() }()
	stop := context.AfterFunc(ctx, func() { _ = st.Reset() })
	defer stop()
	in := newStreamConn(st, p)
	if err := introduce(in, s.keys, s.self, p.ID, func() { s.table.admit(p) }); err != nil {
		return err
	}
	p.session.elsewhere.again()
	p.session.takesOurs.Store(true)
	defer p.session.takesOurs.Store(false)

	ctx, cancel = context.WithCancel(ctx)
	defer cancel()
	pongs := make(chan []byte, 1)
	done := make(chan error, 1)
	go func() {
		defer close(done)
		done <- readPongs(ctx, in, pongs)
	}()
	err = s.writer(p, in).run(ctx, pongs, done)
	if errors.Is(err, errDeadConn) {
		s.tasks.Go(func() { _ = st.Conn().Close() })
	}
	cancel()
	_ = st.Reset()
	for range done { // until the goroutine has ended
	}
	return err
}

func (s *sessions) writer(p *Peer, in *streamConn) *sessionWriter {
	return &sessionWriter{
		peer: p, conn: in.conn, stream: in, local: s.local, news: &s.news,
		sent:     func(n int) { s.metrics.InventoryBytes.WithLabelValues("sent").Add(float64(n)) },
		isolated: s.table.isolated,
		named:    func() []byte { return s.others(p) },
		name:     s.name,
		zone:     zoneNews{own: s.ownZone},
		every: func() time.Duration {
			if s.table.members() >= s.maxPeers || len(p.session.elsewhere.news()) > 0 {
				return peersOften
			}
			return peersEvery
		},
	}
}

// answer serves the sessions that peers open.
func (s *sessions) answer(ctx context.Context, h host.Host) {
	h.SetStreamHandler(siteProtocol, func(st network.Stream) {
		defer func() { _ = st.Reset() }()
		leave, ok := s.tasks.Enter()
		if !ok {
			return
		}
		defer leave()
		p := s.meet(ctx, h, st.Conn())
		s.cameFrom(st.Conn())
		at := addressOf(h, p)
		err := s.hear(ctx, st, p)
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, errNotAdmitted):
			s.log.Debug("peer not admitted", "peer", p.ID)
			s.strangeSite(at)
			// The refusal has to arrive before the connection ends: the other side reports it.
			_ = st.SetReadDeadline(time.Now().Add(refusalTime))
			_, _ = st.Read(make([]byte, 1))
			s.ban(p.ID, unadmittedBan)
		case errors.Is(err, wire.ErrFrame):
			s.violated(p, err)
		default:
			s.log.Debug("session from peer ended", "peer", p.ID, "err", err)
		}
	})
}

// hear has a peer that opens a session prove that it belongs to the site, then takes what it
// tells.
func (s *sessions) hear(ctx context.Context, st network.Stream, p *Peer) error {
	ctx, abort := context.WithCancel(ctx)
	defer abort()
	stop := context.AfterFunc(ctx, func() { _ = st.Reset() })
	defer stop()
	in := newStreamConn(st, p)
	leave := func() {}
	room, err := receive(in, s.keys, s.self, p.ID, func() bool {
		s.table.admit(p)
		if l := s.taken.admit(p, abort); l != nil {
			leave = l
			return true
		}
		return false
	})
	defer func() { leave() }()
	if err != nil || !room {
		_ = st.CloseWrite()
		return err
	}
	r := newSessionReader(p, in, s.taken)
	r.received = func(n int) { s.metrics.InventoryBytes.WithLabelValues("received").Add(float64(n)) }
	r.names = s.name != ""
	r.named = func(addrs []string) {
		named := s.learn(p, addrs)
		p.neighbours.Store(&named)
	}
	return r.run(ctx)
}

// pause waits, or returns false when ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
