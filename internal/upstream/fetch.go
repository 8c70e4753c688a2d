package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
)

// maxRedirects is what Nix follows.
const maxRedirects = 10

// request is one GET.
type request struct {
	kind string // label of the metric
	// question is what a narinfo is asked for.
	question nix.StoreHash
	at       *url.URL
	from     int64         // first byte that is wanted; above 0 Range is asked for
	within   time.Duration // until the headers
}

// The kinds of requests.
const (
	kindNarInfo   = "narinfo"
	kindNAR       = "nar"
	kindCacheInfo = "cache_info"
)

// reply is the answer to a request: its headers have come. The body must be closed.
type reply struct {
	status int
	header http.Header
	length int64 // of the body, -1 when not said
	ask    *request
	body   *wire
	own    bool // the cache itself answered, not a host that it led to
}

var (
	errStalled   = errors.New("stalled")
	errRedirects = errors.New("too many redirects")
)

// fetch sends a request and follows redirects. ctx governs the body too. An error is
// ctx's own or a *failure, which is noted already.
func (m *mirror) fetch(ctx context.Context, u *Upstreams, q request) (*reply, error) {
	began := time.Now()
	m.asked.Add(1)
	within, cancel := context.WithCancelCause(context.WithValue(ctx, mirrorKey{}, m))
	timer := time.AfterFunc(q.within, func() { cancel(errStalled) })
	settled, certain := func() {}, m.doubt(within, u, q.kind)
	if q.kind != kindNAR {
		settled = m.await(cancel)
	}
	resp, err := m.follow(within, u, &q)
	settled()
	certain()
	if err == nil {
		timer.Stop()
		w := &wire{
			rc: resp.Body, timer: timer, stall: u.times.stall, bytes: u.metrics.UpstreamBytes,
			stop: func() { cancel(context.Canceled) },
			why:  func() error { return context.Cause(within) },
		}
		own := !m.foreign(q.at)
		if own && q.kind == kindNAR {
			w.from = &m.health
		}
		// What is small is an answer when it is here in whole: see heard.
		if own && (q.kind == kindNAR || resp.StatusCode != http.StatusOK) {
			m.judge(q.kind, resp.StatusCode)
		}
		return &reply{resp.StatusCode, resp.Header, resp.ContentLength, &q, w, own}, nil
	}
	timer.Stop()
	cause := context.Cause(within)
	stalled := errors.Is(cause, errStalled)
	cancel(context.Canceled)
	u.metrics.UpstreamRequests.WithLabelValues(q.kind, "error").Inc()
	kind := classify(err)
	switch {
	case stalled, ctx.Err() != nil && time.Since(began) >= u.times.stall:
		// Who waited in vain for long enough knows something even if he was called off. The
		// connection may have died while nobody looked, as after a suspend: the next
		// request gets another.
		kind, err = troubleSilent, fmt.Errorf("no answer in %v: %w", q.within, errStalled)
		u.transport.CloseIdleConnections()
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(cause, errDown):
		return nil, &failure{troubleConnect, errDown}
	}
	if m.foreign(q.at) {
		m.failed(troubleOther, err)
	} else {
		if kind == troubleSilent {
			m.silentFor(q.kind, q.question)
		}
		m.failed(kind, err)
	}
	if ended := ctx.Err(); ended != nil {
		return nil, ended
	}
	return nil, &failure{kind, err}
}

// foreign tells whether a URL leads to another host, whose trouble says nothing about the
// cache's own.
func (m *mirror) foreign(at *url.URL) bool { return at.Hostname() != m.base.Hostname() }

// judge notes what a status says about health.
func (m *mirror) judge(kind string, status int) {
	if status >= http.StatusInternalServerError {
		m.failed(troubleIll, statusError(status))
		return
	}
	m.answered(kind)
}

// heard notes how reading a small answer ended. Headers alone would make a cache look well that gives
// nothing else, and every question would wait for it.
func (m *mirror) heard(r *reply, err error) error {
	stalled := errors.Is(err, errStalled)
	switch {
	case !r.own:
	case stalled:
		m.silentFor(r.ask.kind, r.ask.question)
		m.failed(troubleSilent, err)
	default:
		m.answered(r.ask.kind)
	}
	switch {
	case stalled:
		return &failure{troubleSilent, err}
	case err != nil:
		return &failure{troubleOther, err}
	}
	return nil
}

