package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/httprange"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/update"
)

// maxRedirects is what Nix follows.
const maxRedirects = 10

// The kinds of requests, which are labels of a metric.
const (
	kindNarInfo   = "narinfo"
	kindNAR       = "nar"
	kindCacheInfo = "cache_info"
)

// codings are asked for where a body is short. Caches in object stores often have narinfos
// encoded. NARs are not: what is encoded cannot be resumed.
const codings = "gzip, zstd, br"

// request is one GET, redirects included, and how long it may take.
type request struct {
	kind   string
	about  nix.StoreHash // of which a narinfo is requested
	at     *url.URL
	from   int64         // first byte that is wanted; above 0 Range is sent
	within time.Duration // from the connection to the headers
	// patient: within begins again while the line is saturated.
	patient bool
	fresh   bool          // over a new connection
	bases   []nix.NarHash // of deltas that the cache itself may answer with
	rate    float64       // with bases: at how many bytes a second NARs come from it
	budget  *budget

	began  time.Time
	cancel context.CancelCauseFunc
	timer  *runclock.Timer // cancels it if the headers do not come
	sent   atomic.Int64    // when the connection was there, Unix nanoseconds; 0 before
	begun  atomic.Int64    // the same by shared.now
}

// budget counts the HTTP requests that each cache may still get for one question.
type budget struct {
	mu    sync.Mutex
	most  int
	spent map[*mirror]int
}

func newBudget(most int) *budget { return &budget{most: most, spent: map[*mirror]int{}} }

var errBudget = errors.New("too many requests for one answer")

func (b *budget) spend(m *mirror) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.spent[m] >= b.most {
		return errBudget
	}
	b.spent[m]++
	return nil
}

// reply is the answer to a request: its headers have come. The body must be closed.
type reply struct {
	status int
	header http.Header
	length int64 // of the body, -1 if not said
	q      *request
	body   *wire
	own    bool // the cache itself answered, not a host that it led to
}

// absent reports whether the answer is that there is no such file.
func (r *reply) absent() bool {
	return r.status == http.StatusNotFound || r.status == http.StatusGone || r.status == http.StatusForbidden
}

var (
	errStalled   = errors.New("stalled")
	errRedirects = errors.New("too many redirects")
)

// waited returns for how long the headers have been waited for.
func (q *request) waited() time.Duration {
	if sent := q.sent.Load(); sent > 0 {
		return time.Duration(time.Now().UnixNano() - sent)
	}
	return 0
}

// send sends a request and follows redirects. ctx governs the body too. An error is
// ctx's own or a *failure, which is noted already.
func (u *Upstreams) send(ctx context.Context, m *mirror, q *request) (*reply, error) {
	m.requests.Add(1)
	own, cancel := context.WithCancelCause(ctx)
	q.cancel, q.began = cancel, time.Now()
	q.timer = runclock.NewTimer(time.Hour, func() {
		if q.patient && m.saturated() {
			q.timer.Reset(q.within)
			return
		}
		if left := q.within - time.Duration(u.now(m).UnixNano()-q.begun.Load()); m.bucket != nil && left > 0 && q.sent.Load() > 0 {
			q.timer.Reset(left)
			return
		}
		cancel(errStalled)
	})
	defer u.measured(m)()
	q.timer.Reset(beforeHeaders(&u.timeouts, m, q))
	m.wait(q, q.kind != kindNAR)
	resp, err := u.follow(own, m, q)
	m.wait(q, false)
	interrupted := q.timer.Interrupted()
	q.timer.Stop()
	if err != nil {
		cause := context.Cause(own)
		interrupted = interrupted && cause == nil
		cancel(context.Canceled)
		u.metrics.UpstreamRequests.WithLabelValues(q.kind, "error").Inc()
		if interrupted {
			// Others run out of time while this process is stopped, such as TLS in net/http: that says
			// nothing about the cache, and another request may pass.
			return nil, &failure{failedOther, err}
		}
		return nil, u.unanswered(ctx, m, q, cause, err)
	}
	w := &wire{
		rc: resp.Body, stall: m.stall, bytes: m.bytes, cancel: cancel,
		cause: func() error { return context.Cause(own) },
	}
	r := &reply{resp.StatusCode, resp.Header, resp.ContentLength, q, w, !m.foreign(q.at)}
	if q.kind == kindNAR {
		w.pace = &u.pace
		u.pace.began(q.waited())
		if r.own {
			w.heard, w.own = &m.heardAt, &m.pace
		}
	}
	u.accepted(m, r)
	switch {
	case r.status >= http.StatusInternalServerError:
		if r.own {
			u.failed(m, failedStatus, q.began, statusError(r.status))
		}
	case q.kind == kindNAR || r.status != http.StatusOK: // else see readAll
		u.answered(m, q.kind)
	}
	return r, nil
}

