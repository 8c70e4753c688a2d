package verify

import (
	"errors"
	"io"
	"math/bits"
	"sync"
	"time"
)

// Hold says how much of a stream a Guard keeps back while it is not yet proven.
type Hold struct {
	// Ahead: a stream of at most this many bytes is proven whole before its first byte
	// leaves. It is kept in memory meanwhile.
	Ahead int64
	// AheadFor ends that after some time, 0 for never: what a slow source sends must not
	// keep the client waiting.
	AheadFor time.Duration
	// Tail is kept back of all other streams until the end; 0 means TailSize.
	Tail int64
}

const (
	// TailSize is the tail that is held back of a stream: a client that lacks it can
	// neither use the NAR nor take it for whole.
	TailSize = 1 << 20
	// shrunkTail is the tail once the client has waited for patience: a client that hears
	// nothing gives up at its own time-out.
	shrunkTail = 64 << 10
	patience   = 20 * time.Second

	// slack is room for filling while held bytes wait, readMost the most that is read at
	// once: small enough to be hashed while it is in the CPU's cache.
	slack    = 1 << 20
	readMost = 256 << 10
	// writeMost is the most that is given to the client at once.
	writeMost = 256 << 10
	// maxEmptyReads in a row, neither bytes nor an error, end a source that would spin.
	maxEmptyReads = 100
)

// ErrReaderGone is what Fill returns when the consumer has stopped.
var ErrReaderGone = errors.New("the reader has gone")

// Guard passes a stream from one goroutine that fills it to one that drains it, and keeps
// back the part that Hold names until the whole is proven. Filling (read and hash) and
// draining (write) overlap. Its memory is bounded by Hold, whatever the size of the stream.
type Guard struct {
	proof *Proof // the filler's
	size  int64
	buf   []byte // a ring: byte i of the stream lies at i % len(buf)

	mu       sync.Mutex
	in, out  int64 // filled and drained, in bytes from the start
	hold     int64
	ended    bool
	err      error
	gone     bool
	toFill   chan struct{} // capacity 1: something changed for the filler
	toDrain  chan struct{} // capacity 1: something changed for the drainer
	aheadFor time.Duration
	tail     int64
}

// NewGuard returns a Guard for a stream that must turn out to be want.
func NewGuard(want Want, hold Hold) *Guard {
	g := &Guard{
		proof: NewProof(want), size: want.Size,
		toFill: make(chan struct{}, 1), toDrain: make(chan struct{}, 1),
		aheadFor: hold.AheadFor, tail: hold.Tail,
	}
	if g.tail <= 0 {
		g.tail = TailSize
	}
	g.hold = g.tail
	if want.Size <= hold.Ahead {
		g.hold = want.Size
	}
	g.buf = rings.get(min(g.hold+slack, max(want.Size, 1)))
	return g
}

// Offset returns how many bytes have been filled: where the next source has to go on.
func (g *Guard) Offset() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.in
}

// Fill reads src to its end. It may be called again with another source that goes on at
// Offset. It returns nil when src ended, whether or not the stream is complete; the error of
// src, unless the stream is complete; a *LieError when src goes on past the size; or
// ErrReaderGone.
func (g *Guard) Fill(src io.Reader) error {
	empty := 0
	for {
		room, err := g.room()
		if err != nil {
			return err
		}
		if room == nil {
			return g.past(src)
		}
		n, err := src.Read(room)
		if n > 0 {
			empty = 0
			if _, err := g.proof.Write(room[:n]); err != nil {
				return err
			}
			g.mu.Lock()
			g.in += int64(n)
			g.mu.Unlock()
			wake(g.toDrain)
		} else if empty++; empty > maxEmptyReads && err == nil {
			return io.ErrNoProgress
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && g.Offset() < g.size:
			return err
		}
	}
}