// chain is the Via header: all who are in the chain already, and this daemon. Two that have
// each other as upstream know themselves by it.
func (u *Upstreams) chain(ctx context.Context) string {
	if before := nix.Via(ctx); before != "" {
		return before + ", " + u.via
	}
	return u.via
}

// follow sends the request on as redirects say, never to a lesser scheme, and leaves in q.at
// where it got. Credentials go to the host that they are for, wherever that comes in the
// chain.
func (m *mirror) follow(ctx context.Context, u *Upstreams, q *request) (*http.Response, error) {
	for range maxRedirects + 1 {
		at := q.at
		req := (&http.Request{
			Method: http.MethodGet, URL: at, Host: at.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: http.Header{"User-Agent": {u.agent}, "Via": {u.chain(ctx)}},
		}).WithContext(ctx)
		if q.from > 0 {
			req.Header.Set("Range", "bytes="+strconv.FormatInt(q.from, 10)+"-")
		}
		if c := m.credential(u, at); c != nil {
			req.SetBasicAuth(c.login, c.password)
		}
		resp, err := m.get.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		u.metrics.UpstreamRequests.WithLabelValues(q.kind, strconv.Itoa(resp.StatusCode)).Inc()
		location := resp.Header.Get("Location")
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, nil
		}
		if !m.foreign(at) {
			m.answered(q.kind)
		}
		n, _ := io.CopyN(io.Discard, resp.Body, 2<<10) // so that the connection serves again
		u.metrics.UpstreamBytes.Add(float64(n))
		_ = resp.Body.Close()
		to, err := at.Parse(location)
		if err != nil || location == "" {
			return nil, fmt.Errorf("status %d leads nowhere", resp.StatusCode)
		}
		if err := permitted(at, to); err != nil {
			return nil, fmt.Errorf("redirect: %w", err)
		}
		to.User, to.Fragment = nil, ""
		q.at = to
	}
	return nil, errRedirects
}

// credential returns what to tell the host of at, nil for nothing.
func (m *mirror) credential(u *Upstreams, at *url.URL) *credential {
	if m.own != nil && at.Scheme == m.base.Scheme && hostPort(at) == m.addr {
		return m.own
	}
	if at.Scheme == schemeFile {
		return nil
	}
	return u.netrc.find(at.Hostname())
}

// classify tells how a request's error bears on health.
func classify(err error) trouble {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return troubleConnect
	}
	var (
		verification *tls.CertificateVerificationError
		authority    x509.UnknownAuthorityError
		record       tls.RecordHeaderError
		alert        tls.AlertError
	)
	switch {
	case errors.As(err, &verification), errors.As(err, &authority), errors.As(err, &record), errors.As(err, &alert), errors.Is(err, errNoDirectory):
		return troubleUnreachable
	case strings.Contains(err.Error(), "TLS handshake timeout"): // net/http has no type for it
		return troubleSlowConnect
	}
	return troubleOther
}

// statusError is an answer that was none of those that are expected.
type statusError int

func (s statusError) Error() string {
	return fmt.Sprintf("status %d %s", int(s), http.StatusText(int(s)))
}

// again tells whether a request that failed so is worth one more try.
func again(err error) bool {
	var status statusError
	if errors.As(err, &status) {
		return status >= http.StatusInternalServerError
	}
	var f *failure
	return errors.As(err, &f) && (f.kind == troubleOther || f.kind == troubleSilent) &&
		!errors.Is(err, errScheme) && !errors.Is(err, errRedirects)
}

// late tells whether a request failed because nothing came in time.
func late(err error) bool {
	var f *failure
	return errors.As(err, &f) && (f.kind == troubleSilent || f.kind == troubleConnect && isTimeout(f.err))
}

