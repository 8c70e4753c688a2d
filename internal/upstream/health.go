package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// How much trouble in a row it takes.
const (
	connectsLost = 2 // connect time-outs until a cache is down
	silences     = 2 // requests without an answer until it is down
	illnesses    = 5 // 5xx until it is asked last and without retries
)

// health is the breaker of one cache. It opens for a cache that cannot be reached or does
// not answer: then it is not asked until a probe has got an answer. A cache that answers
// with 5xx is asked on, as the last: what it has may be found nowhere else, and the
// answer costs little.
type health struct {
	name  string
	log   *slog.Logger
	tell  func(what string, err error) // people
	gauge prometheus.Gauge
	every time.Duration // between probes

	mu        sync.Mutex
	down      error // nil while up
	since     time.Time
	nextTry   time.Time
	timeouts  int
	silent    int
	ill       int
	busyUntil time.Time
	last      error
	// waiting are the small requests that have no answer yet, by ticket.
	waiting    map[int]context.CancelCauseFunc
	tickets    int
	unanswered *nix.StoreHash // asked for in vain, and no narinfo came since
	doubting   atomic.Bool    // somebody tries whether it can be reached

	heardAt          atomic.Int64  // when a narinfo or a byte of a NAR came, Unix nanoseconds
	connect, headers time.Duration // for which a connection and an answer are waited for
}

func (h *health) init(name string, u *Upstreams) {
	h.name, h.log, h.every, h.since = name, u.log, u.times.probe, time.Now()
	h.connect, h.headers = u.times.connect, u.times.headers
	h.tell = func(what string, err error) { u.trouble(sourceName, h.name+" "+what, "", err) }
	h.gauge = u.metrics.UpstreamUp.WithLabelValues(name)
	h.gauge.Set(1)
}

// trouble is a way in which a request ends without an answer.
type trouble int

const (
	troubleOther       trouble = iota // says nothing about the next request
	troubleConnect                    // not connected, which was noted when it was dialled
	troubleUnreachable                // down at once
	troubleSlowConnect                // no connection in time
	troubleSilent                     // connected, but no answer in time
	troubleIll                        // 5xx
)

// failure is an error that says how it bears on health.
type failure struct {
	kind trouble
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// connected notes the outcome of dialling. A connection alone does not make a cache up:
// only an answer does.
func (h *health) connected(err error) {
	switch {
	case err == nil:
		h.mu.Lock()
		h.timeouts = 0
		h.mu.Unlock()
	case errors.Is(err, context.Canceled):
	case isTimeout(err):
		h.failed(troubleSlowConnect, err)
	case isUnreachable(err):
		h.failed(troubleUnreachable, err)
	}
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout() || errors.Is(err, context.DeadlineExceeded)
}

// isUnreachable tells whether the next connection will fail as well. What this machine
// lacks, such as file descriptors, is not the cache's fault.
func isUnreachable(err error) bool {
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return true
	}
	for _, no := range []error{
		syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH,
		syscall.EHOSTDOWN, syscall.ENETDOWN, syscall.EADDRNOTAVAIL,
	} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}

// failed notes a request that ended without an answer, or with 5xx.
func (h *health) failed(kind trouble, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last = err
	open := false
	switch kind {
	case troubleUnreachable:
		open = true
	case troubleSlowConnect, troubleSilent:
		count, quiet := &h.timeouts, h.connect
		if kind == troubleSilent {
			count, quiet = &h.silent, h.headers
		}
		if time.Now().UnixNano()-h.heardAt.Load() < int64(quiet) {
			break // the line is crowded: other answers came over it meanwhile
		}
		*count++
		open = h.timeouts >= connectsLost || h.silent >= silences
	case troubleIll:
		h.ill++
		if h.ill == illnesses {
			h.log.Warn("upstream answers with errors", "upstream", h.name, "err", err)
			h.tell("answers with errors", err)
		}
	}
	if !open {
		return
	}
	if h.down == nil {
		h.since = time.Now()
		h.gauge.Set(0)
		h.log.Warn("upstream is down", "upstream", h.name, "err", err)
		h.tell("went down", err)
		h.nextTry = h.since.Add(h.every)
	}
	h.down = err
	h.callOff()
}

// crowded tells whether this cache has sent somebody something in the time in which an answer is
// waited for: who gets none then waits in a queue.
func (h *health) crowded() bool {
	return time.Now().UnixNano()-h.heardAt.Load() < int64(h.headers)
}

