// Package server answers peers: narinfos and NARs from a share.Holder, and questions to the
// coordinator. What peers can make it do is bounded by machine. It asks nobody.
package server

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/semaphore"

	"github.com/nixp2p/nixp2p/internal/httprange"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/taskgroup"
	"github.com/nixp2p/nixp2p/internal/update"
	"github.com/nixp2p/nixp2p/p2p/lease"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/share"
	"github.com/nixp2p/nixp2p/p2p/site"
	"github.com/nixp2p/nixp2p/p2p/wire"
)

const (
	// headerTime is how long a peer may take to send its request, bodyTime the same for the
	// body of a question to the coordinator, the only one that is read.
	headerTime = 5 * time.Second
	bodyTime   = 2 * time.Second
	// writeTime is how long a peer may take for one piece of a NAR.
	writeTime = 20 * time.Second
	// maxHeader is more than peers send.
	maxHeader = 8 << 10
	// A machine may ask for a page of the list of what is shared every pageEvery, and pageBurst of
	// them at once: that is 40,000 paths a second, at 2.5 MB a second.
	pageEvery = 25 * time.Millisecond
	pageBurst = 64
	// maxEncoders is how many NARs are compressed for peers at a time: each takes a core.
	maxEncoders = 8
)

// LeasePath is where a node is asked as coordinator: a POST with a lease.Request, answered
// with a lease.Answer.
const LeasePath = "/v1/lease"

// Site is what the server knows of the connected peers.
type Site interface {
	Peer(id peer.ID) *site.Peer
	// Reachable returns addresses under which others may dial a peer, with its ID.
	Reachable(id peer.ID) []string
}

// Config is what a Server answers from.
type Config struct {
	Site   Site
	Holder *share.Holder // nil shares nothing
	// Coordinate answers as coordinator, with addresses filled in. If nil, this node is none.
	Coordinate  func(p *site.Peer, r lease.Request) lease.Answer
	UploadLimit int64           // bytes a second of all NARs together; 0: no limit
	Clock       *runclock.Clock // of the time that peers take; nil: the ordinary one
	Encoder     *update.Encoder // nil: no deltas are sent
	Metrics     *metrics.Metrics
	Log         *slog.Logger // nil discards
}

// Server answers peers. It is safe for concurrent use.
type Server struct {
	cfg      Config
	log      *slog.Logger
	uploads  *uploads
	limiter  *limiter
	encoders *semaphore.Weighted
	pages    machine.Rate[machine.ID] // of the list of what is shared
	requests taskgroup.Group
	sending  taskgroup.Group // closed by Drain
}

// New returns a Server.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		cfg: cfg, log: cfg.Log, uploads: newUploads(cfg.Clock), limiter: newLimiter(cfg.UploadLimit),
		encoders: semaphore.NewWeighted(maxEncoders),
		pages:    machine.Rate[machine.ID]{Every: pageEvery, Burst: pageBurst},
	}
}

// Serve answers the streams of l, which bounds how many there are, until ctx ends. It returns when all answers have ended.
func (s *Server) Serve(ctx context.Context, l net.Listener) {
	srv := &http.Server{
		Handler:           http.HandlerFunc(s.answer),
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       headerTime,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	_ = srv.Serve(l)
	stop()
	_ = srv.Close()
	s.requests.Close()
}

// Drain begins no new upload, and returns when the running ones have ended, or ctx has.
func (s *Server) Drain(ctx context.Context) {
	done := make(chan struct{})
	go func() { // it ends with the uploads, which end with Serve
		defer close(done)
		s.sending.Close()
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// answer answers one request.
func (s *Server) answer(w http.ResponseWriter, req *http.Request) {
	done, ok := s.requests.Enter()
	if !ok {
		panic(http.ErrAbortHandler)
	}
	defer done()
	id, err := site.PeerOf(req.RemoteAddr)
	p := s.cfg.Site.Peer(id)
	if err != nil || p == nil {
		panic(http.ErrAbortHandler) // it is gone
	}
	defer p.Use()()
	w.Header()["Date"] = nil // no peer needs it
	isLease := req.Method == http.MethodPost && req.URL.Path == LeasePath
	if isLease || req.ContentLength != 0 {
		w.Header().Set("Connection", "close") // the deadlines below stay with the stream
	}
	if req.ContentLength != 0 && !isLease {
		// Nobody waits for a body that is not wanted, not even to drop it.
		_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	before, isPage := wire.ParsePagePath(req.URL.Path)
	ask, err := wire.ParseRequest(req.URL.Path)
	off, rangeErr := httprange.ParseFrom(req.Header.Get("Range"))
	switch {
	case isLease:
		s.answerLease(w, req, p)
	case req.Method != http.MethodGet && req.Method != http.MethodHead:
		w.WriteHeader(http.StatusMethodNotAllowed)
	case isPage && s.cfg.Holder != nil:
		s.answerPage(w, p, before)
	case err != nil || rangeErr != nil || s.cfg.Holder == nil:
		w.WriteHeader(http.StatusNotFound)
	case ask.IsInfo:
		s.answerInfo(w, req, ask.Question)
	default:
		s.answerNAR(w, req, p, ask, off)
	}
}

func (s *Server) answerInfo(w http.ResponseWriter, req *http.Request, q nix.Question) {
	a, err := s.cfg.Holder.Info(req.Context(), q)
	if err != nil {
		s.refuse(w, err)
		return
	}
	h := w.Header()
	h.Set(wire.FormsHeader, wire.FormatForms(a.Forms))
	h.Set("Content-Type", "text/x-nix-narinfo")
	h.Set("Content-Length", strconv.Itoa(len(a.Text)))
	_, _ = w.Write(a.Text)
}

// answerPage lists a part of what is shared. A machine that asks for too many is told to wait.
func (s *Server) answerPage(w http.ResponseWriter, p *site.Peer, before uint64) {
	if !s.pages.Allow(p.Machine) {
		w.WriteHeader(http.StatusTooManyRequests)
		return
	}
	out := wire.AppendPage(nil, s.cfg.Holder.Page(before))
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(out)))
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTime))
	_, _ = w.Write(out)
}

