package site

import (
	"context"
	crand "crypto/rand"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	ma "github.com/multiformats/go-multiaddr"
)

// Machines that were made from one image have one identity. Each of them finds out by itself when it
// dials another one (identify). To a third machine they are one peer with several addresses, as a
// machine with several networks is: it tells the peer what other addresses it has seen, and the peer
// dials those that are not its own.

const (
	twinTries = 3
	twinPause = 300 * time.Millisecond
	// maxElsewhere bounds the addresses of which a peer is told in one session.
	maxElsewhere = 8
)

// elsewhere is where the identity of a connected peer is said to be, beside the address from which it is
// connected. It is safe for concurrent use.
type elsewhere struct {
	mu    sync.Mutex
	addrs []string
	told  int // how many of them the peer was told
}

func (e *elsewhere) add(addr string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.addrs) < maxElsewhere && !slices.Contains(e.addrs, addr) {
		e.addrs = append(e.addrs, addr)
	}
}

// news returns the addresses that the peer was not told.
func (e *elsewhere) news() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.addrs[e.told:])
}

// take is news, and from then on they are none.
func (e *elsewhere) take() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := slices.Clone(e.addrs[e.told:])
	e.told = len(e.addrs)
	return list
}

// again lets all be told in a session that begins: of several machines with one identity another one may
// be at its end.
func (e *elsewhere) again() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.told = 0
}

// seenAt notes addresses at which a connected peer is said to be.
func (c *core) seenAt(id peer.ID, addrs []string) {
	h, p := c.host.Load(), c.table.get(id)
	if h == nil || p == nil {
		return
	}
	conns := h.Network().ConnsToPeer(id)
	for _, text := range addrs {
		a, _, err := parseAddr(text)
		if err == nil && !slices.ContainsFunc(conns, func(c network.Conn) bool { return c.RemoteMultiaddr().Equal(a) }) {
			p.session.elsewhere.add(text)
		}
	}
}

// cameFrom notes where a connection of a peer comes from that has another one already.
func (c *core) cameFrom(conn network.Conn) {
	h, p := c.host.Load(), c.table.get(conn.RemotePeer())
	if h == nil || p == nil {
		return
	}
	at := conn.RemoteMultiaddr()
	for _, other := range h.Network().ConnsToPeer(p.ID) {
		if from := other.RemoteMultiaddr(); !from.Equal(at) {
			p.session.elsewhere.add(from.String())
			p.session.elsewhere.add(at.String())
		}
	}
}

// identify learns who is at an address. Twin means that it is another machine with this node's
// identity: a connection to oneself would have come in here meanwhile. Others may come in as well,
// so that it is tried a few times.
func (d *dialLoop) identify(ctx context.Context, h host.Host, addrs []ma.Multiaddr) (id peer.ID, twin bool, err error) {
	for range twinTries {
		before := d.door.accepted.Load()
		id, err = whoIs(ctx, h, addrs)
		if err != nil || id != d.self {
			return id, false, err
		}
		if d.door.accepted.Load() == before {
			return id, true, nil
		}
		if !pause(ctx, rand.N(twinPause)) {
			break
		}
	}
	return id, false, nil
}

// whoIs learns the peer ID at an address: a dial to a peer that cannot be there fails with
// the ID of the one that is.
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
