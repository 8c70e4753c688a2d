//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
	"github.com/nixp2p/nixp2p/lab/rig"
)

// world is what scenarios share.
type world struct {
	o      *options
	dir    string // of the outer process; work in it is ours
	nix    *realnix.Nix
	corpus *realnix.Corpus
	other  *realnix.Corpus // small, signed by another key
	update versions        // nil if there is no -update
}

// corpora are the closures that scenarios use.
func corpora() []realnix.Params {
	return []realnix.Params{{}, {Paths: 24, Seed: 5, Compressions: []string{"none"}}}
}

func newWorld(ctx context.Context, o *options) (*world, error) {
	w := &world{o: o, dir: rig.Inside()}
	if err := rig.Settle(w.dir, "16g"); err != nil {
		return nil, err
	}
	own, err := realnix.LookPath(ctx)
	if err != nil {
		return nil, err
	}
	w.nix = own
	if o.nix != "" {
		for _, v := range realnix.Variants() {
			if v.Name == o.nix {
				w.nix, err = realnix.LookChroot(ctx, v)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	var got []*realnix.Corpus
	for _, p := range corpora() {
		c, err := realnix.KeptCorpus(ctx, own, p)
		if err != nil {
			return nil, err
		}
		got = append(got, c)
	}
	w.corpus, w.other = got[0], got[1]
	if o.update != "" {
		w.update, err = openVersions(o.update)
	}
	return w, err
}

// scenario is one story.
type scenario struct {
	name   string
	what   string
	hosts  int
	fixed  bool // -hosts does not change the number
	extra  bool // not one of "all"
	limit  time.Duration
	env    []string // settings of netlab.sh
	update bool     // plays with world.update
	run    func(ctx context.Context, st *stage) error
}

// stage is a LAN on which a scenario is played.
type stage struct {
	world  *world
	nix    *realnix.Nix
	corpus *realnix.Corpus
	dir    string
	lan    *rig.LAN
	cache  *rig.Cache
	hosts  []*host // h1 is hosts[0]
	result *result
}

// run plays a scenario and takes its stage away.
func (w *world) run(ctx context.Context, s *scenario) *result {
	r := &result{Name: s.name, What: s.what, Hosts: s.hosts, Nix: w.nix.Version, Load: rig.Load()}
	if w.o.hosts > 0 && !s.fixed {
		r.Hosts = w.o.hosts
	}
	fmt.Fprintf(os.Stderr, "=== %s, %d hosts: %s\n", s.name, r.Hosts, s.what)
	start := time.Now()
	limited, cancel := context.WithTimeout(ctx, time.Duration(float64(s.limit)*w.o.factor))
	defer cancel()
	st, err := w.begin(limited, s, r)
	if err == nil {
		err = s.run(limited, st)
	}
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("the limit of %v is over: %w", s.limit, err)
	}
	r.Took = time.Since(start)
	if err != nil {
		r.Err = err.Error()
		fmt.Fprintln(os.Stderr, "    error:", err)
	}
	if st != nil {
		if !r.passed() && w.o.verbose {
			st.tellLogs()
		}
		// Also when the run is interrupted.
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if err := st.end(ending); err != nil {
			fmt.Fprintln(os.Stderr, "    cleaning up:", err)
		}
	}
	fmt.Fprintf(os.Stderr, "--- %s %s (%.1f s)\n", r.verdict(), s.name, r.Took.Seconds())
	return r
}

// begin makes the LAN with its upstream and its hosts, with empty stores; nodes do not run.
func (w *world) begin(ctx context.Context, s *scenario, r *result) (*stage, error) {
	st := &stage{world: w, nix: w.nix, corpus: w.corpus, dir: filepath.Join(rig.Work(w.dir), s.name), result: r}
	if err := os.MkdirAll(st.dir, 0o755); err != nil {
		return nil, err
	}
	var err error
	if s.update {
		if w.update.now == nil {
			return st, errNoUpdate
		}
		st.corpus = w.update.now
	}
	if st.lan, err = rig.NewLAN(ctx, labName, w.dir, r.Hosts, s.env...); err != nil {
		return st, err
	}
	if st.cache, err = rig.NewCache(st.lan, st.corpus.Caches["xz"]); err != nil {
		return st, err
	}
	site := &rig.Site{Dir: w.dir, Files: st.dir, LAN: st.lan, Cache: st.cache, Nix: w.nix, Corpus: st.corpus}
	for k := 1; k <= r.Hosts; k++ {
		h, err := site.NewHost(k)
		if err != nil {
			return st, err
		}
		st.hosts = append(st.hosts, &host{h, st})
	}
	return st, nil
}

// end takes everything away.
func (st *stage) end(ctx context.Context) error {
	var errs []error
	for _, h := range st.hosts {
		h.End()
	}
	if st.cache != nil {
		st.cache.Close()
	}
	if st.lan != nil {
		errs = append(errs, st.lan.Down(ctx))
	}
	return errors.Join(append(errs, realnix.RemoveAll(st.dir))...)
}

func (st *stage) tellLogs() {
	for _, h := range st.hosts {
		fmt.Fprintf(os.Stderr, "--- log of %s\n%s\n", h, h.LastLog(200))
	}
}

// check notes whether something held.
func (st *stage) check(ok bool, what, seen string, args ...any) bool {
	c := check{What: what, OK: ok, Seen: fmt.Sprintf(seen, args...)}
	st.result.Checks = append(st.result.Checks, c)
	word := "ok  "
	if !ok {
		word = "FAIL"
	}
	fmt.Fprintf(os.Stderr, "    %s %s: %s\n", word, c.What, c.Seen)
	return ok
}

// figure notes something measured.
func (st *stage) figure(what string, number float64, format string, args ...any) {
	if len(args) == 0 {
		args = []any{number}
	}
	f := figure{What: what, Value: fmt.Sprintf(format, args...), Number: number}
	st.result.Figures = append(st.result.Figures, f)
	fmt.Fprintf(os.Stderr, "         %s: %s\n", f.What, f.Value)
}

// startAll starts the nodes of some hosts and waits until they answer.
func (st *stage) startAll(ctx context.Context, hosts []*host, flags ...string) error {
	for _, h := range hosts {
		if err := h.start(flags...); err != nil {
			return err
		}
	}
	for _, h := range hosts {
		if err := h.Ready(ctx); err != nil {
			return err
		}
	}
	return nil
}

// mesh waits until each node has so many peers.
func (st *stage) mesh(ctx context.Context, limit time.Duration, hosts []*host, peers int) (time.Duration, bool) {
	return rig.Until(ctx, limit, func() bool {
		for _, h := range hosts {
			s, err := h.Status(ctx)
			if err != nil || s.Peers < peers {
				return false
			}
		}
		return true
	})
}

// know waits until the first host's inventory of the second has so many paths.
func (st *stage) know(ctx context.Context, limit time.Duration, who, whom *host, paths int64) (time.Duration, bool) {
	return rig.Until(ctx, limit, func() bool { return who.pathsOf(ctx, whom) >= paths })
}
