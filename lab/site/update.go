//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
	"github.com/nixp2p/nixp2p/lab/rig"
)

// baseLeast is the NAR size in bytes from which a base is looked for.
const baseLeast = 64 << 10

// updates are scenarios in which a site moves from one version of a closure to the next. They need closures of
// "lab/delta -closure".
func updates() []*scenario {
	list := []*scenario{
		{name: "update-slow", hosts: 9, run: updateLAN("50mbit", 0.04, 0.25),
			what: "eight hosts have version 1 of a closure, the ninth has version 2 as well; links of 50 Mbit/s, without and with deltas"},
		{name: "update-mirror", hosts: 8, run: updateMirror, env: []string{"NETLAB_WAN=rate=20 delay=20"},
			what: "eight hosts have version 1; behind 20 Mbit/s and 40 ms there is a cache of .nar.xz files, or a mirror that has both versions"},
		{name: "update-gigabit", hosts: 9, run: updateLAN("1gbit", 0, 0),
			what: "as update-slow, links of 1 Gbit/s"},
	}
	for _, s := range list {
		s.extra, s.limit, s.update = true, 20*time.Minute, true
	}
	return list
}

// versions are the corpora of lab/delta -closure: the store of the newer one has both.
type versions struct{ old, now *realnix.Corpus }

var errNoUpdate = errors.New("the scenario needs -update, a directory that lab/delta -closure made")

func openVersions(dir string) (v versions, err error) {
	if v.old, err = realnix.OpenCorpus(filepath.Join(dir, "old")); err == nil {
		v.now, err = realnix.OpenCorpus(filepath.Join(dir, "new"))
	}
	return v, err
}

// copyOf returns a copy of a store in the lab's memory, of which hosts get links.
func (st *stage) copyOf(ctx context.Context, c *realnix.Corpus, name string) (string, error) {
	to := filepath.Join(st.dir, name)
	if _, err := os.Stat(to); err == nil {
		return to, nil
	}
	return to, copyFiles(ctx, "-a", c.StoreRoot, to)
}

func copyFiles(ctx context.Context, how, from, to string) error {
	if out, err := exec.CommandContext(ctx, "cp", how, from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w: %s", from, err, out)
	}
	return nil
}

// link gives a host a store of its own: its files are links, its database is a copy.
func (h *host) link(ctx context.Context, root string) error {
	if err := copyFiles(ctx, "-al", root, h.Client.Root); err != nil {
		return err
	}
	db := filepath.Join(h.Client.Root, "nix/var")
	return errors.Join(realnix.RemoveAll(db), copyFiles(ctx, "-a", filepath.Join(root, "nix/var"), db))
}

// round is what one update of all hosts took.
type round struct {
	took   []time.Duration // of each host, sorted
	lan    int64           // bytes that the hosts that update received
	wan    int64           // bytes that came over the uplink
	cpu    time.Duration   // of all nodes
	status map[string]int64
}

func (r round) slowest() time.Duration { return r.took[len(r.took)-1] }

func (r round) String() string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(r.status)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, r.status[k]))
	}
	return fmt.Sprintf("first host %s, last %s; %s from the LAN, %s over the uplink, %s of CPU; %s", rig.Seconds(r.took[0]), rig.Seconds(r.slowest()),
		rig.Megabytes(r.lan), rig.Megabytes(r.wan), rig.Seconds(r.cpu), strings.Join(parts, ", "))
}

// fresh gives all hosts version 1 of the closure, and those of both version 2 as well, and starts their nodes.
func (st *stage) fresh(ctx context.Context, both []*host, flags ...string) error {
	for _, h := range st.hosts {
		h.End()
		if err := errors.Join(realnix.RemoveAll(h.Dir), h.NewClient("client")); err != nil {
			return err
		}
		of, name := st.world.update.old, "old"
		if slices.Contains(both, h) {
			of, name = st.world.update.now, "both"
		}
		root, err := st.copyOf(ctx, of, name)
		if err != nil {
			return err
		}
		if err := h.link(ctx, root); err != nil {
			return err
		}
	}
	if err := st.startAll(ctx, st.hosts, flags...); err != nil {
		return err
	}
	if _, ok := st.mesh(ctx, 30*time.Second, st.hosts, len(st.hosts)-1); !ok {
		return errors.New("no mesh")
	}
	all := int64(len(st.world.update.old.Paths))
	for _, h := range st.hosts {
		for _, o := range st.hosts {
			want := all
			if slices.Contains(both, o) {
				want += int64(len(st.corpus.Paths))
			}
			if h == o {
				continue
			}
			if _, ok := st.know(ctx, time.Minute, h, o, want); !ok {
				return fmt.Errorf("%s knows %d paths of %s, not %d", h, h.pathsOf(ctx, o), o, want)
			}
		}
	}
	return nil
}

