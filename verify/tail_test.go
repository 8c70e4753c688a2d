package verify

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// stalling sends first, waits once, and goes on with rest.
type stalling struct {
	first io.Reader
	wait  func()
	rest  io.Reader
}

func (r *stalling) Read(p []byte) (int, error) {
	n, err := r.first.Read(p)
	if n > 0 || !errors.Is(err, io.EOF) {
		return n, err
	}
	if r.wait != nil {
		r.wait()
		r.wait = nil
	}
	return r.rest.Read(p)
}

// arrivals notes when how much had come.
type arrivals struct {
	received
	start time.Time
	first time.Duration // when the first byte came, 0 for at once
}

func (w *arrivals) Write(p []byte) (int, error) {
	if w.n == 0 {
		w.first = time.Since(w.start)
	}
	return w.received.Write(p)
}

// TestGuardPatience: a client that has heard nothing for long gets what was held back,
// but never all of it.
func TestGuardPatience(t *testing.T) {
	const mib = 1 << 20
	for _, test := range []struct {
		name          string
		size, sent    int // bytes in all, and before the source stalls
		stall         time.Duration
		hold          Holdback
		first         time.Duration // when the client must hear something
		before, after int           // bytes that it has when the source stops stalling and turns bad: at least, at most
	}{
		{"small, short stall", 900 << 10, 500 << 10, patience - 1, Holdback{}, 0, 0, 0},
		{"small, long stall", 900 << 10, 500 << 10, patience + 1, Holdback{}, patience, 436 << 10, 436 << 10},
		{"nearly all sent", 900 << 10, 900<<10 - 1, patience + 1, Holdback{}, patience, 836<<10 - 1, 836<<10 - 1},
		{"large, tail only", 3 * mib, 2 * mib, patience - 1, Holdback{}, 0, mib, mib},
		{"large, long stall", 3 * mib, 2 * mib, patience + 1, Holdback{}, 0, 2*mib - 64<<10, 2*mib - 64<<10},
		{"ahead, long stall", 3 * mib, 2 * mib, patience + 1, Holdback{VerifyFirst: 3 * mib}, patience, 2*mib - 64<<10, 2*mib - 64<<10},
		{"ahead, short stall", 3 * mib, 2 * mib, patience - 1, Holdback{VerifyFirst: 3 * mib}, 0, 0, 0},
		{"ahead for a second, stall", 3 * mib, 2 * mib, 2 * time.Second, Holdback{VerifyFirst: 64 * mib, VerifyFor: time.Second}, time.Second, mib, mib},
		{"ahead for a second, no stall", 3 * mib, 2 * mib, time.Second - 1, Holdback{VerifyFirst: 64 * mib, VerifyFor: time.Second}, 0, 0, 0},
		{"ahead for a second, long stall", 3 * mib, 2 * mib, patience + 2*time.Second, Holdback{VerifyFirst: 64 * mib, VerifyFor: time.Second}, time.Second, 2*mib - 64<<10, 2*mib - 64<<10},
		{"small, ahead for a second", 900 << 10, 500 << 10, 2 * time.Second, Holdback{VerifyFirst: 64 * mib, VerifyFor: time.Second}, 0, 0, 0},
		{"ahead for longer than patience", 3 * mib, 2 * mib, patience + 1, Holdback{VerifyFirst: 64 * mib, VerifyFor: time.Hour}, patience, 2*mib - 64<<10, 2*mib - 64<<10},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := noise()[:test.size]
				bad := bytes.Clone(data)
				bad[test.size-1] ^= 1
				for _, rest := range [][]byte{bad, data} {
					dst := &arrivals{received: received{want: data}, start: time.Now()}
					filler, drainer := pass(wantOf(data), test.hold, dst, func(g *Guard) error {
						return g.Fill(&stalling{bytes.NewReader(rest[:test.sent]), func() { time.Sleep(test.stall) }, bytes.NewReader(rest[test.sent:])})
					})
					good := &rest[0] == &data[0]
					if !matches(filler, map[bool]any{true: nil, false: ReasonHash}[good]) || drainer != filler { //nolint:errorlint // the same one
						t.Fatalf("good %v: %v, %v", good, filler, drainer)
					}
					if good && (dst.n != test.size || dst.wrong) {
						t.Errorf("%d of %d bytes, wrong %v", dst.n, test.size, dst.wrong)
					}
					if !good && dst.n > test.size-shrunkTail {
						t.Errorf("%d of %d bytes of a bad stream", dst.n, test.size)
					}
					if !good && dst.first != test.first {
						t.Errorf("first byte after %v, want %v", dst.first, test.first)
					}
				}
				checkStalled(t, data, test.sent, func() { time.Sleep(test.stall) }, test.hold, test.before, test.after)
			})
		})
	}
}

// checkStalled looks how much a client has when its source breaks after a stall.
func checkStalled(t *testing.T, data []byte, sent int, stall func(), hold Holdback, least, most int) {
	t.Helper()
	dst := &received{want: data}
	filler, _ := pass(wantOf(data), hold, dst, func(g *Guard) error {
		return g.Fill(&stalling{bytes.NewReader(data[:sent]), stall, iotest.ErrReader(errBroken)})
	})
	if !errors.Is(filler, errBroken) || dst.n < least || dst.n > most || dst.wrong {
		t.Errorf("%d bytes have left, want %d to %d; %v, wrong %v", dst.n, least, most, filler, dst.wrong)
	}
}

// slowWriter takes its time for each write.
type slowWriter struct {
	received
	wait func()
}

func (w *slowWriter) Write(p []byte) (int, error) {
	w.wait()
	return w.received.Write(p)
}

