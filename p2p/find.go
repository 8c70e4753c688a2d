package p2p

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/nixp2p/nixp2p/p2p/discovery"
	"github.com/nixp2p/nixp2p/p2p/mdns"
)

const (
	// dials go on at a time: handshakes cost CPU time, and all machines may start at once.
	dials    = 4
	dialTick = 500 * time.Millisecond
	dialTime = handshakeMost

	// lookEvery is how often the sources are looked at again, and two unknown addresses
	// tried: a site that fell into two halves grows together by that.
	lookEvery = 5 * time.Minute
	// lookAlone is the same while nobody is connected, fileTick how often a file is.
	lookAlone   = 10 * time.Second
	fileTick    = 2 * time.Second
	healUnknown = 2

	// houseTick is how often what events may have missed is put right.
	houseTick = 5 * time.Second
	saveEvery = 5 * time.Minute
	// guestTime is how long one stays of no use who is connected beyond the number of peers.
	guestTime = time.Minute
)

// wakeFinder has the book looked at now.
func (n *Node) wakeFinder() {
	select {
	case n.kick <- struct{}{}:
	default:
	}
}

// find dials whom the book says is due, and has the sources looked at.
func (n *Node) find(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	saved := n.loadPeers()
	for _, s := range n.sources {
		all.Go(func() { n.look(ctx, s) })
	}
	heal := time.NewTicker(lookEvery)
	defer heal.Stop()
	tick := time.NewTicker(dialTick)
	defer tick.Stop()
	free := make(chan struct{}, dials)
	for {
		for h := n.host.Load(); h != nil && n.table.members() < n.cfg.MaxPeers; {
			due := n.book.Due(time.Now(), 1)
			if len(due) == 0 {
				break
			}
			select {
			case free <- struct{}{}:
			case <-ctx.Done():
				return
			}
			all.Go(func() {
				n.dial(ctx, *h, due[0])
				<-free
			})
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-n.kick:
		case <-heal.C:
			n.tryUnknown("saved", saved)
		}
	}
}

// loadPeers puts those of last time into the book and returns them.
func (n *Node) loadPeers() []string {
	path := n.statePath("peers.json")
	if path == "" {
		return nil
	}
	saved, err := discovery.LoadSaved(path)
	if err != nil {
		n.log.Warn("peers of last time are forgotten", "err", err)
	}
	n.found(false, "saved", saved)
	return saved
}

// savePeers keeps the members for the next time.
func (n *Node) savePeers() {
	path, h := n.statePath("peers.json"), n.host.Load()
	if path == "" || h == nil {
		return
	}
	var list []string
	for _, r := range n.table.all() {
		if addrs := n.reachable(*h, r.id); r.view.Told() && len(addrs) > 0 {
			list = append(list, fullAddrs(peer.AddrInfo{ID: r.id, Addrs: addrs[:1]})...)
		}
	}
	if len(list) == 0 {
		return // a machine that was alone remembers whom it knew before
	}
	if err := discovery.Save(path, list); err != nil {
		n.log.Warn("peers are not saved", "err", err)
	}
}

// look asks one source for addresses, again and again.
func (n *Node) look(ctx context.Context, s *discovery.Source) {
	first := true
	for ctx.Err() == nil {
		addrs, err := s.Look(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			n.log.Debug("looking for peers", "source", s.Kind(), "err", err)
		case first || len(n.table.all()) == 0 || s.Kind() == "file":
			n.found(true, s.Kind(), addrs)
			first = false
		default:
			n.tryUnknown(s.Kind(), addrs)
		}
		next := time.Now().Add(lookEvery*4/5 + rand.N(lookEvery*2/5))
		alone := time.Now().Add(lookAlone)
		for now := time.Now(); now.Before(next); now = time.Now() {
			if !pause(ctx, fileTick) {
				return
			}
			if s.Changed() || len(n.table.all()) == 0 && now.After(alone) {
				break
			}
		}
	}
}

// tryUnknown puts a few addresses into the book to which there is no connection.
func (n *Node) tryUnknown(by string, addrs []string) {
	var unknown []discovery.Contact
	for _, c := range n.contacts(by, addrs) {
		if !n.book.Known(c) {
			unknown = append(unknown, c)
		}
	}
	rand.Shuffle(len(unknown), func(i, j int) { unknown[i], unknown[j] = unknown[j], unknown[i] })
	n.book.Found(false, unknown[:min(healUnknown, len(unknown))]...)
}

// dial connects to one contact.
func (n *Node) dial(ctx context.Context, h host.Host, c discovery.Contact) {
	ctx, cancel := context.WithTimeout(ctx, 2*dialTime) // identifying comes on top
	defer cancel()
	var addrs []ma.Multiaddr
	for _, s := range c.Addrs {
		if a, err := ma.NewMultiaddr(s); err == nil {
			addrs = append(addrs, a)
		}
	}
	id, err := peer.Decode(c.Peer)
	if c.Peer == "" {
		id, err = whoIs(ctx, h, addrs)
	}
	if err == nil && id != n.self {
		err = connect(ctx, h, peer.AddrInfo{ID: id, Addrs: addrs})
	}
	if err != nil {
		n.log.Debug("dial", "peer", c.Peer, "found_by", c.FoundBy, "err", err)
		n.book.Failed(c, time.Now())
		n.cfg.Metrics.PeerDials.WithLabelValues("failed").Inc()
		return
	}
	n.book.Reached(c, id.String(), time.Now())
	n.cfg.Metrics.PeerDials.WithLabelValues("ok").Inc()
}

