package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
)

// How many failures in a row it takes.
const (
	connectsLost = 2 // connect timeouts in a row until a cache is down
	badSteps     = 2 // handshakes or lookups in a row that failed until it is down
	silences     = 2 // requests without an answer until it is down
	serverErrors = 5 // 5xx and cut connections until it is asked last and without retries
)

// breaker opens for a cache that cannot be reached or does not answer: it is not asked until
// a probe has got an answer. A cache that answers with 5xx or cuts connections, or that a login page
// stands in for, is still asked, as the last: what it has may be found nowhere else, the answer costs
// little, and after the login it is the right one.
type breaker struct {
	connect, headers time.Duration // for which a connection and an answer are waited for
	busy             backoff.Delay // Retry-After
	heardAt          atomic.Int64  // when a narinfo or a byte of a NAR came, Unix nanoseconds

	mu sync.Mutex
	health
	waiting map[*request]bool // small requests that have no answer yet
}

// health is what a breaker has seen.
type health struct {
	down       error // nil while up
	since      time.Time
	last       error
	badSteps   int
	silent     int
	errors     int
	errorAt    time.Time      // when the last of the errors was counted
	page       bool           // a web page came in place of a narinfo
	unanswered *nix.StoreHash // requested in vain, and nothing was said of any narinfo since
}

// failureKind is a way in which a request ends without an answer.
type failureKind int

const (
	failedOther       failureKind = iota // says nothing about the next request
	failedDial                           // not connected, which was noted when it was dialled
	failedUnreachable                    // down at once
	failedConnect                        // no connection in connectsLost tries in a row: down at once
	failedReconnect                      // no connection in one try: down at once if another request has no answer either
	failedSlow                           // a name server or TLS took too long
	failedTLS                            // connected, and the handshake was broken off with a reason
	failedCut                            // connected, and cut before the answer
	failedSilent                         // connected, but no answer in time
	failedStatus                         // 5xx
	failedPage                           // a web page: there is a login before it
)

// failure is an error that says how it bears on health.
type failure struct {
	kind failureKind
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

var (
	errBusy = errors.New("asked to be left alone for a while")
	errDown = errors.New("is down")
)

// seen returns what the breaker has seen.
func (b *breaker) seen() health {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.health
}

// note changes what the breaker has seen. f calls nothing else.
func (b *breaker) note(f func(h *health)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.health)
}

// isSilent counts a step that took too long, or was refused, and reports whether the cache is down. While other
// answers come, it is not: the line is saturated. The caller holds mu.
func (b *breaker) isSilent(h *health, kind failureKind) bool {
	if kind == failedSilent {
		if b.heardWithin(b.headers) {
			return false
		}
		h.silent++
		return h.silent >= silences
	}
	if b.heardWithin(b.connect) {
		return false
	}
	switch kind {
	case failedReconnect:
		for q := range b.waiting {
			if q.waited() >= b.connect/2 {
				return true
			}
		}
		return false // the others wait for a connection too
	case failedSlow, failedTLS:
		h.badSteps++
		return h.badSteps >= badSteps
	}
	return true
}

// failed notes a request, begun then, that ended without an answer, or with 5xx. If the cache is
// down from now on, those that wait end too.
func (s *shared) failed(m *mirror, kind failureKind, began time.Time, err error) {
	var open, down, fails bool
	var waiting map[*request]bool
	m.note(func(h *health) {
		h.last = err
		switch kind {
		case failedUnreachable:
			open = true
		case failedConnect, failedReconnect, failedSlow, failedTLS, failedSilent:
			open = m.isSilent(h, kind)
		case failedCut, failedStatus:
			if began.Before(h.errorAt) {
				break // one of several at a time
			}
			h.errors++
			h.errorAt = time.Now()
			fails = h.errors == serverErrors
		case failedPage:
			if down = !h.page && h.down == nil; down {
				h.since = time.Now()
			}
			h.page, h.errors = true, serverErrors
		}
		if open {
			if down = h.down == nil; down {
				h.since = time.Now()
			}
			h.down = err
			waiting, m.waiting = m.waiting, nil
		}
	})
	switch {
	case down:
		m.up.Set(0)
		s.log.Warn("upstream is down", "upstream", m.name, "err", err)
		s.event(m, source.CacheDown, fmt.Errorf("went down: %w", err))
	case fails:
		s.log.Warn("upstream fails again and again", "upstream", m.name, "err", err)
		s.event(m, source.CacheDown, fmt.Errorf("fails again and again: %w", err))
	}
	for q := range waiting {
		q.cancel(errDown)
	}
}

// answered notes an answer that was no 5xx, from the cache or where it led to. Of a cache that was
// silent for a narinfo, or sent a web page, nothing but a narinfo shows that it is healthy.
func (s *shared) answered(m *mirror, kind string) {
	if kind != kindCacheInfo {
		m.heardAt.Store(time.Now().UnixNano())
	}
	back := false
	m.note(func(h *health) {
		if kind == kindNarInfo {
			h.unanswered = nil
		}
		h.badSteps = 0
		if h.unanswered == nil {
			back = h.down != nil || h.page
			h.silent, h.down, h.page = 0, nil, false
		}
		if !h.page {
			h.errors = 0
		}
		if back {
			h.since = time.Now()
		}
	})
	if back {
		m.up.Set(1)
		s.log.Info("upstream is up again", "upstream", m.name)
		s.event(m, source.CacheRecovered, errors.New("came back"))
	}
}

func (s *shared) event(m *mirror, kind source.EventKind, err error) {
	s.events.Send(source.Event{Kind: kind, Source: source.Upstream, Err: fmt.Errorf("%s %w", m.name, err)})
}

// wait has q cancelled when the cache goes down, until it is called with false.
func (b *breaker) wait(q *request, waits bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting == nil {
		b.waiting = map[*request]bool{}
	}
	if b.waiting[q] = true; !waits {
		delete(b.waiting, q)
	}
}

// usable returns nil if the cache may be asked now.
func (b *breaker) usable() error {
	if down := b.seen().down; down != nil {
		return fmt.Errorf("%w: %w", errDown, down)
	}
	if !b.busy.Ready() {
		return errBusy
	}
	return nil
}

func (b *breaker) isOpen() bool { return b.seen().down != nil }

// fails reports whether the cache answers with errors, or not at all, and nothing else.
func (b *breaker) fails() bool { return b.seen().errors >= serverErrors }

func (b *breaker) heardWithin(d time.Duration) bool {
	return time.Now().UnixNano()-b.heardAt.Load() < int64(d)
}

// saturated reports whether this cache has sent something in the time in which an answer is
// waited for: what does not come then is queued.
func (b *breaker) saturated() bool { return b.heardWithin(b.headers) }

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout() || errors.Is(err, context.DeadlineExceeded)
}

// isUnreachable reports whether the next connection will fail as well. What this machine
// lacks, such as file descriptors, is not the cache's fault.
func isUnreachable(err error) bool {
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return true
	}
	var no syscall.Errno
	errors.As(err, &no)
	return slices.Contains([]syscall.Errno{
		syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH,
		syscall.EHOSTDOWN, syscall.ENETDOWN, syscall.EADDRNOTAVAIL,
	}, no)
}
