package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
)

// sharer is a peer with what it lists, the oldest first.
type sharer struct {
	source.Sharer
	lists []source.SharedPath
	lies  bool // has nothing of it
	slow  bool // does not answer
	pages int  // that were asked for
}

// office is peers and the cache of one that is always on.
type office struct {
	t      *testing.T
	mu     sync.Mutex
	peers  []*sharer
	paths  map[nix.StoreHash]nixtest.Path
	cache  map[nix.NarHash]int64
	shared map[nix.StoreHash]bool
	used   int64
	room   int64
	order  []nix.StoreHash // in which paths were copied
	failed int             // fetches
	m      *metrics.Metrics
}

func newOffice(t *testing.T) *office {
	return &office{t: t, room: 1 << 30, paths: map[nix.StoreHash]nixtest.Path{}, cache: map[nix.NarHash]int64{}, shared: map[nix.StoreHash]bool{}, m: metrics.New()}
}

func listed(p nixtest.Path) source.SharedPath {
	return source.SharedPath{Store: p.Hash(), Nar: p.NarHash(), Size: int64(len(p.NAR))}
}

// join connects a peer on a machine that shares paths.
func (o *office) join(machine string, paths ...nixtest.Path) *sharer {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := &sharer{Sharer: source.Sharer{ID: fmt.Sprintf("peer-%d", len(o.peers)), Machine: machine, Since: time.Now()}}
	for _, p := range paths {
		o.paths[p.Hash()] = p
		s.lists = append(s.lists, listed(p))
	}
	o.peers = append(o.peers, s)
	return s
}

func (o *office) Peers() (all []source.Sharer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.peers {
		all = append(all, s.Sharer)
	}
	return all
}

func (o *office) Page(ctx context.Context, id string, before uint64) (p source.SharedPage, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.peers[slices.IndexFunc(o.peers, func(s *sharer) bool { return s.ID == id })]
	s.pages++
	if s.slow {
		return p, context.DeadlineExceeded
	}
	most, n := 1024, uint64(len(s.lists))
	if before == 0 {
		most, before = 32, n+1
	}
	for at := min(before-1, n); at > 0; at-- {
		if len(p.Paths) == most {
			p.Next = at + 1
			break
		}
		p.Paths, p.First = append(p.Paths, s.lists[at-1]), max(p.First, at)
	}
	return p, nil
}

func (o *office) Copies(h nix.StoreHash) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	machines := map[string]bool{}
	for _, s := range o.peers {
		if slices.ContainsFunc(s.lists, func(x source.SharedPath) bool { return x.Store == h }) {
			machines[s.Machine] = true
		}
	}
	return len(machines)
}

func (o *office) Fetch(ctx context.Context, h nix.StoreHash, dry bool) (Fetched, error) {
	if !dry {
		time.Sleep(time.Millisecond) // those that go on side by side take turns
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	p, ok := o.paths[h]
	if !ok || !slices.ContainsFunc(o.peers, func(s *sharer) bool {
		return !s.lies && slices.ContainsFunc(s.lists, func(x source.SharedPath) bool { return x.Store == h })
	}) {
		o.failed++
		return Fetched{}, fs.ErrNotExist
	}
	f := Fetched{Info: p.Info(o.t, key), Size: int64(len(p.NAR))}
	if _, f.Here = o.cache[p.NarHash()]; f.Here || !dry {
		o.shared[h] = true
	}
	if !dry {
		o.cache[p.NarHash()] = f.Size
		o.used = min(o.used+f.Size, o.room)
		o.order = append(o.order, h)
	}
	return f, nil
}

func (o *office) Have(p source.SharedPath) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.shared[p.Store]
}

func (o *office) Used() int64 { o.mu.Lock(); defer o.mu.Unlock(); return o.used }

// replicates runs a replicator for some time.
func (o *office) replicates(d time.Duration) *Replicator {
	r := NewReplicator(ReplicatorConfig{
		Peers: o.Peers, Page: o.Page, Copies: o.Copies, Fetch: o.Fetch, Have: o.Have, Used: o.Used, Room: o.room,
		Busy: func() bool { return false }, Metrics: o.m,
	})
	ctx, cancel := context.WithTimeout(o.t.Context(), d)
	defer cancel()
	if err := r.Run(ctx); err != nil {
		o.t.Error(err)
	}
	return r
}

func named(prefix string, n int) (paths []nixtest.Path) {
	for i := range n {
		paths = append(paths, nixtest.NewPath(fmt.Sprintf("%s-%d", prefix, i), 1000))
	}
	return paths
}

// TestReplicator: all that peers share comes, first what one machine alone has, the newest first.
func TestReplicator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		both, one := named("both", 1200), named("one", 50)
		o.join("a", both...)
		o.join("b", append(one, both...)...)
		r := o.replicates(time.Minute)
		if s := r.Status(); s.Copied != 1250 || s.MissingPaths != 0 || s.Full || s.Peers != 2 || s.CopiedBytes == 0 {
			t.Errorf("%+v, %d in the cache", s, len(o.cache))
		}
		place := func(p nixtest.Path) int { return slices.Index(o.order, p.Hash()) }
		if place(both[1199]) > place(both[0]) || place(both[1199]) < 0 || place(one[49]) < 0 {
			t.Errorf("places %d, %d, %d", place(both[1199]), place(one[49]), place(both[0]))
		}
	})
}

