//go:build linux

package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/internal/nixtest/realnix"
	"github.com/nixp2p/nixp2p/lab/rig"
)

// scenarios has all stories, in the order in which they are told.
func scenarios() []*scenario {
	list := []*scenario{
		{name: "smoke", hosts: 3, fixed: true, extra: true, limit: 55 * time.Second, run: smoke,
			what: "three nodes find each other; A's closure goes to B, and to C while A is killed"},
		{name: "mdns-4", hosts: 4, limit: time.Minute, run: discover, env: []string{"NETLAB_NO6=1"},
			what: "fresh nodes, nothing but mDNS, IPv4 only"},
		{name: "mdns-6", hosts: 4, limit: time.Minute, run: discover, env: []string{"NETLAB_NO4=1"},
			what: "fresh nodes, nothing but mDNS, IPv6 only"},
		{name: "mdns-both", hosts: 4, limit: time.Minute, run: discover,
			what: "fresh nodes, nothing but mDNS, both"},
		{name: "closure", hosts: 3, limit: 2 * time.Minute, run: closure,
			what: "B substitutes the closure that A has, then C"},
		{name: "prefilled", hosts: 2, fixed: true, limit: 3 * time.Minute, run: prefilled,
			what: "a store of 100,000 paths, filled before nixp2p first started"},
		{name: "offline", hosts: 2, fixed: true, limit: 3 * time.Minute, run: offline,
			what: "the uplink is cut, and comes back"},
		{name: "dht", hosts: 16, limit: 4 * time.Minute, run: byDHT,
			what: "--max-peers 4: a NAR held by a node to which the asker is not connected"},
		{name: "privacy", hosts: 3, fixed: true, limit: 4 * time.Minute, run: privacy,
			what: "what is private cannot be got, seen, or timed, and is not asked for on the LAN"},
	}
	list = append(list, mirrors()...)
	list = append(list, updates()...)
	list = append(list, faultScenarios()...)
	return append(list, measurements()...)
}

// found notes how long a mesh took.
func (st *stage) meshed(ctx context.Context, limit time.Duration) error {
	n := len(st.hosts) - 1
	took, ok := st.mesh(ctx, limit+15*time.Second, st.hosts, n)
	if !st.check(ok && took < limit, fmt.Sprintf("every node is connected to the other %d within %v", n, limit), "%s", rig.Seconds(took)) && !ok {
		return fmt.Errorf("no mesh in %s", rig.Seconds(took))
	}
	st.figure("all connected after all were ready", took.Seconds(), "%.2f s")
	return nil
}

func discover(ctx context.Context, st *stage) error {
	begun := time.Now()
	if err := st.startAll(ctx, st.hosts); err != nil {
		return err
	}
	if err := st.meshed(ctx, 5*time.Second); err != nil {
		return err
	}
	st.figure("from the start of the first process to the whole mesh", time.Since(begun).Seconds(), "%.2f s")
	list, err := st.hosts[0].Peers(ctx)
	if err != nil {
		return err
	}
	for _, p := range list {
		if !slices.Contains([]string{"mdns", "peer", "inbound"}, p.FoundBy) {
			st.check(false, "found by mDNS, by who was found, or called by who found", "%s", p.FoundBy)
		}
		for _, a := range p.Addresses {
			if st.lan.Only6 != strings.HasPrefix(a, "/ip6/") && len(st.lanFamilies()) == 1 {
				st.check(false, "only addresses of the family", "%s", a)
			}
		}
	}
	// A newcomer into a standing site.
	late := st.hosts[len(st.hosts)-1]
	late.Stop()
	if _, ok := st.mesh(ctx, 20*time.Second, st.hosts[:1], 0); !ok {
		return fmt.Errorf("%s: no status", st.hosts[0])
	}
	if err := st.startAll(ctx, []*host{late}); err != nil {
		return err
	}
	took, ok := st.mesh(ctx, 20*time.Second, []*host{late}, len(st.hosts)-1)
	st.check(ok && took < 5*time.Second, "a node that is started again is connected to all within 5s", "%s", rig.Seconds(took))
	return nil
}

// lanFamilies names the IP versions of the LAN.
func (st *stage) lanFamilies() (list []int) {
	for _, e := range st.lan.Env {
		switch e {
		case "NETLAB_NO4=1":
			return []int{6}
		case "NETLAB_NO6=1":
			return []int{4}
		}
	}
	return []int{4, 6}
}

