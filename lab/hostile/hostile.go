// Package hostile is a peer that does not keep to the rules. It speaks the protocol as far as needed
// to be talked to, claims paths that it does not have, answers with bytes of the caller's choosing,
// attacks a node in several ways, and records what it learns and is asked.
package hostile

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
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

	"github.com/nixp2p/nixp2p/internal/httprange"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/lease"
	"github.com/nixp2p/nixp2p/p2p/server"
	"github.com/nixp2p/nixp2p/p2p/swarmkey"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

const (
	httpProtocol = protocol.ID("/nixp2p/http/1")
	siteProtocol = protocol.ID("/nixp2p/site/1")

	// timeout limits each step.
	timeout = 10 * time.Second
	// again is how often a session is tried again after a node came back.
	again, attempts = 500 * time.Millisecond, 10
)

// Config says how a Peer behaves.
type Config struct {
	Listen string // multiaddr; "" is a free port on loopback
	// Claim are the paths that it says it has; Filter is sent instead, as it is.
	Claim  []nix.StoreHash
	Filter []byte
	// Answer writes a whole HTTP response, after which the stream ends, and reports whether it
	// did. If nil or false, the answer is 404.
	Answer func(ask wire.Request, off int64, head bool, w io.Writer) bool
	// Lease answers a node that asks this one as coordinator. If nil, the answer is 404.
	Lease func(r lease.Request) lease.Answer
}

// Peer is a node of a site. The caller closes it.
type Peer struct {
	cfg    Config
	host   host.Host
	filter []byte
	ctx    func() context.Context // ends with Close
	stop   context.CancelFunc
	all    sync.WaitGroup
	met    chan struct{} // closed with the first session to a node

	mu      sync.Mutex
	tells   map[peer.ID]bool // a session to it is open
	hears   map[network.Stream]peer.ID
	views   map[peer.ID]*inventory.Remote
	sizes   map[peer.ID]int // bytes of its inventory and changes
	deaf    bool            // no session of others is accepted
	asked   []string
	target  peer.ID // the node of the first session
	session network.Stream
}

// New starts a Peer.
func New(cfg Config) (*Peer, error) {
	if cfg.Listen == "" {
		cfg.Listen = "/ip4/127.0.0.1/tcp/0"
	}
	h, err := libp2p.New(
		libp2p.ListenAddrStrings(cfg.Listen),
		libp2p.NoTransports, libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport),
		libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.DisableRelay(), libp2p.ForceReachabilityPrivate(), libp2p.DisableMetrics(),
	)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	p := &Peer{
		cfg: cfg, host: h, filter: cfg.Filter, ctx: func() context.Context { return ctx }, stop: stop, met: make(chan struct{}),
		tells: map[peer.ID]bool{}, hears: map[network.Stream]peer.ID{}, views: map[peer.ID]*inventory.Remote{}, sizes: map[peer.ID]int{},
	}
	if p.filter == nil {
		keys := inventory.Keys{}
		for _, hash := range cfg.Claim {
			keys[inventory.KeyOf(hash.Question())] = struct{}{}
		}
		own := inventory.NewLocal()
		if _, err := own.Flush(time.Now(), keys); err != nil {
			p.Close()
			return nil, err
		}
		p.filter, _, _ = own.Since(inventory.Mark{})
	}
	h.SetStreamHandler(siteProtocol, p.hear)
	h.SetStreamHandler(httpProtocol, p.answer)
	return p, nil
}

// Addr returns its multiaddr with its peer ID.
func (p *Peer) Addr() string { return fmt.Sprintf("%s/p2p/%s", p.host.Addrs()[0], p.host.ID()) }

// ID returns its peer ID.
func (p *Peer) ID() string { return p.host.ID().String() }

// Met is closed when a node has received the inventory.
func (p *Peer) Met() <-chan struct{} { return p.met }

// Close ends it and everything that it started.
func (p *Peer) Close() {
	p.stop()
	_ = p.host.Close()
	p.all.Wait()
}

// Join connects to a node and opens a session.
func (p *Peer) Join(ctx context.Context, addr string) (peer.ID, error) {
	info, err := peer.AddrInfoFromString(addr)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := p.host.Connect(ctx, *info); err != nil {
		return "", err
	}
	return info.ID, p.tell(ctx, info.ID)
}

// Deaf says whether sessions of others are refused. Nodes announce in the DHT only for those that
// do not take their inventory.
func (p *Peer) Deaf(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deaf = on
	if on {
		for st := range p.hears {
			_ = st.Reset()
		}
	}
}

