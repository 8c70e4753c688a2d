package lease

import (
	"flag"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

var (
	seeds   = flag.Int("seeds", 6, "how many seeds the model tests go through")
	oneSeed = flag.Uint64("seed", 0, "the only seed, when not 0")
)

func eachSeed(t *testing.T, f func(t *testing.T, seed uint64)) {
	if *oneSeed != 0 {
		f(t, *oneSeed)
		return
	}
	for s := range *seeds {
		f(t, uint64(s+1))
	}
}

// TestOneFetcher: where all know each other, each NAR comes from upstream once.
func TestOneFetcher(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed, 2+int(seed%31))
		var want []nix.NarHash
		for range 20 {
			want = append(want, w.nar(1+w.rng.Int64N(20e6)))
		}
		for _, h := range w.nodes {
			w.after(w.upTo(2*time.Second), func() { h.queue = slices.Clone(want) })
		}
		w.run(2*time.Second, func() bool { return false })
		if !w.run(3*time.Minute, w.ready) {
			w.fatalf("not ready")
		}
		for _, nar := range want {
			if len(w.fetchers[nar]) != 1 || w.upstream[nar] != w.sizes[nar] {
				w.fatalf("%d fetchers, %d of %d bytes from upstream", len(w.fetchers[nar]), w.upstream[nar], w.sizes[nar])
			}
		}
		w.emptied()
	})
}

// TestViews: where nodes know only some of the others, in v groups, a NAR comes v times from
// upstream, and hardly more: the groups share the line.
func TestViews(t *testing.T) {
	for views := 1; views <= 4; views++ {
		var total, unique int64
		eachSeed(t, func(t *testing.T, seed uint64) {
			w := newWorld(t, seed, 12)
			groups := make([][]*host, views)
			for i, h := range w.nodes {
				groups[i%views] = append(groups[i%views], h)
			}
			for _, g := range groups {
				for _, h := range g {
					h.know(g)
				}
			}
			var want []nix.NarHash
			for range 20 {
				want = append(want, w.nar(1+w.rng.Int64N(20e6)))
			}
			for _, h := range w.nodes {
				h.queue = slices.Clone(want)
			}
			if !w.run(3*time.Minute, w.ready) {
				w.fatalf("not ready")
			}
			up, one, _ := w.egress()
			total, unique = total+up, unique+one
		})
		if ratio := float64(total) / float64(unique); ratio > 1.15*float64(views) {
			t.Errorf("%.2f copies in %d views", ratio, views)
		}
	}
}

// TestPartialViews: where each of 32 is connected to 8 others at random, questions are sent on
// to who ranks higher, and a NAR comes no more often than there are nodes where that ends.
// Where nodes also know those to whom theirs are connected, that is nearly always one.
func TestPartialViews(t *testing.T) {
	for _, c := range []struct {
		name   string
		second bool
		most   float64 // of upstream / unique, on average
	}{{"neighbours", false, 4}, {"neighbours of neighbours", true, 1.05}} {
		var total, unique int64
		deciders, nars := 0, 0
		eachSeed(t, func(t *testing.T, seed uint64) {
			w := newWorld(t, seed, 32)
			w.partial(8)
			if c.second {
				w.second()
			}
			var want []nix.NarHash
			for range 20 {
				want = append(want, w.nar(1+w.rng.Int64N(5e6)))
			}
			for _, h := range w.nodes {
				h.queue = slices.Clone(want)
			}
			if !w.run(3*time.Minute, w.ready) {
				w.fatalf("not ready")
			}
			for _, nar := range want {
				deciders += w.deciders(nar)
			}
			up, one, _ := w.egress()
			total, unique, nars = total+up, unique+one, nars+len(want)
		})
		ratio := float64(total) / float64(unique)
		t.Logf("%s: upstream / unique %.3f, coordinators of a NAR %.2f", c.name, ratio, float64(deciders)/float64(nars))
		if ratio > c.most {
			t.Errorf("%s: more than %.2f", c.name, c.most)
		}
	}
}

// deciders counts the nodes that decide about a NAR, as each asks the best that it knows and
// is sent on twice.
func (w *world) deciders(nar nix.NarHash) int {
	ends := map[NodeID]bool{}
	for _, h := range w.nodes {
		at := h
		for range 1 + MaxHops {
			id, _ := higher(nar, at.id, at.live)
			at = w.byID[id]
		}
		ends[at.id] = true
	}
	return len(ends)
}