// beforeHeaders bounds all steps up to the headers; each has a timeout of its own.
func beforeHeaders(t *timeouts, m *mirror, q *request) time.Duration {
	if m.files != nil {
		return q.within
	}
	return t.lookup + 2*(t.connect+t.tls) + q.within // with a proxy, TLS may be twice
}

// unanswered notes what a request that got no answer says about the cache.
func (u *Upstreams) unanswered(ctx context.Context, m *mirror, q *request, cause, err error) error {
	kind := classify(err)
	if kind == failedCut && m.files != nil {
		kind = failedOther
	}
	switch {
	case errors.Is(cause, errStalled), ctx.Err() != nil && q.waited() >= u.timeouts.stall:
		// A caller that waited in vain for long enough knows something even if it was
		// cancelled. The connection may have died unnoticed, as after a suspend: the next
		// request gets another one.
		kind, err = failedSilent, fmt.Errorf("no answer in %v: %w", q.within, errStalled)
		u.network.pooled.CloseIdleConnections()
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(cause, errDown):
		return &failure{failedDial, errDown}
	}
	if !m.foreign(q.at) {
		u.noteFailure(m, q, kind, err)
	} else {
		u.failed(m, failedOther, q.began, err)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return &failure{kind, err}
}

// noteFailure notes how a request to the cache failed.
func (u *Upstreams) noteFailure(m *mirror, q *request, kind failureKind, err error) {
	if (kind == failedSilent || kind == failedPage) && q.kind == kindNarInfo {
		m.note(func(h *health) { h.unanswered = &q.about }) // only a narinfo shows now that it is healthy
	}
	u.failed(m, kind, q.began, err)
}

// follow sends the request on as redirects say, never to a lesser scheme, and leaves in q.at
// where it got.
func (u *Upstreams) follow(ctx context.Context, m *mirror, q *request) (*http.Response, error) {
	for range maxRedirects + 1 {
		resp, err := u.once(ctx, m, q)
		if err != nil {
			return nil, err
		}
		u.metrics.UpstreamRequests.WithLabelValues(q.kind, strconv.Itoa(resp.StatusCode)).Inc()
		if !slices.Contains([]int{301, 302, 303, 307, 308}, resp.StatusCode) {
			return resp, nil
		}
		n, _ := io.CopyN(io.Discard, resp.Body, 2<<10) // so that the connection can be used again
		m.bytes.Add(float64(n))
		_ = resp.Body.Close()
		to, err := resp.Location()
		if err == nil {
			err = permitted(q.at, to)
		}
		if err != nil {
			return nil, fmt.Errorf("redirect: %w", err)
		}
		to.User, to.Fragment = nil, ""
		q.at = to
	}
	return nil, errRedirects
}

// once sends one HTTP request. Credentials go to the host that they are for, wherever that
// comes in the chain.
func (u *Upstreams) once(ctx context.Context, m *mirror, q *request) (*http.Response, error) {
	if err := q.budget.spend(m); err != nil {
		return nil, err
	}
	at := q.at
	req := &http.Request{
		Method: http.MethodGet, URL: at, Host: at.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"User-Agent": {u.agent}, "Accept-Encoding": {"identity"}},
	}
	if q.kind != kindNAR {
		req.Header.Set("Accept-Encoding", codings)
	}
	if len(q.bases) > 0 && !m.foreign(at) {
		req.Header.Set("Accept-Encoding", update.Coding)
		req.Header.Set(update.DictionaryHeader, update.FormatDictionaries(q.bases))
		update.SetRate(req.Header, max(q.rate, 1))
	}
	if m.bucket == nil && m.mayBeNode(at) {
		via := u.via
		if before := nix.Via(ctx); before != "" {
			via = before + ", " + via
		}
		req.Header.Set("Via", via)
	}
	if q.from > 0 {
		req.Header.Set("Range", httprange.From(q.from))
	}
	if cred := u.credential(m, at); cred != nil {
		req.SetBasicAuth(cred.login, cred.password)
	}
	if m.files != nil {
		resp, err := m.files.RoundTrip(req.WithContext(ctx))
		if err != nil && ctx.Err() == nil && u.logOnce(m, "unreadable") {
			u.log.Warn("file of upstream cannot be read", "upstream", m.name, "err", err)
		}
		return resp, err
	}
	if m.bucket != nil && !m.foreign(at) {
		if err := m.bucket.Sign(req.WithContext(ctx)); err != nil {
			return nil, fmt.Errorf("sign: %w", err)
		}
	}
	h := &hop{s: u.shared, m: m, fresh: q.fresh, at: at}
	attempts := 0
	ctx = httptrace.WithClientTrace(context.WithValue(ctx, hopKey{}, h), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) {
			q.begun.Store(u.now(m).UnixNano())
			q.sent.Store(time.Now().UnixNano())
			q.timer.Reset(q.within)
			// The transport repeats a request by itself when a used connection breaks.
			if attempts++; attempts > 1 && q.budget.spend(m) != nil {
				q.begun.Store(0)
				q.timer.Reset(0)
			}
		},
	})
	via := u.network.pooled
	if q.fresh {
		via = u.network.fresh
	}
	return via.RoundTrip(req.WithContext(ctx))
}