// TestGuardSlowReader: a slow client is waited for, holds the source back, and does not
// shrink the tail.
func TestGuardSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := noise()[:8<<20]
		dst := &slowWriter{received{want: data}, func() { time.Sleep(30 * time.Second) }}
		g := NewGuard(wantOf(data), Holdback{})
		filled := make(chan error, 1)
		go func() { filled <- g.End(g.Fill(&flipped{b: data, at: len(data) - 1})) }()
		drained := make(chan error, 1)
		go func() { drained <- g.Drain(dst) }()
		synctest.Wait()
		if got, ring := g.Offset(), int64(TailSize+slack); got != ring {
			t.Errorf("filled %d while the client took nothing, want %d", got, ring)
		}
		if err := <-filled; !matches(err, ReasonHash) {
			t.Errorf("filler: %v", err)
		}
		if err := <-drained; !matches(err, ReasonHash) {
			t.Errorf("drainer: %v", err)
		}
		if dst.n > len(data)-TailSize || dst.wrong {
			t.Errorf("%d of %d bytes have left, wrong %v", dst.n, len(data), dst.wrong)
		}
		g.Free()
	})
}

// TestGuardTrickle: as long as bytes go out now and then, the tail stays.
func TestGuardTrickle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := noise()[:3<<20]
		dst := &received{want: data}
		filler, _ := pass(wantOf(data), Holdback{}, dst, func(g *Guard) error {
			for at, n := 0, TailSize+1; at < len(data)-1; at, n = at+n, 100_000 {
				if err := g.Fill(bytes.NewReader(data[at:min(at+n, len(data)-1)])); err != nil {
					return err
				}
				<-time.After(patience - time.Second)
			}
			return nil
		})
		if !errors.Is(filler, io.ErrUnexpectedEOF) || dst.n != len(data)-1-TailSize {
			t.Errorf("%v, %d of %d bytes", filler, dst.n, len(data))
		}
	})
}

// TestGuardReaderGoneWhileFull: the filler waits for room when the client leaves.
func TestGuardReaderGoneWhileFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := noise()[:8<<20]
		g := NewGuard(wantOf(data), Holdback{})
		filled := make(chan error, 1)
		go func() { filled <- g.End(g.Fill(bytes.NewReader(data))) }()
		synctest.Wait()
		if len(filled) > 0 {
			t.Fatal("the filler did not wait")
		}
		if err := g.Drain(&leaving{0}); !errors.Is(err, errClient) {
			t.Errorf("drainer: %v", err)
		}
		if err := <-filled; !errors.Is(err, ErrReaderGone) {
			t.Errorf("filler: %v", err)
		}
		g.Free()
	})
}

// TestTail: the rule itself, which is the same for streams and for downloads that are read while
// they grow.
func TestTail(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		name    string
		hold    Holdback
		size    int64
		visible [3]int64         // of 2 MiB, before anything, after one Shrink and after two
		wait    [3]time.Duration // before each of them
	}{
		{"default", Holdback{}, 3 * mib, [3]int64{mib, 2*mib - shrunkTail, 2*mib - shrunkTail}, [3]time.Duration{patience, patience, patience}},
		{"tail of 2 MiB", Holdback{Tail: 2 * mib}, 3 * mib, [3]int64{0, 2*mib - shrunkTail, 2*mib - shrunkTail}, [3]time.Duration{patience, patience, patience}},
		{"small tail", Holdback{Tail: 10}, 3 * mib, [3]int64{2*mib - 10, 2*mib - 10, 2*mib - 10}, [3]time.Duration{patience, patience, patience}},
		{"verified first", Holdback{VerifyFirst: 3 * mib}, 3 * mib, [3]int64{0, 2*mib - shrunkTail, 2*mib - shrunkTail}, [3]time.Duration{patience, patience, patience}},
		{"too large for that", Holdback{VerifyFirst: 3 * mib}, 3*mib + 1, [3]int64{mib, 2*mib - shrunkTail, 2*mib - shrunkTail}, [3]time.Duration{patience, patience, patience}},
		{"verified first for 1 s", Holdback{VerifyFirst: 3 * mib, VerifyFor: time.Second}, 3 * mib, [3]int64{0, mib, 2*mib - shrunkTail}, [3]time.Duration{time.Second, patience, patience}},
		{"low memory", Holdback{LowMemory: true}, 3 * mib, [3]int64{2*mib - shrunkTail, 2*mib - shrunkTail, 2*mib - shrunkTail}, [3]time.Duration{patience, patience, patience}},
		{"proven before", Holdback{Previous: &BlockSums{}}, 3 * mib, [3]int64{2*mib - sumBlock, 2*mib - sumBlock, 2*mib - sumBlock}, [3]time.Duration{patience, patience, patience}},
	} {
		tail := NewTail(c.hold)
		for i, want := range c.visible {
			if got := tail.Visible(2*mib, c.size, false); got != want {
				t.Errorf("%s, shrunk %d times: %d visible, want %d", c.name, i, got, want)
			}
			if got := tail.Patience(c.size); got != c.wait[i] {
				t.Errorf("%s, shrunk %d times: waits %v, want %v", c.name, i, got, c.wait[i])
			}
			if got := tail.Visible(c.size, c.size, true); got != c.size {
				t.Errorf("%s: proven, and %d visible", c.name, got)
			}
			if got := tail.Visible(10, c.size, false); got < 0 || got > 10 {
				t.Errorf("%s: %d of 10 visible", c.name, got)
			}
			tail.Shrink(c.size)
		}
	}
	var zero Tail
	if got := zero.Visible(3*mib, 9*mib, false); got != 2*mib {
		t.Errorf("zero value: %d", got)
	}
}
