package upstream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
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
// every cache said that it has none; a *verify.LieError when none has it and one lied;
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

// ask gets the narinfo for h from one cache, and tries once more where that helps; while the
// line is crowded as often as ctx allows, each time with more patience: what others are sent
// shows that the answer is on its way, and to say that there is none would break a build.
func (u *Upstreams) ask(ctx context.Context, m *mirror, h nix.StoreHash) (*verify.Info, error) {
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
	began := time.Now()
	r, err := m.fetch(ctx, u, request{kind: kindNarInfo, question: h, at: m.at(h.String() + ".narinfo"), within: within})
	if err != nil {
		m.latency.atLeast(time.Since(began))
		return nil, fmt.Errorf("%s: %w", m.name, err)
	}
	defer r.body.finish()
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
	var lie *verify.LieError
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
	var lie *verify.LieError
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
