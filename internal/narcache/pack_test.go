package narcache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
)

// version returns version n of a NAR: they differ in some bytes.
func version(t testing.TB, name string, size, n int, c nix.Compression) nar {
	t.Helper()
	p := nixtest.NewPath(name, size)
	p.StorePath = nixtest.NewPath(fmt.Sprintf("%s-%d", name, n), 1).StorePath
	for i := range 5 {
		p.Contents[(n*7919+i*size/5)%size] += byte(n)
	}
	p.NAR = nixtest.FileNAR(p.Contents)
	v := nar{p.Info(t, testKey), nix.Raw, p.NAR, p.NAR}
	if c != nix.None {
		f := nixtest.Compress(t, c, p.NAR)
		v.form, v.data = nix.Form{Compression: c, File: sha256.Sum256(f.Bytes)}, f.Bytes
	}
	return v
}

func atOnce(ctx context.Context) error { return ctx.Err() }

// pack packs n, which is to work.
func pack(t testing.TB, c *Cache, n, base nar) {
	t.Helper()
	if saved, err := NewPacker(c).Pack(t.Context(), n.info, base.info, atOnce); err != nil || saved <= 0 {
		t.Fatalf("saved %d: %v", saved, err)
	}
}

// checkStar says what is wrong with the state of a cache in which nothing is open.
func checkStar(t testing.TB, c *Cache) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var used, idle int64
	var sum Deltas
	seen := map[*entry]bool{}
	for e := range c.state.policy.all() {
		if seen[e] {
			t.Fatalf("%s %s is evicted twice", e.nar, e.form)
		}
		seen[e] = true
		used += cost(e.size)
		if e.refs == 0 {
			idle += cost(e.size)
		} else {
			t.Errorf("%s is in use %d times", e.nar, e.refs)
		}
		for _, m := range e.members {
			if m.gone || m.base != e || !seen[m] {
				t.Errorf("%s: gone %v, before its base %v", m.nar, m.gone, seen[m])
			}
		}
		if e.copied != (!e.packed() && c.state.delta(e.nar) != nil) || e.copied != (e.in == &c.state.policy.copies) {
			t.Errorf("%s %s: copied %v", e.nar, e.form, e.copied)
		}
		if e.packed() {
			sum.NARs, sum.Bytes, sum.Was = sum.NARs+1, sum.Bytes+e.size, sum.Was+e.was
			if e.base == nil || e.base.gone || e.base.packed() || len(e.base.members) > MaxMembers || !slices.Contains(e.base.members, e) {
				t.Errorf("%s has the base %+v", e.nar, e.base)
			}
		}
	}
	for nar, e := range c.state.index {
		for ; e != nil; e = e.sibling {
			if !seen[e] || e.nar != nar {
				t.Errorf("%s is in no queue", nar)
			}
		}
	}
	if used != c.state.used || idle != c.state.idle || sum != c.state.deltas {
		t.Errorf("used %d, idle %d, %+v; counted %d, %d, %+v", used, idle, sum, c.state.used, c.state.idle, c.state.deltas)
	}
}