// refused turns a status other than 200 and 206 into an error, and notes what it says: the
// cache is busy, or wants credentials.
func (u *Upstreams) refused(m *mirror, r *reply) error {
	err := statusError(r.status)
	switch after := r.header.Get("Retry-After"); {
	case r.status == http.StatusTooManyRequests, r.status == http.StatusServiceUnavailable && after != "":
		m.busy(time.Now().Add(u.retryAfter(after)), err)
		return fmt.Errorf("%w: %s", errBusy, err.Error())
	case r.status == http.StatusUnauthorized, r.status == http.StatusProxyAuthRequired:
		if m.mayMention(mentionCredentials) {
			u.log.Warn("upstream wants other credentials", "upstream", m.name, "err", err)
			u.trouble(sourceName, m.name+" wants other credentials", "", err)
		}
	}
	return err
}

// retryAfter reads seconds or a date (RFC 9110, 10.2.3), within bounds.
func (u *Upstreams) retryAfter(text string) time.Duration {
	d := u.times.busy
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		d = time.Duration(n) * time.Second
	} else if at, err := http.ParseTime(text); err == nil {
		d = max(time.Until(at), 0)
	}
	return min(d, u.times.busyMost)
}

// wire is a response body on its way: it counts bytes, and ends when none comes for too
// long. Only the time in which a byte is waited for counts, not the reader's own.
type wire struct {
	rc    io.ReadCloser
	timer *time.Timer // calls the request off
	stall time.Duration
	bytes prometheus.Counter
	from  *health // nil when the body comes from elsewhere
	stop  func()
	why   func() error // why the request was called off
	ended bool
}

func (w *wire) Read(p []byte) (int, error) {
	w.timer.Reset(w.stall)
	n, err := w.rc.Read(p)
	w.timer.Stop()
	if n > 0 {
		w.bytes.Add(float64(n))
		if w.from != nil {
			w.from.heardAt.Store(time.Now().UnixNano())
		}
	}
	switch {
	case errors.Is(err, io.EOF):
		w.ended = true
	case err != nil && errors.Is(w.why(), errStalled):
		err = fmt.Errorf("no byte in %v: %w", w.stall, errStalled)
	}
	return n, err
}

// Close may be called once. A body that was read to its end leaves its connection to the next.
func (w *wire) Close() error {
	w.timer.Stop()
	if !w.ended {
		w.stop()
	}
	err := w.rc.Close()
	w.stop()
	return err
}

// finish closes a body that is of no use, with its connection kept if little is left.
func (w *wire) finish() {
	const little, soon = 4 << 10, 200 * time.Millisecond
	w.stall = min(w.stall, soon)
	var buf [1 << 10]byte
	for left := little; left > 0 && !w.ended; {
		n, err := w.Read(buf[:])
		if left -= n; err != nil {
			break
		}
	}
	_ = w.Close()
}

// readAll reads a short body whole; it may return up to most+1 bytes, which tells that there
// are too many.
func (r *reply) readAll(most int64) ([]byte, error) {
	src, err := r.content()
	if err != nil {
		return nil, err
	}
	defer src.Close()
	text, err := io.ReadAll(io.LimitReader(src, most+1))
	if err != nil && len(text) <= int(most) {
		return nil, err
	}
	return text, nil
}

var errEncoding = errors.New("content encoding is not known")

// encoded tells whether the body was encoded on the way, though nobody asked for it.
func (r *reply) encoded() bool {
	e := r.header.Get("Content-Encoding")
	return e != "" && !strings.EqualFold(e, "identity")
}

// content returns the body with its Content-Encoding undone. Closing it leaves the wire open.
func (r *reply) content() (io.ReadCloser, error) {
	if !r.encoded() {
		return io.NopCloser(r.body), nil
	}
	var c nix.Compression
	switch text := strings.ToLower(r.header.Get("Content-Encoding")); text {
	case "gzip", "x-gzip":
		c = nix.Gzip
	case "zstd":
		c = nix.Zstd
	case "br":
		c = nix.Brotli
	case "xz", "x-xz":
		c = nix.XZ
	default:
		return nil, fmt.Errorf("%w: %q", errEncoding, text)
	}
	return compress.NewReader(c, r.body)
}
