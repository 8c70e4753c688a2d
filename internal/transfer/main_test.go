package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/narcache"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
	"github.com/nixp2p/nixp2p/internal/transfer"
	"github.com/nixp2p/nixp2p/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

// key signs what may be shared, homeKey what may not.
var key, homeKey = nixtest.NewKey("cache.example.org-1"), nixtest.NewKey("home-1")

// world is a server with all its sources and a real cache.
type world struct {
	t               *testing.T
	store, disk, up *sourcetest.Fake
	peer            *sourcetest.Peer
	peers           *sourcetest.Peers
	dir             string
	cache           *narcache.Cache
	m               *metrics.Metrics
	rc              resolve.Config
	tc              transfer.Config
	r               *resolve.Resolver
	s               *transfer.Server
	begun           atomic.Int32 // downloads
	stop            func()       // ends all Runs and waits for them
}

// newWorld starts a server. edit changes rc and tc. There are no peers unless it puts them in.
func newWorld(t *testing.T, edit ...func(*world)) *world {
	t.Helper()
	w := &world{
		t: t, m: metrics.New(), peer: sourcetest.NewPeer("peer"), dir: t.TempDir(),
		store: sourcetest.NewFake(source.Store).Share(key.Name), disk: sourcetest.NewFake(source.Disk).Share(key.Name),
		up: sourcetest.NewFake(source.Upstream),
	}
	w.peers = &sourcetest.Peers{List: []*sourcetest.Peer{w.peer}, Share: []string{key.Name}}
	var err error
	if w.cache, err = narcache.Open(narcache.Config{Dir: w.dir, Size: 1 << 30, Metrics: w.m}); err != nil {
		t.Fatal(err)
	}
	w.rc = resolve.Config{Store: w.store, Disk: w.disk, Cache: w.cache, Upstream: w.up, Share: []string{key.Name}, Metrics: w.m}
	w.tc = transfer.Config{
		Store: w.store, Cache: w.cache, Clock: runclock.New(), Coordinate: true, Metrics: w.m,
		OnDownload: func(*verify.Info) { w.begun.Add(1) },
	}
	for _, fn := range edit {
		fn(w)
	}
	if w.r, err = resolve.New(w.rc); err != nil {
		t.Fatal(err)
	}
	w.tc.Resolver = w.r
	if w.s, err = transfer.New(w.tc); err != nil {
		t.Fatal(err)
	}
	w.run()
	return w
}

func (w *world) run() {
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan error, 3)
	for _, run := range []func(context.Context) error{w.r.Run, w.s.Run, w.cache.Run} {
		go func() { ended <- run(ctx) }()
	}
	stopped := false
	w.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		for range 3 {
			if err := <-ended; err != nil {
				w.t.Errorf("Run: %v", err)
			}
		}
	}
	w.t.Cleanup(func() {
		w.stop()
		_ = w.cache.Close()
		for _, f := range []*sourcetest.Fake{w.store, w.peer.Fake, w.up} {
			if n := f.Open(); n != 0 {
				w.t.Errorf("%d bodies of %s are not closed", n, f.Role())
			}
		}
	})
}

func withPeers(w *world) { w.rc.Peers, w.tc.Peers = w.peers, w.peers }

func noCache(w *world) { w.rc.Cache, w.tc.Cache = nil, nil }

func noStore(w *world) { w.rc.Store, w.tc.Store = nil, nil }

// keep puts bytes into the cache, right or wrong.
func (w *world) keep(info *verify.Info, form nix.Form, b []byte) {
	w.t.Helper()
	d, err := w.cache.Create(info, form, int64(len(b)))
	if err == nil {
		_, err = d.Write(b)
	}
	if err == nil {
		err = d.Commit()
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// damage changes a byte of what the cache has of a NAR, and reports whether it did.
func (w *world) damage(nar nix.NarHash, at int64) (found bool) {
	w.t.Helper()
	_ = filepath.WalkDir(w.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || !bytes.Contains([]byte(path), []byte(nar.Nix32())) {
			return err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			w.t.Fatal(err)
		}
		var b [1]byte
		_, _ = f.ReadAt(b[:], at)
		b[0] ^= 1
		_, err = f.WriteAt(b[:], at)
		found = errors.Join(err, f.Close()) == nil
		return nil
	})
	return found
}

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
func (w *world) whole(ctx context.Context, name nix.NARName, q transfer.Query) ([]byte, error) {
	return w.part(ctx, name, q, 0, -1)
}

// part is whole for a range; a negative count means to the end.
func (w *world) part(ctx context.Context, name nix.NARName, q transfer.Query, from, count int64) ([]byte, error) {
	n, err := w.s.NAR(ctx, name, q)
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

// twice asks as httpfront does: once more when something wrong came and nothing has left.
func (w *world) twice(name nix.NARName) ([]byte, error) {
	got, err := w.whole(w.t.Context(), name, transfer.Query{})
	if err != nil && len(got) == 0 && source.Invalid(err) != nil {
		got, err = w.whole(w.t.Context(), name, transfer.Query{})
	}
	return got, err
}

// wantWhole asks for a NAR and compares it.
func (w *world) wantWhole(name nix.NARName, want []byte) {
	w.t.Helper()
	got, err := w.whole(w.t.Context(), name, transfer.Query{})
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
func pass(d time.Duration) { time.Sleep(d) }

// until waits for what another goroutine does, without the clock.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 100_000_000 {
		if ok() {
			return
		}
		runtime.Gosched()
	}
	t.Fatal("never: " + what)
}

// formOf returns the form of the file that a narinfo names.
func formOf(t *testing.T, info *verify.Info) nix.Form {
	t.Helper()
	form, ok := info.FileForm()
	if !ok {
		t.Fatal("no file")
	}
	return form
}

// prefix reports whether got is the beginning of want and less than all of it.
func prefix(got, want []byte) bool { return len(got) < len(want) && bytes.HasPrefix(want, got) }
