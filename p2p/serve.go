package p2p

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/wire"
	"github.com/nixp2p/nixp2p/verify"
)

const (
	// A peer that sends its request byte by byte, or does not read the answer, is cut.
	headerTime = 5 * time.Second
	idleTime   = 2 * time.Minute
	pieceTime  = 30 * time.Second
	// maxHeader is much for what peers send.
	maxHeader = 8 << 10
	// piece is what is read and written at once: smaller ones cost up to half the speed.
	piece = 256 << 10
	// lull: a body that grows more slowly than this is passed on at once as it comes.
	lull = 20 * time.Millisecond
	// crumb is less than what net/http collects before it sends.
	crumb = 4 << 10
)

var pieces = sync.Pool{New: func() any { return new([piece]byte) }}

// server answers peers. It sees the Holder and nothing else.
func (n *Node) server(ctx context.Context) *http.Server {
	return &http.Server{
		Handler:           http.HandlerFunc(n.answer),
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
}

// answer is the door for peers.
func (n *Node) answer(w http.ResponseWriter, req *http.Request) {
	id, err := parsePeerAddr(req.RemoteAddr)
	if err != nil {
		http.Error(w, "", http.StatusBadRequest)
		return
	}
	if r := n.table.get(id); r != nil {
		defer r.use()()
	}
	ask, err := wire.ParseRequest(req.URL.Path)
	off, rerr := wire.ParseRange(req.Header.Get("Range"))
	w.Header()["Date"] = nil // nobody needs it
	switch {
	case req.Method == http.MethodPost && req.URL.Path == leasePath:
		n.answerLease(w, req, id)
	case req.Method != http.MethodGet && req.Method != http.MethodHead:
		w.WriteHeader(http.StatusMethodNotAllowed)
	case err != nil || rerr != nil || n.cfg.Holder == nil:
		w.WriteHeader(http.StatusNotFound)
	case ask.IsInfo:
		n.answerInfo(w, req, ask.Question)
	default:
		n.answerNAR(w, req, id, ask, off)
	}
}

func (n *Node) answerInfo(w http.ResponseWriter, req *http.Request, q nix.Question) {
	info, err := n.cfg.Holder.Info(req.Context(), q)
	if err != nil {
		n.refuse(w, err)
		return
	}
	if !n.hasRaw(req.Context(), info.NarHash()) {
		w.Header().Set(wire.FileHeader, "1")
	}
	text := info.Offer(nix.Raw)
	w.Header().Set("Content-Type", "text/x-nix-narinfo")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	_, _ = w.Write(text)
}

// refuse says that something is not there, or that it cannot be told.
func (n *Node) refuse(w http.ResponseWriter, err error) {
	if errors.Is(err, fs.ErrNotExist) {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	n.log.Debug("peer request", "err", err)
	w.WriteHeader(http.StatusInternalServerError)
}

// hasRaw tells whether a NAR that is shared is there raw, or coming so.
func (n *Node) hasRaw(ctx context.Context, nar nix.NarHash) bool {
	h, ok := n.cfg.Holder.(interface {
		HasRaw(ctx context.Context, nar nix.NarHash) bool
	})
	return !ok || h.HasRaw(ctx, nar)
}

func (n *Node) answerNAR(w http.ResponseWriter, req *http.Request, id peer.ID, ask wire.Request, off int64) {
	if req.Header.Get(wire.AtHandHeader) != "" && ask.Form.IsRaw() && !n.hasRaw(req.Context(), ask.Nar) {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	claim, err := n.cfg.Holder.NAR(req.Context(), ask.Nar, ask.Form, off)
	if err != nil {
		n.refuse(w, err)
		return
	}
	defer claim.Body.Close()
	h := w.Header()
	have, partial := claim.Body.(interface{ Have() int64 })
	if partial {
		h.Set(wire.HaveHeader, strconv.FormatInt(have.Have(), 10))
	}
	h.Set("Accept-Ranges", "bytes")
	if off > 0 && off >= claim.Size {
		w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		return
	}
	status := http.StatusOK
	if off > 0 {
		h.Set("Content-Range", wire.FormatContentRange(off, claim.Size))
		status = http.StatusPartialContent
	}
	left := claim.Size - off
	if req.Method == http.MethodHead {
		h.Set("Content-Length", strconv.FormatInt(left, 10))
		w.WriteHeader(status)
		return
	}
	var end func(whole bool)
	switch {
	case n.draining.Load():
	case partial:
		end = n.uploads.Grow(string(id), ask.Nar, left)
	default:
		end = n.uploads.Begin(string(id), ask.Nar, left)
	}
	if end == nil {
		n.busy(w, id, ask.Nar)
		return
	}
	n.cfg.Metrics.PeerUploads.Inc()
	defer n.cfg.Metrics.PeerUploads.Dec()
	up := &upload{
		n: n, w: w, control: http.NewResponseController(w), from: n.table.get(id),
		to: id.String(), nar: ask.Nar, form: ask.Form, size: left, started: time.Now(),
	}
	if about, ok := claim.Body.(interface{ About() (string, string) }); ok {
		up.path, up.source = about.About()
	}
	defer n.sending.begin(up)()
	squeeze := ask.Form.IsRaw() && req.Header.Get("Accept-Encoding") == string(nix.Zstd)
	h.Set("Content-Type", "application/x-nix-nar")
	if squeeze {
		h.Set("Content-Encoding", string(nix.Zstd))
		h.Set(wire.SizeHeader, strconv.FormatInt(claim.Size, 10))
	} else {
		h.Set("Content-Length", strconv.FormatInt(left, 10))
	}
	w.WriteHeader(status)
	if left >= largeNAR || partial {
		// The other side waits for a beginning, and a download may have nothing yet.
		_ = up.control.Flush()
	}
	err = up.send(req.Context(), claim, left, squeeze)
	end(err == nil)
	if err != nil {
		n.log.Debug("upload ended early", "peer", id, "nar", ask.Nar, "err", err)
		panic(http.ErrAbortHandler) // the stream is cut, so that the other side notices
	}
}

// busy names others to whom a peer may turn.
func (n *Node) busy(w http.ResponseWriter, to peer.ID, nar nix.NarHash) {
	var list []string
	h := n.host.Load()
	for _, p := range n.uploads.Takers(nar) {
		if id := peer.ID(p); id != to && h != nil {
			if addrs := n.reachable(*h, id); len(addrs) > 0 {
				list = append(list, fullAddrs(peer.AddrInfo{ID: id, Addrs: addrs[:1]})...)
			}
		}
	}
	n.cfg.Metrics.PeerBusy.WithLabelValues("given").Inc()
	body := wire.AppendPeers(nil, list)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = w.Write(body)
}

// upload is one NAR on its way to a peer.
type upload struct {
	n       *Node
	w       http.ResponseWriter
	control *http.ResponseController
	from    *remote // who receives it; nil when gone

	to      string // the same as text
	path    string
	source  string
	nar     nix.NarHash
	form    nix.Form
	size    int64 // of what was asked for, in bytes
	started time.Time
	flow    metrics.Flow // of the form, before it is compressed
}

// uploads are those on their way. The lock is taken when one begins and when it ends.
type uploads struct {
	mu  sync.Mutex
	all map[*upload]struct{}
}

// begin notes an upload, and returns what is called at its end.
func (u *uploads) begin(x *upload) func() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.all == nil {
		u.all = make(map[*upload]struct{})
	}
	u.all[x] = struct{}{}
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.all, x)
	}
}

