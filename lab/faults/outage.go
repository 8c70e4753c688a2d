package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
	"github.com/nixp2p/nixp2p/internal/nixtest/supervise"
	"github.com/nixp2p/nixp2p/lab/rig"
)

// outage is something that happens to nixp2p itself while Nix works.
type outage struct {
	name string
	// good: Nix has the good cache as its second substituter. Where nixp2p is to survive
	// alone, it has not.
	good    bool
	bare    bool // no socket is held: the daemon listens itself and nobody starts it again
	prepare func(s *stage) error
	// act is called in the middle of the command; ctx ends with it.
	act func(ctx context.Context, s *stage) error
}

// outageReport is what one Nix saw.
type outageReport struct {
	Name           string
	Good           bool
	Outcome        *outcome
	Starts, Bitten int
	Err            string // of act
}

// actAt is the request for a NAR, of 220, at which it happens.
const actAt = 60

func outages() []*outage {
	signal := func(sig syscall.Signal) func(context.Context, *stage) error {
		return func(_ context.Context, s *stage) error { return s.unit.Signal(sig) }
	}
	return []*outage{
		{name: "nothing (for comparison)"},
		{name: "killed (SIGKILL)", act: signal(syscall.SIGKILL)},
		{name: "killed every 2 s", good: true, act: killEvery(2*time.Second, always)},
		{name: "killed 0.3 s after each start", good: true, act: killEvery(300*time.Millisecond, always)},
		{name: "crashes 0.3 s after each start, but while it rests", good: true, act: killEvery(300*time.Millisecond, (*stage).works)},
		{name: "stopped (SIGSTOP), ended by the watchdog", act: signal(syscall.SIGSTOP)},
		{name: "killed, and crashes at its next start", act: crashing(1)},
		{name: "killed, and crashes at each start", good: true, act: crashing(math.MaxInt32)},
		{name: "upgraded: another binary, SIGTERM", act: func(_ context.Context, s *stage) error {
			return errors.Join(s.install(), s.unit.Signal(syscall.SIGTERM))
		}},
		{name: "its disk is full from the start (tmpfs of 1 MiB)", prepare: (*stage).smallDisk},
		{name: "its disk fills up (tmpfs of 24 MiB)", prepare: (*stage).mediumDisk},
		{name: "state and cache directories cannot be used", prepare: (*stage).noDirectories},
		{name: "started with a broken configuration", good: true, prepare: (*stage).breakConfig},
		{name: "restarted with a broken configuration", good: true, act: func(_ context.Context, s *stage) error {
			return errors.Join(s.breakConfig(), s.unit.Signal(syscall.SIGTERM))
		}},
		{name: "upgraded to a program that cannot be started", good: true, act: func(_ context.Context, s *stage) error {
			return errors.Join(s.replace("\x7fELF is not enough"), s.unit.Signal(syscall.SIGKILL))
		}},
		{name: "without systemd: killed, and nobody starts it again", good: true, bare: true, act: func(_ context.Context, s *stage) error {
			return s.bare.cmd.Process.Kill()
		}},
	}
}

// crashing kills the daemon, which then crashes at its next starts. The kill is the first failure of
// a row if the daemon did not work for 10 s before it.
func crashing(starts int) func(context.Context, *stage) error {
	return func(_ context.Context, s *stage) error {
		return errors.Join(s.crashing(starts), s.unit.Signal(syscall.SIGKILL))
	}
}

// works reports whether the daemon does more than answer 404.
func (s *stage) works() bool { return !strings.Contains(s.unit.Status(), "answering 404") }

func always(*stage) bool { return true }

// killEvery kills the daemon again and again as long as that is due, counted from when it says that it is ready.
func killEvery(d time.Duration, due func(*stage) bool) func(context.Context, *stage) error {
	return func(ctx context.Context, s *stage) error {
		for ctx.Err() == nil {
			select {
			case <-s.unit.Ready():
			case <-ctx.Done():
				return nil
			}
			timer := time.NewTimer(d)
			select {
			case <-timer.C:
				if due(s) {
					starts, _ := s.unit.Starts()
					_ = s.unit.Signal(syscall.SIGKILL)
					rig.Until(ctx, 5*time.Second, func() bool { n, _ := s.unit.Starts(); return n > starts })
				}
			case <-ctx.Done():
				timer.Stop()
			}
		}
		return nil
	}
}