// TestAloneFirst: of two lists that are read at once, what only one machine has comes first.
func TestAloneFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		both, one := named("both", 20), named("one", 5)
		o.join("a", both...)
		o.join("b", append(one, both...)...) // the oldest of b
		o.replicates(time.Minute)
		for i, p := range one {
			if !slices.Contains(o.order[:len(one)+copiers-1], p.Hash()) { // they go on side by side
				t.Errorf("path %d comes after those that both have", i)
			}
		}
	})
}

// TestReplicateNew: what a peer comes to share is copied within seconds, without its list being read again.
func TestReplicateNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		old, fresh := named("old", 1100), named("fresh", 700)
		a := o.join("a", old...)
		time.AfterFunc(5*time.Minute, func() {
			o.mu.Lock()
			defer o.mu.Unlock()
			a.pages = 0
			for _, p := range fresh {
				o.paths[p.Hash()] = p
				a.lists = append(a.lists, listed(p))
			}
		})
		o.replicates(6 * time.Minute)
		if len(o.cache) != 1800 || a.pages > 12 {
			t.Errorf("%d in the cache, %d pages", len(o.cache), a.pages)
		}
	})
}

// TestLiar: a peer that lists a million paths that it does not have costs some requests, and a slow one
// nothing; the others are copied meanwhile.
func TestLiar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		honest := named("honest", 100)
		liar := o.join("evil", named("some", 3)...)
		for i := range 20_000 {
			liar.lists = append(liar.lists, source.SharedPath{Store: nix.StoreHash{1, byte(i >> 16), byte(i >> 8), byte(i)}, Nar: nix.NarHash{2, byte(i >> 16), byte(i >> 8), byte(i)}, Size: 5})
		}
		liar.lies = true
		o.join("slow", honest...).slow = true
		// It says something else of what the honest one has.
		x := listed(honest[0])
		x.Size++
		liar.lists = append(liar.lists, x)
		o.join("good", honest...)
		o.replicates(time.Hour)
		if len(o.cache) != 100 || o.failed > 100 {
			t.Errorf("%d in the cache, %d requests in vain", len(o.cache), o.failed)
		}
	})
}

// TestForgiven: a machine that failed again and again and then gives what it lists is left alone no longer than
// any other the next time.
func TestForgiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		s := o.join("laptop", named("bad", 400)...)
		fails := func(fails bool) {
			o.mu.Lock()
			defer o.mu.Unlock()
			s.lies = fails
		}
		fails(true)
		r := o.replicates(10 * time.Minute)
		left := func() time.Duration { until, _ := r.rest.Until("laptop"); return time.Until(until) }
		if left() < restFirst {
			t.Fatalf("after failing for long it is left alone for %v", left())
		}
		wait := left() + time.Second
		fails(false)
		ctx, cancel := context.WithTimeout(t.Context(), wait+10*time.Minute)
		defer cancel()
		_ = r.Run(ctx)
		if len(o.order) == 0 {
			t.Fatal("nothing was copied when it worked again")
		}
		for range maxFailures {
			r.blame("laptop")
		}
		if left() != restFirst {
			t.Errorf("left alone for %v, want %v", left(), restFirst)
		}
	})
}

// TestTwins: paths that have the same NAR are all shared in the end, and the NAR is copied once.
func TestTwins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		a := nixtest.NewPath("a", 1000)
		twins := []nixtest.Path{a, {StorePath: nixtest.NewPath("b", 10).StorePath, NAR: a.NAR}, {StorePath: nixtest.NewPath("c", 10).StorePath, NAR: a.NAR}}
		o.join("one", twins...)
		o.join("two", twins...)
		o.replicates(time.Minute)
		if len(o.shared) != 3 || len(o.order) != 1 || o.failed != 0 {
			t.Errorf("%d shared, %d copied, %d failed", len(o.shared), len(o.order), o.failed)
		}
	})
}

// TestFull: a full cache is not turned over for what peers list: of one machine's, the newest of what it
// alone has come, up to a quarter of the cache a day.
func TestFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.room, o.used = 100_000, 100_000
		o.join("a", named("many", 2500)...)
		r := o.replicates(2 * time.Hour)
		var bytes int64
		for _, n := range o.cache {
			bytes += n
		}
		if bytes == 0 || bytes > o.room/dayPart || !r.Status().Full {
			t.Errorf("%d bytes in a full cache of %d: %+v", bytes, o.room, r.Status())
		}
	})
}

// TestEndless: a list that has no end is not read to it.
func TestEndless(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.join("a")
		r := NewReplicator(ReplicatorConfig{
			Have: o.Have, Used: o.Used, Room: o.room, Metrics: o.m, Copies: o.Copies,
			Page: func(context.Context, string, uint64) (source.SharedPage, error) {
				return source.SharedPage{Paths: []source.SharedPath{listed(nixtest.NewPath("x", 10))}, First: 9, Next: 8}, nil
			},
		})
		if _, _, err := r.read(t.Context(), o.Peers()[0], walk{}); !errors.Is(err, errEndless) {
			t.Error(err)
		}
	})
}
