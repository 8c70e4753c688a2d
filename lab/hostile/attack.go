package hostile

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	"github.com/nixp2p/nixp2p/p2p/wire"
)

// wait waits for the node that is attacked.
func (p *Peer) wait(ctx context.Context) error {
	select {
	case <-p.met:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Changes sends the node count changes of the inventory, and returns how many it accepted.
func (p *Peer) Changes(ctx context.Context, count int) (sent int, err error) {
	if err := p.wait(ctx); err != nil {
		return 0, err
	}
	const keys = 10_000
	list := make([]byte, 9+8*keys)
	list[0] = 1
	binary.BigEndian.PutUint32(list[1:], keys)
	for ; sent < count; sent += keys {
		for k := range keys {
			binary.BigEndian.PutUint64(list[9+8*k:], uint64(sent+k)*0x9e3779b97f4a7c15)
		}
		_ = p.session.SetWriteDeadline(time.Now().Add(timeout))
		if _, err := p.session.Write(wire.AppendFrame(nil, wire.Changes, list)); err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// Loris opens up to count streams and sends a request over each, a byte a second, until ctx
// ends. It returns how many were open at the same time.
func (p *Peer) Loris(ctx context.Context, count int) (open int, err error) {
	if err := p.wait(ctx); err != nil {
		return 0, err
	}
	var all sync.WaitGroup
	defer all.Wait()
	for range count {
		sctx, cancel := context.WithTimeout(network.WithNoDial(ctx, "loris"), timeout)
		s, err := p.host.NewStream(sctx, p.target, httpProtocol)
		cancel()
		if err != nil {
			return open, err
		}
		if _, err := s.Write([]byte("G")); err != nil {
			_ = s.Reset()
			return open, err
		}
		open++
		all.Go(func() {
			defer func() { _ = s.Reset() }()
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for range 1000 {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
				if _, err := s.Write([]byte("E")); err != nil {
					return
				}
			}
		})
	}
	return open, nil
}

// Connections opens up to count silent connections to the node, each from another identity, and
// holds them until ctx ends. It returns how many succeeded; held is called after the last attempt.
func (p *Peer) Connections(ctx context.Context, count int, held func()) (int, error) {
	if err := p.wait(ctx); err != nil {
		return 0, err
	}
	addrs := p.host.Peerstore().Addrs(p.target)
	if len(addrs) == 0 {
		return 0, errors.New("its address is not known")
	}
	var made atomic.Int32
	var all sync.WaitGroup
	defer all.Wait()
	free := make(chan struct{}, 16)
	for range count {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return int(made.Load()), nil
		}
		all.Go(func() {
			c, err := p.connect(ctx, peer.AddrInfo{ID: p.target, Addrs: addrs})
			<-free
			if err != nil {
				return
			}
			made.Add(1)
			<-ctx.Done()
			_ = c.Close()
		})
	}
	for range cap(free) {
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
		}
	}
	held()
	<-ctx.Done()
	return int(made.Load()), nil
}

// connect makes one connection from an identity of its own.
func (p *Peer) connect(ctx context.Context, to peer.AddrInfo) (transport.CapableConn, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	muxers := []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: yamux.DefaultTransport}}
	secure, err := libp2ptls.New(libp2ptls.ID, key, muxers)
	if err != nil {
		return nil, err
	}
	limits := &network.NullResourceManager{}
	up, err := upgrader.New([]sec.SecureTransport{secure}, muxers, nil, limits, nil)
	if err != nil {
		return nil, err
	}
	t, err := tcp.NewTCPTransport(up, limits, nil)
	if err != nil {
		return nil, err
	}
	return t.Dial(ctx, to.Addrs[0], to.ID)
}
