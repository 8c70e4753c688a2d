package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// tend is the part of Run that belongs to one cache.
func (u *Upstreams) tend(ctx context.Context, m *mirror) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var due time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if question, ok := m.question(); ok {
			u.lookNarInfo(ctx, m, question)
		} else if now := time.Now(); m.needsProbe() || !now.Before(due) {
			due = now.Add(u.look(ctx, m))
		}
		timer.Reset(u.times.probe)
	}
}

// look asks a cache for its nix-cache-info, which is a probe too, and returns when to look
// again.
func (u *Upstreams) look(ctx context.Context, m *mirror) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, 2*u.times.probing)
	defer cancel()
	again := u.times.refresh / 60 // while it is not known
	began := time.Now()
	r, err := m.fetch(ctx, u, request{kind: kindCacheInfo, at: m.at("nix-cache-info"), within: u.times.probing})
	if err != nil {
		u.log.Debug("no nix-cache-info", "upstream", m.name, "err", err)
		return again
	}
	defer r.body.finish()
	m.latency.first(time.Since(began))
	if r.status != http.StatusOK {
		u.log.Debug("no nix-cache-info", "upstream", m.name, "err", u.refused(m, r))
		return again
	}
	text, err := r.readAll(nix.MaxCacheInfo)
	if err == nil || ctx.Err() == nil {
		err = m.heard(r, err)
	}
	if err == nil {
		err = m.hear(u, text)
	}
	if err != nil {
		u.log.Debug("no nix-cache-info", "upstream", m.name, "err", err)
		return again
	}
	return u.times.refresh
}

var errStoreDir = errors.New("its store directory is another one")

// hear takes what a cache says about itself. A page without any of the fields, such as that
// of a captive portal, says nothing.
func (m *mirror) hear(u *Upstreams, text []byte) error {
	if len(text) > nix.MaxCacheInfo {
		return fmt.Errorf("nix-cache-info of more than %d bytes", nix.MaxCacheInfo)
	}
	info, err := nix.ParseCacheInfo(text)
	if err != nil {
		return err
	}
	if info == (nix.CacheInfo{}) {
		return errors.New("nix-cache-info says nothing")
	}
	s := &said{priority: info.Priority, hasPriority: true}
	if info.StoreDir != "" && info.StoreDir != nix.StoreDir {
		s.wrong = fmt.Errorf("%w: %q", errStoreDir, info.StoreDir)
	}
	old := m.said.Swap(s)
	switch was := old != nil && old.wrong != nil; {
	case s.wrong != nil && !was:
		m.gauge.Set(0)
		u.log.Error("upstream cannot be used", "upstream", m.name, "err", s.wrong)
	case s.wrong == nil && was:
		m.gauge.Set(1)
	}
	return nil
}
