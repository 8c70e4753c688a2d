package mirror

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// fetchNewest brings the newest generation of a list into the cache. What it needs is found out
// first, so that people know what does not fit before anything is fetched. It can end at any
// time: what is here stays, and the next run goes on from there. An error means that something
// may be had later.
func (t *track) fetchNewest(ctx context.Context) error {
	f := t.f
	f.mu.RLock()
	g := t.generations[0]
	f.mu.RUnlock()
	t.note(func(p *progress) { p.failed = nil })
	absent, err := t.explore(ctx, g)
	f.cfg.Storage.Put(g.key(), t.marshal(g))
	f.keep()
	want := t.survey(g, absent)
	t.mu.Lock()
	missing, left := t.missing, t.leftOut
	t.mu.Unlock()
	if left.paths > 0 {
		f.cfg.Log.Warn("a list does not fit into the cache: raise cache-size, lower keep, or leave out names",
			"list", t.list.Name, "left_out_paths", left.paths, "left_out_bytes", left.bytes, "cache_bytes", f.cfg.Room)
	}
	if missing.paths > 0 {
		f.cfg.Log.Info("fetching a list", "list", t.list.Name, "paths", missing.paths, "bytes", missing.bytes)
	}
	err = errors.Join(err, t.fetchAll(ctx, g, want))
	if err != nil || ctx.Err() != nil {
		return err
	}
	f.mu.Lock()
	was := g.Complete
	g.Complete = true
	f.mu.Unlock()
	if !was {
		f.cfg.Storage.Put(g.key(), t.marshal(g))
		f.cfg.Log.Info("a list is here", "list", t.list.Name, "paths", len(g.paths), "absent", absent)
	}
	t.drop()
	return nil
}

func (t *track) marshal(g *generation) []byte {
	t.f.mu.RLock()
	defer t.f.mu.RUnlock()
	return g.marshal()
}

// exploreAtOnce bounds the narinfos that are held at a time.
const exploreAtOnce = 1024

// explore asks for the narinfos of a generation that are not known, and adds what they refer to.
// It returns how many paths no source has, and the first error of those that could not say.
func (t *track) explore(ctx context.Context, g *generation) (absent int, first error) {
	f := t.f
	seen := make(map[nix.StoreHash]bool, len(g.paths))
	for _, e := range g.paths {
		seen[e.hash] = true
	}
	for begin := 0; begin < len(g.paths) && ctx.Err() == nil; {
		end := min(begin+exploreAtOnce, len(g.paths))
		found := make([]Fetched, end-begin)
		errs := each(ctx, f.asks, end-begin, func(i int) (err error) {
			if e := &g.paths[begin+i]; !e.known() {
				found[i], err = f.cfg.Fetch(ctx, e.hash, true)
			}
			return err
		})
		f.mu.Lock()
		for i, x := range found {
			switch err := errs[i]; {
			case errors.Is(err, fs.ErrNotExist):
				absent++
			case err != nil && first == nil:
				first = err
			case x.Info != nil:
				e := &g.paths[begin+i]
				e.nar, e.size = x.Info.NarHash(), x.Size
				for _, ref := range x.Info.References() {
					if h := ref.Hash(); !seen[h] && len(g.paths) < 2*maxPaths {
						seen[h] = true
						g.paths = append(g.paths, entry{hash: h})
					}
				}
			}
		}
		f.mu.Unlock()
		begin = end
	}
	return absent, first
}

// survey says what is missing of a generation, and returns where in it that is.
func (t *track) survey(g *generation, absent int) (want []int32) {
	f := t.f
	var missing amount
	f.mu.RLock()
	paths := g.paths
	f.mu.RUnlock()
	for i, e := range paths {
		if e.known() && f.Kept(e.nar) && !f.cfg.Have(e.nar) {
			missing.add(e.size)
			want = append(want, int32(i))
		}
	}
	t.note(func(p *progress) { p.missing, p.absent = missing, absent })
	f.cfg.Metrics.FollowMissing.WithLabelValues(t.list.Name).Set(float64(missing.bytes))
	return want
}

// fetchAll fetches what is wanted and returns the first error of those that failed.
func (t *track) fetchAll(ctx context.Context, g *generation, want []int32) (first error) {
	f := t.f
	errs := each(ctx, f.fetch, len(want), func(i int) error {
		e := g.paths[want[i]]
		yield(ctx, f.cfg.Busy)
		if _, err := f.cfg.Fetch(ctx, e.hash, false); err != nil {
			return err
		}
		t.note(func(p *progress) {
			p.missing.paths--
			p.missing.bytes -= e.size
			f.cfg.Metrics.FollowMissing.WithLabelValues(t.list.Name).Set(float64(p.missing.bytes))
		})
		return nil
	})
	for i, err := range errs {
		if err != nil && ctx.Err() == nil && first == nil {
			first = err
			f.cfg.Log.Warn("a path of a list could not be fetched; it is tried again", "list", t.list.Name, "store_hash", g.paths[want[i]].hash.String(), "err", err)
			t.note(func(p *progress) { p.failed = err })
		}
	}
	return first
}

// each calls do for 0 to n-1, as many at once as slots has room for, and returns their errors.
func each(ctx context.Context, slots chan struct{}, n int, do func(i int) error) []error {
	errs := make([]error, n)
	next := make(chan int)
	var all sync.WaitGroup
	for range min(n, cap(slots)) {
		all.Go(func() {
			for i := range next {
				slots <- struct{}{}
				errs[i] = do(i)
				<-slots
			}
		})
	}
feed:
	for i := range n {
		select {
		case next <- i:
		case <-ctx.Done():
			for ; i < n; i++ {
				errs[i] = ctx.Err()
			}
			break feed
		}
	}
	close(next)
	all.Wait()
	return errs
}

// yield waits while clients of this machine wait for bytes, but not forever.
func yield(ctx context.Context, busy func() bool) {
	if busy == nil {
		return
	}
	for deadline := time.Now().Add(yieldFor); busy() && time.Now().Before(deadline) && ctx.Err() == nil; {
		select {
		case <-ctx.Done():
		case <-time.After(yieldFor / 20):
		}
	}
}
