package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/nixtest"
	"github.com/nixp2p/nixp2p/verify"
)

// line is a way to a cache that can be cut silently: what was open stays open, and new
// connections time out.
type line struct {
	dials atomic.Int32
	cut   chan struct{} // closed when it is
	mend  chan struct{} // closed when it works again
}

func newLine() *line { return &line{cut: make(chan struct{}), mend: make(chan struct{})} }

func (l *line) is(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (l *line) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	l.dials.Add(1)
	if l.is(l.cut) && !l.is(l.mend) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, network, addr)
	if err != nil || l.is(l.cut) {
		return c, err
	}
	return &cutConn{c, l.cut}, nil
}

// cutConn swallows what is written after the cut, so that no answer comes.
type cutConn struct {
	net.Conn
	cut chan struct{}
}

func (c *cutConn) Write(p []byte) (int, error) {
	select {
	case <-c.cut:
		return len(p), nil
	default:
		return c.Conn.Write(p)
	}
}

func cuttable(l *line) func(*Config) {
	return func(c *Config) {
		c.timeouts.connect, c.timeouts.late, c.timeouts.headers = 600*time.Millisecond, 50*time.Millisecond, time.Minute
		c.dialer = l.dial
	}
}

// TestSilentCut: over an open connection that is cut silently, the first request learns of it
// within little more than a connect timeout, all others that wait too, the next one at once.
func TestSilentCut(t *testing.T) {
	t.Parallel()
	p := nixtest.NewPath("hello", 100)
	u := nixtest.NewUpstream(t, cache(nix.None, p))
	l := newLine()
	b := open(t, cuttable(l), u.URL())
	b.mustInfo(p)
	close(l.cut)
	done := make(chan error, 3)
	for range cap(done) {
		go func() {
			_, err := b.Info(t.Context(), p.Hash())
			done <- err
		}()
	}
	for range cap(done) {
		if err := <-done; kindOf(err) != "unavailable" {
			t.Errorf("%v", err)
		}
	}
	// Nothing but the dials can have told: the answer would have been waited for much longer.
	if !b.Down() {
		t.Error("not down")
	}
	dials := l.dials.Load()
	if dials > int32(cap(done)*infoTries) {
		t.Errorf("%d dials", dials)
	}
	if _, err := b.Info(t.Context(), p.Hash()); kindOf(err) != "unavailable" || l.dials.Load() != dials {
		t.Errorf("then: %v, %d more dials", err, l.dials.Load()-dials)
	}
	b.run()
	close(l.mend)
	until(t, "up again", func() bool { return !b.Down() })
	b.mustInfo(p)
}

// TestSlowIsNotDown: a cache that takes its time can be connected to, and stays up.
func TestSlowIsNotDown(t *testing.T) {
	t.Parallel()
	p := nixtest.NewPath("hello", 100)
	u := nixtest.NewUpstream(t, cache(nix.None, p))
	u.Set(nixtest.NarInfo, nixtest.Fault{Delay: 400 * time.Millisecond})
	l := newLine()
	b := open(t, cuttable(l), u.URL())
	for range 3 {
		b.mustInfo(p)
	}
	if b.Down() {
		t.Error("down")
	}
	if n := l.dials.Load(); n < 3 || n > 12 {
		t.Errorf("%d dials", n)
	}
}

// TestNarInfoShowsHealth: a cache that is silent for narinfos alone is down until it has answered
// one, whatever else it answers.
func TestNarInfoShowsHealth(t *testing.T) {
	t.Parallel()
	p := nixtest.NewPath("hello", 100)
	u := nixtest.NewUpstream(t, cache(nix.None, p))
	u.Set(nixtest.NarInfo, nixtest.Fault{Do: nixtest.Hang, At: nixtest.BeforeHeaders})
	b := open(t, hasty, u.URL())
	b.run()
	until(t, "it told of itself", func() bool { return u.Requests(nixtest.CacheInfo) > 0 })
	if _, err := b.Info(t.Context(), p.Hash()); kindOf(err) != "unavailable" || !b.Down() {
		t.Fatalf("%v, down %v", err, b.Down())
	}
	asked := u.Requests(nixtest.NarInfo)
	until(t, "probes", func() bool {
		if !b.Down() {
			t.Fatal("up although it answers no narinfo")
		}
		return u.Requests(nixtest.NarInfo) >= asked+3
	})
	if b.count("upstream_up") != 0 {
		t.Error("counted as up")
	}
	u.SetAll()
	until(t, "up again", func() bool { return !b.Down() })
	b.mustInfo(p)
}