// stage is one daemon with what belongs to it.
type stage struct {
	dir     string
	real    string // the program
	program string // what is started: a copy of it, or a script
	unit    *supervise.Supervisor
	bare    *daemon
	mounted []string
}

func (s *stage) path(name string) string { return filepath.Join(s.dir, name) }

// install puts the program in place as a package manager does: another file of the same name.
func (s *stage) install() error {
	text, err := os.ReadFile(s.real)
	if err != nil {
		return err
	}
	return s.replace(string(text))
}

func (s *stage) replace(text string) error {
	if err := os.WriteFile(s.program+".new", []byte(text), 0o755); err != nil {
		return err
	}
	return os.Rename(s.program+".new", s.program)
}

// crashing puts a script in the place of the program that crashes at its first starts.
func (s *stage) crashing(times int) error {
	return s.replace(fmt.Sprintf("#!/bin/sh\nn=$(cat %[1]s 2>/dev/null || echo 0)\necho $((n + 1)) >%[1]s\n[ $n -ge %[2]d ] || kill -SEGV $$\nexec %[3]s \"$@\"\n",
		s.path("starts"), times, s.real))
}

func (s *stage) smallDisk() error  { return s.disk("1m") }
func (s *stage) mediumDisk() error { return s.disk("24m") }

// disk puts state and cache on a small file system.
func (s *stage) disk(size string) error {
	at := s.path("disk")
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", at, "tmpfs", 0, "size="+size); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	s.mounted = append(s.mounted, at)
	return errors.Join(os.Symlink("disk", s.path("state")), os.Symlink("disk", s.path("cache")))
}

// noDirectories puts files where directories should be.
func (s *stage) noDirectories() error {
	return errors.Join(os.WriteFile(s.path("state"), nil, 0o644), os.WriteFile(s.path("cache"), nil, 0o644))
}

func (s *stage) breakConfig() error {
	return os.WriteFile(s.path("config.toml"), []byte("cache-size = \"lots\"\nnot even TOML\n"), 0o644)
}

func (s *stage) close() {
	for _, at := range s.mounted {
		_ = syscall.Unmount(at, syscall.MNT_DETACH)
	}
	_ = realnix.RemoveAll(s.dir)
}

func measureOutages(ctx context.Context, o *options, n *realnix.Nix) ([]*outageReport, error) {
	own, err := realnix.LookPath(ctx)
	if err != nil {
		return nil, err
	}
	corpus, err := realnix.KeptCorpus(ctx, own, realnix.Params{})
	if err != nil {
		return nil, err
	}
	var all []*outageReport
	for _, x := range outages() {
		if !o.only.MatchString(x.name) {
			continue
		}
		r, err := x.measure(ctx, o, n, corpus)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", x.name, err)
		}
		fmt.Fprintf(os.Stderr, "%-7s %-55s %s, %d starts, %d by the watchdog %s\n", n.Version, x.name, r.Outcome, r.Starts, r.Bitten, r.Err)
		all = append(all, r)
	}
	return all, nil
}

// measure runs nix-store -r of the corpus once.
func (x *outage) measure(ctx context.Context, o *options, n *realnix.Nix, corpus *realnix.Corpus) (*outageReport, error) {
	dir, err := os.MkdirTemp(o.dir, "outage")
	if err != nil {
		return nil, err
	}
	s := &stage{dir: dir, real: o.binary, program: filepath.Join(dir, "nixp2p")}
	defer s.close()
	act := make(chan struct{})
	up := httptest.NewServer(trigger(http.FileServer(http.Dir(corpus.Caches["xz"])), act))
	defer up.Close()
	good := httptest.NewServer(second(http.FileServer(http.Dir(corpus.Caches["xz"]))))
	defer good.Close()
	end, url, err := x.begin(ctx, s, corpus.PublicKey, up.URL)
	if err != nil {
		return nil, err
	}
	defer end()
	c, err := newClient(n, s.path("client"), corpus.PublicKey, url)
	if err != nil {
		return nil, err
	}
	if x.good {
		c.Substituters = append(c.Substituters, good.URL)
	}
	r := &outageReport{Name: x.name, Good: x.good}
	acting, stop := context.WithCancel(ctx)
	var actor sync.WaitGroup
	if x.act != nil {
		actor.Go(func() {
			select {
			case <-act:
				if err := x.act(acting, s); err != nil {
					r.Err = err.Error()
				}
			case <-acting.Done():
				r.Err = "the command ended before it happened"
			}
		})
	}
	r.Outcome, err = realiseCorpus(ctx, o, c, corpus)
	stop()
	actor.Wait()
	if s.unit != nil {
		r.Starts, r.Bitten = s.unit.Starts()
	}
	return r, err
}