// substituted has a host get the corpus and checks that all is there and nothing came from
// upstream.
func (st *stage) substituted(ctx context.Context, h *host, limit time.Duration) error {
	before, asked := st.cache.NARBytes.Load(), st.cache.NarInfos.Load()
	res, err := h.Realise(ctx, limit, st.corpus.Top)
	if !st.check(err == nil, fmt.Sprintf("%s: nix-store -r of %d paths succeeds", h, len(st.corpus.Paths)), "%s", said(res, err)) {
		return nil
	}
	st.figure(fmt.Sprintf("%s: time for the closure (%s)", h, rig.Megabytes(st.corpus.NARBytes)), res.Wall.Seconds(), "%.2f s")
	got := st.cache.NARBytes.Load() - before
	st.check(got == 0, fmt.Sprintf("%s: NAR bytes from upstream", h), "%d", got)
	st.figure(fmt.Sprintf("%s: narinfo requests to upstream", h), float64(st.cache.NarInfos.Load()-asked), "%.0f")
	err = h.Verify(ctx, len(st.corpus.Paths))
	st.check(err == nil, fmt.Sprintf("%s: nix-store --verify --check-contents is clean", h), "%s", errorText(err))
	return nil
}

func said(res realnix.Result, err error) string {
	if err != nil {
		return fmt.Sprintf("%s: %s", rig.Seconds(res.Wall), rig.CommandError(err))
	}
	return rig.Seconds(res.Wall)
}

func errorText(err error) string {
	if err != nil {
		return rig.CommandError(err)
	}
	return "clean"
}

func closure(ctx context.Context, st *stage) error {
	a, b := st.hosts[0], st.hosts[1]
	if err := a.Fill(ctx, st.corpus.StoreRoot); err != nil {
		return err
	}
	if err := st.startAll(ctx, st.hosts); err != nil {
		return err
	}
	if err := st.meshed(ctx, 5*time.Second); err != nil {
		return err
	}
	all := int64(len(st.corpus.Paths))
	took, ok := st.know(ctx, 10*time.Second, b, a, all)
	st.check(ok, "B has the inventory of A", "%s after the mesh", rig.Seconds(took))
	if err := st.substituted(ctx, b, 40*time.Second); err != nil {
		return err
	}
	for _, c := range st.hosts[2:] {
		took, ok = st.know(ctx, 10*time.Second, c, b, all)
		st.check(ok && took < 3*time.Second, fmt.Sprintf("%s learns within 3s that B's store has it too", c), "%s after nix-store ended and was verified", rig.Seconds(took))
		if err := st.substituted(ctx, c, 40*time.Second); err != nil {
			return err
		}
	}
	s, err := b.Status(ctx)
	if err != nil {
		return err
	}
	st.check(s.Bytes.Peer > 0 && s.Bytes.Upstream == 0, "B's status says where the bytes came from", "peer %s, upstream %d", rig.Megabytes(s.Bytes.Peer), s.Bytes.Upstream)
	return nil
}

func smoke(ctx context.Context, st *stage) error {
	a, b, c := st.hosts[0], st.hosts[1], st.hosts[2]
	if err := a.Fill(ctx, st.corpus.StoreRoot); err != nil {
		return err
	}
	if err := st.startAll(ctx, st.hosts); err != nil {
		return err
	}
	if err := st.meshed(ctx, 5*time.Second); err != nil {
		return err
	}
	if _, ok := st.know(ctx, 10*time.Second, b, a, int64(len(st.corpus.Paths))); !st.check(ok, "B has the inventory of A", "%d paths", b.pathsOf(ctx, a)) {
		return nil
	}
	if err := st.substituted(ctx, b, 30*time.Second); err != nil {
		return err
	}
	if _, ok := st.know(ctx, 10*time.Second, c, b, int64(len(st.corpus.Paths))); !st.check(ok, "C has the inventory of B", "%d paths", c.pathsOf(ctx, b)) {
		return nil
	}
	// Slow enough that there is a middle.
	if _, err := st.lan.Do(ctx, "lanrate", c.String(), "400mbit"); err != nil {
		return err
	}
	return st.disturbed(ctx, c, 25*time.Second, func() error {
		a.Signal(syscall.SIGKILL)
		return nil
	}, true)
}

// inLargest is how many NAR bytes have come to a host when it is in the middle of the largest
// one: all others of the corpus together are less, the largest alone is twice that.
const inLargest = 30 << 20