// second lets each know also those whom the ones that it knows know.
func (w *world) second() {
	more := make([][]*host, len(w.nodes))
	for i, h := range w.nodes {
		for _, o := range h.base {
			more[i] = append(append(more[i], o), o.base...)
		}
		slices.SortFunc(more[i], func(a, b *host) int { return strings.Compare(string(a.id), string(b.id)) })
		more[i] = slices.Compact(more[i])
	}
	for i, h := range w.nodes {
		h.know(more[i])
	}
}

// partial lets each know so many others or a few more: who is known knows back.
func (w *world) partial(n int) {
	for _, h := range w.nodes {
		h.base = nil
	}
	for _, h := range w.nodes {
		for _, i := range w.rng.Perm(len(w.nodes)) {
			if o := w.nodes[i]; len(h.base) < n && o != h && !slices.Contains(h.base, o) {
				h.base = append(h.base, o)
				o.base = append(o.base, h)
			}
		}
	}
	for _, h := range w.nodes {
		h.know(h.base)
	}
}

// TestTwoCoordinators: two groups that do not know each other begin the same NAR, then meet.
func TestTwoCoordinators(t *testing.T) {
	yields := 0
	eachSeed(t, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed, 10)
		for i, h := range w.nodes {
			h.group = i % 2
		}
		for _, h := range w.nodes {
			h.see(h.base...)
		}
		nar := w.nar(400e6)
		for _, h := range w.nodes {
			h.queue = []nix.NarHash{nar}
		}
		w.run(2*time.Second, func() bool { return false })
		for _, h := range w.nodes {
			h.group = 0
		}
		w.notice()
		if !w.run(3*time.Minute, w.ready) {
			w.fatalf("not ready")
		}
		if len(w.fetchers[nar]) > 2 {
			w.fatalf("%d fetchers", len(w.fetchers[nar]))
		}
		yields += w.yields
		if ratio := float64(w.upstream[nar]) / 400e6; ratio > 1.5 {
			w.fatalf("%.2f times from upstream", ratio)
		}
	})
	if yields == 0 && *oneSeed == 0 {
		t.Error("no fetcher ever gave way to another")
	}
}

// TestFetcherDies: wherever the fetcher is in the NAR when it dies, the others get all of it,
// and hardly a byte comes twice.
func TestFetcherDies(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		for percent := int64(0); percent <= 100; percent += 10 {
			w := newWorld(t, seed, 2+int(seed%11))
			size := int64(100e6)
			nar := w.nar(size)
			for _, h := range w.nodes {
				h.queue = []nix.NarHash{nar}
			}
			w.run(w.tick, func() bool { return false })
			for _, h := range w.nodes {
				h.all[nar].stop = max(size*percent/100, 1)
			}
			died := func() bool {
				for _, h := range w.nodes {
					if !h.up {
						for _, o := range w.nodes {
							if o.up {
								o.all[nar].stop = 0
							}
						}
						return true
					}
				}
				return false
			}
			if !w.run(time.Minute, died) {
				w.fatalf("the fetcher does not die")
			}
			if !w.run(time.Minute, w.ready) {
				w.fatalf("killed at %d %%: not ready", percent)
			}
			if up := w.upstream[nar]; float64(up) > 1.25*float64(size) {
				w.fatalf("killed at %d %%: %d of %d bytes from upstream", percent, up, size)
			}
		}
	})
}

