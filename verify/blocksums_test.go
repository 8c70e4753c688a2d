package verify

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/iotest"
)

func sumsOf(t testing.TB, b []byte) *BlockSums {
	t.Helper()
	p := NewBlockSums(wantOf(b))
	// In pieces that are not those of the second time.
	if _, err := io.CopyBuffer(struct{ io.Writer }{p}, struct{ io.Reader }{bytes.NewReader(b)}, make([]byte, 100_001)); err != nil {
		t.Fatal(err)
	}
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestPrevious: what is read once more leaves only as far as it is the same.
func TestKnown(t *testing.T) {
	for _, size := range []int{1, 1000, sumBlock - 1, sumBlock, sumBlock + 1, 5*sumBlock + 17} {
		data := noise()[:size]
		hold := Holdback{Previous: sumsOf(t, data)}
		for _, b := range behaviours {
			dst := &received{want: data}
			filler, drainer := pass(wantOf(data), hold, dst, func(g *Guard) error { return b.fill(g, data) })
			want := b.want
			if want == ReasonSize && b.name != "long" {
				if size == 1 {
					continue // there is no half of one byte
				}
				want = ReasonHash // seen before it is too long
			}
			if !matches(filler, want) || drainer != filler { //nolint:errorlint // the same one
				t.Errorf("%s, %d bytes: filler %v, drainer %v", b.name, size, filler, drainer)
			}
			if dst.wrong || (dst.n == size) != (b.want == nil) {
				t.Errorf("%s, %d bytes: got %d, wrong %v", b.name, size, dst.n, dst.wrong)
			}
		}
		for at := 0; at < size; at += size/7 + 1 {
			dst := &received{want: data}
			_, err := pass(wantOf(data), hold, dst, func(g *Guard) error { return g.Fill(&flipped{b: data, at: at}) })
			var invalid *InvalidError
			if !errors.As(err, &invalid) || dst.wrong || dst.n > at {
				t.Errorf("byte %d of %d is wrong: %d came, wrong %v, %v", at, size, dst.n, dst.wrong, err)
			}
		}
	}
}

// TestKnownStreams: the window is small whatever the size of the stream.
func TestKnownStreams(t *testing.T) {
	data := noise()
	hold := Holdback{Previous: sumsOf(t, data)}
	if m := hold.Memory(int64(len(data))); m > 3*sumBlock {
		t.Errorf("takes %d bytes", m)
	}
	dst := &received{want: data}
	if _, err := pass(wantOf(data), hold, dst, func(g *Guard) error { return g.Fill(iotest.HalfReader(bytes.NewReader(data))) }); err != nil || dst.wrong || dst.n != len(data) {
		t.Errorf("%d of %d bytes, wrong %v, %v", dst.n, len(data), dst.wrong, err)
	}
}

// TestMemory: what a Holdback says that a Guard takes is the most that it takes.
func TestMemory(t *testing.T) {
	for _, size := range []int{1, 5000, blockSize, blockSize + 1, TailSize, 3<<20 + 1} {
		data := noise()[:size]
		for _, h := range []Holdback{{}, {VerifyFirst: 64 << 20}, {LowMemory: true}, {Tail: 10}, {Previous: sumsOf(t, data)}} {
			g := NewGuard(wantOf(data), h)
			most := 0
			count := func() {
				n := 0
				g.mu.Lock()
				for _, b := range g.blocks {
					n += cap(b)
				}
				g.mu.Unlock()
				most = max(most, n)
			}
			var wg sync.WaitGroup
			wg.Go(func() { _ = g.End(g.Fill(iotest.HalfReader(bytes.NewReader(data)))) })
			dst := writer(func(p []byte) (int, error) { count(); return len(p), nil })
			if err := g.Drain(dst); err != nil {
				t.Errorf("%d bytes, %+v: %v", size, h, err)
			}
			wg.Wait()
			if limit := h.Memory(int64(size)); int64(most) > limit || most == 0 {
				t.Errorf("%d bytes, %+v: takes %d, says %d", size, h, most, limit)
			}
			g.Free()
		}
	}
}

type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func BenchmarkPrint(b *testing.B) {
	data := noise()[:64<<20]
	want, known := wantOf(data), Holdback{Previous: sumsOf(b, data)}
	b.Run(fmt.Sprintf("first-%dMiB", len(data)>>20), func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			sumsOf(b, data)
		}
	})
	b.Run(fmt.Sprintf("again-%dMiB", len(data)>>20), func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			if _, err := pass(want, known, io.Discard, func(g *Guard) error { return g.Fill(bytes.NewReader(data)) }); err != nil {
				b.Fatal(err)
			}
		}
	})
}
