package update

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nixp2p/nixp2p/internal/delta"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/source/sourcetest"
)

var key = nixtest.NewKey("cache.example.org-1")

// memory is a Scratch.
type memory struct {
	mu     sync.Mutex
	b      []byte
	most   int // 0: no bound
	closed *atomic.Int32
}

func (m *memory) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.most > 0 && len(m.b)+len(p) > m.most {
		return 0, io.ErrShortWrite
	}
	m.b = append(m.b, p...)
	return len(p), nil
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.NewReader(m.b).ReadAt(p, off)
}

func (m *memory) Close() error { m.closed.Add(1); return nil }

// encoders is an Encoder of two versions of a path, with files in memory.
type encoders struct {
	*Encoder
	trees        *sourcetest.Trees
	m            *metrics.Metrics
	old, now     nixtest.Path
	made, closed atomic.Int32 // files
	most         int
	failing      bool
	to, another  netip.Prefix
}

func newEncoders(t *testing.T) *encoders {
	t.Helper()
	e := &encoders{m: metrics.New()}
	e.old, e.now = versions()
	e.trees = &sourcetest.Trees{Fake: sourcetest.NewFake(source.Store).Share(key.Name)}
	e.trees.Add(t, key, e.old, e.now)
	e.to, e.another = netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("10.0.0.2/32")
	e.Encoder = NewEncoder(e.trees, func() (Scratch, error) {
		if e.failing {
			return nil, errors.New("no room")
		}
		e.made.Add(1)
		return &memory{closed: &e.closed, most: e.most}, nil
	}, e.m, nil)
	return e
}

func (e *encoders) ask(t *testing.T, to netip.Prefix, plain time.Duration) *Delta {
	t.Helper()
	return e.Open(t.Context(), Ask{To: to, Info: e.now.Info(t, key), Bases: []nix.NarHash{e.old.NarHash()}, Plain: plain})
}

// coded is the delta, which is made outside of bubbles, where the coders of zstd may be used again.
var coded = sync.OnceValue(func() []byte {
	old, now := versions()
	base, errBase := delta.Scan(bytes.NewReader(old.NAR), int64(len(old.NAR)))
	target, errTarget := delta.Scan(bytes.NewReader(now.NAR), int64(len(now.NAR)))
	var out bytes.Buffer
	_, err := delta.Encode(context.Background(), &out, base, target)
	if err := errors.Join(errBase, errTarget, err); err != nil {
		panic(err)
	}
	return out.Bytes()
})

// versions returns two versions of a path.
func versions() (old, now nixtest.Path) {
	old, now = nixtest.NewPath("app-1.0", 300_000), nixtest.NewPath("app-1.1", 1000)
	now.NAR = bytes.Clone(old.NAR)
	copy(now.NAR[150_000:], "another version")
	return old, now
}

// send sends a delta, and looks whether it is right.
func (e *encoders) send(t *testing.T, d *Delta) error {
	t.Helper()
	var out bytes.Buffer
	read := 0
	if err := d.Send(t.Context(), &out, func(n int) { read += n }); err != nil {
		return err
	}
	got := out.Bytes()
	for bytes.HasPrefix(got, skippable) {
		got = got[len(skippable):]
	}
	if !bytes.Equal(got, coded()) || read != len(e.now.NAR) {
		t.Errorf("%d bytes of the NAR, %d of the delta", read, len(got))
	}
	return nil
}

