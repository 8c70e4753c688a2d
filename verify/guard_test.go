package verify

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/iotest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// noise is what all streams of these tests are made of.
var noise = sync.OnceValue(func() []byte {
	b := make([]byte, 65<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
})

func wantOf(b []byte) Digest { return Digest{int64(len(b)), sha256.Sum256(b)} }

// flipped reads b with one bit of byte at flipped.
type flipped struct {
	b      []byte
	at, of int
}

func (r *flipped) Read(p []byte) (int, error) {
	if r.of == len(r.b) {
		return 0, io.EOF
	}
	n := copy(p, r.b[r.of:])
	if i := r.at - r.of; 0 <= i && i < n {
		p[i] ^= 1
	}
	r.of += n
	return n, nil
}

// received notes how much came and whether it was what was expected.
type received struct {
	want  []byte
	n     int
	wrong bool
}

func (w *received) Write(p []byte) (int, error) {
	if w.n+len(p) > len(w.want) || !bytes.Equal(p, w.want[w.n:w.n+len(p)]) {
		w.wrong = true
	}
	w.n += len(p)
	return len(p), nil
}

// pass runs a Guard between fill and dst as its users do, and returns both verdicts.
func pass(want Digest, hold Holdback, dst io.Writer, fill func(g *Guard) error) (filler, drainer error) {
	g := NewGuard(want, hold)
	var wg sync.WaitGroup
	wg.Go(func() { filler = g.End(fill(g)) })
	drainer = g.Drain(dst)
	wg.Wait()
	g.Free()
	return filler, drainer
}

var errBroken = errors.New("connection reset")

// behaviours are the ways of a source. data is what it should send.
var behaviours = []struct {
	name string
	fill func(g *Guard, data []byte) error
	// want is nil for success, a Reason for an InvalidError, else what errors.Is finds.
	want any
}{
	{"good", func(g *Guard, data []byte) error { return g.Fill(bytes.NewReader(data)) }, nil},
	{"flips the first byte", func(g *Guard, data []byte) error { return g.Fill(&flipped{b: data}) }, ReasonHash},
	{"flips the last byte", func(g *Guard, data []byte) error { return g.Fill(&flipped{b: data, at: len(data) - 1}) }, ReasonHash},
	{"short", func(g *Guard, data []byte) error { return g.Fill(bytes.NewReader(data[:len(data)-1])) }, io.ErrUnexpectedEOF},
	{"long", func(g *Guard, data []byte) error {
		return g.Fill(io.MultiReader(bytes.NewReader(data), bytes.NewReader([]byte{0})))
	}, ReasonSize},
	{"breaks", func(g *Guard, data []byte) error {
		return g.Fill(io.MultiReader(bytes.NewReader(data[:len(data)/2]), iotest.ErrReader(errBroken)))
	}, errBroken},
	{"breaks when all is sent", func(g *Guard, data []byte) error {
		return g.Fill(io.MultiReader(bytes.NewReader(data), iotest.ErrReader(errBroken)))
	}, nil},
	{"breaks with the last bytes", func(g *Guard, data []byte) error {
		return g.Fill(iotest.DataErrReader(io.MultiReader(bytes.NewReader(data), iotest.ErrReader(errBroken))))
	}, nil},
	{"breaks, another goes on", func(g *Guard, data []byte) error {
		return breakThenGoOn(g, data, bytes.NewReader(data[len(data)/2:]))
	}, nil},
	{"breaks, another goes on wrongly", func(g *Guard, data []byte) error {
		return breakThenGoOn(g, data, &flipped{b: data[len(data)/2:], at: len(data) - len(data)/2 - 1})
	}, ReasonHash},
	{"breaks, another begins again", func(g *Guard, data []byte) error {
		return breakThenGoOn(g, data[:max(2, len(data))-1], bytes.NewReader(data))
	}, ReasonSize},
}

func breakThenGoOn(g *Guard, data []byte, second io.Reader) error {
	half := len(data) / 2
	err := g.Fill(io.MultiReader(bytes.NewReader(data[:half]), iotest.ErrReader(errBroken)))
	if !errors.Is(err, errBroken) || g.Offset() != int64(half) {
		return fmt.Errorf("first source: at %d of %d, %w", g.Offset(), half, err)
	}
	return g.Fill(second)
}

// matches reports whether err is what a behaviour wants.
func matches(err error, want any) bool {
	var invalid *InvalidError
	isInvalid := errors.As(err, &invalid)
	switch want := want.(type) {
	case nil:
		return err == nil
	case Reason:
		return isInvalid && invalid.Reason == want
	case error:
		return errors.Is(err, want) && !isInvalid
	}
	return false
}

// TestGuard: a good stream passes whole, and of a bad one the client lacks at least the
// tail, or everything where it is proven ahead.
func TestGuard(t *testing.T) {
	for _, size := range []int{1, shrunkTail, TailSize - 1, TailSize, TailSize + 1, 3 * TailSize, 64<<20 + 1} {
		data := noise()[:size]
		want := wantOf(data)
		holds := []Holdback{
			{VerifyFirst: 64 << 20, VerifyFor: patience / 2}, {}, {VerifyFirst: int64(size)}, {VerifyFirst: int64(size - 1)}, {Tail: shrunkTail}, {Tail: 3*TailSize + 5},
		}
		behaviours := behaviours
		if size > 64<<20 { // enough to see that it is not kept whole
			holds, behaviours = holds[:2], behaviours[:3]
		}
		for _, hold := range holds {
			for _, b := range behaviours {
				dst := &received{want: data}
				filler, drainer := pass(want, hold, dst, func(g *Guard) error { return b.fill(g, data) })
				name := fmt.Sprintf("%d bytes, %+v, source %s", size, hold, b.name)
				if size == 1 && b.name == "breaks, another begins again" {
					continue // there is no half of one byte
				}
				if !matches(filler, b.want) || drainer != filler { //nolint:errorlint // the same one
					t.Errorf("%s: filler %v, drainer %v", name, filler, drainer)
				}
				checkReceived(t, name, dst, hold, b.want == nil)
			}
		}
	}
}

func checkReceived(t *testing.T, name string, dst *received, hold Holdback, good bool) {
	t.Helper()
	size := len(dst.want)
	tail := int(hold.Tail)
	if tail == 0 {
		tail = TailSize
	}
	switch {
	case good && (dst.n != size || dst.wrong):
		t.Errorf("%s: %d bytes left, wrong %v", name, dst.n, dst.wrong)
	case !good && int64(size) <= hold.VerifyFirst && dst.n > 0:
		t.Errorf("%s: %d bytes left before the proof", name, dst.n)
	case !good && dst.n > max(0, size-tail):
		t.Errorf("%s: %d bytes left, of the tail too", name, dst.n)
	}
}

// TestGuardPieces: how the bytes come and go changes nothing.
func TestGuardPieces(t *testing.T) {
	data := noise()[:3*TailSize+77]
	random := rand.New(rand.NewPCG(1, 2))
	for name, src := range map[string]func() io.Reader{
		"data with EOF": func() io.Reader { return iotest.DataErrReader(bytes.NewReader(data)) },
		"half reads":    func() io.Reader { return iotest.HalfReader(bytes.NewReader(data)) },
		"random reads":  func() io.Reader { return &randomReader{bytes.NewReader(data), random} },
	} {
		dst := &received{want: data}
		filler, drainer := pass(wantOf(data), Holdback{}, dst, func(g *Guard) error { return g.Fill(src()) })
		if filler != nil || drainer != nil || dst.n != len(data) || dst.wrong {
			t.Errorf("%s: %v, %v, %d bytes, wrong %v", name, filler, drainer, dst.n, dst.wrong)
		}
	}
	small := data[:5000]
	dst := &received{want: small}
	filler, _ := pass(wantOf(small), Holdback{Tail: 10}, dst, func(g *Guard) error { return g.Fill(iotest.OneByteReader(bytes.NewReader(small))) })
	if filler != nil || dst.n != len(small) || dst.wrong {
		t.Errorf("byte by byte: %v, %d bytes, wrong %v", filler, dst.n, dst.wrong)
	}
}

// randomReader reads little or nothing at a time.
type randomReader struct {
	r      io.Reader
	random *rand.Rand
}

func (r *randomReader) Read(p []byte) (int, error) {
	return r.r.Read(p[:r.random.IntN(min(len(p), 100_000)+1)])
}

func TestGuardEmpty(t *testing.T) {
	for _, b := range [][]byte{nil, {0}} {
		var dst bytes.Buffer
		filler, drainer := pass(wantOf(nil), Holdback{}, &dst, func(g *Guard) error { return g.Fill(bytes.NewReader(b)) })
		if (filler == nil) != (b == nil) || drainer != filler || dst.Len() > 0 { //nolint:errorlint // the same one
			t.Errorf("%v: %v, %v, %d bytes", b, filler, drainer, dst.Len())
		}
	}
}

// hesitant reads nothing so many times before each byte.
type hesitant struct {
	r     io.Reader
	times int
	n     int
}

func (r *hesitant) Read(p []byte) (int, error) {
	if r.n++; r.n%(r.times+1) > 0 {
		return 0, nil
	}
	return r.r.Read(p[:1])
}

func TestGuardSourceSpins(t *testing.T) {
	data := noise()[:300]
	for times, want := range map[int]error{1: nil, 99: nil, 1 << 40: io.ErrNoProgress} {
		filler, _ := pass(wantOf(data), Holdback{}, io.Discard, func(g *Guard) error {
			return g.Fill(&hesitant{r: bytes.NewReader(data), times: times})
		})
		if !errors.Is(filler, want) {
			t.Errorf("nothing %d times: %v", times, filler)
		}
	}
}

var errClient = errors.New("broken pipe")

// leaving is a client that goes away after some bytes.
type leaving struct{ left int }

func (w *leaving) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errClient
	}
	return len(p), nil
}