// refuse says that something is not here, or that it cannot be said.
func (s *Server) refuse(w http.ResponseWriter, err error) {
	if source.Absent(err) || source.Invalid(err) != nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	s.log.Debug("peer request", "err", err)
	w.WriteHeader(http.StatusInternalServerError)
}

func (s *Server) answerNAR(w http.ResponseWriter, req *http.Request, p *site.Peer, ask wire.Request, off int64) {
	n, err := s.cfg.Holder.NAR(req.Context(), ask.Nar, ask.Form)
	if err != nil {
		s.refuse(w, err)
		return
	}
	h := w.Header()
	h.Set("Accept-Ranges", "bytes")
	if n.Partial() {
		h.Set(wire.HaveHeader, strconv.FormatInt(n.Bytes, 10))
	}
	if off >= n.Size {
		w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		return
	}
	status, left := http.StatusOK, n.Size-off
	if off > 0 {
		h.Set("Content-Range", httprange.ContentRange(off, left, n.Size))
		status = http.StatusPartialContent
	}
	h.Set("Content-Type", "application/x-nix-nar")
	h.Set("Content-Length", strconv.FormatInt(left, 10))
	if req.Method == http.MethodHead {
		w.WriteHeader(status)
		return
	}
	ctx, cancel := context.WithCancel(req.Context())
	defer cancel()
	d := s.delta(req, p, n, off)
	if d != nil {
		defer d.Close() // only read
	}
	up := &upload{
		s: s, w: w, control: http.NewResponseController(w), to: p, nar: n, hash: ask.Nar,
		kind: kindOf(left, n.Partial()), left: left, size: left, cancel: cancel,
	}
	if d != nil {
		up.kind = small // it has few bytes
	}
	up.started, up.began = time.Now(), s.cfg.Clock.Now()
	defer s.cfg.Clock.Watch()()
	end := s.begin(up)
	if end == nil {
		s.busy(w, p, ask.Nar)
		return
	}
	whole := false
	defer func() { end(whole) }()
	var done func()
	if n.Decodes() && s.uploads.decodingFor(p) > 1 { // this one included
		err = share.ErrBusy
	} else {
		done, err = n.Ready(ctx, p.Machine)
	}
	switch {
	case errors.Is(err, share.ErrBusy):
		s.uploads.cutStuck(func(u *upload) bool { return u.nar.Decodes() })
		s.busy(w, p, ask.Nar)
		return
	case err != nil:
		clear(h)
		s.refuse(w, err)
		return
	}
	defer done()
	if d != nil {
		whole = up.sendDelta(ctx, d) == nil
	} else {
		whole = up.send(ctx, status, off, req.Header.Get("Accept-Encoding") == string(nix.Zstd)) == nil
	}
	if !whole {
		panic(http.ErrAbortHandler) // the stream is cut, so that the other side notices
	}
}

// begin takes a slot for an upload. Without one, end is nil.
func (s *Server) begin(up *upload) (end func(whole bool)) {
	leave, ok := s.sending.Enter()
	if !ok {
		return nil
	}
	if !s.uploads.begin(up) {
		leave()
		return nil
	}
	s.cfg.Metrics.PeerUploads.Inc()
	return func(whole bool) {
		s.uploads.end(up, whole)
		s.cfg.Metrics.PeerUploads.Dec()
		leave()
	}
}

// busy names others that a peer may ask.
func (s *Server) busy(w http.ResponseWriter, to *site.Peer, nar nix.NarHash) {
	var list []string
	for _, id := range s.uploads.takers(nar) {
		if addrs := s.cfg.Site.Reachable(id); id != to.ID && len(addrs) > 0 {
			list = append(list, addrs[0])
		}
	}
	s.cfg.Metrics.PeerBusy.WithLabelValues("given").Inc()
	body := wire.AppendPeers(nil, list)
	h := w.Header()
	clear(h)
	h["Date"] = nil
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = w.Write(body)
}

// answerLease answers as coordinator. It takes from a peer what it says of itself, and nothing
// that it says of others.
func (s *Server) answerLease(w http.ResponseWriter, req *http.Request, p *site.Peer) {
	control := http.NewResponseController(w)
	leave, ok := s.sending.Enter() // not while it drains
	refuse := 0
	switch {
	case s.cfg.Coordinate == nil:
		refuse = http.StatusNotFound
	case !ok:
		refuse = http.StatusServiceUnavailable
	case req.ContentLength > lease.MaxMessage:
		refuse = http.StatusRequestEntityTooLarge
	}
	if ok {
		leave()
	}
	if refuse != 0 {
		_ = control.SetReadDeadline(time.Unix(1, 0))
		w.WriteHeader(refuse)
		return
	}
	_ = control.SetReadDeadline(time.Now().Add(bodyTime))
	b, err := io.ReadAll(io.LimitReader(req.Body, lease.MaxMessage+1))
	_ = control.SetReadDeadline(time.Unix(1, 0)) // what follows is not waited for
	var r lease.Request
	if err == nil {
		r, err = lease.DecodeRequest(b)
	}
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	a := s.cfg.Coordinate(p, r)
	out := a.Append(nil)
	w.Header().Set("Content-Length", strconv.Itoa(len(out)))
	_, _ = w.Write(out)
}
