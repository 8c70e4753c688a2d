package site

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/p2p/machine"
)

const (
	// openStream bounds opening a stream on a connection that exists.
	openStream = 3 * time.Second
	// maxHead bounds the head of an answer: those of peers are short.
	maxHead = 16 << 10
	// maxRequests are answered at a time, each over a stream of its own whose window may be
	// full of unread bytes (256 KiB). One machine has at most a
	// third.
	maxRequests   = 384
	maxRequestsBy = maxRequests / 3
)

// streamConn is a stream as net/http wants it: a connection whose remote address is a peer.
// What comes over it shows that the peer is alive.
type streamConn struct {
	network.Stream
	from *Peer
	conn *connActivity
}

func newStreamConn(s network.Stream, p *Peer) *streamConn {
	return &streamConn{Stream: s, from: p, conn: p.activity.of(s.Conn())}
}

// Read is part of net.Conn.
func (c *streamConn) Read(b []byte) (int, error) {
	n, err := c.Stream.Read(b)
	if n > 0 {
		c.from.activity.heard()
		c.conn.heard()
	}
	return n, err
}

// LocalAddr is part of net.Conn.
func (c *streamConn) LocalAddr() net.Addr { return peerAddr(c.Conn().LocalPeer()) }

// RemoteAddr is part of net.Conn.
func (c *streamConn) RemoteAddr() net.Addr { return peerAddr(c.Conn().RemotePeer()) }

// peerAddr is a peer as an address. Its text is base 16, which no part of net/http changes,
// as it may with the letters of a name.
type peerAddr peer.ID

func (a peerAddr) Network() string { return "libp2p" }
func (a peerAddr) String() string  { return hex.EncodeToString([]byte(a)) }

// PeerOf returns the peer that sent a request, from the request's RemoteAddr.
func PeerOf(addr string) (peer.ID, error) {
	b, err := hex.DecodeString(addr)
	if err != nil {
		return "", fmt.Errorf("site: %w", err)
	}
	return peer.IDFromBytes(b)
}

// roundTrip sends a request to a connected peer, on a stream of its own. It does not use
// http.Transport, which would keep the stream, and log whatever a hostile peer sends over it
// afterwards. The end of the request's context ends the reading of the body as well.
func (c *core) roundTrip(p *Peer, req *http.Request) (*http.Response, error) {
	h := c.host.Load()
	if h == nil {
		return nil, errNotRunning
	}
	defer p.Use()()
	ctx := req.Context()
	req.Header["User-Agent"] = nil
	octx, cancel := runclock.WithTimeout(network.WithNoDial(ctx, "request"), openStream)
	defer cancel()
	s, err := h.NewStream(octx, p.ID, httpProtocol)
	if err != nil {
		return nil, fmt.Errorf("peer %s: %w", p.ID, err)
	}
	// Closing could wait for the other side; a reset does not, and takes back nothing that
	// was read.
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	end := func() {
		stop()
		_ = s.Reset()
	}
	head := &io.LimitedReader{R: newStreamConn(s, p), N: maxHead}
	in := bufio.NewReader(head)
	err = req.Write(s)
	var resp *http.Response
	if err == nil {
		resp, err = http.ReadResponse(in, req)
	}
	if err != nil {
		end()
		if ctx.Err() != nil {
			err = ctx.Err() // it ended the stream
		}
		return nil, fmt.Errorf("peer %s: %w", p.ID, err)
	}
	head.N = math.MaxInt64
	resp.Body = &answerBody{resp.Body, end}
	return resp, nil
}

// answerBody ends its stream when it is closed.
type answerBody struct {
	io.Reader
	end func()
}

func (b *answerBody) Close() error {
	b.end()
	return nil
}

