//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
	"github.com/nixp2p/nixp2p/lab/rig"
)

// world is what rows share.
type world struct {
	o         *options
	dir       string
	nix       *realnix.Nix
	corpus    *realnix.Corpus
	fileBytes int64 // of all NAR files of the closure, each once
	largest   string
	largeSize int64 // bytes of that file
	leases    bool  // the program knows of them
}

func newWorld(ctx context.Context, o *options) (*world, error) {
	w := &world{o: o, dir: rig.Inside()}
	// Files of hosts may take most of the memory, but not all.
	if err := rig.Settle(w.dir, "70%"); err != nil {
		return nil, err
	}
	var err error
	if w.nix, err = findNix(ctx, o.nix); err != nil {
		return nil, err
	}
	if w.corpus, err = openCorpus(ctx, o); err != nil {
		return nil, err
	}
	if err := w.measure(); err != nil {
		return nil, err
	}
	help, err := exec.CommandContext(ctx, rig.Binary(w.dir), "serve", "--help").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("nixp2p serve --help: %w: %s", err, help)
	}
	w.leases = strings.Contains(string(help), "--leases")
	return w, nil
}

func findNix(ctx context.Context, version string) (*realnix.Nix, error) {
	if version == "" {
		return realnix.LookPath(ctx)
	}
	for _, v := range realnix.Variants() {
		if v.Name == version {
			return realnix.LookChroot(ctx, v)
		}
	}
	return nil, fmt.Errorf("no Nix %q", version)
}

// measure sums the files of the closure. It opens the corpus if nobody has.
func (w *world) measure() (err error) {
	if w.corpus == nil {
		if w.corpus, err = realnix.OpenCorpus(w.o.corpus); err != nil {
			return err
		}
	}
	dir := w.corpus.Caches["xz"]
	seen := map[string]bool{}
	large := w.corpus.Largest().StorePath
	for _, p := range w.corpus.Paths {
		n, err := rig.NarInfoIn(dir, p.StorePath)
		if err != nil {
			return err
		}
		if !seen[n.URL] {
			seen[n.URL] = true
			w.fileBytes += n.FileSize
		}
		if p.StorePath == large {
			w.largest, w.largeSize = "/"+n.URL, n.FileSize
		}
	}
	return nil
}

// payload is the part of a packet of the uplink that is not headers.
const payload = 1448.0 / 1500

// oneCopy returns what the uplink needs for all files once.
func (w *world) oneCopy(r row) time.Duration {
	return time.Duration(float64(w.fileBytes) * 8e3 / r.uplink(w.o.uplink) / payload)
}

// scene is a row as it is played.
type scene struct {
	w     *world
	row   row
	res   *result
	site  *rig.Site
	hosts []*host
	files string
	rand  *rand.Rand
	begun time.Time // the first build's start

	mu      sync.Mutex
	alive   sync.WaitGroup
	hostile sync.WaitGroup
}

// host is a machine with a build.
type host struct {
	*rig.Host
	start time.Duration // of the build, after the first
	kill  context.CancelFunc

	gone    bool          // it was made to vanish
	finish  time.Duration // after the first start
	client  time.Duration // CPU
	failed  string
	retries int
}

// play plays a row and takes everything away again.
func (w *world) play(ctx context.Context, r row) *result {
	res := newResult(w, r)
	if r.Arrangement == leases && !w.leases {
		res.Skipped = "this nixp2p has no --leases"
		return res
	}
	start := time.Now()
	limited, cancel := context.WithTimeout(ctx, r.limit(w))
	defer cancel()
	s := &scene{w: w, row: r, res: res, rand: rand.New(rand.NewPCG(1, uint64(r.Hosts)))}
	err := s.set(limited)
	if err == nil {
		err = s.run(limited)
	}
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("the limit of %.0f s is over: %w", r.limit(w).Seconds(), err)
	}
	if err != nil {
		res.Err = err.Error()
	}
	if !res.good() && w.o.verbose {
		for _, h := range s.hosts {
			fmt.Fprintf(os.Stderr, "--- log of %s\n%s\n", h, h.LastLog(60))
		}
	}
	// Also when the run is interrupted.
	ending, stop := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer stop()
	if err := s.end(ending); err != nil {
		fmt.Fprintln(os.Stderr, "    cleaning up:", err)
	}
	res.Took = time.Since(start).Seconds()
	return res
}

