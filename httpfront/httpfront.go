// Package httpfront speaks the binary-cache protocol to Nix: nix-cache-info, narinfos and
// NARs, and nothing else. It turns every error into 404 before the first byte and into a
// cut connection after it, since that is what hurts a build least. It chooses no
// sources and verifies nothing; its Go API is not meant for other programs and may change.
package httpfront

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/verify"
)

// Resolver finds what is asked for. An error means that there is nothing to answer with;
// only its log line depends on which.
type Resolver interface {
	// Narinfo returns the text to answer with, and the proof for it.
	Narinfo(ctx context.Context, h nix.StoreHash, reach resolve.Reach) (text []byte, info *verify.Info, err error)
	// NAR chooses where a NAR will come from.
	NAR(ctx context.Context, name nix.NARName, q resolve.Query) (NAR, error)
}

// NAR is a NAR in the form that was asked for, or in a container that serves as that.
type NAR interface {
	Info() *verify.Info
	Size() int64  // of the response in bytes
	Ranges() bool // whether a part of it may be asked for
	// Send writes count bytes from byte from on. On an error with nothing written the
	// request may still be refused, else the response is cut.
	Send(ctx context.Context, w io.Writer, from, count int64) error
	Close()
}

// Config says how the front answers.
type Config struct {
	Resolver Resolver         // required
	Metrics  *metrics.Metrics // required
	// Share names the keys whose paths may be shown to clients on other machines.
	Share    []string
	Priority int          // in nix-cache-info
	ID       string       // of this daemon: the name in Via headers
	Log      *slog.Logger // nil discards
	// Stall is how long a client may take no byte before its connection ends; 0 means five
	// minutes, after which Nix itself gives up a download that does not move.
	Stall time.Duration
}

const defaultStall = 5 * time.Minute

// Handler serves the substituter. It is an http.Handler.
type Handler struct {
	cfg       Config
	log       *slog.Logger
	cacheInfo []byte
	via       string
	date      atomic.Pointer[date]
}

// date is the Date header of one second: made for each response it would be a good part of what
// a narinfo costs.
type date struct {
	second int64
	header []string
}

// New returns a Handler.
func New(cfg Config) (*Handler, error) {
	if cfg.Resolver == nil || cfg.Metrics == nil {
		return nil, errors.New("httpfront: no resolver or no metrics")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Stall <= 0 {
		cfg.Stall = defaultStall
	}
	info := nix.CacheInfo{StoreDir: nix.StoreDir, WantMassQuery: true, Priority: cfg.Priority}
	return &Handler{cfg: cfg, log: cfg.Log, cacheInfo: info.Text(), via: "nixp2p/" + cfg.ID}, nil
}

// Header values are shared by all responses: nobody changes them.
var (
	narinfoType   = []string{"text/x-nix-narinfo"}
	cacheInfoType = []string{"text/x-nix-cache-info"}
	narType       = []string{"application/x-nix-nar"}
	plainType     = []string{"text/plain"}
	noLength      = []string{"0"}
)

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	h.progress(w, now)
	h.anew(w, now)
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "this cache is filled by what it serves: uploads are not taken", http.StatusMethodNotAllowed)
		return
	}
	switch t := parsePath(r.URL.Path); t.kind {
	case aNarinfo:
		h.narinfo(w, r, t.nar.Store)
	case aNAR:
		h.nar(w, r, t.nar)
	case theCacheInfo:
		w.Header()["Content-Type"] = cacheInfoType
		h.text(w, r, h.cacheInfo)
	default:
		notFound(w)
	}
}

// progress gives the client time for the next write. The time is left set when the request
// has been answered, since the server's own buffer is written after that; the next request
// of the connection sets it anew.
func (h *Handler) progress(w http.ResponseWriter, now time.Time) {
	// A writer without deadlines has an owner who sees to them.
	_ = http.NewResponseController(w).SetWriteDeadline(now.Add(h.cfg.Stall))
}

// anew begins the headers of a response.
func (h *Handler) anew(w http.ResponseWriter, now time.Time) {
	header := w.Header()
	clear(header)
	header["Date"] = h.dateOf(now)
}

// dateOf returns the Date header of a moment.
func (h *Handler) dateOf(now time.Time) []string {
	d := h.date.Load()
	if d == nil || d.second != now.Unix() {
		d = &date{now.Unix(), []string{now.UTC().Format(http.TimeFormat)}}
		h.date.Store(d)
	}
	return d.header
}

// target is a parsed path.
type target struct {
	kind kind
	nar  nix.NARName // for a narinfo the Store only
}

type kind int

const (
	nothing kind = iota
	aNarinfo
	aNAR
	theCacheInfo
)

// parsePath reads a decoded path.
func parsePath(path string) target {
	path, ok := strings.CutPrefix(path, "/")
	if !ok {
		return target{}
	}
	if path == "nix-cache-info" {
		return target{kind: theCacheInfo}
	}
	if stem, ok := strings.CutSuffix(path, ".narinfo"); ok {
		if hash, err := nix.ParseStoreHash(stem); err == nil {
			return target{aNarinfo, nix.NARName{Store: hash}}
		}
		return target{}
	}
	if base, ok := strings.CutPrefix(path, "nar/"); ok {
		if name, err := nix.ParseNARName(base); err == nil {
			return target{aNAR, name}
		}
	}
	return target{}
}

func (h *Handler) narinfo(w http.ResponseWriter, r *http.Request, hash nix.StoreHash) {
	ctx, reach := h.asker(r)
	text, info, err := h.cfg.Resolver.Narinfo(ctx, hash, reach)
	if err != nil || !h.mayShow(reach, info) {
		h.refuse(w, r, err)
		return
	}
	w.Header()["Content-Type"] = narinfoType
	h.text(w, r, text)
}

