package p2p

import (
	"context"
	"iter"
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
	cfg := Config{
		Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Keys: nixtest.Keys(t, key), ShareKeys: []string{key.Name},
		Holder: holder, Metrics: metrics.New(), Leases: true,
	}
	for _, o := range others {
		cfg.Bootstrap = append(cfg.Bootstrap, o.Addrs()...)
	}
	if edit != nil {
		edit(&cfg)
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() {
		if err := n.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		run.Wait()
	})
	<-n.Ready()
	return n
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
