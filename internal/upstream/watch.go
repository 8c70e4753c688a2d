package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/internal/update"
)

// watch is the part of Run that belongs to one cache.
func (u *Upstreams) watch(ctx context.Context, m *mirror) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var due time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		now := time.Now()
		if seen := m.seen(); (seen.down != nil || seen.page) && seen.unanswered != nil {
			_, _, err := probeWith(ctx, u, m, &request{kind: kindNarInfo, about: *seen.unanswered, at: m.narInfoAt(*seen.unanswered)}, nix.MaxNarInfo)
			u.log.Debug("upstream probed with a narinfo", "upstream", m.name, "err", err)
		} else if m.isOpen() || m.fails() || !now.Before(due) {
			due = now.Add(u.timeouts.refresh)
			if err := u.look(ctx, m); err != nil {
				due = now.Add(u.timeouts.refresh / 60)
				u.log.Debug("no nix-cache-info", "upstream", m.name, "err", err)
			}
		}
		timer.Reset(u.timeouts.probe)
	}
}

// probeWith sends a request that shows whether a cache is healthy again, and reads the answer.
func probeWith(ctx context.Context, u *Upstreams, m *mirror, q *request, most int64) ([]byte, http.Header, error) {
	q.within, q.budget = u.timeouts.probing, newBudget(1+maxRedirects)
	ctx, cancel := runclock.WithTimeout(ctx, beforeHeaders(&u.timeouts, m, q)+u.timeouts.probing)
	defer cancel()
	began := time.Now()
	r, err := u.send(ctx, m, q)
	if err != nil {
		return nil, nil, err
	}
	defer r.body.finish()
	if m.latency.get() == 0 {
		m.latency.add(time.Since(began)) // nothing better is known
	}
	if r.status != http.StatusOK {
		return nil, nil, u.refused(m, r)
	}
	r.body.stall = min(r.body.stall, u.timeouts.probing)
	text, err := u.readAll(ctx, m, r, most)
	return text, r.header, err
}

var (
	errStoreDir = errors.New("its store directory is another one")
	errNoInfo   = errors.New("it is no nix-cache-info")
)

// look asks a cache what it says about itself, which is a probe too. A page without any of the
// fields, such as that of a captive portal, says nothing.
func (u *Upstreams) look(ctx context.Context, m *mirror) error {
	text, header, err := probeWith(ctx, u, m, &request{kind: kindCacheInfo, at: m.at("nix-cache-info")}, nix.MaxCacheInfo)
	var info nix.CacheInfo
	if err == nil {
		info, err = nix.ParseCacheInfo(text)
	}
	switch {
	case err != nil:
		return err
	case len(text) > nix.MaxCacheInfo, info == nix.CacheInfo{}:
		return errNoInfo
	}
	c := &cacheInfo{priority: info.Priority, deltas: header.Get(update.OfferHeader) == "1"}
	if info.StoreDir != "" && info.StoreDir != nix.StoreDir {
		c.wrong = fmt.Errorf("%w: %q", errStoreDir, info.StoreDir)
	}
	was := m.unfit() != nil
	m.info.Store(c)
	switch {
	case c.wrong != nil && !was:
		m.up.Set(0)
		u.log.Error("upstream cannot be used", "upstream", m.name, "err", c.wrong)
	case c.wrong == nil && was:
		m.up.Set(1)
	}
	return nil
}
