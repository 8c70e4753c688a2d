// Package admin answers operators: a status page, a JSON API, metrics, health and profiles,
// on a listener of its own. Any user of the machine may read; only root and the service's own
// user may change something or take profiles. A web page of another site that is open in a
// browser on the machine can neither read nor cause anything.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/origin"
)

// Node is what is asked about. Its methods are called from many goroutines.
type Node interface {
	// Ready returns nil if the node can do its work, else why it cannot.
	Ready() error
	State() State
	// Why asks every source for a path.
	Why(ctx context.Context, h nix.StoreHash) []Answer
	Peers() []Peer
	// History returns what was sent to Nix in the last 24 hours and 30 days.
	History() History
	// Prefetch brings a path into the NAR cache unless this machine has it. If dry is set, it
	// only says what it would do. An error that wraps fs.ErrNotExist means that no source has it.
	Prefetch(ctx context.Context, h nix.StoreHash, dry bool) (Prefetched, error)
	// Trim shrinks the NAR cache to max bytes, or only lists it when max is negative. The
	// result is what `nixp2p gc` prints.
	Trim(max int64) (any, error)
	// TrimPlan says what Trim would do.
	TrimPlan(max int64) (any, error)
	// Follow has the followed lists looked at now; if dry, it says what they need and changes nothing.
	Follow(ctx context.Context, dry bool) ([]FollowPlan, error)
}

// Config is what New needs.
type Config struct {
	Node    Node             // required
	Metrics *metrics.Metrics // required
	// Addr is the configured address, "host:port": its host may stand in the Host header, and so
	// may Names.
	Addr    string
	Names   []string
	Version string
	Started time.Time    // If zero, now.
	Log     *slog.Logger // If nil, nothing is logged.
}

// whyTime bounds a question to all sources: above the longest deadline of a narinfo.
const whyTime = 20 * time.Second

// scrapes bounds how many collect metrics at once: each walks all of them.
const scrapes = 4

// contentPolicy lets the page load its own three files and ask this listener, and nothing
// else: no code or style inside the page, no other address, no text that becomes elements.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'; trusted-types 'none'; require-trusted-types-for 'script'"

// Handler serves the admin listener. It is safe for concurrent use.
type Handler struct {
	cfg     Config
	mux     *http.ServeMux
	page    *template.Template
	check   origin.Check
	isOwner func(*http.Request) bool
}

// New returns the handler.
func New(cfg Config) (*Handler, error) {
	if cfg.Node == nil || cfg.Metrics == nil {
		return nil, errors.New("admin: no node or no metrics to tell about")
	}
	if cfg.Started.IsZero() {
		cfg.Started = time.Now()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	h := &Handler{cfg: cfg, mux: http.NewServeMux(), isOwner: fromOwner}
	h.check = origin.Check{Names: append([]string{cfg.Addr}, cfg.Names...), Pages: true}
	if err := h.handlePage(); err != nil {
		return nil, err
	}
	h.mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Metrics.Registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug), MaxRequestsInFlight: scrapes,
	}))
	h.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok") })
	h.mux.HandleFunc("GET /readyz", h.readyz)
	h.mux.HandleFunc("GET /api/v1/status", func(w http.ResponseWriter, _ *http.Request) { h.json(w, http.StatusOK, h.Status()) })
	h.mux.HandleFunc("GET /api/v1/peers", func(w http.ResponseWriter, _ *http.Request) { h.json(w, http.StatusOK, list(h.cfg.Node.Peers())) })
	h.mux.HandleFunc("GET /api/v1/history", func(w http.ResponseWriter, _ *http.Request) { h.json(w, http.StatusOK, h.cfg.Node.History()) })
	h.mux.HandleFunc("GET /api/v1/why/{hash}", h.why)
	h.mux.HandleFunc("POST /api/v1/prefetch", h.prefetch)
	h.mux.HandleFunc("POST /api/v1/gc", h.gc)
	h.mux.HandleFunc("POST /api/v1/follow", h.follow)
	h.mux.HandleFunc("GET /debug/pprof/", bounded(pprof.Index))
	h.mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	h.mux.HandleFunc("GET /debug/pprof/profile", bounded(pprof.Profile))
	h.mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	h.mux.HandleFunc("GET /debug/pprof/trace", bounded(pprof.Trace))
	return h, nil
}

// ServeHTTP answers a request that may come from a browser.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	head := w.Header()
	head.Set("Content-Security-Policy", contentPolicy)
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Referrer-Policy", "no-referrer")
	head.Set("Cross-Origin-Resource-Policy", "same-origin")
	head.Set("Cache-Control", "no-store")
	if r.ContentLength != 0 {
		limitBody(w, r)
	}
	status, reason := h.refuse(r)
	switch {
	case reason == "":
		h.mux.ServeHTTP(w, r)
	case strings.HasPrefix(r.URL.Path, "/api/"):
		h.json(w, status, Refusal{reason})
	default:
		text(w, status, reason)
	}
}

// bodyTime is how long a posted body may take.
const bodyTime = 10 * time.Second

// limitBody keeps a body that does not come from holding the connection: the server reads it to
// its end before it answers.
func limitBody(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Connection", "close")
	deadline := time.Unix(1, 0)
	if r.Method == http.MethodPost {
		deadline = time.Now().Add(bodyTime)
	}
	_ = http.NewResponseController(w).SetReadDeadline(deadline) // an error: the writer of a test
}

// maxProfile is the longest time for which a profile is taken: only one can be at a time.
const maxProfile = 60 // seconds

// bounded refuses to take a profile for longer than maxProfile.
func bounded(profile http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if s := r.URL.Query().Get("seconds"); s != "" {
			if n, err := strconv.ParseFloat(s, 64); err != nil || !(0 <= n && n <= maxProfile) {
				text(w, http.StatusBadRequest, fmt.Sprintf("seconds must be a number up to %d", maxProfile))
				return
			}
		}
		profile(w, r)
	}
}

func (h *Handler) readyz(w http.ResponseWriter, _ *http.Request) {
	if err := h.cfg.Node.Ready(); err != nil {
		text(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	text(w, http.StatusOK, "ok")
}

func (h *Handler) why(w http.ResponseWriter, r *http.Request) {
	hash, err := nix.ParseStoreHash(r.PathValue("hash"))
	if err != nil {
		h.json(w, http.StatusBadRequest, Refusal{"not a store hash: " + err.Error()})
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), whyTime)
	defer cancel()
	h.json(w, http.StatusOK, Why{StoreHash: hash.String(), Answers: list(h.cfg.Node.Why(ctx, hash))})
}

func (h *Handler) json(w http.ResponseWriter, status int, v any) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		h.cfg.Log.Error("status as JSON", "err", err)
		text(w, http.StatusInternalServerError, "the answer cannot be made")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}

func text(w http.ResponseWriter, status int, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(s + "\n"))
}
