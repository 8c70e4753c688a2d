// Package httpfront speaks the binary-cache protocol to Nix: nix-cache-info, narinfos and
// NARs, and nothing else. It turns every error into 404 before the first byte and into a
// cut connection after it, since that is what hurts a build least. No web page is a client: a
// request that a browser sends for one is 404, too. The Go API is not meant for other programs
// and may change.
package httpfront

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/origin"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/transfer"
	"github.com/nixp2p/nixp2p/internal/update"
	"github.com/nixp2p/nixp2p/verify"
)

// Config says how the front answers.
type Config struct {
	// Resolver finds narinfos and Transfer sends NARs. If they are nil, there is nothing.
	Resolver *resolve.Resolver
	Transfer *transfer.Server
	Metrics  *metrics.Metrics // required
	// Share names the keys whose paths may be shown to clients on other machines.
	Share []string
	// Private is set if there are trusted keys beside those: paths whose existence must not show
	// in the time that clients on other machines wait for a 404.
	Private  bool
	Names    []string // host names of the substituter besides localhost and its addresses
	Public   []string // further ones, by which a proxy on this machine asks for clients on others
	Priority int      // in nix-cache-info
	ID       string   // of this daemon: the name in Via headers
	// Encoder makes deltas for nodes that have this one as upstream. If nil, there are none.
	Encoder *update.Encoder
	Log     *slog.Logger // If nil, nothing is logged.
	// Stall is how long a client may take no byte before its connection ends. If 0, it is five
	// minutes, after which Nix itself gives up a download that does not move.
	Stall time.Duration
}

const defaultStall = 5 * time.Minute

// Handler serves the substituter. It is an http.Handler.
type Handler struct {
	cfg       Config
	log       *slog.Logger
	check     origin.Check
	info      infoFunc
	nar       narFunc
	cacheInfo []byte
	via       string
	date      atomic.Pointer[date]
}

// infoFunc returns the text to answer with, and the proof for it.
type infoFunc func(ctx context.Context, h nix.StoreHash, scope source.Scope) (text []byte, info *verify.Info, err error)

// narFunc chooses where a NAR will come from.
type narFunc func(ctx context.Context, name nix.NARName, q transfer.Query) (nar, error)

// date is the Date header of one second: formatting it for each response would be a good part of
// what a narinfo costs.
type date struct {
	second int64
	header []string
}

