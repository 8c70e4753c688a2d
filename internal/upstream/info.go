package upstream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// Bounds of the wait before the next cache is asked too.
const (
	hedgeLeast = 10 * time.Millisecond
	hedgeMost  = time.Second
)

// Info returns the narinfo that the caches have for h. Its errors: wraps fs.ErrNotExist when
// every cache said that it has none; a *verify.InvalidError when none has it and one lied;
// any other when one could not say.
func (u *Upstreams) Info(ctx context.Context, h nix.StoreHash) (*verify.Info, error) {
	info, err := u.info(ctx, h)
	if err != nil {
		return nil, fmt.Errorf("upstream: get narinfo %s: %w", h, err)
	}
	return info, nil
}

func (u *Upstreams) info(ctx context.Context, h nix.StoreHash) (*verify.Info, error) {
	may, left := u.order()
	var v verdict
	if left != nil {
		v.add(left)
	}
	switch len(may) {
	case 0:
		return nil, v.err()
	case 1:
		info, err := u.ask(ctx, may[0], h)
		if err == nil {
			return info, nil
		}
		v.add(err)
		return nil, v.err()
	}
	return u.race(ctx, may, h, &v)
}

// race asks the caches in their order, the next when the ones before have taken longer than
// they mostly do or have failed. It returns when all it started have ended.
func (u *Upstreams) race(ctx context.Context, may []*mirror, h nix.StoreHash, v *verdict) (*verify.Info, error) {
	ctx, cancel := context.WithCancel(ctx)
	type answer struct {
		info *verify.Info
		err  error
	}
	answers := make(chan answer, len(may))
	started, open := 0, 0
	defer func() {
		cancel()
		for ; open > 0; open-- {
			<-answers
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	next := func() {
		m := may[started]
		started++
		open++
		go func() {
			info, err := u.ask(ctx, m, h)
			answers <- answer{info, err}
		}()
		timer.Reset(u.hedge(m))
	}
	next()
	for open > 0 || started < len(may) {
		select {
		case a := <-answers:
			open--
			if a.err == nil {
				return a.info, nil
			}
			v.add(a.err)
			if started < len(may) {
				next()
			}
		case <-timer.C:
			if started < len(may) {
				next()
			}
		}
	}
	return nil, v.err()
}

func (u *Upstreams) hedge(m *mirror) time.Duration {
	if m.isIll() {
		return 0
	}
	if d := m.latency.p90(); d > 0 {
		return min(max(d, hedgeLeast), hedgeMost)
	}
	return u.times.hedge
}

// ask gets the narinfo for h from one cache. One that is much later than usual is asked a second
// time meanwhile: a connection that lost packets waits longer after each, a fresh one does not.
func (u *Upstreams) ask(ctx context.Context, m *mirror, h nix.StoreHash) (*verify.Info, error) {
	if u.times.late <= 0 {
		return u.insist(ctx, m, h)
	}
	ctx, cancel := context.WithCancel(ctx)
	var both sync.WaitGroup
	defer both.Wait()
	defer cancel()
	type answer struct {
		info *verify.Info
		err  error
	}
	answers := make(chan answer, 2)
	start := func() {
		both.Go(func() {
			info, err := u.insist(ctx, m, h)
			answers <- answer{info, err}
		})
	}
	start()
	timer := time.NewTimer(min(max(u.times.late, 2*m.latency.p90()), 2*u.times.late))
	defer timer.Stop()
	for running := 1; ; {
		select {
		case a := <-answers:
			if running--; a.err == nil || errors.Is(a.err, fs.ErrNotExist) || running == 0 {
				return a.info, a.err
			}
		case <-timer.C:
			start()
			running++
		}
	}
}

// insist asks one cache, and tries once more where that helps; while the line is crowded as often
// as ctx allows, each time with more patience: what others are sent shows that the answer is on
// its way, and to say that there is none would break a build.
func (u *Upstreams) insist(ctx context.Context, m *mirror, h nix.StoreHash) (*verify.Info, error) {
	var before error
	for try := 0; ; try++ {
		info, err := u.askOnce(ctx, m, h, u.times.headers<<min(try, 3))
		var status statusError
		switch {
		case err == nil:
			return info, nil
		case ctx.Err() != nil && before != nil:
			return nil, before // the deadline says less than what came before it
		case ctx.Err() != nil, m.isIll(), m.isDown():
			return nil, err
		case late(err) && m.crowded():
		case try > 0, !again(err):
			return nil, err
		}
		before = err
		if (errors.As(err, &status) || try > 0) && !pause(ctx, u.times.backOff) {
			return nil, err
		}
	}
}

// pause waits for between half and one and a half of d; false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (u *Upstreams) askOnce(ctx context.Context, m *mirror, h nix.StoreHash, within time.Duration) (*verify.Info, error) {
	if err := m.window.enter(ctx); err != nil {
		return nil, fmt.Errorf("%s: %w", m.name, err)
	}
	began, answered := time.Now(), false
	defer func() { m.window.leave(time.Since(began), answered, time.Now()) }()
	r, err := m.fetch(ctx, u, request{kind: kindNarInfo, question: h, at: m.at(h.String() + ".narinfo"), within: within})
	if err != nil {
		m.latency.atLeast(time.Since(began))
		return nil, fmt.Errorf("%s: %w", m.name, err)
	}
	defer r.body.finish()
	answered = true
	switch r.status {
	case http.StatusOK:
	case http.StatusNotFound, http.StatusGone, http.StatusForbidden:
		m.latency.add(time.Since(began))
		return nil, fmt.Errorf("%s: %w", m.name, fs.ErrNotExist)
	default:
		return nil, fmt.Errorf("%s: %w", m.name, u.refused(m, r))
	}
	text, err := r.readAll(nix.MaxNarInfo)
	if cause := ctx.Err(); err != nil && cause != nil {
		return nil, fmt.Errorf("%s: read narinfo: %w", m.name, cause)
	}
	if err := m.heard(r, err); err != nil {
		return nil, fmt.Errorf("%s: read narinfo: %w", m.name, err)
	}
	m.latency.add(time.Since(began))
	info, err := u.keys.Open(text, h)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.name, u.lied(m, h, err))
	}
	u.memory.remember(m, info)
	return info, nil
}