// begin starts the daemon and returns what ends it, and its address.
func (x *outage) begin(ctx context.Context, s *stage, key, upstream string) (end func(), url string, err error) {
	if err := errors.Join(s.install(), os.WriteFile(s.path("config.toml"), nil, 0o644)); err != nil {
		return nil, "", err
	}
	if x.prepare != nil {
		if err := x.prepare(s); err != nil {
			return nil, "", err
		}
	}
	args := append(daemonArgs(s.dir, key, upstream), "--config", s.path("config.toml"))
	if x.bare {
		if s.bare, err = startDaemon(ctx, s.program, args); err != nil {
			return nil, "", err
		}
		return s.bare.stop, s.bare.url, nil
	}
	log, err := os.Create(s.path("log"))
	if err != nil {
		return nil, "", err
	}
	s.unit, err = supervise.New(supervise.Config{Command: append([]string{s.program}, args...), Log: log, Burst: 3})
	if err != nil {
		return nil, "", errors.Join(err, log.Close())
	}
	running, stop := context.WithCancel(ctx)
	var unit sync.WaitGroup
	unit.Go(func() { _ = s.unit.Run(running) })
	return func() {
		// It may be stopped, and then hears of nothing else.
		_ = s.unit.Signal(syscall.SIGCONT)
		stop()
		unit.Wait()
		_ = log.Close()
	}, s.unit.URL(), nil
}

// trigger closes act at the request for a NAR that actAt says.
func trigger(h http.Handler, act chan struct{}) http.Handler {
	var nars atomic.Int64
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/nar/") && nars.Add(1) == actAt {
			close(act)
		}
		h.ServeHTTP(w, r)
	})
}

// second is a cache that is asked after nixp2p, as cache.nixos.org is.
func second(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/nix-cache-info" {
			_, _ = w.Write(nix.CacheInfo{StoreDir: nix.StoreDir, WantMassQuery: true, Priority: 40}.Text())
			return
		}
		h.ServeHTTP(w, r)
	})
}

// realiseCorpus is the command that is measured, with all its bytes compared afterwards.
func realiseCorpus(ctx context.Context, o *options, c *realnix.Client, corpus *realnix.Corpus) (*outcome, error) {
	limited, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	res, err := c.Realise(limited, corpus.Top)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	var failed *realnix.CommandError
	if err != nil && !errors.As(err, &failed) {
		return nil, err
	}
	out := &outcome{Took: res.Wall, OK: err == nil, TimedOut: limited.Err() != nil}
	out.Complaints, out.Said = complaints(res.Stderr)
	if out.OK {
		if _, err := c.VerifyAll(ctx); errors.As(err, &failed) {
			out.OK, out.Wrong, out.Said = false, true, "nix-store --verify"
		}
	}
	return out, nil
}

func writeOutages(w io.Writer, n *nixReport) {
	if len(n.Outages) == 0 {
		return
	}
	t := rig.NewTable("what happens to nixp2p", "substituters", "`nix-store -r`", "nixp2p was started")
	for _, r := range n.Outages {
		who := "nixp2p alone"
		if r.Good {
			who = "nixp2p, the good cache"
		}
		starts := fmt.Sprintf("%d times", r.Starts)
		switch {
		case r.Starts == 0:
			starts = "by hand"
		case r.Starts == 1:
			starts = "once"
		}
		text := r.Outcome.String()
		if r.Err != "" {
			text += "; " + r.Err
		}
		t.Row(r.Name, who, text, starts)
	}
	fmt.Fprintf(w, "\n## Nix %s: nixp2p itself is ill\n\n%s", n.Version, t)
}