// listener gives the requests of peers to an http.Server.
type listener struct {
	self    peer.ID
	open    requests
	streams chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

func newListener(self peer.ID) *listener {
	return &listener{self: self, streams: make(chan net.Conn), closed: make(chan struct{}), open: requests{by: make(map[machine.ID]map[peer.ID][]*request)}}
}

// request is a stream over which a peer asks.
type request struct {
	*streamConn
	of *requests
}

// Close is part of net.Conn. It does not wait for the other side.
func (r *request) Close() error {
	r.of.remove(r)
	return r.streamConn.Close()
}

// requests counts the streams over which peers ask, by machine and by peer. When there is no
// room for another one, the oldest of the peer that has most, on the machine that has most,
// gives way: unless it is the one that asks, which is refused.
type requests struct {
	mu    sync.Mutex
	total int
	by    map[machine.ID]map[peer.ID][]*request
}

// add takes in a request, and returns the one that gives way to it.
func (q *requests) add(r *request) (gone *request, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	m, own := r.from.Machine, 0
	if own = q.count(m); own >= maxRequestsBy || q.total >= maxRequests {
		from := m
		for o := range q.by {
			if own < maxRequestsBy && q.count(o) > q.count(from) {
				from = o
			}
		}
		var most peer.ID
		for id, list := range q.by[from] {
			if len(list) > len(q.by[from][most]) {
				most = id
			}
		}
		if most == "" || from == m && len(q.by[m][r.from.ID]) >= len(q.by[m][most]) {
			return nil, false
		}
		gone = q.by[from][most][0]
		q.drop(gone)
	}
	if q.by[m] == nil {
		q.by[m] = make(map[peer.ID][]*request)
	}
	q.by[m][r.from.ID] = append(q.by[m][r.from.ID], r)
	q.total++
	return gone, true
}

func (q *requests) count(m machine.ID) (n int) {
	for _, list := range q.by[m] {
		n += len(list)
	}
	return n
}

func (q *requests) remove(r *request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.drop(r)
}

func (q *requests) drop(r *request) {
	m, id := r.from.Machine, r.from.ID
	i := slices.Index(q.by[m][id], r)
	if i < 0 {
		return
	}
	q.total--
	if q.by[m][id] = slices.Delete(q.by[m][id], i, i+1); len(q.by[m][id]) == 0 {
		delete(q.by[m], id)
	}
	if len(q.by[m]) == 0 {
		delete(q.by, m)
	}
}

// take hands a stream of an admitted peer to the server.
func (l *listener) take(s network.Stream, p *Peer) {
	r := &request{newStreamConn(s, p), &l.open}
	gone, ok := l.open.add(r)
	if gone != nil {
		_ = gone.Stream.Reset() // the server closes it
	}
	if !ok {
		_ = s.Reset()
		return
	}
	select {
	case l.streams <- r:
	case <-l.closed:
		l.open.remove(r)
		_ = s.Reset()
	}
}

// Accept is part of net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.streams:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close is part of net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr is part of net.Listener.
func (l *listener) Addr() net.Addr { return peerAddr(l.self) }

// admittedHost is the host as the DHT sees it: only admitted peers are answered and asked.
type admittedHost struct {
	host.Host
	table *peerTable
}

// SetStreamHandler is part of host.Host.
func (h admittedHost) SetStreamHandler(id protocol.ID, handle network.StreamHandler) {
	h.Host.SetStreamHandler(id, func(s network.Stream) {
		if p := h.table.get(s.Conn().RemotePeer()); p == nil || !p.Admitted() {
			_ = s.Reset()
			return
		}
		handle(s)
	})
}

// NewStream is part of host.Host.
func (h admittedHost) NewStream(ctx context.Context, id peer.ID, protocols ...protocol.ID) (network.Stream, error) {
	if err := h.Connect(ctx, peer.AddrInfo{ID: id}); err != nil {
		return nil, err
	}
	if _, err := h.table.admitted(ctx, id); err != nil {
		return nil, err
	}
	return h.Host.NewStream(ctx, id, protocols...)
}