// lied counts a wrong narinfo.
func (u *Upstreams) lied(m *mirror, h nix.StoreHash, err error) error {
	var lie *verify.InvalidError
	if !errors.As(err, &lie) {
		return err
	}
	u.metrics.VerifyFailures.WithLabelValues(sourceName, string(lie.Reason)).Inc()
	args := []any{"upstream", m.name, "store_hash", h.String(), "err", err}
	if m.mayMention(mentionLie) {
		u.log.Warn("wrong narinfo from upstream", args...)
		u.trouble(sourceName, m.name+" gave a wrong narinfo, which was refused", "", err)
	} else {
		u.log.Debug("wrong narinfo from upstream", args...)
	}
	return err
}

// verdict sums up what several caches said: one that could not say outweighs one that lied,
// and that one those that said no.
type verdict struct {
	unavailable, lie, absent error
}

func (v *verdict) add(err error) {
	var lie *verify.InvalidError
	switch {
	case errors.As(err, &lie):
		v.lie = err
	case errors.Is(err, fs.ErrNotExist):
		v.absent = err
	default:
		v.unavailable = err
	}
}

func (v *verdict) err() error {
	switch {
	case v.unavailable != nil:
		return v.unavailable
	case v.lie != nil:
		return v.lie
	case v.absent != nil:
		return v.absent
	}
	return errNone
}

// window is for how many narinfos a cache is asked at a time. Where all machines of a site ask at
// once over a slow line, hundreds of short answers are more than its queue holds: most are lost,
// and each loss doubles the wait for that one. So late answers make the window small, as TCP does
// with its own. It is safe for concurrent use.
type window struct {
	mu     sync.Mutex
	size   float64 // 0 before the first
	out    int
	least  time.Duration // that an answer took
	shrunk time.Time
	queue  []chan struct{} // of those who wait, first come first served
}

const (
	windowMost  = 256 // ten Nix ask so many at a time
	windowLeast = 6
	// An answer is late that took longer than windowLate and windowTimes the shortest: a cache that
	// is slow by nature gets no faster by being asked less.
	windowLate  = 500 * time.Millisecond
	windowTimes = 4
	windowPause = time.Second // between two steps down: what is late then was asked before the first
)

// enter waits for a place. Who got one calls leave.
func (w *window) enter(ctx context.Context) error {
	w.mu.Lock()
	if w.size == 0 {
		w.size = windowMost
	}
	if w.out < int(w.size) {
		w.out++
		w.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	w.queue = append(w.queue, turn)
	w.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := slices.Index(w.queue, turn); i >= 0 {
		w.queue = slices.Delete(w.queue, i, i+1)
		return ctx.Err()
	}
	return nil // its turn came at that moment
}

// leave gives the place back, after an answer or none in that time. One that was called off early,
// or refused, says nothing.
func (w *window) leave(took time.Duration, answered bool, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if answered && (w.least == 0 || took < w.least) {
		w.least = took
	}
	late := took > windowLate+windowTimes*w.least
	switch {
	case late && now.Sub(w.shrunk) > windowPause:
		w.size = max(min(w.size, float64(w.out))/2, windowLeast)
		w.shrunk = now
	case !late && answered:
		w.size = min(w.size+1/w.size, windowMost)
	}
	for w.out--; w.out < int(w.size) && len(w.queue) > 0; w.out++ {
		close(w.queue[0])
		w.queue = w.queue[1:]
	}
}