// TestShared: a delta is made once for all who ask for it, at the same time or within minutes, and then it is dropped.
func TestShared(t *testing.T) {
	coded()
	synctest.Test(t, func(t *testing.T) {
		e := newEncoders(t)
		defer e.Close()
		e.slots.free = 1
		var all sync.WaitGroup
		for i := range 20 {
			to := map[bool]netip.Prefix{true: e.to, false: e.another}[i%2 == 0]
			all.Go(func() {
				d := e.ask(t, to, 0)
				if d == nil {
					t.Error("no delta")
					return
				}
				defer d.Close()
				if err := e.send(t, d); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		time.Sleep(keepShared - time.Second)
		d := e.ask(t, e.to, 0)
		if err := e.send(t, d); err != nil || e.made.Load() != 1 {
			t.Errorf("%d files, %v", e.made.Load(), err)
		}
		time.Sleep(time.Hour) // it is not dropped while it is read
		if e.closed.Load() > 0 {
			t.Error("dropped")
		}
		_ = d.Close()
		time.Sleep(keepShared + time.Second)
		if e.closed.Load() != 1 || len(e.codings.list) > 0 || e.slots.free != 1 || e.trees.Open.Load() != 0 {
			t.Errorf("%d files are closed, %d kept, %d encoders free, %d trees open", e.closed.Load(), len(e.codings.list), e.slots.free, e.trees.Open.Load())
		}
		if sent := metrics.Value(e.m.Delta.WithLabelValues("sent")); sent != 21 {
			t.Errorf("%v sent", sent)
		}
	})
}

// TestSharedAlone: what one machine asked for is kept for a minute.
func TestSharedAlone(t *testing.T) {
	coded()
	synctest.Test(t, func(t *testing.T) {
		e := newEncoders(t)
		defer e.Close()
		d := e.ask(t, e.to, 0)
		if err := e.send(t, d); err != nil {
			t.Fatal(err)
		}
		_ = d.Close()
		time.Sleep(keepFor + time.Second)
		if e.closed.Load() != 1 {
			t.Error("kept")
		}
	})
}

// TestSharedWaits: a delta waits for an encoder no longer than a part of the time that the NAR takes without one, and the
// receiver hears of it meanwhile. A machine that does not say how long that is does not wait.
func TestSharedWaits(t *testing.T) {
	coded()
	synctest.Test(t, func(t *testing.T) {
		e := newEncoders(t)
		defer e.Close()
		e.slots.free = 1
		release, _ := e.slots.take(e.another, 1000)
		if d := e.ask(t, e.to, 0); d != nil {
			t.Error("a delta without an encoder")
		}
		start := time.Now()
		d := e.ask(t, e.to, 8*time.Second)
		if d == nil || time.Since(start) > 0 {
			t.Fatal("it has to begin at once")
		}
		var out bytes.Buffer
		if err := d.Send(t.Context(), &out, func(int) {}); !errors.Is(err, errNoSlot) || time.Since(start) != 2*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if out.Len() < len(skippable) {
			t.Error("the receiver heard nothing")
		}
		_ = d.Close()
		d = e.ask(t, e.to, 8*time.Second)
		time.AfterFunc(time.Second, func() { release(0) })
		if err := e.send(t, d); err != nil {
			t.Error(err)
		}
		_ = d.Close()
		if metrics.Value(e.m.Delta.WithLabelValues("no_slot")) != 2 || e.slots.free != 1 {
			t.Error("miscounted")
		}
	})
}

// TestSharedLeft: what nobody waits for any more is not made, and nobody gets it.
func TestSharedLeft(t *testing.T) {
	coded()
	synctest.Test(t, func(t *testing.T) {
		e := newEncoders(t)
		defer e.Close()
		e.slots.free = 1
		release, _ := e.slots.take(e.another, 1000)
		d := e.ask(t, e.to, time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := d.Send(ctx, io.Discard, func(int) {}); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		_ = d.Close()
		synctest.Wait()
		if e.closed.Load() != 1 || len(e.codings.list) > 0 {
			t.Error("it is still waited for")
		}
		release(0)
		if d = e.ask(t, e.to, 0); d == nil {
			t.Fatal("no delta")
		}
		if err := e.send(t, d); err != nil {
			t.Error(err)
		}
		_ = d.Close()
	})
}

// TestSharedFails: without a file each machine has the delta made for itself; a file that is full, and a NAR that is wrong,
// end it early, and the next one begins anew.
func TestSharedFails(t *testing.T) {
	coded()
	synctest.Test(t, func(t *testing.T) {
		e := newEncoders(t)
		defer e.Close()
		e.failing = true
		d := e.ask(t, e.to, 0)
		if d == nil || d.shared != nil {
			t.Fatal("not made for itself")
		}
		if err := e.send(t, d); err != nil {
			t.Error(err)
		}
		_ = d.Close()
		e.failing, e.most = false, 10
		d = e.ask(t, e.to, 0)
		if err := e.send(t, d); !errors.Is(err, io.ErrShortWrite) {
			t.Error(err)
		}
		_ = d.Close()
		e.most = 0
		damaged := bytes.Clone(e.now.NAR)
		damaged[2000] ^= 1
		e.trees.AddBytes(e.now.NarHash(), nix.Raw, damaged)
		d = e.ask(t, e.to, 0)
		if err := e.send(t, d); source.Invalid(err) == nil || len(e.trees.Reports()) != 1 {
			t.Errorf("%v, %d reports", err, len(e.trees.Reports()))
		}
		_ = d.Close()
		if len(e.codings.list) > 0 || e.trees.Open.Load() != 0 {
			t.Error("something is kept")
		}
	})
}

// TestCodingsBounded: of too many deltas, those go that were not read for longest.
func TestCodingsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var closed atomic.Int32
		c := codings{list: map[pair]*coding{}, scratch: func() (Scratch, error) { return &memory{closed: &closed}, nil }}
		defer c.close()
		at := func(i int) pair { return pair{nar: nix.NarHash{byte(i), byte(i >> 8)}} }
		for i := range maxCodings + 10 {
			k, isNew := c.join(at(i))
			if k == nil || !isNew {
				t.Fatal("none")
			}
			c.ended(k, delta.Stats{}, nil)
			c.leave(k)
			time.Sleep(time.Millisecond)
		}
		if len(c.list) != maxCodings || closed.Load() != 10 || c.list[at(9)] != nil || c.list[at(10)] == nil {
			t.Errorf("%d are kept, %d closed", len(c.list), closed.Load())
		}
	})
}