// hear answers a session that a node opens: it reads the inventory, answers pings, and opens one
// of its own.
func (p *Peer) hear(st network.Stream) {
	defer func() { _ = st.Reset() }()
	id := st.Conn().RemotePeer()
	p.mu.Lock()
	deaf := p.deaf
	view := p.views[id]
	if view == nil {
		view = &inventory.Remote{}
		p.views[id] = view
	}
	if !deaf {
		p.hears[st] = id
	}
	p.mu.Unlock()
	if deaf {
		return
	}
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.hears, st)
	}()
	if _, err := st.Write(wire.AppendFrame(nil, wire.Challenge, swarmkey.Challenge())); err != nil {
		return
	}
	if _, _, err := wire.ReadFrame(st, wire.Proof); err != nil {
		return
	}
	if _, err := st.Write(wire.AppendFrame(nil, wire.Welcome, nil)); err != nil {
		return
	}
	p.all.Go(func() { p.tellAgain(id) })
	for {
		kind, body, err := wire.ReadFrame(st, 0)
		switch {
		case err != nil:
			return
		case kind == wire.Ping:
			_, err = st.Write(wire.AppendFrame(nil, wire.Pong, body))
		case kind == wire.Filter:
			p.count(id, len(body))
			err = view.Full(body)
		case kind == wire.Changes:
			p.count(id, len(body))
			err = view.Delta(body)
		}
		if err != nil {
			return
		}
	}
}

func (p *Peer) count(id peer.ID, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sizes[id] += n
}

// tellAgain opens a session to a node that came back, once the old one has ended.
func (p *Peer) tellAgain(id peer.ID) {
	tick := time.NewTicker(again)
	defer tick.Stop()
	for range attempts {
		ctx, cancel := context.WithTimeout(p.ctx(), timeout)
		_ = p.tell(ctx, id)
		cancel()
		select {
		case <-tick.C:
		case <-p.ctx().Done():
			return
		}
	}
}

// tell opens a session, unless there is one: it sends the inventory, and pings until the node is
// gone.
func (p *Peer) tell(ctx context.Context, id peer.ID) error {
	p.mu.Lock()
	open := p.tells[id]
	p.tells[id] = true
	p.mu.Unlock()
	if open {
		return nil
	}
	ended := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.tells, id)
	}
	st, err := p.introduce(ctx, id)
	if err != nil {
		ended()
		return err
	}
	p.mu.Lock()
	if p.session == nil {
		p.target, p.session = id, st
		close(p.met)
	}
	p.mu.Unlock()
	p.all.Go(func() {
		defer ended()
		defer func() { _ = st.Reset() }()
		p.ping(st)
	})
	return nil
}

func (p *Peer) ping(st network.Stream) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for n := uint64(1); ; n++ {
		select {
		case <-tick.C:
		case <-p.ctx().Done():
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
func (p *Peer) introduce(ctx context.Context, id peer.ID) (network.Stream, error) {
	st, err := p.host.NewStream(ctx, id, siteProtocol)
	if err != nil {
		return nil, err
	}
	_ = st.SetDeadline(time.Now().Add(timeout))
	_, challenge, err := wire.ReadFrame(st, wire.Challenge)
	if err != nil {
		return nil, err
	}
	proof := swarmkey.Keys(nil).Open(swarmkey.Pair{Opener: string(p.host.ID()), Answerer: string(id)}, challenge)
	if _, err := st.Write(wire.AppendFrame(nil, wire.Proof, proof)); err != nil {
		return nil, err
	}
	if kind, _, err := wire.ReadFrame(st, wire.Welcome); err != nil || kind != wire.Welcome {
		return nil, errors.Join(errors.New("no welcome"), err)
	}
	_, err = st.Write(wire.AppendFrame(nil, wire.Filter, p.filter))
	return st, err
}

// answer records one request and answers it.
func (p *Peer) answer(st network.Stream) {
	defer func() { _ = st.Close() }()
	req, err := http.ReadRequest(bufio.NewReader(st))
	if err != nil {
		return
	}
	p.record(req)
	if req.URL.Path == server.LeasePath && p.cfg.Lease != nil {
		body, _ := io.ReadAll(io.LimitReader(req.Body, lease.MaxMessage))
		if r, err := lease.DecodeRequest(body); err == nil {
			Reply(st, p.cfg.Lease(r).Append(nil))
			return
		}
	}
	ask, err := wire.ParseRequest(req.URL.Path)
	off := int64(0)
	if r := req.Header.Get("Range"); r != "" && err == nil {
		off, err = httprange.ParseFrom(r)
	}
	if err == nil && p.cfg.Answer != nil && p.cfg.Answer(ask, off, req.Method == http.MethodHead, st) {
		return
	}
	Refuse(st)
}

// record keeps the text of a request.
func (p *Peer) record(req *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(req.Body, lease.MaxMessage))
	var text strings.Builder
	req.Body = io.NopCloser(bytes.NewReader(body))
	_ = req.Write(&text)
	req.Body = io.NopCloser(bytes.NewReader(body))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, text.String())
}
