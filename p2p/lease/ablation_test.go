package lease

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

var only = flag.String("only", "", "")

var ablation = flag.Bool("ablation", false, "print what each rule is worth, as the table of docs/scale.md")

// scenario is a site that starts cold on the same closure.
type scenario struct {
	name   string
	nodes  int
	uplink float64 // bytes a second
	most   float64 // copies that are accepted
	before func(w *world)
	during func(w *world, i int, at time.Duration) // each second
}

var scenarios = []scenario{
	{"8 cold", 8, 25e6, 1.01, nil, nil},
	{"16 cold", 16, 25e6, 1.01, nil, nil},
	{"32 cold", 32, 25e6, 1.02, nil, nil},
	{"40 cold, of a NAR 12 are remembered", 40, 25e6, 1.06, func(w *world) {
		for _, h := range w.nodes {
			h.coord.perNAR = 12
		}
	}, nil},
	{"32, each connected to 8", 32, 25e6, 1.25, func(w *world) { w.partial(8); w.second() }, nil},
	{"16, three fetchers die", 16, 25e6, 1.15, nil, func(w *world, i int, _ time.Duration) {
		if i == 2 || i == 4 || i == 6 {
			w.killFetcher()
		}
	}},
	{"16, line of 25 Mbit/s", 16, 3e6, 1.15, nil, nil},
	{"16, split for 4 s", 16, 25e6, 2.8, nil, func(w *world, i int, _ time.Duration) {
		if i == 3 || i == 7 {
			for k, h := range w.nodes {
				h.group = k % 2 * (i / 3 % 2)
			}
			w.notice()
		}
	}},
}

// result is what a scenario gave over several seeds.
type result struct {
	upstream, unique int64
	waits            []time.Duration
	messages, wanted int
	slowest          float64 // seconds, the mean of the seeds
}

func (r result) at(percent int) float64 {
	return r.waits[min(len(r.waits)*percent/100, len(r.waits)-1)].Seconds()
}

func (s scenario) run(t *testing.T, neverYield bool, seeds int) (r result) {
	for seed := range seeds {
		w := newWorld(t, uint64(seed+1), s.nodes)
		w.uplink, w.neverYield, w.most = s.uplink, neverYield, time.Hour
		for _, h := range w.nodes {
			h.coord.neverYield = neverYield
		}
		if s.before != nil {
			s.before(w)
		}
		total, large := 100e6, 40e6
		if s.uplink < 4e6 {
			total, large = 45e6, 15e6
		}
		want := w.closure(150, total, large)
		for _, h := range w.nodes {
			w.after(w.upTo(2*time.Second), func() { h.queue = slices.Clone(want) })
		}
		begin := w.now
		w.run(2*time.Second, func() bool { return false })
		for i := 2; !w.ready(); i++ {
			if i > 1500 {
				w.fatalf("not ready")
			}
			if s.during != nil {
				s.during(w, i, w.now.Sub(begin))
			}
			w.run(time.Second, w.ready)
		}
		up, unique, _ := w.egress()
		r.upstream, r.unique = r.upstream+up, r.unique+unique+w.lost
		r.waits = append(r.waits, w.waits...)
		r.messages += w.messages
		r.wanted += len(w.waits)
		r.slowest += w.now.Sub(begin).Seconds() / float64(seeds)
	}
	slices.Sort(r.waits)
	return r
}

// TestAblation removes one rule at a time.
func TestAblation(t *testing.T) {
	if !*ablation {
		t.Skip("only with -ablation")
	}
	var b strings.Builder
	b.WriteString("| rule removed |")
	for _, s := range scenarios {
		fmt.Fprintf(&b, " %s |", s.name)
	}
	b.WriteString("\n| --- |" + strings.Repeat(" --- |", len(scenarios)) + "\n")
	for _, c := range []struct {
		name       string
		neverYield bool
	}{{"none", false}, {"preferred fetcher (yield)", true}} {
		fmt.Fprintf(&b, "| %s |", c.name)
		for _, s := range scenarios {
			if *only != "" && !strings.Contains(s.name, *only) {
				continue
			}
			r := s.run(t, c.neverYield, *seeds)
			fmt.Fprintf(&b, " %.3f; %.1f/%.1f s; %.1f |", float64(r.upstream)/float64(r.unique), r.at(50), r.at(99), float64(r.messages)/float64(r.wanted))
		}
		b.WriteString("\n")
	}
	t.Log("\n" + b.String())
}