// disturbed has a host get the corpus, while act happens in the middle of the largest NAR. With
// alone, others have all of it: nothing may come from upstream.
func (st *stage) disturbed(ctx context.Context, h *host, limit time.Duration, act func() error, alone bool) error {
	before := st.cache.NARBytes.Load()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	acted := make(chan string, 1)
	go func() {
		var n int64
		_, ok := rig.Until(ctx, limit, func() bool {
			s, err := h.Status(ctx)
			n = s.Bytes.Peer
			return err == nil && n >= inLargest
		})
		if !ok {
			acted <- "never: too few bytes came"
			return
		}
		if err := act(); err != nil {
			acted <- err.Error()
			return
		}
		acted <- fmt.Sprintf("when %s had come", rig.Megabytes(n))
	}()
	res, err := h.Realise(ctx, limit, st.corpus.Top)
	cancel()
	when := <-acted
	st.check(strings.HasPrefix(when, "when"), "it happens in the middle", "%s", when)
	if !st.check(err == nil, fmt.Sprintf("%s: nix-store -r of %d paths succeeds", h, len(st.corpus.Paths)), "%s", said(res, err)) {
		return nil
	}
	st.figure(fmt.Sprintf("%s: time for the closure", h), res.Wall.Seconds(), "%.2f s")
	got := st.cache.NARBytes.Load() - before
	if alone {
		st.check(got == 0, fmt.Sprintf("%s: NAR bytes from upstream", h), "%d", got)
	} else {
		st.figure(fmt.Sprintf("%s: NAR bytes from upstream (xz)", h), float64(got), "%s", rig.Megabytes(got))
	}
	err = h.Verify(context.WithoutCancel(ctx), len(st.corpus.Paths))
	st.check(err == nil, fmt.Sprintf("%s: nix-store --verify --check-contents is clean", h), "%s", errorText(err))
	return nil
}

func offline(ctx context.Context, st *stage) error {
	a, b := st.hosts[0], st.hosts[1]
	// A has all but the top.
	var rest []string
	for _, p := range st.corpus.Paths {
		if p.StorePath != st.corpus.Top {
			rest = append(rest, p.StorePath)
		}
	}
	a.Client.Substituters = []string{st.cache.URL}
	if res, err := a.Realise(ctx, time.Minute, rest...); err != nil {
		return fmt.Errorf("fill A: %s", said(res, err))
	}
	if err := st.startAll(ctx, st.hosts); err != nil {
		return err
	}
	if err := st.meshed(ctx, 5*time.Second); err != nil {
		return err
	}
	if _, ok := st.know(ctx, 10*time.Second, b, a, int64(len(rest))); !st.check(ok, "B has the inventory of A", "%d paths", b.pathsOf(ctx, a)) {
		return nil
	}
	if _, err := st.lan.Do(ctx, "wan", "cut"); err != nil {
		return err
	}
	top := rig.HashOf(st.corpus.Top)
	// The first who asks for what nobody here has finds out that the uplink is gone.
	code, _, took := b.NarInfo(ctx, top)
	st.check(code == http.StatusNotFound && took < 10*time.Second+500*time.Millisecond, "uplink cut: what nobody has is 404 within 10s", "%d after %s", code, rig.Seconds(took))
	for i := range 3 {
		code, _, took = b.NarInfo(ctx, strings.Repeat(string("abc"[i]), 32))
		st.check(code == http.StatusNotFound && took < 10*time.Second+500*time.Millisecond, "and again, of another path", "%d after %s", code, rig.Seconds(took))
	}
	st.check(took < 500*time.Millisecond, "once the upstream counts as down: within 0.1s (0.5 s on a loaded machine)", "%s", rig.Seconds(took))
	before := st.cache.NARBytes.Load()
	res, err := b.Realise(ctx, time.Minute, rest...)
	st.check(err == nil, fmt.Sprintf("nix-store -r of the %d paths that A has succeeds", len(rest)), "%s", said(res, err))
	st.check(st.cache.NARBytes.Load() == before, "nothing from upstream", "%d bytes", st.cache.NARBytes.Load()-before)
	err = b.Verify(ctx, len(rest))
	st.check(err == nil, "nix-store --verify --check-contents is clean", "%s", errorText(err))
	res, err = b.Realise(ctx, 30*time.Second, st.corpus.Top)
	st.check(err != nil && res.Wall < 15*time.Second, "what nobody has fails soon", "%s", rig.Seconds(res.Wall))

	if _, err := st.lan.Do(ctx, "wan", "heal"); err != nil {
		return err
	}
	took, ok := rig.Until(ctx, 20*time.Second, func() bool {
		code, _, _ := b.NarInfo(ctx, top)
		return code == http.StatusOK
	})
	st.check(ok && took < 10*time.Second, "uplink back: noticed within 10s", "%s", rig.Seconds(took))
	res, err = b.Realise(ctx, 30*time.Second, st.corpus.Top)
	st.check(err == nil, "what only the upstream has is there now", "%s", said(res, err))
	return nil
}

// unconnected returns a host that is not connected to the given one.
func unconnected(ctx context.Context, hosts []*host, from *host) *host {
	i := slices.IndexFunc(hosts, func(h *host) bool { return h != from && h.pathsOf(ctx, from) < 0 && from.pathsOf(ctx, h) < 0 })
	if i < 0 {
		return nil
	}
	return hosts[i]
}