// play has hosts update at once.
func (st *stage) play(ctx context.Context, hosts []*host) (r round, err error) {
	lan := func() (sum int64) {
		for _, h := range hosts {
			rx, _, e := st.lan.Bytes(ctx, h.K)
			sum, err = sum+rx, errors.Join(err, e)
		}
		return sum
	}
	wan := func() (n int64) {
		out, e := st.lan.Do(ctx, "egress")
		if _, e2 := fmt.Sscan(out, &n); e == nil {
			e = e2
		}
		err = errors.Join(err, e)
		return n
	}
	cpu := func() time.Duration {
		sum, _, e := usageOf(st.hosts)
		err = errors.Join(err, e)
		return sum
	}
	lan0, wan0, cpu0 := lan(), wan(), cpu()
	r.took = make([]time.Duration, len(hosts))
	errs := make([]error, len(hosts))
	var all sync.WaitGroup
	for i, h := range hosts {
		all.Go(func() {
			var res realnix.Result
			res, errs[i] = h.Realise(ctx, 15*time.Minute, st.corpus.Top)
			r.took[i] = res.Wall
		})
	}
	all.Wait()
	r.lan, r.wan, r.cpu = lan()-lan0, wan()-wan0, cpu()-cpu0
	slices.Sort(r.took)
	r.status = map[string]int64{}
	for _, h := range hosts {
		s, e := h.Status(ctx)
		err = errors.Join(err, e)
		r.status["NARs as deltas"] += s.Deltas.NARs
	}
	failed := slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if !st.check(len(failed) == 0, fmt.Sprintf("nix-store -r of %d paths succeeds on %d hosts at once", len(st.corpus.Paths), len(hosts)), "%d failed", len(failed)) {
		err = errors.Join(err, failed[0])
	}
	return r, err
}

// updateLAN returns the scenario of an update within a LAN of some rate. Bytes with deltas are at most maxBytes times
// the raw NARs, the time at most maxTime times that without; 0: both as without, within 3 %.
func updateLAN(rate string, maxBytes, maxTime float64) func(context.Context, *stage) error {
	return func(ctx context.Context, st *stage) error {
		if _, err := st.lan.Do(ctx, "lanrate", "all", rate); err != nil {
			return err
		}
		last := len(st.hosts) - 1
		takers, both := st.hosts[:last], st.hosts[last:]
		var rounds [2]round
		for i, on := range []string{"--delta=false", "--delta=true"} {
			if err := st.fresh(ctx, both, on); err != nil {
				return err
			}
			if i == 1 {
				st.bases(ctx, takers[0])
			}
			var err error
			if rounds[i], err = st.play(ctx, takers); err != nil {
				return err
			}
			st.figure(on, rounds[i].slowest().Seconds(), "%s", rounds[i])
		}
		raw := float64(st.corpus.NARBytes * int64(len(takers)))
		off, with := rounds[0], rounds[1]
		bytes, time := float64(with.lan)/raw, with.slowest().Seconds()/off.slowest().Seconds()
		if maxBytes > 0 {
			st.check(bytes <= maxBytes, fmt.Sprintf("LAN bytes with deltas are at most %.3g of the raw NARs", maxBytes), "%.4f, without %.4f", bytes, float64(off.lan)/raw)
			st.check(time <= maxTime, fmt.Sprintf("the time with deltas is at most %.3g times that without", maxTime), "%.3f", time)
		} else {
			more := float64(with.lan) / float64(off.lan)
			st.check(more >= 0.97 && more <= 1.03, "LAN bytes as without deltas within 3 %", "%.3f times", more)
			st.check(time <= 1.03, "not slower than without deltas by more than 3 %", "%.3f times", time)
		}
		for _, h := range takers[:2] {
			err := h.Verify(ctx, len(st.corpus.Paths)+len(st.world.update.old.Paths))
			st.check(err == nil, h.String()+": nix-store --verify --check-contents is clean", "%s", errorText(err))
		}
		return nil
	}
}

