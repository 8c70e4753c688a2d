package p2p

import (
	"context"
	"iter"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
	"github.com/nixp2p/nixp2p/p2p/share"
	"github.com/nixp2p/nixp2p/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var key = nixtest.NewKey("site-1")

// store is a share.Store in memory.
type store struct {
	*sourcetest.Fake

	mu    sync.Mutex
	paths []share.Path
}

func newStore(keyNames ...string) *store {
	return &store{Fake: sourcetest.NewFake(source.Store).Share(keyNames...)}
}

func (s *store) add(t testing.TB, k nixtest.Key, paths ...nixtest.Path) *store {
	t.Helper()
	s.Add(t, k, paths...)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range paths {
		s.paths = append(s.paths, share.Path{Store: p.Hash(), Nar: p.NarHash(), Size: int64(len(p.NAR))})
	}
	return s
}

func (s *store) Shares() iter.Seq[share.Path] {
	return func(yield func(share.Path) bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, p := range s.paths {
			if !yield(p) {
				return
			}
		}
	}
}

func (s *store) Listed(h nix.StoreHash) (share.Path, bool) {
	for p := range s.Shares() {
		if p.Store == h {
			return p, true
		}
	}
	return share.Path{}, false
}

// start runs a node on a loopback address until the test ends.
func start(t *testing.T, holder *share.Holder, edit func(*Config), others ...*Node) *Node {
	t.Helper()
	cfg := configOf(t, edit, others...)
	if cfg.Holder == nil {
		cfg.Holder = holder
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	run(t, n)
	<-n.Ready()
	return n
}

// configOf is the configuration of a node on a loopback address.
func configOf(t *testing.T, edit func(*Config), others ...*Node) Config {
	cfg := Config{
		Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Keys: nixtest.Keys(t, key), ShareKeys: []string{key.Name},
		Metrics: metrics.New(), Leases: true,
	}
	for _, o := range others {
		cfg.Bootstrap = append(cfg.Bootstrap, o.Addrs()...)
	}
	if edit != nil {
		edit(&cfg)
	}
	return cfg
}

// run runs a node until the test ends.
func run(t *testing.T, n *Node) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := n.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

// await waits until something is so.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); !is(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func holderOf(s *store, keyNames ...string) *share.Holder {
	return share.New(share.Config{Store: s, ShareKeys: keyNames})
}

// cache is a share.Cache of running downloads.
type cache struct {
	*sourcetest.Fake
	mu   sync.Mutex
	runs map[nix.NarHash]*download
}

func newCache() *cache {
	return &cache{Fake: sourcetest.NewFake(source.Cache), runs: map[nix.NarHash]*download{}}
}

func (c *cache) begin(p nixtest.Path) *download {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := &download{size: int64(len(p.NAR)), more: make(chan struct{})}
	c.runs[p.NarHash()] = d
	return d
}

func (c *cache) Downloads(nar nix.NarHash) []*download {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.runs[nar]; d != nil {
		return []*download{d}
	}
	return nil
}

func (c *cache) Sizes(nix.NarHash) []source.Sized                    { return nil }
func (c *cache) Proven(nix.NarHash, nix.Form) bool                   { return true }
func (c *cache) Prove(context.Context, *verify.Info, nix.Form) error { return nil }

// download is a raw NAR that comes in.
type download struct {
	size int64
	mu   sync.Mutex
	b    []byte
	more chan struct{} // closed with the next bytes
}

func (d *download) add(b []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.b = append(d.b, b...)
	close(d.more)
	d.more = make(chan struct{})
}

func (d *download) Form() nix.Form { return nix.Raw }
func (d *download) Size() int64    { return d.size }
func (d *download) Readable() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(len(d.b))
}

func (d *download) PeerReader(off int64) *growing {
	return &growing{d: d, off: off, closed: make(chan struct{})}
}

// growing reads a download.
type growing struct {
	d      *download
	off    int64
	once   sync.Once
	closed chan struct{}
}

func (g *growing) Read(p []byte) (int, error) {
	for {
		g.d.mu.Lock()
		n, more := copy(p, g.d.b[g.off:]), g.d.more
		g.d.mu.Unlock()
		if g.off += int64(n); n > 0 {
			return n, nil
		}
		select {
		case <-more:
		case <-g.closed:
			return 0, os.ErrClosed
		}
	}
}

func (g *growing) Close() error {
	g.once.Do(func() { close(g.closed) })
	return nil
}