// TestGuardReaderGone: the filler hears of it, whether it waits for room or not.
func TestGuardReaderGone(t *testing.T) {
	data := noise()[:8*TailSize]
	for _, stay := range []int{0, 100, TailSize, 5 * TailSize} {
		filler, drainer := pass(wantOf(data), Holdback{}, &leaving{stay}, func(g *Guard) error {
			err := g.Fill(bytes.NewReader(data))
			if errors.Is(err, ErrReaderGone) {
				if again := g.Fill(bytes.NewReader(data)); !errors.Is(again, ErrReaderGone) {
					t.Errorf("the next Fill: %v", again)
				}
			}
			return err
		})
		if !errors.Is(filler, ErrReaderGone) || !errors.Is(drainer, errClient) {
			t.Errorf("after %d bytes: filler %v, drainer %v", stay, filler, drainer)
		}
	}
}

type panicking struct{}

func (panicking) Write([]byte) (int, error) { panic(errClient) }

// TestGuardReaderPanics: servers end a response by a panic.
func TestGuardReaderPanics(t *testing.T) {
	data := noise()[:8*TailSize]
	g := NewGuard(wantOf(data), Holdback{})
	filled := make(chan error)
	go func() { filled <- g.End(g.Fill(bytes.NewReader(data))) }()
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		_ = g.Drain(panicking{})
	}()
	if err := <-filled; !errors.Is(err, ErrReaderGone) {
		t.Errorf("got %v", err)
	}
}

