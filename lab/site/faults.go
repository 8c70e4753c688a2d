//go:build linux

package main

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/nixp2p/nixp2p/lab/rig"
)

// fault is what happens to the holder while B's Nix works.
type fault struct {
	name, what string
	act        func(ctx context.Context, st *stage, a *host) error
}

func faults() []fault {
	do := func(args ...string) func(context.Context, *stage, *host) error {
		return func(ctx context.Context, st *stage, a *host) error {
			_, err := st.lan.Do(ctx, slices.Concat(args[:1], []string{a.String()}, args[1:])...)
			return err
		}
	}
	signal := func(sig syscall.Signal) func(context.Context, *stage, *host) error {
		return func(_ context.Context, _ *stage, a *host) error {
			a.Signal(sig)
			return nil
		}
	}
	return []fault{
		{"none", "nothing happens, for comparison", func(context.Context, *stage, *host) error { return nil }},
		{"killed", "SIGKILL", signal(syscall.SIGKILL)},
		{"frozen", "SIGSTOP: its kernel goes on acknowledging", signal(syscall.SIGSTOP)},
		{"cut", "its packets vanish, no connection is closed", do("partition")},
		{"throttled", "its link falls to 10 KB/s", do("lanrate", "80kbit")},
		{"collected", "nix-store --gc deletes all of its store", func(ctx context.Context, _ *stage, a *host) error {
			_, err := a.Client.Run(ctx, "nix-store", "--gc")
			return err
		}},
	}
}

// faultScenarios has each fault twice: with the upstream alone behind the holder, and with
// another holder.
func faultScenarios() (list []*scenario) {
	list = append(list, &scenario{
		name: "fault-nobody", hosts: 3, fixed: true, limit: 4 * time.Minute,
		what: "nobody on the LAN has it, for comparison: nix-store -r straight from the upstream, then through nixp2p", run: nobody,
	})
	for _, f := range faults() {
		list = append(list, &scenario{
			name: "fault-" + f.name, hosts: 3, fixed: true, limit: 4 * time.Minute,
			what: "the only holder during nix-store -r, the upstream behind it: " + f.what,
			run:  func(ctx context.Context, st *stage) error { return st.fault(ctx, f, false) },
		})
		if f.name == "none" {
			continue
		}
		list = append(list, &scenario{
			name: "fault-" + f.name + "-2", hosts: 3, fixed: true, limit: 4 * time.Minute,
			what: "one of two holders during nix-store -r, the uplink is cut: " + f.what,
			run:  func(ctx context.Context, st *stage) error { return st.fault(ctx, f, true) },
		})
	}
	return list
}

// lanRate makes links slow enough that a closure has a middle.
const lanRate = "300mbit"

func (st *stage) fault(ctx context.Context, f fault, two bool) error {
	a, b, c := st.hosts[0], st.hosts[1], st.hosts[2]
	holders := []*host{a}
	if two {
		holders = append(holders, c)
	}
	for _, h := range holders {
		if err := h.Fill(ctx, st.corpus.StoreRoot); err != nil {
			return err
		}
	}
	for _, h := range st.hosts {
		if _, err := st.lan.Do(ctx, "lanrate", h.String(), lanRate); err != nil {
			return err
		}
	}
	if err := st.startAll(ctx, st.hosts); err != nil {
		return err
	}
	for _, h := range holders {
		if _, ok := st.know(ctx, 20*time.Second, b, h, int64(len(st.corpus.Paths))); !ok {
			return fmt.Errorf("B does not know what %s has", h)
		}
	}
	if two {
		// B knows its upstream as one that answers, until it does not.
		if _, err := st.lan.Do(ctx, "wan", "cut"); err != nil {
			return err
		}
	}
	act := func() error { return f.act(ctx, st, giver(ctx, b, holders)) }
	if err := st.disturbed(ctx, b, 2*time.Minute, act, two || f.name == "none"); err != nil {
		return err
	}
	s, err := b.Status(ctx)
	if err != nil {
		return err
	}
	st.figure("NAR bytes to Nix: from peers / from upstream (raw or as files)", float64(s.Bytes.Peer), "%s / %s", rig.Megabytes(s.Bytes.Peer), rig.Megabytes(s.Bytes.Upstream))
	return nil
}

// giver returns the holder that has given most: in the middle of the largest NAR, who gives it.
func giver(ctx context.Context, b *host, holders []*host) *host {
	best, most := holders[0], int64(-1)
	list, _ := b.Peers(ctx)
	for _, h := range holders {
		for _, p := range list {
			if p.ReceivedBytes > most && slices.ContainsFunc(p.Addresses, func(a string) bool { return h.HasAddr(a) }) {
				best, most = h, p.ReceivedBytes
			}
		}
	}
	return best
}

// nobody measures what the uplink gives without peers.
func nobody(ctx context.Context, st *stage) error {
	b := st.hosts[1]
	b.Client.Substituters = []string{st.cache.URL}
	res, err := b.Realise(ctx, time.Minute, st.corpus.Top)
	st.check(err == nil, "straight from the upstream", "%s", said(res, err))
	st.figure("time for the closure, straight from the upstream", res.Wall.Seconds(), "%.2f s")
	if err := b.NewClient("second"); err != nil {
		return err
	}
	if err := st.startAll(ctx, st.hosts); err != nil {
		return err
	}
	if err := st.meshed(ctx, 5*time.Second); err != nil {
		return err
	}
	res, err = b.Realise(ctx, time.Minute, st.corpus.Top)
	st.check(err == nil, "through nixp2p, the upstream alone has it", "%s", said(res, err))
	st.figure("time for the closure, through nixp2p", res.Wall.Seconds(), "%.2f s")
	return nil
}
