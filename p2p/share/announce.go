package share

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/verify"
)

const (
	// tellEvery is how long changes are collected before neighbours are told.
	tellEvery = time.Second
	// sweepEvery is how often it is looked what has left the cache.
	sweepEvery = 10 * time.Second
	// recallFor is how long after a NAR came in remembered narinfos are searched for further paths
	// with this NAR. What is remembered is written in batches.
	recallFor = 3 * sweepEvery
	// recountEvery is how often the store is gone through again, in case a change was missed.
	recountEvery = 10 * time.Minute
)

// DHT is where large NARs are announced.
type DHT interface {
	Provide(nars []nix.NarHash)
	Withdraw(nars []nix.NarHash)
}

// Announcer keeps the inventory and the DHT true to a Holder.
type Announcer struct {
	// DHT may be nil.
	DHT DHT
	// Changed is called when neighbours are to be told something new.
	Changed func()
	Log     *slog.Logger

	holder *Holder
	leave  chan struct{}
	once   sync.Once
}

// NewAnnouncer returns an Announcer of h; its fields are to be set before Run.
func NewAnnouncer(h *Holder) *Announcer {
	return &Announcer{holder: h, leave: make(chan struct{}), Changed: func() {}, Log: slog.New(slog.DiscardHandler)}
}

// Withdraw takes back all that was told: this machine is about to leave.
func (a *Announcer) Withdraw() { a.once.Do(func() { close(a.leave) }) }

// Run tells neighbours and the DHT what this machine shares, until ctx ends.
func (a *Announcer) Run(ctx context.Context) {
	h := a.holder
	h.recall(ctx)
	var counted, swept time.Time
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	shared, leave := inventory.Set(h.set), a.leave
	for ctx.Err() == nil {
		if leave != nil {
			if time.Since(counted) >= recountEvery {
				h.recount(ctx)
				counted = time.Now()
			}
			if time.Since(swept) >= sweepEvery {
				if time.Since(time.Unix(0, h.came.Load())) < recallFor {
					h.recall(ctx)
				}
				h.sweep(ctx)
				swept = time.Now()
			}
			a.announce(h.set.takeLarge())
		}
		switch news, err := h.local.Flush(time.Now(), shared); {
		case err != nil:
			a.Log.Error("no inventory", "err", err)
		case news:
			a.Changed()
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-leave:
			shared, leave = inventory.Keys{}, nil
			a.withdraw()
		}
	}
}

func (a *Announcer) announce(came, went []nix.NarHash) {
	if a.DHT == nil {
		return
	}
	if len(came) > 0 {
		a.DHT.Provide(came)
	}
	if len(went) > 0 {
		a.DHT.Withdraw(went)
	}
}

func (a *Announcer) withdraw() {
	h := a.holder
	var large []nix.NarHash
	for r := range h.set.in(inStore | inCache) {
		h.local.Changed(keyOf(r.path.Store), false)
		if r.path.Size >= largeNAR {
			large = append(large, r.path.Nar)
		}
	}
	a.announce(nil, large)
}

// recall shares what the cache has: it knows NARs by their hash, the remembered narinfos say which
// paths they are.
func (h *Holder) recall(ctx context.Context) {
	if h.cfg.Cache == nil || h.cfg.Infos == nil {
		return
	}
	has := func(path nix.StoreHash, nar nix.NarHash) bool { return h.cached(nar) && !h.set.has(path, inCache) }
	for info := range h.cfg.Infos.Each(ctx, has) {
		if info.SignedByAny(h.cfg.ShareKeys) {
			h.set.add(pathOf(info), inCache, nil)
		}
	}
}

// recount goes through all paths of the store.
func (h *Holder) recount(ctx context.Context) {
	if h.cfg.Store == nil {
		return
	}
	seen := make(map[nix.StoreHash]struct{})
	for p := range h.cfg.Store.Shares() {
		if ctx.Err() != nil {
			return // it may not have been everything
		}
		seen[p.Store] = struct{}{}
		h.set.add(p, inStore, nil)
	}
	for r := range h.set.in(inStore) {
		if _, ok := seen[r.path.Store]; !ok {
			h.set.remove(r.path.Store, inStore)
		}
	}
}

// sweep takes out what the cache neither has nor gets, and drops narinfos that are remembered
// elsewhere.
func (h *Holder) sweep(ctx context.Context) {
	for r := range h.set.in(inCache) {
		switch {
		case !h.cached(r.path.Nar):
			h.set.remove(r.path.Store, inCache)
		case r.info != nil && h.remembered(ctx, r.info):
			h.set.forget(r.path.Store)
		}
	}
}

// cached reports whether the cache has a NAR or is getting it. Downloads come first: one that ends
// meanwhile is found among the files.
func (h *Holder) cached(nar nix.NarHash) bool {
	c := h.cfg.Cache
	return c != nil && (len(c.Downloads(nar)) > 0 || len(c.Sizes(nar)) > 0)
}

func (h *Holder) remembered(ctx context.Context, info *verify.Info) bool {
	if h.cfg.Infos == nil {
		return false
	}
	known, err := h.cfg.Infos.Public(ctx, info.StorePath().Hash())
	return err == nil && known.Equal(info)
}