// place returns where the hosts' files go: into memory, if they leave enough of it.
func (w *world) place(r row) string {
	need := float64(0)
	if r.Client == realNix {
		need += 1.1 * float64(w.corpus.NARBytes)
	}
	if r.Arrangement != direct {
		need += 1.35 * float64(w.fileBytes) // what a node decodes for others it keeps, too
	}
	var free float64
	for line := range strings.Lines(rig.ReadText("/proc/meminfo")) {
		if n, _ := fmt.Sscanf(line, "MemAvailable: %f kB", &free); n == 1 {
			break
		}
	}
	if w.o.disk || need*float64(r.Hosts) > free*1024*0.6 {
		return rig.Disk(w.dir)
	}
	return rig.Work(w.dir)
}

// set makes the LAN with its upstream and its hosts, with empty stores; nodes do not run.
func (s *scene) set(ctx context.Context) error {
	s.files = filepath.Join(s.w.place(s.row), "row")
	if err := os.MkdirAll(s.files, 0o755); err != nil {
		return err
	}
	s.res.Disk = strings.HasPrefix(s.files, rig.Disk(s.w.dir))
	n := s.row.Hosts + len(s.row.hostile())
	s.site = &rig.Site{Dir: s.w.dir, Files: s.files, Nix: s.w.nix, Corpus: s.w.corpus}
	var err error
	if s.site.LAN, err = rig.NewLAN(ctx, labName, s.w.dir, n, fmt.Sprintf("NETLAB_WAN=rate=%g delay=10", s.row.uplink(s.w.o.uplink))); err != nil {
		return err
	}
	if _, err := s.site.LAN.Do(ctx, "lanrate", "all", s.w.o.lan); err != nil {
		return err
	}
	if s.site.Cache, err = rig.NewCache(s.site.LAN, s.w.corpus.Caches["xz"]); err != nil {
		return err
	}
	for k := 1; k <= n; k++ {
		h, err := s.site.NewHost(k)
		if err != nil {
			return err
		}
		h.Client.Settings = map[string]string{"max-jobs": nixJobs, "fsync-metadata": "false"}
		if s.row.Arrangement == direct {
			h.Client.Substituters = []string{s.site.Cache.URL}
		}
		s.hosts = append(s.hosts, &host{Host: h})
	}
	within := 2 * time.Second
	if s.row.Event == spread {
		within = 30 * time.Second
	}
	for i, k := range s.rand.Perm(s.row.Hosts) {
		s.hosts[k].start = within * time.Duration(i) / time.Duration(max(1, s.row.Hosts-1))
	}
	return nil
}

// nixJobs is max-jobs of each host, which before Nix 2.17 is also how many paths are fetched at
// once: what auto gives on a machine with four cores.
const nixJobs = "4"

// end takes everything away.
func (s *scene) end(ctx context.Context) error {
	var errs []error
	for _, h := range s.hosts {
		h.End()
	}
	if s.site != nil && s.site.Cache != nil {
		s.site.Cache.Close()
	}
	if s.site != nil && s.site.LAN != nil {
		errs = append(errs, s.site.LAN.Down(ctx))
	}
	s.hostile.Wait()
	return errors.Join(append(errs, realnix.RemoveAll(s.files))...)
}

// flags are those of the nodes.
func (s *scene) flags() (list []string) {
	if s.row.Arrangement == plain && s.w.leases {
		list = append(list, "--leases=false")
	}
	if s.row.Event == few {
		list = append(list, "--max-peers", "8")
	}
	return list
}

// meshTime is how long a mesh is waited for.
const meshTime = 60 * time.Second

// stand starts the nodes and waits until all are connected to all.
func (s *scene) stand(ctx context.Context) error {
	for _, h := range s.builders() {
		if err := h.Start(s.flags()...); err != nil {
			return err
		}
	}
	for _, h := range s.builders() {
		if err := h.Ready(ctx); err != nil {
			return err
		}
	}
	want := s.row.Hosts - 1
	if s.row.Event == few {
		want = min(want, 4)
	}
	took, ok := rig.Until(ctx, meshTime, func() bool {
		for _, h := range s.builders() {
			if st, err := h.Status(ctx); err != nil || st.Peers < want {
				return false
			}
		}
		return true
	})
	s.res.MeshTook = took.Seconds()
	if !ok {
		s.res.note("the mesh was not whole after %s", rig.Seconds(took))
	}
	if len(s.row.hostile()) > 0 {
		if err := s.inviteHostile(ctx); err != nil {
			return err
		}
	}
	// Inventories are told a second after they changed; there is nothing in them yet.
	rig.Pause(ctx, 1500*time.Millisecond)
	return ctx.Err()
}