// bases asks a node for which of the changed paths it would name a base.
func (st *stage) bases(ctx context.Context, h *host) {
	here := map[string]bool{}
	for _, p := range st.world.update.old.Paths {
		here[p.NarHash] = true
	}
	var large, found int
	for _, p := range st.corpus.Paths {
		if p.NarSize < baseLeast || here[p.NarHash] { // what has the same NAR has not changed
			continue
		}
		large++
		var why struct {
			Answers []struct {
				Bases []string `json:"delta_bases"`
			}
		}
		if err := h.Admin(ctx, "why/"+url.PathEscape(rig.HashOf(p.StorePath)), &why); err != nil {
			st.check(false, "why answers", "%v", err)
			return
		}
		for _, a := range why.Answers {
			if len(a.Bases) > 0 {
				found++
				break
			}
		}
	}
	st.check(float64(found) >= 0.9*float64(large), "a base is found for at least 90 % of the changed paths of 64 KiB and more", "%d of %d", found, large)
}

// updateMirror: what crosses the uplink, and when builds are done.
func updateMirror(ctx context.Context, st *stage) error {
	mirror, err := st.startMirror(ctx)
	if err != nil {
		return err
	}
	defer mirror.Kill()
	var rounds []round
	for _, x := range []struct{ name, url, on string }{
		{"a plain cache of .nar.xz", "", "--delta=true"},
		{"the mirror, without deltas", mirrorURL, "--delta=false"},
		{"the mirror, with deltas", mirrorURL, "--delta=true"},
	} {
		for _, h := range st.hosts {
			h.Upstream = x.url
		}
		if err := st.fresh(ctx, nil, x.on); err != nil {
			return err
		}
		r, err := st.play(ctx, st.hosts)
		if err != nil {
			return fmt.Errorf("%s: %w", x.name, err)
		}
		st.figure(x.name, r.slowest().Seconds(), "%s", r)
		rounds = append(rounds, r)
	}
	plain, off, with := rounds[0], rounds[1], rounds[2]
	part := float64(with.wan) / float64(plain.wan)
	st.check(part <= 0.15, "bytes across the uplink are at most 0.15 times those of the plain cache", "%.4f", part)
	st.check(with.slowest() <= plain.slowest(), "builds are not later than with the plain cache", "%s and %s", rig.Seconds(with.slowest()), rig.Seconds(plain.slowest()))
	st.check(with.slowest() <= off.slowest(), "nor than with the mirror without deltas", "%s and %s", rig.Seconds(with.slowest()), rig.Seconds(off.slowest()))
	err = st.hosts[0].Verify(ctx, len(st.corpus.Paths)+len(st.world.update.old.Paths))
	st.check(err == nil, "h1: nix-store --verify --check-contents is clean", "%s", errorText(err))
	return nil
}

const mirrorURL = "http://10.78.0.1:7654"

// startMirror starts a node with both versions at the other end of the uplink.
func (st *stage) startMirror(ctx context.Context) (*rig.Process, error) {
	root, err := st.copyOf(ctx, st.world.update.now, "both")
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(st.dir, "mirror")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	key, _, _ := strings.Cut(st.corpus.PublicKey, ":")
	return rig.StartIn(st.lan.Place("upstream"), filepath.Join(dir, "log"), rig.Binary(st.world.dir), "serve", "--config", os.DevNull,
		"--state-dir", filepath.Join(dir, "state"), "--cache-dir", filepath.Join(dir, "cache"), "--store-root", root, "--p2p=false",
		"--listen", strings.TrimPrefix(mirrorURL, "http://"), "--upstream", st.cache.URL, "--trusted-public-key", st.corpus.PublicKey, "--share-key", key)
}

// updateMarkdown is the section of docs/delta.md.
func updateMarkdown(list []*result) string {
	var b strings.Builder
	for _, r := range list {
		if !strings.HasPrefix(r.Name, "update-") {
			continue
		}
		fmt.Fprintf(&b, "\n**%s** (%d hosts, Nix %s, load %.0f at the start): %s.\n\n", r.Name, r.Hosts, r.Nix, r.Load, r.What)
		if r.Err != "" {
			fmt.Fprintf(&b, "It could not be played to its end: %s\n\n", rig.Plain(r.Err))
		}
		t := rig.NewTable("what", "seen", "")
		for _, f := range r.Figures {
			t.Row(rig.Plain(f.What), rig.Plain(f.Value), "")
		}
		for _, c := range r.Checks {
			t.Row(rig.Plain(c.What), rig.Plain(c.Seen), map[bool]string{true: "ok", false: "**not met**"}[c.OK])
		}
		b.WriteString(t.String())
	}
	return b.String()
}