// TestPack: an older version takes little room, is here raw for everybody, and is what it was; a restart
// finds it again.
func TestPack(t *testing.T) {
	for _, comp := range []nix.Compression{nix.None, nix.Zstd} {
		t.Run(string(comp), func(t *testing.T) {
			m := metrics.New()
			dir := t.TempDir()
			c := open(t, Config{Dir: dir, Metrics: m})
			v1, v2 := version(t, "p", mib, 1, comp), version(t, "p", mib, 2, comp)
			put(t, c, v1)
			put(t, c, v2)
			before := c.Usage()
			pack(t, c, v1, v2)
			checkStar(t, c)
			if now := c.Usage(); now > before/2+2*block {
				t.Errorf("%d bytes instead of %d", now, before)
			}
			for range 2 {
				if got := c.Sizes(v1.info.NarHash()); len(got) != 1 || got[0] != (source.Sized{Form: nix.Raw, Size: int64(len(v1.raw))}) {
					t.Fatalf("%+v", got)
				}
				for _, off := range []int64{0, 1, mib / 2, int64(len(v1.raw))} {
					if got := get(t, c, v1, nix.Raw, off); !bytes.Equal(got, v1.raw[off:]) {
						t.Fatalf("%d bytes from %d on", len(got), off)
					}
				}
				tree, err := c.Tree(t.Context(), v1.info)
				if err != nil || tree.Size() != int64(len(v1.raw)) {
					t.Fatal(err)
				}
				_ = tree.Close()
				checkStar(t, c)
				if e := c.Entries()[0]; e.NarHash != v1.info.NarHash().String() || e.Form != "raw" {
					t.Errorf("first goes %+v", e)
				}
				_ = c.Close()
				c = open(t, Config{Dir: dir, Metrics: m})
				checkStar(t, c)
			}
			if n := value(t, m, "nixp2p_cache_restored_total"); n != 2 {
				t.Errorf("restored %v times", n)
			}
			if value(t, m, "nixp2p_cache_delta_bytes") <= 0 || value(t, m, "nixp2p_cache_delta_saved_bytes") < mib/2 {
				t.Error("metrics")
			}
		})
	}
}

// TestPackTogether: whoever asks at the same time gets the same work, and one that gives up costs others nothing.
func TestPackTogether(t *testing.T) {
	m := metrics.New()
	c := open(t, Config{Dir: t.TempDir(), Metrics: m})
	v1, v2 := version(t, "p", mib, 1, nix.Zstd), version(t, "p", mib, 2, nix.Zstd)
	put(t, c, v1)
	put(t, c, v2)
	pack(t, c, v1, v2)
	gone, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			if i%4 == 0 {
				if u, err := c.NAR(gone, v1.info, nix.Raw, 0); err == nil {
					_ = u.Body.Close()
				}
				return
			}
			if got := get(t, c, v1, nix.Raw, 0); !bytes.Equal(got, v1.raw) {
				t.Errorf("%d bytes", len(got))
			}
		})
	}
	cancel()
	all.Wait()
	checkStar(t, c)
	if n := value(t, m, "nixp2p_cache_restored_total"); n != 1 {
		t.Errorf("restored %v times", n)
	}
}

