//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/lab/rig"
)

// growth are the sizes of a site that are measured.
var growth = []int{2, 4, 8, 16, 32, 64}

// measurements are scenarios that judge little and measure much.
func measurements() []*scenario {
	list := []*scenario{
		{name: "large-nar", hosts: 2, fixed: true, limit: 3 * time.Minute, run: func(ctx context.Context, st *stage) error { return st.largeNAR(ctx, "none") },
			what: "one large NAR between two hosts, against plain TCP in the same run, no limit on the LAN"},
		{name: "large-nar-gigabit", hosts: 2, fixed: true, limit: 3 * time.Minute, run: func(ctx context.Context, st *stage) error { return st.largeNAR(ctx, "1gbit") },
			what: "the same, links of 1 Gbit/s"},
	}
	for _, n := range growth {
		list = append(list, &scenario{
			name: fmt.Sprintf("grow-%d", n), hosts: n, fixed: true, extra: n > 16, limit: 5 * time.Minute, run: grow,
			what: "a site of this many nodes, each with 220 paths: until it stands, then at rest",
		})
	}
	return list
}

const largeSize = 1 << 30

// largeNAR: A's store has one file of 1 GiB, signed; B's client reads it through B's node.
func (st *stage) largeNAR(ctx context.Context, rate string) error {
	a, b := st.hosts[0], st.hosts[1]
	for _, h := range st.hosts {
		if _, err := st.lan.Do(ctx, "lanrate", h.String(), rate); err != nil {
			return err
		}
	}
	s, err := readSigner(st.corpus.SecretKey)
	if err != nil {
		return err
	}
	hash, err := a.addLarge(ctx, s)
	if err != nil {
		return err
	}
	if err := st.startAll(ctx, st.hosts, "--cache-size", "0"); err != nil {
		return err
	}
	if _, ok := st.know(ctx, 20*time.Second, b, a, 1); !ok {
		return fmt.Errorf("B does not know what A has")
	}
	plain, err := st.plainTCP(ctx, a, b, largeSize)
	if err != nil {
		return err
	}
	st.figure("plain TCP, memory to memory", plain, "%.0f MB/s")
	st.figure("SHA-256 on one core, which each side needs once", rig.HashRate()/1e6, "%.0f MB/s")
	_, info, _ := b.NarInfo(ctx, hash.String())
	if info == nil {
		return fmt.Errorf("B has no narinfo of the large path")
	}
	for _, run := range []string{"cold", "again"} {
		before, err := cpuOf(a, b)
		if err != nil {
			return err
		}
		start := time.Now()
		resp, err := b.Get(ctx, rig.NodeURL+"/"+info.URL)
		if err != nil {
			return err
		}
		n, err := drain(resp)
		took := time.Since(start)
		if !st.check(err == nil && resp.StatusCode == http.StatusOK && n == info.NarSize, "the NAR comes whole from A ("+run+")", "status %d, %s in %s", resp.StatusCode, rig.Megabytes(n), rig.Seconds(took)) {
			return nil
		}
		after, err := cpuOf(a, b)
		if err != nil {
			return err
		}
		gb := float64(n) / 1e9
		rate := float64(n) / 1e6 / took.Seconds()
		st.figure(run+": from A's store through both nodes to B's client", rate, "%.0f MB/s")
		st.figure(run+": of plain TCP", rate/plain, "%.2f")
		st.figure(run+": CPU per GB, A's node and B's node", (after[0]-before[0]+after[1]-before[1])/gb, "%.2f s and %.2f s",
			(after[0]-before[0])/gb, (after[1]-before[1])/gb)
	}
	for _, h := range st.hosts {
		u, err := h.Node.Usage()
		if err != nil {
			return err
		}
		st.figure(fmt.Sprintf("%s: memory afterwards", h), float64(u.RSS), "%s", rig.Megabytes(u.RSS))
	}
	st.check(st.cache.NARBytes.Load() == 0, "nothing from upstream", "%d bytes", st.cache.NARBytes.Load())
	return nil
}