// TestGuardConcurrent passes many streams at once through the shared buffers.
func TestGuardConcurrent(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 6 {
				data := noise()[i*1000 : i*1000+(j+1)*700_000]
				hold := Holdback{VerifyFirst: int64(i%3) * 2 << 20}
				dst := &received{want: data}
				b := behaviours[(i+j)%len(behaviours)]
				filler, drainer := pass(wantOf(data), hold, dst, func(g *Guard) error { return b.fill(g, data) })
				if !matches(filler, b.want) || drainer != filler { //nolint:errorlint // the same one
					t.Errorf("%s: filler %v, drainer %v", b.name, filler, drainer)
				}
				checkReceived(t, b.name, dst, hold, b.want == nil)
			}
		})
	}
	wg.Wait()
}

func TestProof(t *testing.T) {
	data := noise()[:1000]
	p := NewProof(wantOf(data))
	if _, err := p.Write(data[:999]); err != nil || p.Offset() != 999 {
		t.Fatal(err, p.Offset())
	}
	var invalid *InvalidError
	if err := p.Check(); !errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &invalid) {
		t.Errorf("short: %v", err)
	}
	if n, err := p.Write(data[998:]); n != 0 || !errors.As(err, &invalid) || invalid.Reason != ReasonSize || p.Offset() != 999 {
		t.Errorf("long: %d, %v, at %d", n, err, p.Offset())
	}
	if _, err := p.Write(data[999:]); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Check(); err != nil {
			t.Errorf("whole: %v", err)
		}
	}
	p = NewProof(wantOf(data))
	_, _ = p.Write(make([]byte, 1000))
	if err := p.Check(); !errors.As(err, &invalid) || invalid.Reason != ReasonHash {
		t.Errorf("wrong: %v", err)
	}
}

// The benchmarks compare a Guard with what is the least that can be done: hash and copy
// in one goroutine.
func BenchmarkGuard(b *testing.B) {
	for _, size := range []int{10 << 10, 1 << 20, 64 << 20} {
		data := noise()[:size]
		want := wantOf(data)
		for name, hold := range map[string]Holdback{"tail": {}, "ahead": {VerifyFirst: 64 << 20}} {
			b.Run(fmt.Sprintf("%s-%dKiB", name, size>>10), func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := pass(want, hold, io.Discard, func(g *Guard) error { return g.Fill(bytes.NewReader(data)) }); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		b.Run(fmt.Sprintf("plain-%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			buf := make([]byte, blockSize)
			for b.Loop() {
				h := sha256.New()
				_, _ = io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(h, io.Discard)}, struct{ io.Reader }{bytes.NewReader(data)}, buf)
				_ = h.Sum(nil)
			}
		})
	}
}