func connect(ctx context.Context, h host.Host, info peer.AddrInfo) error {
	if s, ok := h.Network().(*swarm.Swarm); ok {
		s.Backoff().Clear(info.ID) // the book has its own
	}
	return h.Connect(network.WithDialPeerTimeout(ctx, dialTime), info)
}

// whoIs learns the peer ID at an address: a dial to somebody who cannot be there fails with
// the name of the one who is.
func whoIs(ctx context.Context, h host.Host, addrs []ma.Multiaddr) (peer.ID, error) {
	_, key, err := crypto.GenerateEd25519Key(crand.Reader)
	if err != nil {
		return "", err
	}
	nobody, err := peer.IDFromPublicKey(key)
	if err != nil {
		return "", err
	}
	defer h.Peerstore().RemovePeer(nobody)
	defer h.Peerstore().ClearAddrs(nobody)
	err = h.Connect(network.WithDialPeerTimeout(ctx, dialTime), peer.AddrInfo{ID: nobody, Addrs: addrs})
	var mismatch sec.ErrPeerIDMismatch
	if errors.As(err, &mismatch) {
		return mismatch.Actual, nil
	}
	if err == nil {
		err = errors.New("connected to nobody")
	}
	return "", err
}

// findOnLink looks for peers by multicast.
func (n *Node) findOnLink(ctx context.Context) {
	s, err := mdns.New(mdns.Config{
		ID:      n.self.String(),
		Listens: n.listens,
		Peers:   func() int { return len(n.table.all()) },
		Found:   func(addrs []string) { n.found(true, "mdns", addrs) },
		Log:     n.log,
	})
	if err != nil {
		n.log.Error("no multicast", "err", err)
		return
	}
	_ = s.Run(ctx)
}

// listens returns where this node listens.
func (n *Node) listens() (list []netip.AddrPort) {
	h := n.host.Load()
	if h == nil {
		return nil
	}
	for _, a := range (*h).Network().ListenAddresses() {
		if na, err := manet.ToNetAddr(a); err == nil {
			if ap, err := netip.ParseAddrPort(na.String()); err == nil {
				list = append(list, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
			}
		}
	}
	return list
}

// keepHouse puts right what events may have missed, sends guests home, and saves peers.
func (n *Node) keepHouse(ctx context.Context) {
	saved := time.Now()
	for pause(ctx, houseTick) {
		h := n.host.Load()
		if h == nil {
			return
		}
		n.coordinator.Expire(time.Now())
		all := n.table.all()
		for _, r := range all {
			switch {
			case (*h).Network().Connectedness(r.id) != network.Connected:
				if time.Since(r.since) > houseTick {
					n.parted(r.id)
				}
			case !n.admitted(r) && time.Since(r.since) > 2*handshakeTime:
				n.expel(*h, r, strangerFor) // it never said where it belongs
			}
		}
		n.sendHome(*h, all)
		n.cfg.Metrics.Peers.Set(float64(len(n.table.all())))
		n.countStandings()
		if time.Since(saved) > saveEvery {
			saved = time.Now()
			n.savePeers()
		}
	}
}

// sendHome hangs up on those beyond the number of peers whom nobody needed for a while: sooner
// when there are many. Who asks for something, is asked, or has a transfer, is needed.
func (n *Node) sendHome(h host.Host, all []*remote) {
	if len(all) <= n.cfg.MaxPeers {
		return
	}
	var guests []*remote
	for _, r := range all {
		if !r.member.Load() && r.busy.Load() == 0 {
			guests = append(guests, r)
		}
	}
	slices.SortFunc(guests, func(a, b *remote) int { return cmp.Compare(a.used.Load(), b.used.Load()) })
	for i, r := range guests {
		stay := guestTime
		if len(guests)-i > n.cfg.MaxPeers {
			stay = houseTick
		}
		if time.Since(time.Unix(0, r.used.Load())) > stay {
			n.book.Forget(r.key, time.Now(), fullAfter)
			n.hangUp(h, r.id)
		}
	}
}

// reachable returns the addresses of a connected peer that others may dial, as far as they
// are known.
func (n *Node) reachable(h host.Host, id peer.ID) (addrs []ma.Multiaddr) {
	for _, a := range h.Peerstore().Addrs(id) {
		if hasIP(a) && n.gate.allowedAddr(a) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// dialable returns addresses as text for the book.
func dialable(addrs []ma.Multiaddr) (list []string) {
	for _, a := range addrs {
		if hasIP(a) {
			list = append(list, a.String())
		}
	}
	return list
}

func hasIP(a ma.Multiaddr) bool {
	_, err := manet.ToIP(a)
	return err == nil
}
