package resolve_test

import (
	"context"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
	"github.com/nixp2p/nixp2p/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// key signs what may be shared, homeKey what may not.
var key, homeKey = nixtest.NewKey("cache.example.org-1"), nixtest.NewKey("home-1")

// forms is the cache, of which only the forms matter here.
type forms struct {
	mu  sync.Mutex
	has map[nix.NarHash][]nix.Form
}

func (f *forms) add(nar nix.NarHash, form nix.Form) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.has[nar] = append(f.has[nar], form)
}

func (f *forms) Forms(nar nix.NarHash) []nix.Form {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.has[nar])
}

// world is a resolver with all its sources.
type world struct {
	t               *testing.T
	store, disk, up *sourcetest.Fake
	peer            *sourcetest.Peer
	peers           *sourcetest.Peers
	cache           *forms
	m               *metrics.Metrics
	r               *resolve.Resolver
	stop            func() // ends Run and waits for it
}

// newWorld starts a resolver. edit may take sources away. There are no peers unless it puts
// them in.
func newWorld(t *testing.T, edit ...func(*world, *resolve.Config)) *world {
	t.Helper()
	w := &world{
		t: t, m: metrics.New(), cache: &forms{has: map[nix.NarHash][]nix.Form{}}, peer: sourcetest.NewPeer("peer"),
		store: sourcetest.NewFake(source.Store).Share(key.Name), disk: sourcetest.NewFake(source.Disk).Share(key.Name),
		up: sourcetest.NewFake(source.Upstream),
	}
	w.peers = &sourcetest.Peers{List: []*sourcetest.Peer{w.peer}, Share: []string{key.Name}}
	cfg := resolve.Config{Store: w.store, Disk: w.disk, Cache: w.cache, Upstream: w.up, Share: []string{key.Name}, Metrics: w.m}
	for _, fn := range edit {
		fn(w, &cfg)
	}
	var err error
	if w.r, err = resolve.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.r.Run(ctx) }()
	w.stop = func() {
		cancel()
		if err, ok := <-done; ok {
			close(done)
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		}
	}
	t.Cleanup(w.stop)
	return w
}

func withPeers(w *world, cfg *resolve.Config) { cfg.Peers = w.peers }

// count returns the value of one counter, 0 when there is none.
func (w *world) count(name string, labels ...string) (n float64) {
	w.t.Helper()
	return countOf(w.t, w.m, name, labels...)
}

func countOf(t *testing.T, m *metrics.Metrics, name string, labels ...string) (n float64) {
	t.Helper()
	families, err := m.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != prometheus.BuildFQName("nixp2p", "", name) {
			continue
		}
	metrics:
		for _, m := range family.GetMetric() {
			for i := 0; i < len(labels); i += 2 {
				found := false
				for _, l := range m.GetLabel() {
					found = found || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
				}
				if !found {
					continue metrics
				}
			}
			n += m.GetCounter().GetValue()
		}
	}
	return n
}

// nameOf returns the URL of p's NAR in a form.
func nameOf(p nixtest.Path, form nix.Form) nix.NARName {
	return nix.NARName{Store: p.Hash(), Nar: p.NarHash(), Form: form}
}

// pass lets time pass in a synctest bubble.
func pass(d time.Duration) { time.Sleep(d) }

// invalid is an error of a source that answered wrong.
func invalid() error {
	return &verify.InvalidError{Reason: verify.ReasonBadSignature, Err: io.ErrNoProgress}
}
