package resolve_test

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/resolve/sourcetest"
	"github.com/nixp2p/nixp2p/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// key signs what may be shared, homeKey what may not.
var key, homeKey = nixtest.NewKey("cache.example.org-1"), nixtest.NewKey("home-1")

// world is a resolver with all its sources.
type world struct {
	t                      *testing.T
	store, disk, peers, up *sourcetest.Fake
	cache                  *sourcetest.Cache
	m                      *metrics.Metrics
	r                      *resolve.Resolver
	stop                   func() // ends Run and waits for it
}

// newWorld starts a resolver. edit may take sources away; there are no peers unless it puts
// them in.
func newWorld(t *testing.T, edit ...func(*world, *resolve.Config)) *world {
	t.Helper()
	w := &world{
		t: t, store: sourcetest.NewFake("store"), disk: sourcetest.NewFake("disk"), peers: sourcetest.NewFake("peer"),
		up: sourcetest.NewFake("upstream"), cache: sourcetest.NewCache(), m: metrics.New(),
	}
	cfg := resolve.Config{
		Store: w.store, Disk: w.disk, Cache: w.cache, Upstream: w.up, Spool: w.cache.Create,
		Share: []string{key.Name}, Metrics: w.m,
	}
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
	t.Cleanup(func() {
		w.stop()
		for _, f := range []*sourcetest.Fake{w.store, w.peers, w.up, w.cache.Fake} {
			if n := f.Open(); n != 0 {
				t.Errorf("%d bodies of %s are not closed", n, f.Name())
			}
		}
	})
	return w
}

func withPeers(w *world, cfg *resolve.Config) { cfg.Peers = w.peers }

func noCache(_ *world, cfg *resolve.Config) { cfg.Cache, cfg.Spool = nil, nil }

// count returns the value of one counter, 0 when there is none.
func (w *world) count(name string, labels ...string) (n float64) {
	w.t.Helper()
	families, err := w.m.Registry.Gather()
	if err != nil {
		w.t.Fatal(err)
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

// whole asks for a NAR and sends all of it.
func (w *world) whole(ctx context.Context, name nix.NARName, q resolve.Query) ([]byte, error) {
	return w.part(ctx, name, q, 0, -1)
}

// part is whole for a range; a negative count means to the end.
func (w *world) part(ctx context.Context, name nix.NARName, q resolve.Query, from, count int64) ([]byte, error) {
	n, err := w.r.NAR(ctx, name, q)
	if err != nil {
		return nil, err
	}
	defer n.Close()
	if count < 0 {
		count = n.Size() - from
	}
	var out bytes.Buffer
	err = n.Send(ctx, &out, from, count)
	if err == nil && int64(out.Len()) != count {
		w.t.Errorf("%d bytes sent of %d without an error", out.Len(), count)
	}
	return out.Bytes(), err
}

// wantWhole asks for a NAR and compares it.
func (w *world) wantWhole(name nix.NARName, want []byte) {
	w.t.Helper()
	got, err := w.whole(w.t.Context(), name, resolve.Query{})
	if err != nil || !bytes.Equal(got, want) {
		w.t.Errorf("%s: %d bytes of %d, error %v", name, len(got), len(want), err)
	}
}

// decode unpacks a file.
func decode(t *testing.T, c nix.Compression, file []byte) []byte {
	t.Helper()
	dec, err := compress.NewReader(c, bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	b, err := io.ReadAll(dec)
	if err != nil {
		t.Fatalf("%d bytes of %s decoded to %d: %v", len(file), c, len(b), err)
	}
	return b
}

// pass lets time pass in a synctest bubble.
func pass(d time.Duration) { <-time.After(d) }

// until waits for what another goroutine does.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 20_000 {
		if ok() {
			return
		}
		<-tick.C
	}
	t.Fatal("never: " + what)
}

// lie is an error of a source that said something wrong.
func lie() error {
	return &verify.InvalidError{Reason: verify.ReasonBadSignature, Err: io.ErrNoProgress}
}
