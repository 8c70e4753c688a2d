// Package mirror fetches what the site will want before anyone asks for it, and says what is kept
// longest. It follows lists of store paths: each new state of a list is a generation, which is
// fetched in the background, as any client would have it fetched, so that one node of the site
// does so. The newest generations of each list are kept: the cache evicts what they have last.
package mirror

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// Config is what New needs.
type Config struct {
	Lists []List
	// Room is the size of the cache in bytes.
	Room int64
	// Storage keeps generations over restarts.
	Storage Storage
	// Client reads lists from URLs.
	Client *http.Client
	// Closure returns the store paths that a path of this machine consists of.
	Closure func(ctx context.Context, path string) ([]nix.StoreHash, error)
	// Fetch brings a path into the cache unless this machine has it. If dry, it only says what it
	// would do. The error wraps fs.ErrNotExist if no source has the path.
	Fetch func(ctx context.Context, h nix.StoreHash, dry bool) (Fetched, error)
	// Have reports whether this machine has a NAR, in its cache or store.
	Have func(nix.NarHash) bool
	// Busy reports whether this machine's own clients wait for bytes.
	Busy func() bool
	// KeptChanged is called when Kept answers differently than before.
	KeptChanged func()
	// Collect removes NARs that nothing keeps any more, unless they are in use.
	Collect func([]nix.NarHash)
	Metrics *metrics.Metrics
	Log     *slog.Logger // if nil, nothing is logged
}

// Fetched is a path that Fetch asked for.
type Fetched struct {
	Info *verify.Info
	Size int64 // bytes in the form in which it comes
	Here bool  // this machine had it before
}

// Storage keeps named values.
type Storage interface {
	Load() map[string][]byte
	Put(name string, value []byte)
	Delete(name string)
}

const (
	checkEvery = time.Hour
	// retryAfter is how long after a failure a list is looked at again.
	retryAfter = 5 * time.Minute
	// askers and fetchers are how many narinfos and NARs are asked for at once.
	askers, fetchers = 16, 8
	// spare is the part of the cache that what is kept leaves to everything else.
	spare = 10 // one in ten
	// yieldFor is the longest that one path waits while clients do.
	yieldFor = 10 * time.Second
)

// Follower follows lists. It is safe for concurrent use.
type Follower struct {
	cfg    Config
	tracks []*track
	asks   chan struct{} // capacity askers
	fetch  chan struct{} // capacity fetchers

	mu   sync.RWMutex
	kept map[nix.NarHash]struct{}
}

// track is one list. Its generations are guarded by Follower.mu.
type track struct {
	f           *Follower
	list        List
	now         chan chan struct{} // a request to look at once; closed when that is done
	etag        string
	generations []*generation // the newest first

	mu sync.Mutex
	progress
}

// progress is how a track stands, for people.
type progress struct {
	checked time.Time
	err     error // of the last check
	failed  error // of the last path that could not be fetched
	missing amount
	leftOut amount // for which there is no room
	absent  int    // paths that no source has
}

type amount struct {
	paths int
	bytes int64
}

func (a *amount) add(bytes int64) { a.paths, a.bytes = a.paths+1, a.bytes+bytes }

// New returns a Follower that knows what Storage has. It starts nothing.
func New(cfg Config) *Follower {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	f := &Follower{cfg: cfg, asks: make(chan struct{}, askers), fetch: make(chan struct{}, fetchers)}
	for _, l := range cfg.Lists {
		f.tracks = append(f.tracks, &track{f: f, list: l, now: make(chan chan struct{})})
	}
	for name, value := range cfg.Storage.Load() {
		g, err := parseGeneration(value)
		i := slices.IndexFunc(f.tracks, func(t *track) bool { return err == nil && t.list.Name == g.List })
		if i < 0 {
			cfg.Storage.Delete(name) // its list is not followed any more
			continue
		}
		f.tracks[i].generations = append(f.tracks[i].generations, g)
	}
	for _, t := range f.tracks {
		slices.SortFunc(t.generations, func(a, b *generation) int { return cmp.Compare(b.Seq, a.Seq) })
	}
	f.keep()
	return f
}

// Kept reports whether a NAR is to be evicted last.
func (f *Follower) Kept(nar nix.NarHash) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	_, ok := f.kept[nar]
	return ok
}

// keep decides what is kept: of each list the newest generation, as much of it as there is room
// for in the order of the list, and then older ones that fit as a whole. So a generation that is
// too large is not fetched and evicted again and again, and an old one makes room for a new one.
func (f *Follower) keep() {
	f.mu.Lock()
	kept := make(map[nix.NarHash]struct{})
	room := f.cfg.Room - f.cfg.Room/spare
	for level := range maxKeep + 1 {
		for _, t := range f.tracks {
			if level >= len(t.generations) {
				continue
			}
			g := t.generations[level]
			if level > 0 && g.missingIn(kept) > room {
				continue
			}
			var left amount
			for _, e := range g.paths {
				_, there := kept[e.nar]
				switch {
				case there, !e.known():
				case e.size > room:
					left.add(e.size)
				default:
					kept[e.nar] = struct{}{}
					room -= e.size
				}
			}
			if level == 0 {
				t.note(func(p *progress) { p.leftOut = left })
			}
		}
	}
	f.kept = kept
	for _, t := range f.tracks {
		for _, g := range t.generations {
			g.count(kept)
		}
	}
	f.mu.Unlock()
	if f.cfg.KeptChanged != nil {
		f.cfg.KeptChanged()
	}
}