// classify returns how a request's error bears on health.
func classify(err error) failureKind {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" && !errors.Is(err, syscall.ECONNRESET) { // accepted, then reset
		return failedDial
	}
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &certificate), errors.As(err, &record), errors.Is(err, errNoDirectory):
		return failedUnreachable
	case strings.Contains(err.Error(), "TLS handshake timeout"): // net/http has no type for it
		return failedSlow
	case isTLS(err):
		return failedTLS
	case errors.Is(err, errScheme), errors.Is(err, errRedirects), errors.Is(err, errBudget):
		return failedOther
	}
	return failedCut
}

// isTLS reports whether one side broke TLS off with a reason: the server wants a certificate or
// another version, does not know the name, or what it sent was wrong.
func isTLS(err error) bool {
	var op *net.OpError
	if errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error") { // an alert
		return true
	}
	return strings.Contains(err.Error(), "tls: ") // crypto/tls has no type for the rest
}

// statusError is an answer that was none of those that are expected.
type statusError int

func (s statusError) Error() string {
	return fmt.Sprintf("status %d %s", int(s), http.StatusText(int(s)))
}

// tries returns how many requests an answer is worth when the last one failed like this. Nix
// repeats one four times when its connection is cut.
func tries(err error) int32 {
	var status statusError
	var f *failure
	switch {
	case errors.As(err, &status) && status < http.StatusInternalServerError,
		errors.Is(err, errScheme), errors.Is(err, errRedirects), errors.Is(err, errBudget):
		return 1
	case errors.As(err, &status):
		return 2
	case !errors.As(err, &f):
		return 1
	case f.kind == failedCut:
		return infoTries
	case f.kind == failedOther, f.kind == failedSilent, f.kind == failedTLS:
		return 2
	}
	return 1
}

// timedOut reports whether a request failed because nothing came in time.
func timedOut(err error) bool {
	var f *failure
	return errors.As(err, &f) && (f.kind == failedSilent || f.kind == failedDial && isTimeout(f.err))
}

// refusedFor is how long an upstream is said to refuse our credentials after it did.
const refusedFor = 10 * time.Minute