// past looks whether src ends where the stream is complete: any further byte is one too
// many. How it ends otherwise does not matter, since all bytes are here to be judged.
func (g *Guard) past(src io.Reader) error {
	var one [1]byte
	if _, err := io.ReadFull(src, one[:]); err != nil {
		return nil //nolint:nilerr // as said above
	}
	_, err := g.proof.Write(one[:])
	return err
}

// room waits for a free piece of the ring; nil when the stream is complete.
func (g *Guard) room() ([]byte, error) {
	for {
		g.mu.Lock()
		switch {
		case g.gone:
			g.mu.Unlock()
			return nil, ErrReaderGone
		case g.in == g.size:
			g.mu.Unlock()
			return nil, nil
		}
		ring := int64(len(g.buf))
		free := ring - (g.in - g.out)
		if free > 0 {
			at := g.in % ring
			n := min(free, ring-at, g.size-g.in, readMost)
			room := g.buf[at : at+n]
			g.mu.Unlock()
			return room, nil
		}
		g.mu.Unlock()
		<-g.toFill
	}
}

// End is called once by the filler, after the last Fill. With a nil error the stream is
// judged, and released or refused; with any other nothing further is released. It returns
// the verdict, which Drain returns too.
func (g *Guard) End(err error) error {
	if err == nil {
		err = g.proof.Check()
	}
	g.mu.Lock()
	g.ended, g.err = true, err
	g.mu.Unlock()
	wake(g.toDrain)
	return err
}

// Drain writes released bytes to dst until the end, and returns the verdict or the error of
// dst. After it has returned the filler is refused, and once End was called too the Guard's
// memory may be given back with Free.
func (g *Guard) Drain(dst io.Writer) error {
	defer func() { // also when dst panics: the filler must not wait for ever
		g.mu.Lock()
		g.gone = true
		g.mu.Unlock()
		wake(g.toFill)
	}()
	wait, shrunk := patience, int64(shrunkTail)
	if g.aheadFor > 0 && g.aheadFor < patience && g.hold > g.tail {
		wait, shrunk = g.aheadFor, g.tail
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		piece, done, err := g.released()
		if done {
			return err
		}
		if len(piece) == 0 {
			select {
			case <-g.toDrain:
			case <-timer.C:
				g.shrink(shrunk)
				shrunk = shrunkTail
				timer.Reset(patience)
			}
			continue
		}
		n, err := dst.Write(piece)
		if err != nil {
			return err
		}
		g.mu.Lock()
		g.out += int64(n)
		g.mu.Unlock()
		wake(g.toFill)
		timer.Reset(patience)
	}
}

// released returns the next piece that may leave; done when there will be none.
func (g *Guard) released() (piece []byte, done bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	free := g.in - g.hold
	if g.ended {
		if g.err != nil {
			return nil, true, g.err
		}
		free = g.in
		if g.out == free {
			return nil, true, nil
		}
	}
	if free <= g.out {
		return nil, false, nil
	}
	ring := int64(len(g.buf))
	at := g.out % ring
	n := min(free-g.out, ring-at, writeMost)
	return g.buf[at : at+n], false, nil
}

// shrink lets more out because the client has waited.
func (g *Guard) shrink(to int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hold = min(g.hold, to)
}

// Free gives the memory back. Neither Fill nor Drain may be running or be called again.
func (g *Guard) Free() {
	rings.put(g.buf)
	g.buf = nil
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// rings keeps buffers by power of two: a large one would be zeroed anew each time.
var rings ringPool

type ringPool struct{ classes [40]sync.Pool }

func (p *ringPool) get(size int64) []byte {
	class := bits.Len64(uint64(size - 1))
	if b, ok := p.classes[class].Get().(*[]byte); ok {
		return (*b)[:size]
	}
	return make([]byte, 1<<class)[:size]
}

func (p *ringPool) put(b []byte) {
	if b == nil {
		return
	}
	b = b[:cap(b)]
	p.classes[bits.Len64(uint64(len(b)-1))].Put(&b)
}
