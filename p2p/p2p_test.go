package p2p

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/verify"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var shareKey = nixtest.NewKey("share-1")

// holder shares what is put into it.
type holder struct {
	mu    sync.Mutex
	infos map[nix.Question]*verify.Info
	nars  map[nix.NarHash][]byte
	files map[nix.Form][]byte

	asked int
	// body, when set, stands between the bytes and who reads them.
	body func(b []byte, off int64) io.ReadCloser
}

func newHolder(t testing.TB, paths ...nixtest.Path) *holder {
	h := &holder{infos: map[nix.Question]*verify.Info{}, nars: map[nix.NarHash][]byte{}, files: map[nix.Form][]byte{}}
	for _, p := range paths {
		h.put(t, p)
	}
	return h
}

func (h *holder) put(t testing.TB, p nixtest.Path) Held {
	h.mu.Lock()
	defer h.mu.Unlock()
	q := p.Hash().Question()
	h.infos[q] = p.Info(t, shareKey)
	h.nars[p.NarHash()] = p.NAR
	return Held{q, p.NarHash(), int64(len(p.NAR))}
}

func (h *holder) drop(p nixtest.Path) Held {
	h.mu.Lock()
	defer h.mu.Unlock()
	q := p.Hash().Question()
	delete(h.infos, q)
	delete(h.nars, p.NarHash())
	return Held{q, p.NarHash(), int64(len(p.NAR))}
}

func (h *holder) Info(_ context.Context, q nix.Question) (*verify.Info, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked++
	if i := h.infos[q]; i != nil {
		return i, nil
	}
	return nil, fs.ErrNotExist
}

func (h *holder) NAR(_ context.Context, nar nix.NarHash, form nix.Form, off int64) (*verify.Unverified, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked++
	b := h.nars[nar]
	if !form.IsRaw() {
		b = h.files[form]
	}
	if b == nil {
		return nil, fs.ErrNotExist
	}
	if off > int64(len(b)) {
		off = int64(len(b))
	}
	if h.body != nil {
		return &verify.Unverified{Body: h.body(b, off), Size: int64(len(b))}, nil
	}
	return &verify.Unverified{Body: io.NopCloser(bytes.NewReader(b[off:])), Size: int64(len(b))}, nil
}

func (h *holder) Held(context.Context) iter.Seq[Held] {
	return func(yield func(Held) bool) {
		h.mu.Lock()
		defer h.mu.Unlock()
		for q, i := range h.infos {
			if !yield(Held{q, i.NarHash(), i.NarSize()}) {
				return
			}
		}
	}
}

// testNode is a node that runs until the test ends.
type testNode struct {
	*Node
	stop func()
}

func start(t testing.TB, h Holder, change func(*Config)) *testNode {
	t.Helper()
	cfg := Config{
		Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Keys: nixtest.Keys(t, shareKey), ShareKeys: []string{shareKey.Name},
		Holder: h, Metrics: metrics.New(), StateDir: t.TempDir(),
	}
	if os.Getenv("P2P_LOG") != "" {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if change != nil {
		change(&cfg)
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	select {
	case <-n.Ready():
	case err := <-done:
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return &testNode{n, stop}
}

// join starts a node that knows others by their addresses.
func join(t testing.TB, h Holder, change func(*Config), others ...*testNode) *testNode {
	t.Helper()
	return start(t, h, func(c *Config) {
		for _, o := range others {
			c.Bootstrap = append(c.Bootstrap, o.Addrs()...)
		}
		if change != nil {
			change(c)
		}
	})
}

// wait lets a condition become true.
func wait(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for range 2000 {
		if cond() {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	t.Fatalf("waited in vain: %s", what)
}

func fetched(t testing.TB, n *testNode, info *verify.Info, form nix.Form, off int64) ([]byte, error) {
	t.Helper()
	claim, err := n.NAR(t.Context(), info, form, off)
	if err != nil {
		return nil, err
	}
	defer claim.Body.Close()
	return io.ReadAll(claim.Body)
}

func TestTwoNodes(t *testing.T) {
	path := nixtest.NewPath("hello", 3<<20)
	a := start(t, newHolder(t, path), nil)
	b := join(t, newHolder(t), nil, a)
	wait(t, "b hears of the path", func() bool { return b.Positive(path.Hash()) })

	info, err := b.Info(t.Context(), path.Hash())
	if err != nil {
		t.Fatal(err)
	}
	if info.NarHash() != path.NarHash() {
		t.Error("another narinfo")
	}
	if form, ok := info.FileForm(); ok {
		t.Errorf("offered as %s", form)
	}
	for _, off := range []int64{0, 1, 1 << 20, int64(len(path.NAR)) - 1} {
		got, err := fetched(t, b, info, nix.Raw, off)
		if err != nil || !bytes.Equal(got, path.NAR[off:]) {
			t.Errorf("from byte %d: %d bytes, %v", off, len(got), err)
		}
	}

	other := nixtest.NewPath("other", 100)
	if _, err := b.Info(t.Context(), other.Hash()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a path that nobody has: %v", err)
	}
	if _, err := b.NAR(t.Context(), other.Info(t, shareKey), nix.Raw, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a NAR that nobody has: %v", err)
	}
	if _, err := b.NAR(t.Context(), info, nix.Form{Compression: nix.XZ, File: nix.FileHash{1}}, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that nobody has: %v", err)
	}
	wait(t, "both know each other", func() bool { return len(a.Peers()) == 1 && len(b.Peers()) == 1 })
	p := b.Peers()[0]
	if p.ID != a.ID() || p.FoundBy != "static" || p.Paths != 1 || p.ReceivedBytes < 3<<20 || p.Standing != "good" || len(p.Addresses) != 1 {
		t.Errorf("%+v", p)
	}
}
