package site

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/nixp2p/nixp2p/p2p/machine"
)

// door counts the connections that others open, by machine: those whose handshake is not
// finished, which cost others nothing, and those with an identity. It is libp2p's
// ConnectionGater, asked before every dial and after every handshake.
type door struct {
	gate       *gate
	handshakes *machine.Shares[*doorConn]
	conns      *machine.Shares[*doorConn]
	known      func(peer.ID) bool // from before: its connections give way last
	accepted   atomic.Uint64      // connections that came in, those that were refused too

	mu     sync.Mutex
	byPeer map[peer.ID][]*doorConn
}

const (
	// Handshakes that are not finished: each costs some 30 kB. A machine that opens more than
	// maxHandshakesBy in handshakeSettle is refused, which costs next to nothing.
	maxHandshakes   = 512
	maxHandshakesBy = 256
	handshakeSettle = 100 * time.Millisecond
	// minConns is the most connections with few peers: each costs about 90 kB.
	minConns = 256
	// perPeerConns: two machines may dial each other at the same time, over two networks.
	perPeerConns = 8
)

func newDoor(g *gate, maxPeers int, known func(peer.ID) bool) *door {
	most := int64(max(minConns, 2*maxPeers))
	return &door{
		gate:       g,
		handshakes: machine.NewShares[*doorConn](machine.Limits{Total: maxHandshakes, Each: maxHandshakesBy, Settle: handshakeSettle}),
		conns:      machine.NewShares[*doorConn](machine.Limits{Total: most, Each: most * 3 / 4}),
		known:      known,
		byPeer:     make(map[peer.ID][]*doorConn),
	}
}

// enter takes in a new connection, or closes it.
func (d *door) enter(c tcpConn) (*doorConn, bool) {
	if !d.gate.allowedAddr(c.RemoteMultiaddr()) {
		_ = c.Close()
		return nil, false
	}
	dc := &doorConn{tcpConn: c, door: d, machine: machine.OfMultiaddr(c.RemoteMultiaddr())}
	gone, ok := d.handshakes.Put(dc.machine, dc, 1, false)
	for _, v := range gone {
		_ = v.tcpConn.Close() // the handshake fails, and closes v
	}
	if !ok {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
	return dc, ok
}

// secured notes that the other side of a connection has an identity, and reports whether there
// is room for it.
func (d *door) secured(id peer.ID, c network.ConnMultiaddrs) bool {
	dc, ok := c.(*doorConn)
	if !ok {
		return true // this node dialled it
	}
	d.handshakes.Remove(dc)
	gone, ok := d.conns.Put(dc.machine, dc, 1, d.known(id))
	for _, v := range gone {
		_ = v.tcpConn.Close() // the muxer notices, and closes v
	}
	if !ok {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if dc.closed {
		d.conns.Remove(dc)
		return false
	}
	dc.peer = id
	d.byPeer[id] = append(d.byPeer[id], dc)
	return true
}

// use notes that a peer's connections are of use.
func (d *door) use(id peer.ID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.byPeer[id] {
		d.conns.Use(c)
	}
}

// leave forgets a connection.
func (d *door) leave(c *doorConn) {
	d.handshakes.Remove(c)
	d.conns.Remove(c)
	d.mu.Lock()
	defer d.mu.Unlock()
	c.closed = true
	if c.peer == "" {
		return
	}
	list := d.byPeer[c.peer]
	for i, o := range list {
		if o == c {
			list[i] = list[len(list)-1]
			list = list[:len(list)-1]
			break
		}
	}
	if d.byPeer[c.peer] = list; len(list) == 0 {
		delete(d.byPeer, c.peer)
	}
}

// tcpConn is a TCP connection as libp2p's transport sets it up.
type tcpConn interface {
	manet.Conn
	SetLinger(sec int) error
	SetKeepAlive(on bool) error
	SetKeepAlivePeriod(d time.Duration) error
}

// doorConn is a connection that came in.
type doorConn struct {
	tcpConn
	door    *door
	machine machine.ID
	peer    peer.ID // once secured; under door.mu
	closed  bool    // under door.mu
	once    sync.Once
}

// Close is part of net.Conn.
func (c *doorConn) Close() error {
	c.once.Do(func() { c.door.leave(c) })
	return c.tcpConn.Close()
}

// InterceptPeerDial is part of ConnectionGater.
func (d *door) InterceptPeerDial(id peer.ID) bool { return !d.gate.bans.Has(id) }

// InterceptAddrDial is part of ConnectionGater.
func (d *door) InterceptAddrDial(_ peer.ID, m ma.Multiaddr) bool {
	return dialable(m) && d.gate.allowedAddr(m)
}

// InterceptAccept is part of ConnectionGater. Every connection has passed enter.
func (d *door) InterceptAccept(network.ConnMultiaddrs) bool { return true }

// InterceptSecured is part of ConnectionGater.
func (d *door) InterceptSecured(_ network.Direction, id peer.ID, c network.ConnMultiaddrs) bool {
	return !d.gate.bans.Has(id) && d.secured(id, c)
}

// InterceptUpgraded is part of ConnectionGater.
func (d *door) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

// guardedUpgrader has all connections that come in pass the door.
type guardedUpgrader struct {
	transport.Upgrader
	door *door
}

// GateMaListener is part of transport.Upgrader.
func (u guardedUpgrader) GateMaListener(l manet.Listener) transport.GatedMaListener {
	return u.Upgrader.GateMaListener(&doorListener{l, u.door})
}

type doorListener struct {
	manet.Listener
	door *door
}

// Accept is part of manet.Listener.
func (l *doorListener) Accept() (manet.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		l.door.accepted.Add(1)
		tc, ok := c.(tcpConn) // as manet documents for TCP
		if !ok {
			_ = c.Close()
			continue
		}
		if dc, ok := l.door.enter(tc); ok {
			return dc, nil
		}
	}
}