// answered notes an answer that was no 5xx. Of a cache that was silent for a narinfo nothing
// else shows that it is well.
func (h *health) answered(kind string) {
	if kind == kindNarInfo || kind == kindNAR {
		h.heardAt.Store(time.Now().UnixNano())
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if kind == kindNarInfo {
		h.unanswered = nil
	}
	h.timeouts, h.ill = 0, 0
	if h.unanswered == nil {
		h.silent = 0
	}
	if h.down == nil || h.unanswered != nil {
		return
	}
	h.down, h.since = nil, time.Now()
	h.gauge.Set(1)
	h.log.Info("upstream is up again", "upstream", h.name)
	h.tell("came back", nil)
}

// busy notes that the cache wants to be left alone.
func (h *health) busy(until time.Time, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last = err
	if until.After(h.busyUntil) {
		h.busyUntil = until
	}
}

var (
	errBusy = errors.New("asked to be left alone for a while")
	errDown = errors.New("is down")
)

// may tells whether to ask now, else why not. With lazy, a request now and then is the probe
// of a cache that is down.
func (h *health) may(now time.Time, lazy bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.down != nil && lazy && !now.Before(h.nextTry):
		h.nextTry = now.Add(h.every)
		return nil
	case h.down != nil:
		return fmt.Errorf("%w: %w", errDown, h.down)
	case now.Before(h.busyUntil):
		return errBusy
	}
	return nil
}

func (h *health) isIll() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ill >= illnesses
}

// usable tells whether to ask this cache now. Without a reason it counts as not configured.
func (m *mirror) usable(now time.Time, lazy bool) (ok bool, why error) {
	if s := m.said.Load(); s != nil && s.wrong != nil {
		return false, nil
	}
	why = m.may(now, lazy)
	return why == nil, why
}

// isDown tells that the cache is not asked before it was probed.
func (m *mirror) isDown() bool {
	if s := m.said.Load(); s != nil && s.wrong != nil {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.down != nil
}

// needsProbe tells that requests alone will not show whether the cache works again.
func (h *health) needsProbe() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.down != nil || h.ill >= illnesses
}

func (m *mirror) report() Health {
	r := Health{URL: m.name, Requests: m.asked.Load(), LatencyP50: m.latency.p50()}
	r.Priority, r.HasPriority = m.prio()
	m.mu.Lock()
	defer m.mu.Unlock()
	r.Since = m.since
	s := m.said.Load()
	switch now := time.Now(); {
	case s != nil && s.wrong != nil:
		r.Why = s.wrong.Error()
	case m.down != nil:
		r.Why = m.down.Error()
	case now.Before(m.busyUntil):
		r.Up, r.Why = true, errBusy.Error()
	case m.ill >= illnesses:
		r.Up, r.Why = true, "answers with errors"
	default:
		r.Up = true
	}
	if m.last != nil {
		r.LastError = m.last.Error()
	}
	return r
}

func (m *mirror) prio() (n int, ok bool) {
	if m.priority != nil {
		return *m.priority, true
	}
	if s := m.said.Load(); s != nil && s.hasPriority {
		return s.priority, true
	}
	return 0, false
}

// rank sorts caches, the best first.
func (u *Upstreams) rank(may []*mirror) {
	type key struct {
		ill     bool
		prio    int
		latency int
		index   int
	}
	keys := make([]key, len(u.mirrors))
	prio, class := -1<<31, 0
	for i, m := range u.mirrors {
		// Of whom something is not known, that is taken from the one configured before.
		if n, ok := m.prio(); ok {
			prio = n
		}
		if n, ok := m.latency.class(); ok {
			class = n
		}
		keys[i] = key{m.isIll(), prio, class, i}
	}
	slices.SortFunc(may, func(a, b *mirror) int {
		x, y := keys[a.index], keys[b.index]
		switch {
		case x.ill != y.ill && x.ill:
			return 1
		case x.ill != y.ill:
			return -1
		}
		return cmp.Or(cmp.Compare(x.prio, y.prio), cmp.Compare(x.latency, y.latency), cmp.Compare(x.index, y.index))
	})
}

// latency keeps the last answer times of a cache.
type latency struct {
	mu    sync.Mutex
	ring  [64]time.Duration
	n     int
	half  atomic.Int64
	tenth atomic.Int64
}

// atLeast notes how long an answer was waited for in vain: without those the slow answers
// would be missing and everything would look fast. Short waits say nothing.
func (l *latency) atLeast(d time.Duration) {
	if half := l.p50(); half > 0 && d > half {
		l.add(d)
	}
}

// add notes how long an answer took.
func (l *latency) add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ring[l.n%len(l.ring)] = d
	l.n++
	have := min(l.n, len(l.ring))
	if have == len(l.ring) && l.n%8 != 0 {
		return
	}
	sorted := l.ring
	slices.Sort(sorted[:have])
	l.half.Store(int64(sorted[have/2]))
	l.tenth.Store(int64(sorted[have*9/10]))
}

// first notes the time of an answer of another kind while nothing better is known.
func (l *latency) first(d time.Duration) {
	l.half.CompareAndSwap(0, int64(d))
}

func (l *latency) p50() time.Duration { return time.Duration(l.half.Load()) }

// p90 returns 0 while too little is known.
func (l *latency) p90() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n < 8 {
		return 0
	}
	return time.Duration(l.tenth.Load())
}

// class is equal for latencies within about a factor of two; not ok when it is not known.
func (l *latency) class() (n int, ok bool) {
	half := l.half.Load()
	return bits.Len64(uint64(half) / uint64(time.Millisecond)), half > 0
}
