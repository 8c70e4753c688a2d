package httpfront

import (
	"context"
	"io/fs"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/transfer"
	"github.com/nixp2p/nixp2p/internal/update"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/verify"
)

// A node may get a raw NAR as what differs from a version of it that the node has: in answer to a request for
// any form of the NAR that names bases and asks for a content coding, which no Nix does, or from a URL of its own,
// which a CDN may keep. If there is no delta, the form comes that was asked for.

var (
	// deltaVary: a NAR may be coded if bases are named. Whether it is depends on Accept-Encoding as well, but that
	// differs from Nix to Nix, each of which would be kept apart, and what is coded is not kept.
	deltaVary = []string{update.DictionaryHeader}
	// notKept: there are caches that ignore Vary, and a Nix that got a delta would fail.
	notKept = []string{"no-store, no-transform"}
	// keptForYears: the URL of a delta names both NARs.
	keptForYears = []string{"max-age=31536000, immutable, no-transform"}
)

const (
	// deltaLeast is the rate in bytes a second below which a client that takes a delta is cut off, since
	// it holds an encoder, and deltaGrace the time that it has in addition.
	deltaLeast = 16 << 10
	deltaGrace = 30 * time.Second
)

// deltaTag is the entity tag of a delta.
func deltaTag(nar, base nix.NarHash) string { return `"` + nar.Nix32() + "-" + base.Nix32() + `"` }

// deltaURL is where a delta is, relative to the root. parseDelta reads it without its prefix.
func deltaURL(name nix.NARName, base nix.NarHash) string {
	name.Form = nix.Raw
	return deltaPrefix + base.Nix32() + "/" + strings.TrimPrefix(name.URL(), narPrefix)
}

const (
	narPrefix   = "nar/"
	deltaPrefix = "delta/"
)

// parseDelta reads "<narhash of the base>/<name of the raw NAR>".
func parseDelta(text string) (base nix.NarHash, name nix.NARName, ok bool) {
	first, rest, _ := strings.Cut(text, "/")
	base, err := nix.ParseNarHash32(first)
	if err == nil {
		name, err = nix.ParseNARName(rest)
	}
	return base, name, err == nil && name.Form.IsRaw()
}

// basesOf returns the bases that a request for a NAR names, if it may be answered with a delta.
func (h *Handler) basesOf(r *http.Request) []nix.NarHash {
	if h.cfg.Encoder == nil || r.Method != http.MethodGet || r.Header["Range"] != nil {
		return nil
	}
	named := r.Header[update.DictionaryHeader]
	if len(named) == 0 || !accepts(r.Header["Accept-Encoding"], update.Coding) {
		return nil
	}
	return update.ParseDictionaries(named)
}

// accepts reports whether a coding is among those that are asked for.
func accepts(values []string, coding string) bool {
	for _, value := range values {
		for word := range strings.SplitSeq(value, ",") {
			if strings.TrimSpace(word) == coding {
				return true
			}
		}
	}
	return false
}

// openDelta returns a delta of info's NAR, nil if there is none for this client now. Size is that of the answer
// without a delta in bytes.
func (h *Handler) openDelta(ctx context.Context, r *http.Request, info *verify.Info, bases []nix.NarHash, size int64) *update.Delta {
	if len(bases) == 0 || !info.SignedByAny(h.cfg.Share) {
		return nil
	}
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		at = netip.AddrPort{} // a socket of the file system
	}
	return h.cfg.Encoder.Open(ctx, update.Ask{
		To: machine.Of(at.Addr()).Prefix(), Info: info, Bases: bases, Plain: update.PlainTime(r.Header, size),
	})
}

// serveDelta answers at the URL of a delta.
func (h *Handler) serveDelta(w http.ResponseWriter, r *http.Request, base nix.NarHash, name nix.NARName) {
	began := time.Now()
	ctx, scope := h.scope(r)
	if err := h.sendDeltaURL(ctx, w, r, base, name, scope); err != nil {
		h.settle(ctx, scope, began)
		h.reset(w, time.Now())
		h.refuse(w, r, scope|source.LocalOnly, err)
	}
}

// sendDeltaURL returns an error if it has sent nothing. Nothing is fetched for it.
func (h *Handler) sendDeltaURL(ctx context.Context, w http.ResponseWriter, r *http.Request, base nix.NarHash, name nix.NARName, scope source.Scope) error {
	if h.cfg.Encoder == nil || r.Method != http.MethodGet {
		return fs.ErrNotExist
	}
	n, err := h.nar(ctx, name, transfer.Query{Scope: scope | source.LocalOnly, Head: true})
	if err != nil {
		return err
	}
	info := n.Info()
	n.Close()
	if !h.mayShow(scope, info) {
		return fs.ErrNotExist
	}
	d := h.openDelta(ctx, r, info, []nix.NarHash{base}, info.NarSize())
	if d == nil {
		return fs.ErrNotExist
	}
	header := w.Header()
	header["Cache-Control"] = keptForYears
	tag := deltaTag(name.Nar, base)
	if short := precondition(r, tag); short != 0 {
		header["Etag"] = []string{tag}
		w.WriteHeader(short)
		return d.Close()
	}
	h.sendDelta(ctx, w, r, name, d)
	return nil
}

// sendDelta sends a delta and closes it.
func (h *Handler) sendDelta(ctx context.Context, w http.ResponseWriter, r *http.Request, name nix.NARName, d *update.Delta) {
	defer d.Close() // only read
	header := w.Header()
	header["Content-Type"] = narType
	header["Etag"] = []string{deltaTag(name.Nar, d.Base)}
	header.Set("Content-Encoding", update.Coding)
	header.Set(update.BaseHeader, d.Base.Nix32())
	out := &deltaWriter{w: w, control: http.NewResponseController(w), began: time.Now()}
	out.flush() // the other side waits for a beginning
	err := d.Send(ctx, out, func(int) {})
	switch {
	case err == nil:
		h.cfg.Metrics.NarRequests.WithLabelValues("sent").Inc()
	case out.failed || r.Context().Err() != nil:
		h.cfg.Metrics.NarRequests.WithLabelValues("left").Inc()
		panic(http.ErrAbortHandler)
	default:
		h.cfg.Metrics.NarRequests.WithLabelValues("cut").Inc()
		h.log.Warn("response cut", "nar", name.String(), "err", err)
		panic(http.ErrAbortHandler)
	}
}

// deltaWriter sends each block at once, to a client that is not too slow.
type deltaWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	began   time.Time
	sent    int64
	failed  bool
}

func (d *deltaWriter) Write(p []byte) (int, error) {
	d.sent += int64(len(p))
	// A writer without deadlines has an owner who takes care of that.
	_ = d.control.SetWriteDeadline(d.began.Add(deltaGrace + time.Duration(d.sent)*time.Second/deltaLeast))
	n, err := d.w.Write(p)
	if err == nil {
		err = d.control.Flush()
	}
	d.failed = d.failed || err != nil
	return n, err
}

func (d *deltaWriter) flush() {
	d.w.WriteHeader(http.StatusOK)
	_ = d.control.Flush()
}