func cpuOf(hosts ...*host) (list []float64, err error) {
	for _, h := range hosts {
		u, err := h.Node.Usage()
		if err != nil {
			return nil, err
		}
		list = append(list, u.CPU.Seconds())
	}
	return list, nil
}

// addLarge puts a file of noise into the store, in the way of nix-store --add, and signs it.
func (h *host) addLarge(ctx context.Context, s signer) (hash nix.StoreHash, err error) {
	file := filepath.Join(h.Client.Dir, "large")
	f, err := os.Create(file)
	if err != nil {
		return hash, err
	}
	chunk := make([]byte, 1<<20)
	for i := range chunk {
		chunk[i] = byte(uint32(i) * 2654435761 >> 13)
	}
	for i := range largeSize / len(chunk) {
		copy(chunk, strconv.Itoa(i))
		if _, err := f.Write(chunk); err != nil {
			return hash, err
		}
	}
	if err := f.Close(); err != nil {
		return hash, err
	}
	seen := file
	if h.Client.Nix.Chroot != "" {
		seen = "/mnt/large" // where a Nix in a tree finds its directory
	}
	res, err := h.Client.Run(ctx, "nix-store", "--add", seen)
	if err != nil {
		return hash, err
	}
	if err := os.Remove(file); err != nil {
		return hash, err
	}
	paths, err := h.Client.Paths(ctx)
	if err != nil || len(paths) != 1 || len(res.Lines()) != 1 {
		return hash, fmt.Errorf("%d paths, %w", len(paths), err)
	}
	n := &nix.NarInfo{NarSize: paths[0].NarSize}
	if n.StorePath, err = nix.ParseStorePath(paths[0].StorePath); err != nil {
		return hash, err
	}
	if n.NarHash, err = narHash(paths[0]); err != nil {
		return hash, err
	}
	_, err = h.sqlite(ctx, fmt.Sprintf("UPDATE ValidPaths SET sigs = '%s' WHERE path = '%s';\n", s.sign(n), paths[0].StorePath))
	return n.StorePath.Hash(), err
}

// plainTCP returns the MB/s of so many bytes from one host to another, the better of two runs.
func (st *stage) plainTCP(ctx context.Context, from, to *host, size int64) (best float64, err error) {
	l, err := rig.ListenIn(from.NS, net.JoinHostPort(st.lan.IP(from.K), "9"))
	if err != nil {
		return 0, err
	}
	defer l.Close()
	var server sync.WaitGroup
	defer server.Wait()
	defer l.Close()
	server.Go(func() {
		buf := make([]byte, 256<<10)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			for left := size; left > 0; left -= int64(len(buf)) {
				if _, err := c.Write(buf); err != nil {
					break
				}
			}
			_ = c.Close()
		}
	})
	for range 2 {
		c, err := rig.DialIn(ctx, to.NS, "tcp", l.Addr().String())
		if err != nil {
			return 0, err
		}
		start := time.Now()
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
		if err = firstError(err, c.Close()); err != nil {
			return 0, err
		}
		best = math.Max(best, float64(n)/1e6/time.Since(start).Seconds())
	}
	return best, nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Figures that docs/scale.md takes from the growth runs.
const (
	figMesh    = "all started at once: the whole mesh stands after"
	figCPUMesh = "CPU of a node until then"
	figMemory  = "memory of a node at rest"
	figIdle    = "CPU of a node at rest"
	figTraffic = "LAN traffic of a node at rest, received"
	figSent    = "LAN traffic of a node at rest, sent"
	figLate    = "a node that comes later knows all inventories after"
)