// coming has a NAR fetched meanwhile, and returns how that will have ended.
func (b *bench) coming(info *verify.Info) <-chan error {
	b.t.Helper()
	nar, err := b.NAR(b.t.Context(), info, nix.Raw, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	come := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, nar.Body)
		_ = nar.Body.Close()
		come <- err
	}()
	return come
}

// TestSaturatedLine: while bytes come from a cache it is there, however long new connections take.
func TestSaturatedLine(t *testing.T) {
	t.Parallel()
	p, large := nixtest.NewPath("hello", 100), nixtest.NewPath("large", 4<<20)
	u := nixtest.NewUpstream(t, cache(nix.None, p, large))
	u.Set(nixtest.NarFile, nixtest.Fault{Rate: 1 << 20})
	l := newLine()
	b := open(t, cuttable(l), u.URL())
	info := b.mustInfo(large)
	come := b.coming(info)
	close(l.cut) // the open connection goes on being read
	for range 4 {
		ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
		if _, err := b.Info(ctx, p.Hash()); err == nil {
			t.Error("a narinfo came over no connection")
		}
		cancel()
		select {
		case err := <-come:
			t.Fatalf("the NAR ended too soon: %v", err)
		default:
		}
		if b.Down() {
			t.Fatal("down while bytes come")
		}
	}
	if err := <-come; err != nil {
		t.Error(err)
	}
}

// TestQueue: a narinfo that comes late over a saturated line is waited for; one that comes late
// over an idle line is not.
func TestQueue(t *testing.T) {
	t.Parallel()
	p, large := nixtest.NewPath("hello", 100), nixtest.NewPath("large", 4<<20)
	u := nixtest.NewUpstream(t, cache(nix.None, p, large))
	u.Set(nixtest.NarFile, nixtest.Fault{Rate: 1 << 20})
	b := open(t, hasty, u.URL())
	info := b.mustInfo(large)
	u.Set(nixtest.NarInfo, nixtest.Fault{Delay: 3 * time.Second})
	come := b.coming(info)
	if _, err := b.Info(t.Context(), p.Hash()); err != nil || !b.Saturated() {
		t.Errorf("full line: %v, crowded: %v", err, b.Saturated())
	}
	if err := <-come; err != nil {
		t.Error(err)
	}
	until(t, "idle", func() bool { return !b.Saturated() })
	if _, err := b.Info(t.Context(), p.Hash()); err == nil || b.Saturated() {
		t.Errorf("idle line: %v, crowded: %v", err, b.Saturated())
	}
}

// TestQueuedNAR: a NAR that stalls repeatedly while others get their bytes is resumed; one that
// stalls alone is given up.
func TestQueuedNAR(t *testing.T) {
	t.Parallel()
	const piece = 20 << 10
	p, large := nixtest.NewPath("hello", 8*piece), nixtest.NewPath("large", 4<<20)
	u := nixtest.NewUpstream(t, cache(nix.None, p, large))
	hello := func(r *http.Request) bool { return strings.Contains(r.URL.Path, p.NarHash().Nix32()) }
	var stalls []nixtest.Fault
	for range 7 {
		stalls = append(stalls, nixtest.Fault{Only: hello, Times: 1, Do: nixtest.Hang, At: piece})
	}
	for _, full := range []bool{true, false} {
		b := open(t, hasty, u.URL())
		u.Set(nixtest.NarFile, append(slices.Clone(stalls), nixtest.Fault{Rate: 1 << 20})...)
		info, other := b.mustInfo(p), b.mustInfo(large)
		come := make(<-chan error)
		if full {
			come = b.coming(other)
		}
		nar, err := b.NAR(t.Context(), info, nix.Raw, 0)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(nar.Body)
		_ = nar.Body.Close()
		if whole := err == nil && bytes.Equal(got, p.NAR); whole != full {
			t.Errorf("full line: %v, %d of %d bytes, %v", full, len(got), len(p.NAR), err)
		}
		if full {
			if err := <-come; err != nil {
				t.Error(err)
			}
		}
	}
}