// New returns a Handler.
func New(cfg Config) (*Handler, error) {
	if cfg.Metrics == nil {
		return nil, errors.New("httpfront: no metrics")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Stall <= 0 {
		cfg.Stall = defaultStall
	}
	info := nix.CacheInfo{StoreDir: nix.StoreDir, WantMassQuery: true, Priority: cfg.Priority}
	h := &Handler{
		cfg: cfg, log: cfg.Log, check: origin.Check{Names: cfg.Names, Public: cfg.Public},
		cacheInfo: info.Text(), via: "nixp2p/" + cfg.ID,
	}
	h.info, h.nar = h.resolve, h.open
	return h, nil
}

func (h *Handler) resolve(ctx context.Context, hash nix.StoreHash, scope source.Scope) ([]byte, *verify.Info, error) {
	if h.cfg.Resolver == nil {
		return nil, nil, fs.ErrNotExist
	}
	a, err := h.cfg.Resolver.Info(ctx, hash, scope)
	if err != nil {
		return nil, nil, err
	}
	return a.Text(), a.Info, nil
}

func (h *Handler) open(ctx context.Context, name nix.NARName, q transfer.Query) (nar, error) {
	if h.cfg.Transfer == nil {
		return nil, fs.ErrNotExist
	}
	n, err := h.cfg.Transfer.NAR(ctx, name, q)
	if err != nil {
		return nil, err
	}
	return n, nil
}

// Header values are shared by all responses: they must not be changed.
var (
	narinfoType   = []string{"text/x-nix-narinfo"}
	cacheInfoType = []string{"text/x-nix-cache-info"}
	narType       = []string{"application/x-nix-nar"}
	plainType     = []string{"text/plain"}
	noLength      = []string{"0"}
	// noStore: what is missing now may be there in a moment.
	noStore = []string{"no-store"}
	// forMinute: as long as this node itself remembers that there is none. forHour: what a narinfo says stays
	// true, but there may be a better form of the NAR.
	forMinute  = []string{"max-age=60"}
	forHour    = []string{"max-age=3600"}
	deltaOffer = []string{"1"}
	// forYears: the URL of a NAR names its bytes.
	forYears = []string{"max-age=31536000, immutable"}
)

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	h.progress(w, now)
	h.reset(w, now)
	if r.ContentLength != 0 {
		dropBody(w)
	}
	if err := h.check.Refuse(r); err != nil {
		h.log.Debug("answered 404 to a web page", "url", r.URL.Path, "host", r.Host, "err", err)
		w.Header()["Cache-Control"] = noStore // a proxy must not answer others with it
		http.Error(w, "this is a cache for Nix, not for web pages", http.StatusNotFound)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "this cache does not take uploads", http.StatusMethodNotAllowed)
		return
	}
	switch t := parsePath(r.URL.Path); t.kind {
	case aNarinfo:
		h.serveNarinfo(w, r, t.nar.Store)
	case aNAR:
		h.serveNAR(w, r, t.nar)
	case aDelta:
		h.serveDelta(w, r, t.base, t.nar)
	case theCacheInfo:
		w.Header()["Content-Type"] = cacheInfoType
		if h.cfg.Encoder != nil {
			w.Header()[update.OfferHeader] = deltaOffer
		}
		_, scope := h.scope(r)
		h.text(w, r, scope, h.cacheInfo)
	default:
		_, scope := h.scope(r)
		h.refuse(w, r, scope, fs.ErrNotExist)
	}
}

// dropBody makes the server answer without waiting for the body of the request, which may never
// come. The connection ends with the response.
func dropBody(w http.ResponseWriter) {
	w.Header().Set("Connection", "close")
	_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
}

// progress gives the client time for the next write. The time is left set when the request
// has been answered, since the server's own buffer is written after that; the next request
// of the connection sets it again.
func (h *Handler) progress(w http.ResponseWriter, now time.Time) {
	// A writer without deadlines has an owner who takes care of that.
	_ = http.NewResponseController(w).SetWriteDeadline(now.Add(h.cfg.Stall))
}

// reset begins the headers of a response. A connection that is to be closed stays so.
func (h *Handler) reset(w http.ResponseWriter, now time.Time) {
	header := w.Header()
	closing := header["Connection"]
	clear(header)
	if closing != nil {
		header["Connection"] = closing
	}
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
	base nix.NarHash // of a delta
}

type kind int

const (
	nothing kind = iota
	aNarinfo
	aNAR
	aDelta
	theCacheInfo
)

// parsePath reads a decoded path. Slashes and dots that lead nowhere are left out, as other servers do: Nix
// before 2.32 puts two slashes where the substituter's URL ends in one too many.
func parsePath(name string) target {
	if strings.Contains(name, "//") || strings.Contains(name, "/.") {
		name = path.Clean(name)
	}
	name, ok := strings.CutPrefix(name, "/")
	if !ok {
		return target{}
	}
	return parseName(name)
}

func parseName(path string) target {
	if path == "nix-cache-info" {
		return target{kind: theCacheInfo}
	}
	if stem, ok := strings.CutSuffix(path, ".narinfo"); ok {
		if hash, err := nix.ParseStoreHash(stem); err == nil {
			return target{kind: aNarinfo, nar: nix.NARName{Store: hash}}
		}
		return target{}
	}
	if base, ok := strings.CutPrefix(path, narPrefix); ok {
		if name, err := nix.ParseNARName(base); err == nil {
			return target{kind: aNAR, nar: name}
		}
	}
	if rest, ok := strings.CutPrefix(path, deltaPrefix); ok {
		if base, name, ok := parseDelta(rest); ok {
			return target{kind: aDelta, nar: name, base: base}
		}
	}
	return target{}
}