// missingIn returns the bytes that g would add to what is kept.
func (g *generation) missingIn(kept map[nix.NarHash]struct{}) (bytes int64) {
	for _, e := range g.paths {
		if _, ok := kept[e.nar]; !ok {
			bytes += e.size
		}
	}
	return bytes
}

// Run follows the lists until ctx ends.
func (f *Follower) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, t := range f.tracks {
		all.Go(func() { t.run(ctx) })
	}
	all.Wait()
	return nil
}

// Now has all lists looked at at once, and returns when that is done; what is new is then being
// fetched.
func (f *Follower) Now(ctx context.Context) error {
	for _, t := range f.tracks {
		done := make(chan struct{})
		select {
		case t.now <- done:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// run looks at the list now and then. What is new is fetched meanwhile; something newer ends that.
func (t *track) run(ctx context.Context) {
	var fetching chan error
	stop := func() {}
	wait := func() error { stop(); return <-fetching }
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var done chan struct{}
		select {
		case <-ctx.Done():
			if fetching != nil {
				_ = wait()
			}
			return
		case err := <-fetching:
			fetching = nil
			if err != nil {
				timer.Reset(retryAfter)
			}
			continue
		case done = <-t.now:
		case <-timer.C:
		}
		changed, err := t.check(ctx)
		timer.Reset(checkEvery)
		if err != nil && !errors.Is(err, errEmpty) {
			timer.Reset(retryAfter)
		}
		if changed && fetching != nil {
			_ = wait()
			fetching = nil
		}
		if fetching == nil && len(t.generations) > 0 {
			var work context.Context
			work, stop = context.WithCancel(ctx)
			fetching = make(chan error, 1)
			go func() { defer stop(); fetching <- t.fetchNewest(work) }()
		}
		if done != nil {
			close(done)
		}
	}
}

func (t *track) note(change func(p *progress)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&t.progress)
}

// check reads the list and reports whether its newest generation is another one now.
func (t *track) check(ctx context.Context) (changed bool, err error) {
	paths, from, etag, err := t.read(ctx, t.etag)
	if errors.Is(err, errUnchanged) {
		err = nil
	} else if err == nil {
		t.etag = etag
		changed = t.adopt(paths, from)
	}
	if err != nil && ctx.Err() == nil {
		t.f.cfg.Log.Warn("a list cannot be followed; what is kept stays", "list", t.list.Name, "err", err)
	}
	t.note(func(p *progress) { p.checked, p.err = time.Now(), err })
	return changed, err
}

// adopt makes the paths the newest generation, and reports whether they were not. One that was
// there before comes back.
func (t *track) adopt(paths []nix.StoreHash, from string) bool {
	f := t.f
	sum := digest(paths)
	f.mu.Lock()
	seq := uint64(1)
	if len(t.generations) > 0 {
		if bytes.Equal(t.generations[0].Digest, sum) {
			f.mu.Unlock()
			return false
		}
		seq = t.generations[0].Seq + 1
	}
	g := newGeneration(t.list.Name, seq, from, paths)
	if i := slices.IndexFunc(t.generations, func(o *generation) bool { return bytes.Equal(o.Digest, sum) }); i >= 0 {
		old := t.generations[i]
		t.generations = slices.Delete(t.generations, i, i+1)
		f.cfg.Storage.Delete(old.key())
		g.paths, g.Listed, g.Complete = old.paths, old.Listed, old.Complete
	}
	t.generations = slices.Insert(t.generations, 0, g)
	f.mu.Unlock()
	f.cfg.Storage.Put(g.key(), g.marshal())
	f.cfg.Log.Info("a list has a new generation", "list", t.list.Name, "from", from, "paths", g.Listed)
	f.keep()
	return true
}

// drop forgets the generations that are too many: those for which there are Keep newer ones that
// are complete, and those that were overtaken before they were.
func (t *track) drop() {
	f := t.f
	f.mu.Lock()
	var stay, gone []*generation
	complete := 0
	for i, g := range t.generations {
		if complete >= t.list.Keep || !g.Complete && i >= t.list.Keep {
			gone = append(gone, g)
			continue
		}
		stay = append(stay, g)
		if g.Complete {
			complete++
		}
	}
	t.generations = stay
	f.mu.Unlock()
	if len(gone) == 0 {
		return
	}
	f.keep()
	var nars []nix.NarHash
	for _, g := range gone {
		f.cfg.Storage.Delete(g.key())
		for _, e := range g.paths {
			if e.known() && !f.Kept(e.nar) {
				nars = append(nars, e.nar)
			}
		}
	}
	if f.cfg.Collect != nil {
		f.cfg.Collect(nars)
	}
}
