package upstream

import (
	"context"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// A connection that was cut without a word is silent for as long as a request may take, and the
// next one over another connection has to time out as well. So where an answer is late, it is
// tried whether the cache can be connected to at all: that shows within a connect time-out that
// it is down, and all who wait for it are told. A cache that is only slow is not held up.

// doubt watches a small request until end is called.
func (m *mirror) doubt(ctx context.Context, u *Upstreams, kind string) (end func()) {
	if u.times.doubt <= 0 || kind == kindNAR || m.proxied || m.base.Scheme == schemeFile {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.WithValue(ctx, mirrorKey{}, m))
	done := make(chan struct{})
	timer := time.AfterFunc(max(u.times.doubt, 2*m.latency.p90()), func() {
		defer close(done)
		if m.doubting.CompareAndSwap(false, true) {
			defer m.doubting.Store(false)
			u.tryConnects(ctx, m)
		}
	})
	return func() {
		cancel()
		if !timer.Stop() {
			<-done
		}
	}
}

// tryConnects opens as many connections as have to fail before a cache is down, and closes
// them. The transport's dialler notes how it went.
func (u *Upstreams) tryConnects(ctx context.Context, m *mirror) {
	var all sync.WaitGroup
	for range connectsLost {
		all.Go(func() {
			if c, err := u.transport.DialContext(ctx, "tcp", m.addr); err == nil {
				_ = c.Close()
			}
		})
	}
	all.Wait()
}

// await has cancel called when the cache goes down, until end is called.
func (h *health) await(cancel context.CancelCauseFunc) (end func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting == nil {
		h.waiting = make(map[int]context.CancelCauseFunc)
	}
	h.tickets++
	k := h.tickets
	h.waiting[k] = cancel
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.waiting, k)
	}
}

// callOff ends the requests that wait for a cache that went down. The caller holds mu.
func (h *health) callOff() {
	for _, cancel := range h.waiting {
		cancel(errDown)
	}
	clear(h.waiting)
}

// silentFor notes that a narinfo was asked for in vain: now only a narinfo shows that the
// cache is well.
func (h *health) silentFor(kind string, question nix.StoreHash) {
	if kind != kindNarInfo {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unanswered = &question
}

// question returns the narinfo by which a cache that is down is to show that it is well.
func (h *health) question() (q nix.StoreHash, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.down == nil || h.unanswered == nil {
		return q, false
	}
	return *h.unanswered, true
}

// lookNarInfo is the probe of a cache that answered no narinfo, whatever else it answers.
func (u *Upstreams) lookNarInfo(ctx context.Context, m *mirror, question nix.StoreHash) {
	ctx, cancel := context.WithTimeout(ctx, 2*u.times.probing)
	defer cancel()
	r, err := m.fetch(ctx, u, request{kind: kindNarInfo, question: question, at: m.at(question.String() + ".narinfo"), within: u.times.probing})
	if err == nil {
		defer r.body.finish()
		_, err = r.readAll(nix.MaxNarInfo)
		if err == nil || ctx.Err() == nil {
			err = m.heard(r, err)
		}
	}
	if err != nil {
		u.log.Debug("no narinfo", "upstream", m.name, "err", err)
	}
}