// builders are the hosts that build.
func (s *scene) builders() []*host { return s.hosts[:s.row.Hosts] }

// run has all hosts build, and counts.
func (s *scene) run(ctx context.Context) error {
	if s.row.Arrangement != direct && s.row.Mesh == standing {
		if err := s.stand(ctx); err != nil {
			return err
		}
	}
	s.res.Load = rig.Load()
	before := s.count()
	s.begun = time.Now()
	events, stop := context.WithCancel(ctx)
	var meanwhile sync.WaitGroup
	meanwhile.Go(func() { s.happen(events) })
	if s.w.o.profile != "" && s.row.Arrangement != direct {
		meanwhile.Go(func() { s.profile(ctx) })
	}
	for _, h := range s.builders() {
		own, kill := context.WithCancel(ctx)
		h.kill = kill
		s.alive.Go(func() {
			defer kill()
			s.host(own, h)
		})
	}
	s.alive.Wait()
	took := time.Since(s.begun)
	after := s.count()
	stop()
	meanwhile.Wait()
	s.res.judge(s, before, after, took)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if s.row.Client == realNix {
		s.compare(ctx)
	}
	return nil
}

// host is what one of them does.
func (s *scene) host(ctx context.Context, h *host) {
	if !rig.Pause(ctx, h.start) {
		return
	}
	fail := func(what string, err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !h.gone {
			h.failed = what + ": " + rig.CommandError(err)
		}
	}
	if s.row.Arrangement != direct && s.row.Mesh == starting {
		if err := h.Start(s.flags()...); err != nil {
			fail("start", err)
			return
		}
		// As under systemd, whose socket is there before the daemon is.
		if _, ok := rig.Until(ctx, 20*time.Second, func() bool { return h.listens(ctx) }); !ok {
			fail("start", errors.New("it does not listen"))
			return
		}
	}
	var err error
	if s.row.Client == realNix {
		var res realnix.Result
		res, err = h.Client.Realise(ctx, s.w.corpus.Top)
		h.client = res.CPU
	} else {
		err = s.fetch(ctx, h)
	}
	h.finish = time.Since(s.begun)
	if err != nil {
		fail("build", err)
	}
}

// profile writes what the first host's node spends its time with.
func (s *scene) profile(ctx context.Context) {
	h := s.builders()[0]
	if _, ok := rig.Until(ctx, 20*time.Second, func() bool { return h.listens(ctx) }); !ok {
		return
	}
	resp, err := h.Get(ctx, rig.AdminURL+"/debug/pprof/profile?seconds=30")
	if err == nil {
		defer resp.Body.Close()
		var text []byte
		if text, err = io.ReadAll(resp.Body); err == nil {
			err = os.WriteFile(s.w.o.profile, text, 0o644)
		}
	}
	if err != nil {
		s.res.note("profile: %v", err)
	}
}

func (h *host) listens(ctx context.Context) bool {
	c, err := rig.DialIn(ctx, h.NS, "tcp", strings.TrimPrefix(rig.NodeURL, "http://"))
	if err != nil {
		return false
	}
	return c.Close() == nil
}

// compare has Nix look at the store of each host, and at each byte on two of them.
func (s *scene) compare(ctx context.Context) {
	var list []*host
	for _, h := range s.builders() {
		if !h.gone && h.failed == "" {
			list = append(list, h)
		}
	}
	slices.SortFunc(list, func(a, b *host) int { return int(a.finish - b.finish) })
	var wg sync.WaitGroup
	slots := make(chan struct{}, runtime.NumCPU())
	for i, h := range list {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			err := s.whole(ctx, h)
			if err == nil && (i == 0 || i == len(list)-1) {
				err = h.Verify(ctx, len(s.w.corpus.Paths))
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if err != nil {
				s.res.fail("%s: its store: %s", h, rig.CommandError(err))
			} else {
				s.res.Verified++
			}
		})
	}
	wg.Wait()
}

// whole tells whether a store has the closure.
func (s *scene) whole(ctx context.Context, h *host) error {
	paths, err := h.Client.Closure(ctx, s.w.corpus.Top)
	if err != nil {
		return err
	}
	var sum int64
	for _, p := range paths {
		sum += p.NarSize
	}
	if len(paths) != len(s.w.corpus.Paths) || sum != s.w.corpus.NARBytes {
		return fmt.Errorf("%d paths with %d bytes, not %d with %d", len(paths), sum, len(s.w.corpus.Paths), s.w.corpus.NARBytes)
	}
	return nil
}