// TestChaos: whatever happens to nodes and messages, nobody waits for long, and who lives gets
// all that it wants.
func TestChaos(t *testing.T) {
	var idle, gap, decided time.Duration
	var worst float64
	messages := 0
	eachSeed(t, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed, 4+int(seed%9))
		w.loss, w.double, w.late = 0.05, 0.05, 0.03
		w.uplink, w.held = 8e6, true
		if seed%3 == 0 {
			w.partial(3)
		}
		var want []nix.NarHash
		for range 60 {
			want = append(want, w.nar(1+int64(math.Exp(w.rng.Float64()*18.5))))
		}
		for _, h := range w.nodes {
			for i := 0; i < len(want); i += 10 {
				w.after(time.Duration(i)*time.Second+w.upTo(5*time.Second), func() { h.queue = append(h.queue, want[i:i+10]...) })
			}
		}
		calm := w.now.Add(90 * time.Second)
		for at := time.Duration(0); at < 85*time.Second; at += w.upTo(4 * time.Second) {
			w.after(at, w.trouble(want, calm))
		}
		w.run(90*time.Second, func() bool { return false })
		w.loss, w.double, w.late = 0, 0, 0
		for _, h := range w.nodes {
			h.group = 0
		}
		w.notice()
		if !w.run(10*time.Minute, w.ready) {
			w.fatalf("not ready")
		}
		up, _, ratio := w.egress()
		if up > w.wanted*3/4 {
			w.fatalf("%d of %d wanted bytes from upstream", up, w.wanted)
		}
		idle, gap, decided, worst = max(idle, w.idle), max(gap, w.gap), max(decided, w.decided), max(worst, ratio)
		messages += w.messages
		w.emptied()
	})
	t.Logf("%d messages; at worst decided in %v, no byte for %v, nobody fetching for %v, upstream / unique %.2f",
		messages, decided, idle, gap, worst)
}

// trouble is something that happens to somebody.
func (w *world) trouble(want []nix.NarHash, calm time.Time) func() {
	return func() {
		h := w.nodes[w.rng.IntN(len(w.nodes))]
		switch w.rng.IntN(5) {
		case 0, 1: // dies, and comes back with nothing
			if !h.up {
				return
			}
			h.die()
			w.notice()
			w.after(min(w.upTo(20*time.Second), calm.Sub(w.now)), func() {
				h.boot()
				h.see(h.base...)
				w.notice()
				for _, i := range w.rng.Perm(len(want))[:w.rng.IntN(len(want))] {
					h.queue = append(h.queue, want[i])
				}
			})
		case 2: // the site falls apart
			for _, o := range w.nodes {
				o.group = w.rng.IntN(2)
			}
			w.notice()
		case 3: // and heals
			for _, o := range w.nodes {
				o.group = 0
			}
			w.notice()
		case 4: // forgets something: its cache is full
			if len(h.all) > len(h.jobs) {
				for _, nar := range want {
					if j := h.all[nar]; j != nil && j.s != nil && j.bytes == j.size {
						r, to := j.s.Report(Release, h.live)
						for _, id := range to {
							w.send(h, w.byID[id], r, func(Answer) {}, func() {})
						}
						delete(h.all, nar)
						return
					}
				}
			}
		}
	}
}

// TestColdSite is the case that all of this is for: nodes start cold within two seconds on the
// same closure, and each byte crosses the line once, or hardly more often where something fails.
func TestColdSite(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			r := s.run(t, false, 2)
			copies := float64(r.upstream) / float64(r.unique)
			t.Logf("%.3f copies; the slowest node after %.1f s on average", copies, r.slowest)
			if copies > s.most {
				t.Errorf("more than %.2f copies", s.most)
			}
			if r.slowest > 1.3*s.most*float64(r.unique)/2/s.uplink+3 {
				t.Error("that is too slow")
			}
		})
	}
}

// closure makes n NARs, log-normal in size, and together of total bytes beside the one that is
// large.
func (w *world) closure(n int, total, large float64) (want []nix.NarHash) {
	sizes := make([]float64, n-1)
	var sum float64
	for i := range sizes {
		sizes[i] = math.Exp(w.rng.NormFloat64() * 2)
		sum += sizes[i]
	}
	for i, s := range sizes {
		if i == len(sizes)/2 {
			want = append(want, w.nar(int64(large)))
		}
		want = append(want, w.nar(200+int64(s/sum*total)))
	}
	return want
}

// killFetcher ends the node that fetches the largest NAR that somebody fetches.
func (w *world) killFetcher() {
	var victim *host
	var size int64
	for _, h := range w.nodes {
		for _, j := range h.jobs {
			if j.size > size && j.bytes > 0 && j.s.Next(w.now).Kind == FetchStep {
				victim, size = h, j.size
			}
		}
	}
	if victim == nil {
		w.fatalf("nobody fetches")
	}
	for nar, j := range victim.all {
		var second int64
		for _, h := range w.nodes {
			if o := h.all[nar]; h != victim && o != nil {
				second = max(second, o.bytes)
			}
		}
		w.lost += max(j.bytes-second, 0)
	}
	victim.die()
	w.notice()
}