// accepted takes back that a cache wants credentials once what it refused is answered. Another kind
// of file proves nothing: many caches show nix-cache-info to everybody.
func (s *shared) accepted(m *mirror, r *reply) {
	switch r.status {
	case http.StatusOK, http.StatusPartialContent, http.StatusNotFound:
		if kind := r.q.kind; m.denied.CompareAndSwap(kind, "") {
			s.conditions.Clear("credentials/" + m.name)
		}
	}
}

// refused turns a status other than 200 and 206 into an error, and notes what it says: the
// cache is busy, or wants credentials.
func (u *Upstreams) refused(m *mirror, r *reply) error {
	err := statusError(r.status)
	switch after := r.header.Get("Retry-After"); {
	case r.status == http.StatusTooManyRequests, r.status == http.StatusServiceUnavailable && after != "":
		m.note(func(h *health) { h.last = err })
		m.busy.Pause(retryAfter(&u.timeouts, after))
		return fmt.Errorf("%w: %s", errBusy, err.Error())
	case r.status == http.StatusUnauthorized, r.status == http.StatusProxyAuthRequired:
		m.denied.Store(r.q.kind)
		if u.logOnce(m, "credentials") {
			u.log.Warn("upstream refused our credentials", "upstream", m.name, "err", err)
		}
		u.conditions.SetFor("credentials/"+m.name, source.Condition{
			Part: source.PartUpstream, Text: fmt.Sprintf("%s wants credentials, and has not accepted those of this node: %v", m.name, err),
			Hint: "where the service can read them: /etc/credstore/nixp2p.netrc, then restart nixp2p; see docs/ci.md",
		}, refusedFor)
	}
	return err
}

// retryAfter reads seconds or a date (RFC 9110, 10.2.3), within bounds.
func retryAfter(t *timeouts, text string) time.Duration {
	d := t.busy
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		d = time.Duration(n) * time.Second
	} else if at, err := http.ParseTime(text); err == nil {
		d = max(time.Until(at), 0)
	}
	return min(d, t.busyMost)
}

var errEncoding = errors.New("content coding that was not asked for")

// coding returns how the body was encoded on the way: in one of the codings that were asked for.
func (r *reply) coding() (nix.Compression, error) {
	known := map[string]nix.Compression{
		"": nix.None, "identity": nix.None, "gzip": nix.Gzip, "x-gzip": nix.Gzip, "zstd": nix.Zstd, "br": nix.Brotli,
	}
	text := strings.ToLower(r.header.Get("Content-Encoding"))
	if c, ok := known[text]; ok && (c == nix.None || r.q.kind != kindNAR) {
		return c, nil
	}
	return nix.None, fmt.Errorf("%w: %q", errEncoding, text)
}

// readAll reads a short body to its end and returns at most most+1 bytes, which shows that
// there are too many. Headers alone would make a cache look healthy that sends nothing else, so
// only now the answer counts. It is decoded once it is here, so that a slow one holds no decoder,
// and few at a time: a decoder may need compress.MaxStreamWindow bytes.
func (u *Upstreams) readAll(ctx context.Context, m *mirror, r *reply, most int64) ([]byte, error) {
	c, err := r.coding()
	var text []byte
	if err == nil {
		text, err = io.ReadAll(io.LimitReader(r.body, most+1))
	}
	if err == nil && c != nix.None {
		u.network.decoding <- struct{}{}
		text, err = decode(c, text, most)
		<-u.network.decoding
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, errStalled):
		if r.own {
			u.noteFailure(m, r.q, failedSilent, err)
		}
		return nil, &failure{failedSilent, err}
	case err == nil && r.q.kind == kindNarInfo && source.IsWebPage(text):
		u.noteFailure(m, r.q, failedPage, source.ErrWebPage)
		return nil, &failure{failedPage, source.ErrWebPage}
	}
	u.answered(m, r.q.kind)
	if err != nil {
		return nil, &failure{failedOther, err}
	}
	return text, nil
}

func decode(c nix.Compression, text []byte, most int64) ([]byte, error) {
	src, err := compress.NewStreamReader(c, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	defer src.Close()
	return io.ReadAll(io.LimitReader(src, most+1))
}