// TestPackRefused: nothing changes where a delta is of no use or not possible.
func TestPackRefused(t *testing.T) {
	c := open(t, Config{Dir: t.TempDir()})
	v1, v2, v3, other := version(t, "p", mib, 1, nix.None), version(t, "p", mib, 2, nix.None), version(t, "p", mib, 3, nix.None), rawNAR(t, "other", mib)
	for _, n := range []nar{v1, v2, v3, other} {
		put(t, c, n)
	}
	pack(t, c, v1, v2)
	before := c.Entries()
	stop, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tt := range map[string]struct {
		nar, base nar
		ctx       context.Context
		want      error
	}{
		"unrelated":       {other, v3, t.Context(), ErrPoor},
		"itself":          {v3, v3, t.Context(), errStar},
		"a base":          {v2, v3, t.Context(), errStar},
		"against a delta": {v3, v1, t.Context(), fs.ErrNotExist},
		"again":           {v1, v2, t.Context(), errStar},
		"absent":          {v3, rawNAR(t, "absent", mib), t.Context(), fs.ErrNotExist},
		"stopped":         {v3, v2, stop, context.Canceled},
	} {
		if _, err := NewPacker(c).Pack(tt.ctx, tt.nar.info, tt.base.info, atOnce); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
		checkStar(t, c)
	}
	if now := c.Entries(); !slices.Equal(now, before) {
		t.Errorf("%+v\n%+v", before, now)
	}
	if left, _ := os.ReadDir(filepath.Join(c.cfg.Dir, tmpDir)); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestPackDamaged: a delta that the disk changed is removed and asked for elsewhere, and so is one whose base
// was changed. Nothing wrong is given.
func TestPackDamaged(t *testing.T) {
	for _, what := range []string{"delta", "base", "no base", "short delta"} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			var events []source.Event
			cfg := Config{Dir: dir, Events: func(e source.Event) { events = append(events, e) }}
			c := open(t, cfg)
			v1, v2 := version(t, "p", mib, 1, nix.Zstd), version(t, "p", mib, 2, nix.Zstd)
			put(t, c, v1)
			put(t, c, v2)
			pack(t, c, v1, v2)
			c.mu.Lock()
			e := c.state.delta(v1.info.NarHash())
			delta, base := filepath.Join(dir, e.file), filepath.Join(dir, e.base.file)
			c.mu.Unlock()
			_ = c.Close()
			damage := func(name string) {
				b, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				for i := range 8 {
					b[len(b)/2+i]++
				}
				if err := os.WriteFile(name, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			switch what {
			case "delta":
				damage(delta)
			case "base":
				damage(base)
			case "no base":
				_ = os.Remove(base)
			case "short delta":
				_ = os.Truncate(delta, 10)
			}
			c = open(t, cfg)
			if got := get(t, c, v1, nix.Raw, 0); got != nil {
				t.Errorf("gave %d bytes", len(got))
			}
			checkStar(t, c)
			if exists(delta) || len(c.Forms(v1.info.NarHash())) > 0 {
				t.Error("the delta is still here")
			}
			if base := what == "base" || what == "no base"; base == (len(c.Forms(v2.info.NarHash())) > 0) {
				t.Error("base")
			}
			if (what == "delta" || what == "base") && len(events) == 0 {
				t.Error("nobody was told")
			}
			put(t, c, v1)
			checkStar(t, c)
		})
	}
}

// TestPackRoom: a base goes after what is made of it, and is kept if that is.
func TestPackRoom(t *testing.T) {
	kept := map[nix.NarHash]bool{}
	c := open(t, Config{Dir: t.TempDir(), Kept: func(h nix.NarHash) bool { return kept[h] }})
	v := []nar{version(t, "p", mib, 0, nix.None), version(t, "p", mib, 1, nix.None), version(t, "p", mib, 2, nix.None)}
	for _, n := range v {
		put(t, c, n)
	}
	pack(t, c, v[1], v[0])
	pack(t, c, v[2], v[0])
	a, b := rawNAR(t, "a", mib), rawNAR(t, "b", mib)
	put(t, c, a)
	put(t, c, b)
	c.GC(c.Usage() - 1)
	checkStar(t, c)
	if !has(c, v[0]) || !has(c, a) || len(c.Forms(v[1].info.NarHash()))+len(c.Forms(v[2].info.NarHash())) != 1 {
		t.Fatalf("%+v", c.Entries())
	}
	left := v[1]
	if len(c.Forms(left.info.NarHash())) == 0 {
		left = v[2]
	}
	kept[left.info.NarHash()] = true
	c.KeptChanged()
	checkStar(t, c)
	c.GC(c.Usage() - mib)
	if has(c, a) || !has(c, v[0]) || len(c.Forms(left.info.NarHash())) != 1 {
		t.Fatalf("%+v", c.Entries())
	}
	delete(kept, left.info.NarHash())
	c.KeptChanged()
	if n := c.Collect([]nix.NarHash{v[0].info.NarHash()}); n != 0 {
		t.Errorf("collected %d", n)
	}
	if n := c.Collect([]nix.NarHash{v[0].info.NarHash(), left.info.NarHash()}); n != 2 {
		t.Errorf("collected %d", n)
	}
	checkStar(t, c)
}

