package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// row is one line of the report.
type row struct {
	what    string
	ours    string
	theirs  string // "" where there is nothing to compare with
	ratio   float64
	lo, hi  float64 // of the ratio over the repetitions
	aim     string
	reached bool
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// compare measures both sides runs times, one right after the other, and adds a row with the
// median of the ratios ours / theirs.
func (b *bench) compare(what, unit, aim string, ok func(ratio float64) bool, ours, theirs func() (float64, error)) error {
	var us, them, ratios []float64
	for range b.runs {
		x, err := ours()
		if err != nil {
			return err
		}
		y, err := theirs()
		if err != nil {
			return err
		}
		us, them, ratios = append(us, x), append(them, y), append(ratios, x/y)
	}
	r := median(ratios)
	b.add(row{
		what: what, ours: format(median(us), unit), theirs: format(median(them), unit), ratio: r,
		lo: slices.Min(ratios), hi: slices.Max(ratios), aim: aim, reached: ok(r),
	})
	return nil
}

func (b *bench) add(r row) {
	b.rows = append(b.rows, r)
	fmt.Fprintf(os.Stderr, "%-60s %12s %12s  %.2f (%.2f–%.2f)  aim %s\n", r.what, r.ours, r.theirs, r.ratio, r.lo, r.hi, r.aim)
}

func format(v float64, unit string) string {
	if v < 10 {
		return fmt.Sprintf("%.2f %s", v, unit)
	}
	return fmt.Sprintf("%.0f %s", v, unit)
}

func atLeast(want float64) func(float64) bool { return func(r float64) bool { return r >= want } }
func atMost(want float64) func(float64) bool  { return func(r float64) bool { return r <= want } }

// narinfos: remembered ones, against nginx serving the same files.
func (b *bench) narinfos() error {
	files, err := b.nginx(b.corpus.Caches["xz"])
	if err != nil {
		return err
	}
	defer files.stop()
	node, err := b.nixp2p(files.url, "")
	if err != nil {
		return err
	}
	defer node.stop()
	paths := b.narinfoPaths()
	for _, s := range []*server{files, node} {
		if err := fetchAll(s, paths); err != nil {
			return err
		}
	}
	return b.requests("remembered narinfo", paths, node, files, 0.6)
}

// misses: remembered ones, against nginx's 404.
func (b *bench) misses() error {
	files, err := b.nginx(b.corpus.Caches["xz"])
	if err != nil {
		return err
	}
	defer files.stop()
	node, err := b.nixp2p(files.url, "")
	if err != nil {
		return err
	}
	defer node.stop()
	paths := b.narinfoPaths()
	for i, p := range paths { // hashes that nobody has
		paths[i] = "/" + p[17:33] + p[1:17] + ".narinfo"
	}
	if err := fetchAll(node, paths); err != nil {
		return err
	}
	return b.requests("remembered miss", paths, node, files, 0.5)
}

func (b *bench) requests(what string, paths []string, node, files *server, aim float64) error {
	for _, n := range []int{16, 64} {
		rate := func(s *server) func() (float64, error) {
			return func() (float64, error) {
				r, err := b.wrk(s, paths, n)
				return r.perSecond, err
			}
		}
		err := b.compare(fmt.Sprintf("%s, %d connections", what, n), "req/s", fmt.Sprintf("≥ %.1f", aim), atLeast(aim), rate(node), rate(files))
		if err != nil {
			return err
		}
	}
	var p99, cpu []float64
	for range b.runs {
		one, err := b.wrk(node, paths, 1)
		if err != nil {
			return err
		}
		many, err := b.wrk(node, paths, 16)
		if err != nil {
			return err
		}
		p99, cpu = append(p99, one.p99.Seconds()*1e3), append(cpu, many.cpu.Seconds()*1e6)
	}
	if aim > 0.5 {
		b.absolute(what+", 1 connection: p99", "ms", "< 1 ms", p99, atMost(1))
		b.absolute(what+": CPU of the server", "µs", "≤ 20 µs", cpu, atMost(20))
	}
	return nil
}

// absolute adds a row without a counterpart.
func (b *bench) absolute(what, unit, aim string, v []float64, ok func(float64) bool) {
	m := median(v)
	b.add(row{what: what, ours: format(m, unit), lo: slices.Min(v), hi: slices.Max(v), aim: aim, reached: ok(m)})
}

// storeNARs: dumped and hashed from the own store, against nginx sending ready-made files.
func (b *bench) storeNARs() error {
	files, err := b.nginx(b.corpus.Caches["none"])
	if err != nil {
		return err
	}
	defer files.stop()
	node, err := b.nixp2p("http://127.0.0.1:1", b.corpus.StoreRoot)
	if err != nil {
		return err
	}
	defer node.stop()
	ours, err := b.narPaths(node)
	if err != nil {
		return err
	}
	theirs, err := b.narPaths(files)
	if err != nil {
		return err
	}
	const largest = 8
	for _, m := range []struct {
		what    string
		n       int
		streams int
		aim     float64
	}{
		{"NARs from the own store, all, 1 stream", len(ours), 1, 0.6},
		{"NARs from the own store, 8 largest, 1 stream", largest, 1, 0.6},
		{"NARs from the own store, all, 8 streams", len(ours), 8, 0.45},
		{"NARs from the own store, 8 largest, 8 streams", largest, 8, 0.45},
	} {
		rate := func(s *server, paths []string) func() (float64, error) {
			return func() (float64, error) {
				took, err := b.curl(s, paths[:m.n], m.streams)
				return b.narBytes(m.n) / took.Seconds() / 1e6, err
			}
		}
		if err := b.compare(m.what, "MB/s", fmt.Sprintf("≥ %.2f", m.aim), atLeast(m.aim), rate(node, ours), rate(files, theirs)); err != nil {
			return err
		}
	}
	return nil
}

// narBytes is the sum of the n largest NARs.
func (b *bench) narBytes(n int) float64 {
	var sizes []int64
	for _, p := range b.corpus.Paths {
		sizes = append(sizes, p.NarSize)
	}
	slices.Sort(sizes)
	var sum int64
	for _, s := range sizes[len(sizes)-n:] {
		sum += s
	}
	return float64(sum)
}

func (b *bench) copySeconds(s *server) func() (float64, error) {
	return func() (float64, error) {
		r, err := b.copyClosure(s)
		return r.wall.Seconds(), err
	}
}

// storeCopies: nix copy from the own store.
func (b *bench) storeCopies() error {
	node, err := b.nixp2p("http://127.0.0.1:1", b.corpus.StoreRoot)
	if err != nil {
		return err
	}
	defer node.stop()
	for _, m := range []struct {
		what, dir string
		aim       float64
	}{{"nix copy from the own store / nginx with raw NARs", "none", 1.3}, {"nix copy from the own store / nginx with .nar.xz", "xz", 0.31 * 1.3}} {
		files, err := b.nginx(b.corpus.Caches[m.dir])
		if err != nil {
			return err
		}
		err = b.compare(m.what, "s", fmt.Sprintf("≤ %.2f", m.aim), atMost(m.aim), b.copySeconds(node), b.copySeconds(files))
		files.stop()
		if err != nil {
			return err
		}
	}
	return nil
}

// coldCopies: nix copy through an empty node, against straight from its upstream.
func (b *bench) coldCopies() error {
	files, err := b.nginx(b.corpus.Caches["xz"])
	if err != nil {
		return err
	}
	defer files.stop()
	cold := func(start func(string) (*server, error)) func() (float64, error) {
		return func() (float64, error) {
			s, err := start(files.url)
			if err != nil {
				return 0, err
			}
			defer s.stop()
			return b.copySeconds(s)()
		}
	}
	err = b.compare("nix copy, cold, upstream with xz / straight from that upstream", "s", "≤ 1.1", atMost(1.1),
		cold(func(up string) (*server, error) { return b.nixp2p(up, "") }), b.copySeconds(files))
	if err != nil {
		return err
	}
	return b.compare("for comparison: nginx proxy_cache, cold / straight", "s", "", func(float64) bool { return true },
		cold(b.proxyCache), b.copySeconds(files))
}

// warmCopies: nix copy from a full NAR cache, against nginx with a full proxy_cache.
func (b *bench) warmCopies() error {
	files, err := b.nginx(b.corpus.Caches["xz"])
	if err != nil {
		return err
	}
	defer files.stop()
	node, err := b.nixp2p(files.url, "")
	if err != nil {
		return err
	}
	defer node.stop()
	proxy, err := b.proxyCache(files.url)
	if err != nil {
		return err
	}
	defer proxy.stop()
	for _, s := range []*server{node, proxy} {
		if _, err := b.copyClosure(s); err != nil {
			return err
		}
	}
	err = b.compare("nix copy, warm from the NAR cache / nginx proxy_cache, warm", "s", "≤ 1.0", atMost(1.005), b.copySeconds(node), b.copySeconds(proxy))
	b.absolute("peak memory after that", "MB", "< 150 MB", []float64{float64(node.usage().rss) / 1e6}, atMost(150))
	return err
}

// starts: until the first narinfo from the own store.
func (b *bench) starts() error {
	var took []float64
	hash := b.narinfoPaths()[0]
	for i := range b.runs {
		begin := time.Now()
		s, err := b.nixp2pIn(filepath.Join(b.dir, fmt.Sprint("start", i)), "http://127.0.0.1:1", b.corpus.StoreRoot)
		if err != nil {
			return err
		}
		res, err := http.Get(s.url + hash)
		took = append(took, time.Since(begin).Seconds()*1e3)
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode != http.StatusOK {
				err = fmt.Errorf("first answer %s", res.Status)
			}
		}
		s.stop()
		if err != nil {
			return err
		}
	}
	b.absolute("start until the first answer from the own store", "ms", "< 500 ms", took, atMost(500))
	return nil
}
