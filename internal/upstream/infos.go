package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/hedge"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// infoTries is how often one cache is asked for one narinfo: a second time when it failed or is
// late, and further times when all before were cut, or while the line is saturated.
const infoTries = 5

// infoPauses are those before a cache is asked again, in units of timeouts.retry: as long
// together as Nix's.
var infoPauses = [infoTries]time.Duration{0, 1, 5, 10, 20}

// Info returns the narinfo that the caches have for h. Its errors: absent if every cache said
// that it has none; invalid if none has it and the answer of one was; unavailable if one could
// not say.
func (u *Upstreams) Info(ctx context.Context, h nix.StoreHash) (*verify.Info, error) {
	info, err := u.askAll(ctx, h, newBudget(MaxInfoRequests))
	if err != nil {
		return nil, fmt.Errorf("upstream: get narinfo %s: %w", h, err)
	}
	return info, nil
}

// askAll asks the caches in their order, the next one when those before have taken longer than
// they mostly do or have failed. It returns when all requests have ended.
func (u *Upstreams) askAll(ctx context.Context, h nix.StoreHash, b *budget) (*verify.Info, error) {
	may, left := u.order()
	v := verdict{left}
	if len(may) == 0 {
		return nil, v.err()
	}
	next := 0
	after := func() time.Duration {
		m := may[min(next, len(may)-1)]
		next++
		if m.fails() {
			return 0
		}
		return m.slow.After()
	}
	r, release, wait := hedge.Do(ctx, len(may), len(may), after,
		func(ctx context.Context, i int) (*verify.Info, error) {
			info, err := u.ask(ctx, may[i], h, b)
			switch {
			case err != nil && may[i].optional(u):
				return nil, errNotInBucket
			case err != nil:
				return nil, fmt.Errorf("%s: %w", may[i].name, err)
			}
			return info, nil
		},
		func(err error) bool { v.add(err); return false }, func(*verify.Info) {})
	release()
	wait()
	switch {
	case r.Err == nil:
		return r.Value, nil
	case r.Index < 0: // ctx ended
		v.add(r.Err)
	}
	return nil, v.err()
}

// ask gets the narinfo for h from one cache. A request that is much later than usual, or lost, is
// repeated over a new connection: one that lost packets waits longer after each, and one that
// was cut silently never ends. While the line is saturated it goes on as long as ctx: what others
// are sent shows that the answer is on its way, and to say that there is none would break a build.
func (u *Upstreams) ask(ctx context.Context, m *mirror, h nix.StoreHash, b *budget) (*verify.Info, error) {
	if err := m.limiter.acquire(ctx); err != nil {
		return nil, err
	}
	began := time.Now()
	defer u.measured(m)()
	begun := u.now(m)
	var last error
	var sent, failures atomic.Int32
	stop := func(err error) bool {
		if ctx.Err() == nil {
			last = err
		}
		failed := failures.Add(1)
		if source.Absent(err) || source.Invalid(err) != nil || m.fails() || m.isDown() {
			return true
		}
		return failed == sent.Load() && // else another one has no answer yet
			failed >= tries(err) && !(timedOut(err) && m.saturated())
	}
	r, release, wait := hedge.Do(ctx, infoTries, 2, m.late.After,
		func(ctx context.Context, i int) (*verify.Info, error) {
			if !m.due(ctx, i, u.timeouts.retry, &sent, &failures) {
				return nil, ctx.Err()
			}
			return u.try(ctx, m, h, i, b)
		}, stop, func(*verify.Info) {})
	release()
	wait()
	if r.Index < 0 && last != nil {
		r.Err = last // the deadline says less than what came before it
	}
	if m.bucket != nil && ctx.Err() == nil { // else another cache was faster, which says little
		m.noteSpeed(u.now(m).Sub(begun))
	}
	answered := r.Err == nil || source.Absent(r.Err) || source.Invalid(r.Err) != nil
	m.limiter.release(time.Since(began), answered)
	return r.Value, r.Err
}

