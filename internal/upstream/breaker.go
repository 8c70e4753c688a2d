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
)

// How many failures in a row it takes.
const (
	connectsLost = 2 // connect timeouts until a cache is down
	silences     = 2 // requests without an answer until it is down
	serverErrors = 5 // 5xx until it is asked last and without retries
)

// breaker opens for a cache that cannot be reached or does not answer: it is not asked until
// a probe has got an answer. A cache that answers with 5xx is still asked, as the last: what it
// has may be found nowhere else, and the answer costs little. Its methods return what is to be
// reported, so that nothing is called while mu is held.
type breaker struct {
	connect, headers time.Duration // for which a connection and an answer are waited for
	busy             backoff.Delay // Retry-After
	heardAt          atomic.Int64  // when a narinfo or a byte of a NAR came, Unix nanoseconds

	mu       sync.Mutex
	down     error // nil while up
	since    time.Time
	timeouts int
	silent   int
	errors   int
	last     error
	// waiting are the small requests that have no answer yet.
	waiting    map[*clock]bool
	unanswered *nix.StoreHash // requested in vain, and no narinfo came since
}

// failureKind is a way in which a request ends without an answer.
type failureKind int

const (
	failedOther       failureKind = iota // says nothing about the next request
	failedDial                           // not connected, which was noted when it was dialled
	failedUnreachable                    // down at once
	failedConnect                        // no connection in time
	failedReconnect                      // the same, while another request has no answer either: down at once
	failedSilent                         // connected, but no answer in time
	failedStatus                         // 5xx
)

// failure is an error that says how it bears on health.
type failure struct {
	kind failureKind
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// change is what became of a cache.
type change int

const (
	unchanged change = iota
	wentDown
	cameBack
	keepsFailing
)

var (
	errBusy = errors.New("asked to be left alone for a while")
	errDown = errors.New("is down")
)

// failed notes a request that ended without an answer, or with 5xx. It returns which others end.
func (b *breaker) failed(kind failureKind, err error) (what change, waiting map[*clock]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = err
	open := false
	switch kind {
	case failedUnreachable:
		open = true
	case failedConnect, failedReconnect, failedSilent:
		count, quiet := &b.timeouts, b.connect
		if kind == failedSilent {
			count, quiet = &b.silent, b.headers
		}
		if b.heardWithin(quiet) {
			break // the line is saturated: other answers came over it meanwhile
		}
		*count++
		open = kind == failedReconnect || b.timeouts >= connectsLost || b.silent >= silences
	case failedStatus:
		if b.errors++; b.errors == serverErrors {
			what = keepsFailing
		}
	}
	if open {
		if b.down == nil {
			b.since, what = time.Now(), wentDown
		}
		b.down = err
		waiting, b.waiting = b.waiting, nil
	}
	return what, waiting
}

// answered notes an answer that was no 5xx. Of a cache that was silent for a narinfo, nothing
// but a narinfo shows that it is healthy.
func (b *breaker) answered(kind string) change {
	if kind == kindNarInfo || kind == kindNAR {
		b.heardAt.Store(time.Now().UnixNano())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if kind == kindNarInfo {
		b.unanswered = nil
	}
	b.timeouts, b.errors = 0, 0
	if b.unanswered == nil {
		b.silent = 0
	}
	if b.down == nil || b.unanswered != nil {
		return unchanged
	}
	b.down, b.since = nil, time.Now()
	return cameBack
}

// connected notes that it could be connected to, which alone does not end an outage.
func (b *breaker) connected() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.timeouts = 0
}

// pause notes that the cache wants to be left alone.
func (b *breaker) pause(d time.Duration, err error) {
	b.mu.Lock()
	b.last = err
	b.mu.Unlock()
	b.busy.Pause(d)
}

// noteSilent notes that a narinfo was requested in vain: now only a narinfo shows that the
// cache is healthy.
func (b *breaker) noteSilent(h nix.StoreHash) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unanswered = &h
}

// question returns the narinfo by which a cache that is down has to show that it is healthy.
func (b *breaker) question() (h nix.StoreHash, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down == nil || b.unanswered == nil {
		return h, false
	}
	return *b.unanswered, true
}

// wait has c cancelled when the cache goes down, until it is called with false.
func (b *breaker) wait(c *clock, waits bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting == nil {
		b.waiting = map[*clock]bool{}
	}
	if b.waiting[c] = true; !waits {
		delete(b.waiting, c)
	}
}

// usable returns nil if the cache may be asked now.
func (b *breaker) usable() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.down != nil:
		return fmt.Errorf("%w: %w", errDown, b.down)
	case !b.busy.Ready():
		return errBusy
	}
	return nil
}

func (b *breaker) isOpen() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.down != nil
}

// fails reports whether the cache answers with errors only.
func (b *breaker) fails() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.errors >= serverErrors
}

func (b *breaker) heardWithin(d time.Duration) bool {
	return time.Now().UnixNano()-b.heardAt.Load() < int64(d)
}

// saturated reports whether this cache has sent something in the time in which an answer is
// waited for: what does not come then is queued.
func (b *breaker) saturated() bool { return b.heardWithin(b.headers) }

func (b *breaker) report(h *Health) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h.Since, h.Up = b.since, b.down == nil
	switch {
	case b.down != nil:
		h.Why = b.down.Error()
	case !b.busy.Ready():
		h.Why = errBusy.Error()
	case b.errors >= serverErrors:
		h.Why = "answers with errors"
	}
	if b.last != nil {
		h.LastError = b.last.Error()
	}
}

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
