// Package liar is a peer that does what it should not: it says that it has paths and answers
// as it is told to, in bytes of the caller's own making. It keeps to the protocol only as far
// as others would not talk to it otherwise. It judges nothing.
package liar

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/swarmkey"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

const (
	httpProtocol = protocol.ID("/nixp2p/http/1")
	siteProtocol = protocol.ID("/nixp2p/site/1")

	// timeout bounds each step of its own.
	timeout = 10 * time.Second
)

// Config says how a Liar behaves.
type Config struct {
	// Claim is what it says it has.
	Claim []nix.StoreHash
	// Filter is what it sends instead, as on the wire.
	Filter []byte
	// Answer writes a whole HTTP response; the stream ends with it. nil: 404.
	Answer func(ask wire.Request, off int64, w io.Writer)
}

// Liar is a node on a loopback address. The caller closes it.
type Liar struct {
	cfg    Config
	host   host.Host
	filter []byte

	mu      sync.Mutex
	tells   map[peer.ID]bool
	victim  peer.ID // the first that spoke to it
	session network.Stream
	met     chan struct{} // closed when there is a session to it

	all  sync.WaitGroup
	done chan struct{}
}

// New starts a Liar.
func New(cfg Config) (*Liar, error) {
	h, err := libp2p.New(
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.NoTransports, libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.DisableRelay(), libp2p.ForceReachabilityPrivate(), libp2p.DisableMetrics(),
	)
	if err != nil {
		return nil, err
	}
	l := &Liar{cfg: cfg, host: h, filter: cfg.Filter, tells: map[peer.ID]bool{}, met: make(chan struct{}), done: make(chan struct{})}
	if l.filter == nil {
		own, keys := inventory.NewOwn(), map[inventory.Key]struct{}{}
		for _, hash := range cfg.Claim {
			keys[inventory.KeyOf(hash.Question())] = struct{}{}
		}
		own.Replace(keys)
		if _, err := own.Flush(time.Now()); err != nil {
			_ = h.Close()
			return nil, err
		}
		l.filter, _, _ = own.Since(inventory.Mark{})
	}
	h.SetStreamHandler(siteProtocol, l.hear)
	h.SetStreamHandler(httpProtocol, l.answer)
	return l, nil
}

// Addr returns its multiaddr with its peer ID.
func (l *Liar) Addr() string { return fmt.Sprintf("%s/p2p/%s", l.host.Addrs()[0], l.host.ID()) }

// ID returns its peer ID.
func (l *Liar) ID() string { return l.host.ID().String() }

// Close ends it with all that it began.
func (l *Liar) Close() {
	close(l.done)
	_ = l.host.Close()
	l.all.Wait()
}

// hear takes what a node tells of itself, answers its pings, and tells it the inventory.
func (l *Liar) hear(st network.Stream) {
	defer func() { _ = st.Reset() }()
	if _, err := st.Write(wire.AppendFrame(nil, wire.Challenge, swarmkey.Challenge())); err != nil {
		return
	}
	if _, _, err := wire.ReadFrame(st, wire.Proof); err != nil {
		return
	}
	if _, err := st.Write(wire.AppendFrame(nil, wire.Welcome, nil)); err != nil {
		return
	}
	id := st.Conn().RemotePeer()
	l.all.Go(func() { l.tell(id) })
	for {
		kind, body, err := wire.ReadFrame(st, 0)
		if err != nil {
			return
		}
		if kind == wire.Ping {
			if _, err := st.Write(wire.AppendFrame(nil, wire.Pong, body)); err != nil {
				return
			}
		}
	}
}

// tell keeps a session to a node, unless there is one: it tells the inventory and pings.
func (l *Liar) tell(id peer.ID) {
	l.mu.Lock()
	open := l.tells[id]
	l.tells[id] = true
	l.mu.Unlock()
	if open {
		return
	}
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.tells, id)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	st, err := l.introduce(ctx, id)
	if err != nil {
		return
	}
	defer func() { _ = st.Reset() }()
	l.mu.Lock()
	if l.session == nil {
		l.victim, l.session = id, st
		close(l.met)
	}
	l.mu.Unlock()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for n := uint64(1); ; n++ {
		select {
		case <-tick.C:
		case <-l.done:
			return
		}
		_ = st.SetDeadline(time.Now().Add(timeout))
		if _, err := st.Write(wire.AppendFrame(nil, wire.Ping, binary.BigEndian.AppendUint64(nil, n))); err != nil {
			return
		}
		if _, _, err := wire.ReadFrame(st, 0); err != nil {
			return
		}
	}
}

// introduce is the opener's side of a session up to the inventory.
func (l *Liar) introduce(ctx context.Context, id peer.ID) (network.Stream, error) {
	st, err := l.host.NewStream(ctx, id, siteProtocol)
	if err != nil {
		return nil, err
	}
	_ = st.SetDeadline(time.Now().Add(timeout))
	_, challenge, err := wire.ReadFrame(st, wire.Challenge)
	if err != nil {
		return nil, err
	}
	proof := swarmkey.Keys(nil).Open(swarmkey.Pair{Opener: string(l.host.ID()), Answerer: string(id)}, challenge)
	if _, err := st.Write(wire.AppendFrame(nil, wire.Proof, proof)); err != nil {
		return nil, err
	}
	if kind, _, err := wire.ReadFrame(st, wire.Welcome); err != nil || kind != wire.Welcome {
		return nil, errors.Join(errors.New("no welcome"), err)
	}
	_, err = st.Write(wire.AppendFrame(nil, wire.Filter, l.filter))
	return st, err
}

// answer has one request answered.
func (l *Liar) answer(st network.Stream) {
	defer func() { _ = st.Close() }()
	req, err := http.ReadRequest(bufio.NewReader(st))
	if err != nil {
		return
	}
	ask, err := wire.ParseRequest(req.URL.Path)
	off, rerr := wire.ParseRange(req.Header.Get("Range"))
	if err != nil || rerr != nil || l.cfg.Answer == nil {
		_, _ = io.WriteString(st, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
		return
	}
	l.cfg.Answer(ask, off, st)
}

// Met is closed when a node has been told the inventory.
func (l *Liar) Met() <-chan struct{} { return l.met }
