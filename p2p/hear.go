package p2p

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"github.com/nixp2p/nixp2p/p2p/discovery"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/swarmkey"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

const (
	// idleSession ends a session over which not even pings come.
	idleSession = time.Minute
	// Who sends frames faster than these is read no faster.
	frameRate  = 20
	frameBurst = 200
	// maxViews bounds what all inventories together take: 256 of 100,000 paths take 61 MB.
	maxViews = 256 << 20
	// maxIncoming bounds those that are on their way in.
	maxIncoming = 64 << 20
	// spareMembers may come in beyond --max-peers when they ask: newcomers find all others
	// full otherwise.
	spareMembers = 4
)

// answerSessions lets peers open sessions to this node.
func (n *Node) answerSessions(ctx context.Context, h host.Host) {
	h.SetStreamHandler(siteProtocol, func(s network.Stream) {
		if !n.crew.enter() {
			_ = s.Reset()
			return
		}
		defer n.crew.leave()
		defer func() { _ = s.Reset() }()
		stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
		defer stop()
		r, _ := n.table.add(s.Conn().RemotePeer())
		err := n.hear(ctx, s, r)
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, errNotWelcome):
			n.log.Debug("stranger refused", "peer", r.id)
			n.expel(h, r, strangerFor)
		case errors.Is(err, wire.ErrFrame):
			n.offended(h, r, err)
		default:
			n.log.Debug("session from peer ended", "peer", r.id, "err", err)
		}
	})
}

// hear has the one who opens a session prove where it belongs, then takes what it tells.
func (n *Node) hear(ctx context.Context, s network.Stream, r *remote) error {
	room, err := n.receive(s, r)
	if err != nil || !room {
		_ = s.CloseWrite()
		return err
	}
	n.hearing(r, 1)
	defer n.hearing(r, -1)
	e := &ear{n: n, r: r, s: s, filters: rate.NewLimiter(rate.Every(inventory.FilterEvery), inventory.FilterBurst)}
	in := newStreamConn(s, r)
	frames := rate.NewLimiter(frameRate, frameBurst)
	for {
		_ = s.SetReadDeadline(time.Now().Add(idleSession))
		k, size, err := wire.ReadHead(in, 0)
		if err != nil {
			return err
		}
		if err := frames.Wait(ctx); err != nil {
			return err
		}
		if err := e.frame(ctx, in, k, size); err != nil {
			return err
		}
	}
}

// ear is the listening side of a session.
type ear struct {
	n       *Node
	r       *remote
	s       network.Stream
	filters *rate.Limiter
}

// frame takes one frame.
func (e *ear) frame(ctx context.Context, in io.Reader, k wire.Kind, size int) error {
	if k == wire.Filter {
		return e.filter(ctx, in, size)
	}
	body, err := wire.ReadBody(in, size)
	if err != nil {
		return err
	}
	switch k {
	case wire.Ping:
		_ = e.s.SetWriteDeadline(time.Now().Add(writeTime))
		_, err = e.s.Write(wire.AppendFrame(nil, wire.Pong, body))
	case wire.Changes:
		e.n.cfg.Metrics.InventoryBytes.WithLabelValues("received").Add(float64(len(body)))
		if err = e.r.view.Delta(body); err != nil {
			err = fmt.Errorf("%w: %w", wire.ErrFrame, err)
		}
	case wire.Peers:
		err = e.n.hearPeers(e.r, body)
	}
	return err
}

// filter takes an inventory. Large ones wait for each other: what is on its way in counts
// for nothing yet.
func (e *ear) filter(ctx context.Context, in io.Reader, size int) error {
	if err := e.filters.Wait(ctx); err != nil {
		return err
	}
	if err := e.n.incoming.Acquire(ctx, int64(size)); err != nil {
		return err
	}
	defer e.n.incoming.Release(int64(size))
	_ = e.s.SetReadDeadline(time.Now().Add(filterTime))
	body, err := wire.ReadBody(in, size)
	if err != nil {
		return err
	}
	e.n.cfg.Metrics.InventoryBytes.WithLabelValues("received").Add(float64(len(body)))
	return e.n.learn(e.r, body)
}