// TestPackKilled: at whatever moment the process ends, the NAR is here.
func TestPackKilled(t *testing.T) {
	dir, copies := t.TempDir(), t.TempDir()
	c := open(t, Config{Dir: dir})
	v := []nar{version(t, "p", 3*mib, 0, nix.Zstd), version(t, "p", 3*mib, 1, nix.Zstd), version(t, "p", 3*mib, 2, nix.Zstd)}
	for _, n := range v {
		put(t, c, n)
	}
	moments := 0
	snapshot := func() {
		moments++
		to := filepath.Join(copies, fmt.Sprint(moments))
		if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
	}
	sync := c.disk.sync
	c.disk.sync = func(f *os.File) error { snapshot(); defer snapshot(); return sync(f) }
	pace := func(context.Context) error { snapshot(); return nil }
	for _, to := range []nar{v[1], v[2]} { // the second time from one base to another
		if _, err := NewPacker(c).Pack(t.Context(), v[0].info, to.info, pace); err != nil {
			t.Fatal(err)
		}
	}
	snapshot()
	for i := range moments {
		c := open(t, Config{Dir: filepath.Join(copies, fmt.Sprint(i+1))})
		checkStar(t, c)
		for k, n := range v {
			if got := get(t, c, n, nix.Raw, 0); !bytes.Equal(got, n.raw) {
				t.Errorf("moment %d: version %d has %d bytes", i, k, len(got))
			}
		}
		_ = c.Close()
	}
	if moments < 10 {
		t.Errorf("%d moments", moments)
	}
}

// TestStar does what may happen to a cache with deltas, in any order: the star holds, and what is given is right.
func TestStar(t *testing.T) {
	rounds := 30
	if testing.Short() {
		rounds = 5
	}
	var families [3][]nar
	for f := range families {
		for n := range 12 {
			families[f] = append(families[f], version(t, fmt.Sprint("f", f), 100_000, n, []nix.Compression{nix.None, nix.Zstd}[n%2]))
		}
	}
	packed, restored := 0, 0
	for seed := range rounds {
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		dir := t.TempDir()
		kept := map[nix.NarHash]bool{}
		cfg := Config{Dir: dir, Size: 2*mib + dirBytes, Kept: func(h nix.NarHash) bool { return kept[h] }, InStore: func(h nix.NarHash) bool { return h[1] < 8 }}
		c := open(t, cfg)
		for range 120 {
			family := families[r.IntN(len(families))]
			n, o := family[r.IntN(len(family))], family[r.IntN(len(family))]
			switch r.IntN(12) {
			case 0, 1, 2:
				if !has(c, n) {
					if d, err := c.Create(n.info, n.form, int64(len(n.data))); err == nil {
						_, _ = d.Write(n.data)
						_ = d.Commit()
					}
				}
			case 3, 4, 5, 6:
				if _, err := NewPacker(c).Pack(t.Context(), n.info, o.info, atOnce); err == nil {
					packed++
				}
			case 7, 8:
				if len(c.Forms(n.info.NarHash())) > 0 {
					restored++
				}
				if got := get(t, c, n, nix.Raw, 0); got != nil && !bytes.Equal(got, n.raw) {
					t.Fatal("wrong bytes")
				}
			case 9:
				kept[n.info.NarHash()] = !kept[n.info.NarHash()]
				c.KeptChanged()
				c.Collect([]nix.NarHash{n.info.NarHash(), o.info.NarHash()})
			case 10:
				c.mu.Lock()
				for e := range c.state.policy.all() {
					e.used -= int64(duplicateAfter / time.Second)
				}
				c.mu.Unlock()
				c.dropDuplicates(t.Context())
			case 11:
				persistAll(c)
				_ = c.Close()
				if r.IntN(4) == 0 { // somebody removed a file
					if files, _ := filepath.Glob(filepath.Join(dir, "?", "*")); len(files) > 0 {
						_ = os.Remove(files[r.IntN(len(files))])
					}
				}
				c = open(t, cfg)
			}
			checkStar(t, c)
			if c.Usage() > c.max {
				t.Fatalf("%d bytes of %d", c.Usage(), c.max)
			}
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
		_ = c.Close()
	}
	if packed < rounds || restored < rounds {
		t.Errorf("in %d rounds packed %d, restored %d", rounds, packed, restored)
	}
}