// counted is the length of a body up to which the server puts Content-Length there by itself, and
// cheaper (net/http buffers 2048 bytes before it begins to send chunks).
const counted = 2 << 10

// text answers with a short body.
func (h *Handler) text(w http.ResponseWriter, r *http.Request, text []byte) {
	if len(text) >= counted || r.Method == http.MethodHead {
		w.Header()["Content-Length"] = []string{strconv.Itoa(len(text))}
	}
	if r.Method == http.MethodGet {
		_, _ = w.Write(text) // a client that has gone is no news
	}
}

func (h *Handler) nar(w http.ResponseWriter, r *http.Request, name nix.NARName) {
	err := h.sendNAR(w, r, name)
	var lie *verify.InvalidError
	if errors.As(err, &lie) && r.Context().Err() == nil {
		// The only file of this name was wrong, and nothing of it has left: the same NAR may be
		// had in another form, which has another length.
		h.anew(w, time.Now())
		err = h.sendNAR(w, r, name)
	}
	if err != nil {
		h.anew(w, time.Now())
		h.refuse(w, r, err)
	}
}

// sendNAR answers with a NAR. It returns an error when it has sent nothing.
func (h *Handler) sendNAR(w http.ResponseWriter, r *http.Request, name nix.NARName) error {
	ctx, reach := h.asker(r)
	from, to, asked := parseRange(r)
	n, err := h.cfg.Resolver.NAR(ctx, name, resolve.Query{Reach: reach, Resume: asked && from != 0, Head: r.Method == http.MethodHead})
	if err != nil {
		return err
	}
	defer n.Close()
	if !h.mayShow(reach, n.Info()) {
		return fs.ErrNotExist
	}
	size, status := n.Size(), http.StatusOK
	header := w.Header()
	header["Content-Type"] = narType
	start, count := int64(0), size
	if n.Ranges() {
		header.Set("Accept-Ranges", "bytes")
		if asked {
			var ok bool
			if start, count, ok = clamp(from, to, size); !ok {
				header.Set("Content-Range", "bytes */"+strconv.FormatInt(size, 10))
				http.Error(w, "the range begins behind the end", http.StatusRequestedRangeNotSatisfiable)
				return nil
			}
			status = http.StatusPartialContent
			header.Set("Content-Range", contentRange(start, count, size))
		}
	}
	header.Set("Content-Length", strconv.FormatInt(count, 10))
	if r.Method == http.MethodHead {
		w.WriteHeader(status)
		return nil
	}
	out := &lateWriter{h: h, w: w, status: status}
	return h.ended(r, name, out, n.Send(ctx, out, start, count))
}

// ended cuts a response whose bytes could not be had or proven. It returns err when there is
// nothing to cut.
func (h *Handler) ended(r *http.Request, name nix.NARName, out *lateWriter, err error) error {
	switch {
	case err == nil:
		h.cfg.Metrics.NarRequests.WithLabelValues("sent").Inc()
	case out.failed || r.Context().Err() != nil:
		h.cfg.Metrics.NarRequests.WithLabelValues("left").Inc()
		panic(http.ErrAbortHandler)
	case !out.began:
		return err
	default:
		h.cfg.Metrics.NarRequests.WithLabelValues("cut").Inc()
		h.log.Warn("response cut", "nar", name.String(), "err", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

// lateWriter sends the status with the first byte, so that until then the answer may become
// another.
type lateWriter struct {
	h      *Handler
	w      http.ResponseWriter
	status int
	began  bool
	failed bool // the client has gone, or takes nothing
}

func (l *lateWriter) Write(p []byte) (int, error) {
	l.h.progress(l.w, time.Now())
	if !l.began {
		l.began = true
		l.w.WriteHeader(l.status)
	}
	n, err := l.w.Write(p)
	l.failed = l.failed || err != nil
	return n, err
}

// refuse is the one place that turns errors into a status. It is always 404: Nix then asks
// the next substituter without a pause, and counts no failure.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if err != nil && !errors.Is(err, fs.ErrNotExist) && r.Context().Err() == nil {
		h.log.Debug("answered 404 for want of a source", "url", r.URL.Path, "err", err)
	}
	notFound(w)
}

func notFound(w http.ResponseWriter) {
	header := w.Header()
	header["Content-Type"] = plainType
	header["Content-Length"] = noLength
	w.WriteHeader(http.StatusNotFound)
}

// asker returns the request's context with its Via chain, and what the asker may be answered
// from: when this daemon is in the chain already, the question must not leave this machine again.
func (h *Handler) asker(r *http.Request) (ctx context.Context, reach resolve.Reach) {
	if !sameMachine(r) {
		reach |= resolve.SharedOnly
	}
	via := r.Header["Via"]
	if len(via) == 0 {
		return r.Context(), reach
	}
	chain := strings.Join(via, ", ")
	for hop := range strings.SplitSeq(chain, ",") {
		for word := range strings.FieldsSeq(hop) {
			if word == h.via {
				reach |= resolve.ThisMachine
			}
		}
	}
	return nix.ContextWithVia(r.Context(), chain), reach
}

// mayShow keeps what is private from clients on other machines, whatever the resolver says.
func (h *Handler) mayShow(reach resolve.Reach, info *verify.Info) bool {
	return reach&resolve.SharedOnly == 0 || info != nil && info.SignedByAny(h.cfg.Share)
}

// sameMachine tells whether the client is on this machine: it came by a socket of the file
// system, from a loopback address, or from the very address that it connected to.
func sameMachine(r *http.Request) bool {
	client, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return true // a unix socket has no address
	}
	addr := client.Addr().Unmap()
	if addr.IsLoopback() {
		return true
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && local.AddrPort().Addr().Unmap().WithZone("") == addr.WithZone("")
}