// hearing counts the sessions over which a peer is heard.
func (n *Node) hearing(r *remote, by int32) { r.member.Store(r.heardOver.Add(by) > 0) }

// receive is the answering side of introduce. It tells whether there is room for the peer's
// inventory.
func (n *Node) receive(s network.Stream, r *remote) (room bool, err error) {
	_ = s.SetDeadline(time.Now().Add(handshakeTime))
	defer func() { _ = s.SetDeadline(time.Time{}) }()
	pair := swarmkey.Pair{Opener: string(r.id), Answerer: string(n.self)}
	challenge := swarmkey.Challenge()
	if _, err := s.Write(wire.AppendFrame(nil, wire.Challenge, challenge)); err != nil {
		return false, err
	}
	k, proof, err := wire.ReadFrame(s, wire.Proof)
	if err != nil {
		return false, err
	}
	welcome, ok := n.swarm.Answer(pair, challenge, proof)
	if k != wire.Proof || !ok {
		_, _ = s.Write(wire.AppendFrame(nil, wire.Refused, nil))
		return false, errNotWelcome
	}
	r.letIn()
	kind := wire.Welcome
	if room = r.member.Load() || n.table.members() < n.cfg.MaxPeers+spareMembers; !room {
		kind = wire.Full
	}
	_, err = s.Write(wire.AppendFrame(nil, kind, welcome))
	return room, err
}

// learn takes a peer's inventory, if there is room for it among the others.
func (n *Node) learn(r *remote, body []byte) error {
	total := len(body)
	for _, o := range n.table.all() {
		if o != r {
			total += o.view.Bytes()
		}
	}
	if total > maxViews {
		n.log.Warn("no room for the inventory of a peer", "peer", r.id, "bytes", len(body))
		return nil
	}
	if err := r.view.Full(body); err != nil {
		return fmt.Errorf("%w: %w", wire.ErrFrame, err)
	}
	n.log.Debug("inventory", "peer", r.id, "paths", r.view.Count(), "bytes", len(body))
	return nil
}

// hearPeers takes addresses of other nodes. What is no address is passed over: it may be one
// to a newer node.
func (n *Node) hearPeers(r *remote, body []byte) error {
	list, err := wire.ParsePeers(body)
	if err != nil {
		return err
	}
	n.found(false, "peer", list)
	var known []neighbour
	for _, c := range n.contacts("peer", list) {
		if id, err := peer.Decode(c.Peer); err == nil && id != n.self && len(c.Addrs) > 0 && len(known) < peersTold {
			known = append(known, neighbour{id, c.Peer, c.Addrs[0]})
		}
	}
	r.knows.Store(&known)
	return nil
}

// found puts addresses into the book, those that have a peer ID together.
func (n *Node) found(alive bool, by string, list []string) {
	contacts := n.contacts(by, list)
	if n.book.Found(alive, contacts...) > 0 || alive {
		n.wakeFinder()
	}
}

// contacts sorts addresses by the peer to whom they lead, without those that the gate would
// refuse.
func (n *Node) contacts(by string, list []string) (contacts []discovery.Contact) {
	byPeer := map[string]int{}
	for _, s := range list {
		addr, id, err := parseAddr(s)
		if err != nil || hasIP(addr) && !n.gate.allowedAddr(addr) {
			continue
		}
		if id == "" {
			contacts = append(contacts, discovery.Contact{Addrs: []string{addr.String()}, FoundBy: by})
			continue
		}
		i, ok := byPeer[id.String()]
		if !ok {
			i = len(contacts)
			byPeer[id.String()] = i
			contacts = append(contacts, discovery.Contact{Peer: id.String(), FoundBy: by})
		}
		contacts[i].Addrs = append(contacts[i].Addrs, addr.String())
	}
	return contacts
}
