//go:build linux

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nixp2p/nixp2p/lab/rig"
)

// byDHT: with few inventories at hand, the DHT knows who has a large NAR.
func byDHT(ctx context.Context, st *stage) error {
	a := st.hosts[0]
	if err := a.Fill(ctx, st.corpus.StoreRoot); err != nil {
		return err
	}
	const few = "4"
	if err := st.startAll(ctx, st.hosts, "--max-peers", few); err != nil {
		return err
	}
	if took, ok := st.mesh(ctx, 20*time.Second, st.hosts, 1); !ok {
		return fmt.Errorf("a node has no peer after %s", rig.Seconds(took))
	}
	// A's records have to be out; nothing tells that from outside.
	if !rig.Pause(ctx, 15*time.Second) {
		return ctx.Err()
	}
	// Guests, whom the DHT brought, leave after a minute.
	most := 0
	waited, _ := rig.Until(ctx, 90*time.Second, func() bool {
		s, err := a.Status(ctx)
		most = s.Peers
		return err == nil && most < len(st.hosts)-1
	})
	st.figure("A is connected to so many of the others after "+rig.Seconds(waited), float64(most), "%.0f")
	b := unconnected(ctx, st.hosts, a)
	if !st.check(b != nil, "there is a node that is not connected to A", "A has %d peers", most) {
		if b = strangers(ctx, st.hosts, a); b == nil {
			return nil
		}
	}
	large := st.corpus.Largest()
	knows := int64(0)
	list, err := b.Peers(ctx)
	if err != nil {
		return err
	}
	for _, p := range list {
		knows += p.Paths
	}
	st.check(knows == 0, fmt.Sprintf("no inventory that %s has names a path", b), "%d paths at %d peers", knows, len(list))
	_, info, _ := b.NarInfo(ctx, rig.HashOf(large.StorePath))
	if info == nil {
		return fmt.Errorf("%s: no narinfo of %s", b, large.StorePath)
	}
	// The upstream goes on telling of paths, but has no NAR.
	st.cache.Refuse(func(path string) bool { return strings.HasPrefix(path, "/nar/") })
	before := st.cache.NARBytes.Load()
	get := func() (status int, n int64, took time.Duration, err error) {
		start := time.Now()
		resp, err := b.Get(ctx, rig.NodeURL+"/"+info.URL)
		if err != nil {
			return 0, 0, time.Since(start), err
		}
		n, err = drain(resp)
		return resp.StatusCode, n, time.Since(start), err
	}
	status, n, took, err := get()
	st.check(err == nil && status == 200, fmt.Sprintf("%s gets the NAR of %s, that only A has, at once", b, rig.Megabytes(large.NarSize)),
		"status %d, %s after %s", status, rig.Megabytes(n), rig.Seconds(took))
	if status != 200 {
		// The look-up goes on when its caller has left.
		if !rig.Pause(ctx, time.Second) {
			return ctx.Err()
		}
		status, n, took, err = get()
		st.check(err == nil && status == 200, "it does when it asks again a second later", "status %d, %s after %s", status, rig.Megabytes(n), rig.Seconds(took))
	}
	if got := st.cache.NARBytes.Load() - before; status == 200 {
		st.check(got < 4096, "nothing of it from upstream", "%d bytes", got)
	}
	st.lookups(b)
	// A real Nix, elsewhere, with what else it needs from the DHT too.
	for _, c := range st.hosts {
		if c == a || c == b || c.pathsOf(ctx, a) > 0 {
			continue
		}
		st.cache.Refuse(func(path string) bool { return path == "/"+upstreamURL(st, large.StorePath) })
		res, err := c.Realise(ctx, 40*time.Second, large.StorePath)
		st.check(err == nil, fmt.Sprintf("%s: nix-store -r of it succeeds, though the upstream has no such NAR", c), "%s", said(res, err))
		st.lookups(c)
		break
	}
	return nil
}

// strangers returns a host that does not have a's inventory.
func strangers(ctx context.Context, hosts []*host, a *host) *host {
	for _, h := range hosts {
		if h != a && h.pathsOf(ctx, a) <= 0 {
			return h
		}
	}
	return nil
}

// lookups tells how the DHT was asked, as the log has it.
func (st *stage) lookups(h *host) {
	for _, line := range h.LogLines(`msg="looked up in the DHT"`) {
		if _, rest, ok := strings.Cut(line, "took="); ok {
			took, more, _ := strings.Cut(rest, " ")
			d, err := time.ParseDuration(took)
			if err == nil {
				st.figure("look-up in the DHT, with connecting to the holder ("+strings.TrimSpace(more)+")", d.Seconds()*1000, "%.1f ms")
			}
		}
	}
}