func (h *Handler) serveNarinfo(w http.ResponseWriter, r *http.Request, hash nix.StoreHash) {
	began := time.Now()
	ctx, scope := h.scope(r)
	text, info, err := h.info(ctx, hash, scope)
	if err != nil || !h.mayShow(scope, info) {
		h.settle(ctx, scope, began)
		h.refuse(w, r, scope, err)
		return
	}
	w.Header()["Content-Type"] = narinfoType
	h.text(w, r, scope, text)
}

// counted is the length of a body up to which the server sets Content-Length itself, which is
// cheaper (net/http buffers 2048 bytes before it begins to send chunks).
const counted = 2 << 10

// text answers with a short body.
func (h *Handler) text(w http.ResponseWriter, r *http.Request, scope source.Scope, text []byte) {
	tag := textTag(text)
	w.Header()["Etag"] = []string{tag}
	if scope.Public() {
		w.Header()["Cache-Control"] = forHour
	}
	if status := precondition(r, tag); status != 0 {
		w.WriteHeader(status)
		return
	}
	if len(text) >= counted || r.Method == http.MethodHead {
		w.Header()["Content-Length"] = []string{strconv.Itoa(len(text))}
	}
	if r.Method == http.MethodGet {
		_, _ = w.Write(text) // the client may have gone
	}
}

// refuse is the one place that turns errors into a status. It is always 404: Nix then asks
// the next substituter without a pause, and counts no failure. A proxy may keep for others that there
// is none, but nothing that depends on who asked and how, or on the moment.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, scope source.Scope, err error) {
	absent := err == nil || errors.Is(err, fs.ErrNotExist) && !errors.Is(err, resolve.ErrUnavailable)
	if !absent && r.Context().Err() == nil {
		h.log.Debug("answered 404: no source", "url", r.URL.Path, "err", err)
	}
	keep := noStore
	if absent && scope.Public() && !scope.Local() && r.Header["Range"] == nil {
		keep = forMinute
	}
	notFound(w, keep)
}

func notFound(w http.ResponseWriter, keep []string) {
	header := w.Header()
	header["Content-Type"] = plainType
	header["Content-Length"] = noLength
	header["Cache-Control"] = keep
	w.WriteHeader(http.StatusNotFound)
}

// scope returns the request's context with its Via chain, and what it may be answered from: if
// this daemon is in the chain already, the question must not leave this machine again.
func (h *Handler) scope(r *http.Request) (context.Context, source.Scope) {
	scope := source.All
	if !h.check.Own(r) {
		scope |= source.PublicOnly
	}
	via := r.Header["Via"]
	if len(via) == 0 {
		return r.Context(), scope
	}
	chain := strings.Join(via, ", ")
	for hop := range strings.SplitSeq(chain, ",") {
		for word := range strings.FieldsSeq(hop) {
			if word == h.via {
				scope |= source.LocalOnly
			}
		}
	}
	return nix.ContextWithVia(r.Context(), chain), scope
}

// missTick is far longer than sources differ, on a busy machine too, in the time that they take
// for a private path and for one that does not exist: the share of answers that take a tick more
// tells them apart.
const missTick = 25 * time.Millisecond

// settle waits until a whole number of ticks has passed since began, so that the time of a miss
// tells a client on another machine nothing about private paths.
func (h *Handler) settle(ctx context.Context, scope source.Scope, began time.Time) {
	if !scope.Public() || !h.cfg.Private {
		return
	}
	timer := time.NewTimer(missTick - time.Since(began)%missTick)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// mayShow keeps what is private from clients on other machines, whatever the resolver says.
func (h *Handler) mayShow(scope source.Scope, info *verify.Info) bool {
	return !scope.Public() || info != nil && info.SignedByAny(h.cfg.Share)
}