// busy tells whether there is any.
func (u *uploads) busy() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.all) > 0
}

// Upload is a NAR on its way to a peer, for status pages.
type Upload struct {
	Peer        string // ID
	StorePath   string // "" when the Holder does not say
	Source      string // "" when the Holder does not say
	Nar         nix.NarHash
	Form        nix.Form
	Bytes, Size int64 // done, and asked for
	Rate        int64 // bytes a second of the last seconds
	Started     time.Time
}

// Uploads returns what is on its way to peers now, in no order.
func (n *Node) Uploads() []Upload {
	n.sending.mu.Lock()
	defer n.sending.mu.Unlock()
	list := make([]Upload, 0, len(n.sending.all))
	for u := range n.sending.all {
		list = append(list, Upload{
			Peer: u.to, StorePath: u.path, Source: u.source, Nar: u.nar, Form: u.form, Bytes: u.flow.Load(), Size: u.size, Rate: u.flow.Rate(u.started), Started: u.started,
		})
	}
	return list
}

// send writes left bytes of the claim, as they are or compressed.
func (u *upload) send(ctx context.Context, claim *verify.Unverified, left int64, squeeze bool) error {
	buf := pieces.Get().(*[piece]byte)
	defer pieces.Put(buf)
	out := func(b []byte) error { return u.write(ctx, b) }
	var z *compress.ZstdWriter
	if squeeze {
		z = compress.NewZstdWriter(writerFunc(out))
		defer z.Release()
		out = func(b []byte) error { _, err := z.Write(b); return err }
	}
	for left > 0 {
		start := time.Now()
		k, err := claim.Body.Read(buf[:min(left, piece)])
		if k > 0 {
			left -= int64(k)
			if err := out(buf[:k]); err != nil {
				return err
			}
			u.flow.Add(int64(k))
			if slow := time.Since(start) > lull; left > 0 && (slow || k < crumb) {
				if err := u.flush(z, slow); err != nil {
					return err
				}
			}
		}
		if errors.Is(err, io.EOF) && left > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil && left > 0 {
			return err
		}
	}
	if z != nil {
		return z.Close()
	}
	return nil
}