// grow measures a site of some size.
func grow(ctx context.Context, st *stage) error {
	for _, h := range st.hosts {
		if err := h.paths220(ctx); err != nil {
			return err
		}
	}
	last := len(st.hosts) - 1
	begun := time.Now()
	early, late := st.hosts[:last], st.hosts[last]
	if last == 1 {
		early = st.hosts
	}
	if err := st.startAll(ctx, early); err != nil {
		return err
	}
	_, ok := st.mesh(ctx, 60*time.Second, early, len(early)-1)
	st.check(ok, "the mesh is whole", "%d nodes, %s after the start of the first process", len(early), rig.Seconds(time.Since(begun)))
	if ok {
		st.figure(figMesh, time.Since(begun).Seconds(), "%.2f s")
	} else {
		st.figure(figMesh, -1, "not whole after %.0f s", time.Since(begun).Seconds())
	}
	sum, _, err := usageOf(early)
	if err != nil {
		return err
	}
	st.figure(figCPUMesh, sum.Seconds()/float64(len(early)), "%.2f s")
	if last > 1 {
		begun = time.Now()
		if err := st.startAll(ctx, []*host{late}); err != nil {
			return err
		}
		_, ok := rig.Until(ctx, 30*time.Second, func() bool { return late.knows(ctx) >= last })
		st.check(ok, "a node that comes later has the inventories of all", "%d of %d", late.knows(ctx), last)
		st.figure(figLate, time.Since(begun).Seconds(), "%.2f s")
	}
	return st.rest(ctx)
}

// knows counts the peers whose inventory has paths.
func (h *host) knows(ctx context.Context) (n int) {
	list, _ := h.Peers(ctx)
	for _, p := range list {
		if p.Paths > 0 {
			n++
		}
	}
	return n
}

// paths220 gives the host a database of 220 paths of its own, without files.
func (h *host) paths220(ctx context.Context) error {
	s, err := readSigner(h.st.corpus.SecretKey)
	if err != nil {
		return err
	}
	if _, err := h.Client.Run(ctx, "nix-store", "--init"); err != nil {
		return err
	}
	return h.makeUp(ctx, s, h.K*1000, h.K*1000+220)
}

func usageOf(hosts []*host) (cpu time.Duration, rss []int64, err error) {
	for _, h := range hosts {
		u, err := h.Node.Usage()
		if err != nil {
			return 0, nil, err
		}
		cpu += u.CPU
		rss = append(rss, u.RSS)
	}
	return cpu, rss, nil
}

// rest measures what the site takes while nobody builds.
func (st *stage) rest(ctx context.Context) error {
	const settle, window = 20 * time.Second, 30 * time.Second
	if !rig.Pause(ctx, settle) {
		return ctx.Err()
	}
	before, _, err := usageOf(st.hosts)
	if err != nil {
		return err
	}
	rx0, tx0, err := st.lan.Bytes(ctx, 1)
	if err != nil {
		return err
	}
	start := time.Now()
	if !rig.Pause(ctx, window) {
		return ctx.Err()
	}
	after, rss, err := usageOf(st.hosts)
	if err != nil {
		return err
	}
	rx1, tx1, err := st.lan.Bytes(ctx, 1)
	if err != nil {
		return err
	}
	sec := time.Since(start).Seconds()
	n := float64(len(st.hosts))
	var total, most int64
	for _, b := range rss {
		total += b
		most = max(most, b)
	}
	st.figure(figIdle, (after-before).Seconds()/n/sec*1000, "%.2f ms a second")
	st.figure(figMemory, float64(total)/n, "%.1f MB (most: %.1f MB)", float64(total)/n/1e6, float64(most)/1e6)
	st.figure(figTraffic, float64(rx1-rx0)/sec, "%.0f bytes a second")
	st.figure(figSent, float64(tx1-tx0)/sec, "%.0f bytes a second")
	st.check((after-before).Seconds()/n/sec < 0.01, "at rest a node takes less than 1 % of a core", "%.2f %%", (after-before).Seconds()/n/sec*100)
	st.check(most < 150e6, "and less than 150 MB", "%.1f MB at most", float64(most)/1e6)
	return nil
}

// value returns a figure of a result, NaN without one.
func (r *result) value(what string) float64 {
	for _, f := range r.Figures {
		if f.What == what {
			return f.Number
		}
	}
	return math.NaN()
}