// TestSecondQuestion: a narinfo that is lost on the way is there soon all the same; one that comes
// in time is asked for once.
func TestSecondQuestion(t *testing.T) {
	t.Parallel()
	p := nixtest.NewPath("hello", 100)
	u := nixtest.NewUpstream(t, cache(nix.None, p))
	b := open(t, func(c *Config) { c.timeouts.late = 200 * time.Millisecond }, u.URL())
	b.mustInfo(p)
	if n := u.Requests(nixtest.NarInfo); n != 1 {
		t.Errorf("asked %d times", n)
	}
	u.Set(nixtest.NarInfo, nixtest.Fault{Do: nixtest.Hang, At: nixtest.BeforeHeaders, Times: 1})
	began := time.Now()
	b.mustInfo(p)
	if d, n := time.Since(began), u.Requests(nixtest.NarInfo); n != 3 || d > 5*time.Second {
		t.Errorf("asked %d times, %v", n, d)
	}
	u.Set(nixtest.NarInfo, nixtest.Fault{Status: http.StatusNotFound})
	if _, err := b.Info(t.Context(), p.Hash()); !errors.Is(err, fs.ErrNotExist) || u.Requests(nixtest.NarInfo) != 4 {
		t.Errorf("%v, asked %d times", err, u.Requests(nixtest.NarInfo))
	}
}

// TestQueuedNARElsewhere: if another cache has it, it does not wait in the queue.
func TestQueuedNARElsewhere(t *testing.T) {
	t.Parallel()
	const piece = 20 << 10
	p, large := nixtest.NewPath("hello", 8*piece), nixtest.NewPath("large", 4<<20)
	u, other := nixtest.NewUpstream(t, cache(nix.None, p, large)), nixtest.NewUpstream(t, cache(nix.None, p))
	hello := func(r *http.Request) bool { return strings.Contains(r.URL.Path, p.NarHash().Nix32()) }
	u.Set(nixtest.NarFile, nixtest.Fault{Only: hello, Do: nixtest.Hang, At: piece}, nixtest.Fault{Rate: 1 << 20})
	b := open(t, hasty, u.URL(), other.URL())
	come := b.coming(b.mustInfo(large))
	nar, err := b.NAR(t.Context(), b.mustInfo(p), nix.Raw, 0)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(nar.Body)
	_ = nar.Body.Close()
	if err != nil || !bytes.Equal(got, p.NAR) {
		t.Errorf("%d of %d bytes, %v", len(got), len(p.NAR), err)
	}
	if n := u.Requests(nixtest.NarFile); n > 3 { // the large one, and this at most twice
		t.Errorf("asked %d times where it stalls", n)
	}
	if err := <-come; err != nil {
		t.Error(err)
	}
}

// TestSlowIsAskedOnce: a cache that is slow by nature is not asked twice for everything.
func TestSlowIsAskedOnce(t *testing.T) {
	t.Parallel()
	var paths []nixtest.Path
	for i := range 16 {
		paths = append(paths, nixtest.NewPath(fmt.Sprintf("path%d", i), 100))
	}
	u := nixtest.NewUpstream(t, cache(nix.None, paths...))
	u.Set(nixtest.NarInfo, nixtest.Fault{Delay: 250 * time.Millisecond})
	b := open(t, func(c *Config) { c.timeouts.late = 200 * time.Millisecond }, u.URL())
	for _, p := range paths[:10] {
		b.mustInfo(p)
	}
	before := u.Requests(nixtest.NarInfo)
	for _, p := range paths[10:] {
		b.mustInfo(p)
	}
	if n := u.Requests(nixtest.NarInfo) - before; n != 6 {
		t.Errorf("asked %d times for 6", n)
	}
}