// flush passes on what would wait for more: the source has only little at the moment.
func (u *upload) flush(z *compress.ZstdWriter, slow bool) error {
	if z != nil && slow {
		if err := z.Flush(); err != nil {
			return err
		}
	}
	return u.control.Flush()
}

// write gives one piece to the peer, who has to take it within pieceTime.
func (u *upload) write(ctx context.Context, b []byte) error {
	if err := u.n.limiter.Wait(ctx, len(b)); err != nil {
		return err
	}
	_ = u.control.SetWriteDeadline(time.Now().Add(pieceTime))
	k, err := u.w.Write(b)
	u.n.cfg.Metrics.PeerSentBytes.Add(float64(k))
	if u.from != nil {
		u.from.sent.Add(int64(k))
	}
	return err
}

type writerFunc func([]byte) error

func (f writerFunc) Write(b []byte) (int, error) {
	if err := f(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// streamConn is a stream as net/http wants it: a connection whose remote address is a peer.
type streamConn struct {
	network.Stream
	from *remote // nil when it is not known
	lane *lane
}

func newStreamConn(s network.Stream, r *remote) streamConn {
	c := streamConn{Stream: s, from: r}
	if r != nil {
		c.lane = r.laneOf(s.Conn())
	}
	return c
}

// Read notes that the peer lives.
func (c streamConn) Read(b []byte) (int, error) {
	k, err := c.Stream.Read(b)
	if k > 0 && c.from != nil {
		c.from.heard()
		c.lane.heard()
	}
	return k, err
}

func (c streamConn) LocalAddr() net.Addr  { return peerAddr(c.Conn().LocalPeer()) }
func (c streamConn) RemoteAddr() net.Addr { return peerAddr(c.Conn().RemotePeer()) }

// peerAddr is a peer as an address. Its text is base 16, which no part of net/http changes,
// as it may with the letters of a name.
type peerAddr peer.ID

func (a peerAddr) Network() string { return "libp2p" }
func (a peerAddr) String() string  { return hex.EncodeToString([]byte(a)) }

func parsePeerAddr(s string) (peer.ID, error) {
	b, err := hex.DecodeString(s)
	if err != nil {
		return "", err
	}
	return peer.IDFromBytes(b)
}

// listener gives streams of our HTTP protocol to an http.Server. Those of peers that have
// not been let in end unanswered.
type listener struct {
	host    host.Host
	streams chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

func (n *Node) listener(h host.Host) *listener {
	l := &listener{host: h, streams: make(chan net.Conn), closed: make(chan struct{})}
	h.SetStreamHandler(httpProtocol, func(s network.Stream) {
		id := s.Conn().RemotePeer()
		r := n.table.get(id)
		if !n.admitted(r) {
			_ = s.Reset()
			return
		}
		select {
		case l.streams <- newStreamConn(s, r):
		case <-l.closed:
			_ = s.Reset()
		}
	})
	return l
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
	l.once.Do(func() {
		l.host.RemoveStreamHandler(httpProtocol)
		close(l.closed)
	})
	return nil
}

// Addr is part of net.Listener.
func (l *listener) Addr() net.Addr { return peerAddr(l.host.ID()) }
