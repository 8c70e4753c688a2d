package httpfront

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/nixp2p/nixp2p/internal/httprange"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/transfer"
	"github.com/nixp2p/nixp2p/verify"
)

// nar is what is used of a transfer.NAR.
type nar interface {
	Info() *verify.Info
	Size() int64  // of the response in bytes
	Ranges() bool // whether a part of it may be asked for
	// Send writes count bytes from byte from on. On an error with nothing written the
	// request may still be refused, else the response is cut.
	Send(ctx context.Context, w io.Writer, from, count int64) error
	Close()
}

func (h *Handler) serveNAR(w http.ResponseWriter, r *http.Request, name nix.NARName) {
	began := time.Now()
	ctx, scope := h.scope(r)
	err := h.sendNAR(ctx, w, r, name, scope)
	var invalid *verify.InvalidError
	if errors.As(err, &invalid) && r.Context().Err() == nil {
		// The only file of this name was wrong, and nothing of it has left: there may be the same
		// NAR in another form, which has another length.
		h.reset(w, time.Now())
		err = h.sendNAR(ctx, w, r, name, scope)
	}
	if err != nil {
		h.settle(ctx, scope, began)
		h.reset(w, time.Now())
		h.refuse(w, r, scope, err)
	}
}

// sendNAR answers with a NAR. It returns an error if it has sent nothing.
func (h *Handler) sendNAR(ctx context.Context, w http.ResponseWriter, r *http.Request, name nix.NARName, scope source.Scope) error {
	tag := narTag(name)
	asked, short := rangeOf(r, tag), precondition(r, tag)
	n, err := h.nar(ctx, name, transfer.Query{
		Scope: scope, Resume: short == 0 && resumes(asked), Head: short != 0 || r.Method == http.MethodHead, Client: clientOf(r, scope),
	})
	if err != nil {
		return err
	}
	defer n.Close()
	if !h.mayShow(scope, n.Info()) {
		return fs.ErrNotExist
	}
	header := w.Header()
	if h.cfg.Encoder != nil {
		header["Vary"] = deltaVary
	}
	if short == 0 {
		if d := h.openDelta(ctx, r, n.Info(), h.basesOf(r), n.Size()); d != nil {
			n.Close()
			header["Cache-Control"], header["Content-Location"] = notKept, []string{"../" + deltaURL(name, d.Base)}
			h.sendDelta(ctx, w, r, name, d)
			return nil
		}
	}
	if n.Ranges() || short == http.StatusNotModified {
		header["Etag"], header["Cache-Control"] = []string{tag}, forYears
	}
	if short != 0 {
		w.WriteHeader(short)
		return nil
	}
	size, status := n.Size(), http.StatusOK
	header["Content-Type"] = narType
	start, count := int64(0), size
	if n.Ranges() {
		header.Set("Accept-Ranges", "bytes")
		if asked != "" {
			start, count, err = httprange.Parse(asked, size)
		}
		switch {
		case errors.Is(err, httprange.ErrUnsatisfiable):
			header.Set("Content-Range", "bytes */"+strconv.FormatInt(size, 10))
			http.Error(w, "the range begins after the end", http.StatusRequestedRangeNotSatisfiable)
			return nil
		case err != nil: // the whole is a correct answer
			start, count = 0, size
		case asked != "":
			status = http.StatusPartialContent
			header.Set("Content-Range", httprange.ContentRange(start, count, size))
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

// rangeOf returns the Range header, "" if there is none that counts: there are several, or it is
// for something else than what tag names.
func rangeOf(r *http.Request, tag string) string {
	values := r.Header["Range"]
	if len(values) != 1 || r.Method != http.MethodGet {
		return ""
	}
	if only := r.Header["If-Range"]; only != nil && (len(only) != 1 || only[0] != tag) {
		return ""
	}
	return values[0]
}

// resumes reports whether a client that has some bytes already asks for the rest.
func resumes(asked string) bool {
	// The size is not known yet; in one so large, any range that begins behind byte 0 does so.
	from, _, err := httprange.Parse(asked, 1<<62)
	return asked != "" && (err == nil && from > 0 || errors.Is(err, httprange.ErrUnsatisfiable))
}

// ended cuts a response whose bytes were not available or could not be verified. It returns err
// if there is nothing to cut.
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

// clientOf returns the address of a client on another machine, zero for one on this machine.
func clientOf(r *http.Request, scope source.Scope) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if !scope.Public() || err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}