// due waits until the i-th request for a narinfo is to be sent, and counts it; false if ctx ended
// first. From the third on, it waits until all before have failed or the line is saturated.
func (m *mirror) due(ctx context.Context, i int, retry time.Duration, sent, failures *atomic.Int32) bool {
	for i > 0 {
		if !pause(ctx, infoPauses[i]*retry) {
			return false
		}
		if i == 1 || m.saturated() {
			break
		}
		if n := failures.Load(); sent.CompareAndSwap(n, n+1) {
			return true
		}
	}
	sent.Add(1)
	return true
}

// try requests a narinfo once, for the i-th time.
func (u *Upstreams) try(ctx context.Context, m *mirror, h nix.StoreHash, i int, b *budget) (*verify.Info, error) {
	began := time.Now()
	r, err := u.send(ctx, m, &request{
		kind: kindNarInfo, about: h, at: m.narInfoAt(h), within: u.timeouts.headers,
		patient: i >= 2, fresh: i == 1, budget: b,
	})
	if err != nil {
		// Without those the slow answers would be missing, and every cache would look fast.
		if d := time.Since(began); d > m.latency.get() {
			m.observe(d)
		}
		return nil, err
	}
	defer r.body.finish()
	var text []byte
	m.noteAnswer(h, r.status)
	switch {
	case r.absent():
	case r.status != http.StatusOK:
		return nil, u.refused(m, r)
	default:
		if text, err = u.readAll(ctx, m, r, nix.MaxNarInfo); err != nil {
			return nil, fmt.Errorf("read narinfo: %w", err)
		}
	}
	m.observe(time.Since(began))
	m.latency.add(time.Since(began))
	if r.absent() {
		return nil, fs.ErrNotExist
	}
	info, err := u.keys.Open(text, h)
	if err == nil && info.Hints().URL == "" {
		err = &verify.InvalidError{Reason: verify.ReasonCorrupt, Err: errors.New("no URL")}
	}
	if invalid := source.Invalid(err); invalid != nil && invalid.Reason == verify.ReasonUnsigned {
		return nil, refuseUnsigned(u.shared, m, h)
	}
	if err != nil {
		u.noteInvalid(ctx, m, h, err)
		return nil, err
	}
	m.signed.Add(1)
	l := locationOf(info)
	switch {
	case !slices.Contains(cheapest, l.compression):
		return nil, refuseEncoding(u.shared, m, h, l.compression)
	case u.gone.Has(sentBy(m, info, nix.Raw)):
		// Another cache may have another build of it.
		return nil, fmt.Errorf("its NAR is gone: %w", fs.ErrNotExist)
	}
	if len(l.url) <= maxURL {
		u.found.Add(place{m.index, h}, l)
	}
	return info, nil
}

// observe notes how long a narinfo took.
func (m *mirror) observe(d time.Duration) {
	m.slow.Observe(d)
	m.late.Observe(2 * d)
}

// pause waits for between one and one and a half of d; false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d + rand.N(d/2+1))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// noteInvalid counts a wrong narinfo.
func (u *Upstreams) noteInvalid(ctx context.Context, m *mirror, h nix.StoreHash, err error) {
	invalid := source.Invalid(err)
	if invalid == nil {
		return
	}
	u.metrics.VerifyFailures.WithLabelValues(source.Upstream.String(), string(invalid.Reason)).Inc()
	level := slog.LevelDebug
	if u.logOnce(m, "invalid") {
		level = slog.LevelWarn
		u.event(m, source.WrongInfo, fmt.Errorf("sent a wrong narinfo, which was refused: %w", err))
	}
	u.log.Log(ctx, level, "wrong narinfo from upstream", "upstream", m.name, "store_hash", h.String(), "err", err)
}

// verdict sums up what several caches said: that one could not say outweighs that the answer of
// one was invalid, that what one has cannot be served, and that outweighs that the others have none.
type verdict struct{ worst error }

func (v *verdict) add(err error) {
	weight := func(err error) int {
		switch {
		case err == nil:
			return 0
		case source.Invalid(err) != nil:
			return 3
		case source.Refused(err) != nil:
			return 2
		case source.Absent(err):
			return 1
		}
		return 4
	}
	if weight(err) >= weight(v.worst) {
		v.worst = err
	}
}

func (v *verdict) err() error { return cmp.Or(v.worst, errNone) }
