package verify

import (
	"errors"
	"io"
	"sync"
	"time"
)

const (
	// slack is room for filling while held bytes wait.
	slack      = 1 << 20
	smallSlack = 64 << 10
	// blockSize is the most that is read and written at once: small enough to be hashed while
	// it is in the CPU's cache.
	blockSize = 128 << 10
	// maxEmptyReads: so many reads in a row without a byte or an error end the source.
	maxEmptyReads = 100
)

// Memory returns how many bytes a Guard for a stream of size bytes takes.
func (h Holdback) Memory(size int64) int64 {
	most := h.window(size)
	if size <= most {
		return roundUp(size)
	}
	return roundUp(most) + blockSize // of the first block a part has left already
}

// window returns how many bytes a Guard keeps at most: those held back and some room.
func (h Holdback) window(size int64) int64 {
	t := NewTail(h)
	if !t.first(size) && (h.LowMemory || h.Previous != nil) {
		return t.held(size) + smallSlack
	}
	return t.held(size) + slack
}

// ErrReaderGone is returned by Fill when the consumer has stopped.
var ErrReaderGone = errors.New("the reader has gone")

// Guard passes a stream from one goroutine that fills it to one that drains it, and holds
// back the part that Holdback names until the whole is proven. Filling (read and hash) and
// draining (write) overlap. Its memory is bounded by Holdback, whatever the size of the stream.
type Guard struct {
	proof checker // used by the filler
	size  int64
	most  int64 // that is in blocks

	mu      sync.Mutex
	blocks  [][]byte // a ring, from the block of byte out to that of byte in
	in, out int64    // filled and drained, in bytes from the start
	tail    Tail
	ended   bool
	err     error
	gone    bool
	toFill  chan struct{} // capacity 1: something changed for the filler
	toDrain chan struct{} // capacity 1: something changed for the drainer
}

// NewGuard returns a Guard for a stream that must turn out to be want.
func NewGuard(want Digest, hold Holdback) *Guard {
	g := &Guard{
		size:   want.Size,
		most:   min(hold.window(want.Size), want.Size),
		blocks: make([][]byte, hold.Memory(want.Size)/blockSize),
		tail:   NewTail(hold),
		toFill: make(chan struct{}, 1), toDrain: make(chan struct{}, 1),
	}
	if hold.Previous != nil {
		g.proof = hold.Previous.compare()
	} else {
		g.proof = NewProof(want)
	}
	return g
}

// checker checks whether the bytes that pass are the right ones.
type checker interface {
	io.Writer
	Check() error
}

// Offset returns how many bytes have been filled: where the next source has to go on.
func (g *Guard) Offset() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.in
}

// Fill reads src to its end. It may be called again with another source that goes on at
// Offset. It returns nil when src ended, whether or not the stream is complete; the error of
// src, unless the stream is complete; an *InvalidError when src goes on past the size; or
// ErrReaderGone.
func (g *Guard) Fill(src io.Reader) error {
	empty := 0
	for {
		room, err := g.room()
		if err != nil {
			return err
		}
		if room == nil {
			return g.expectEOF(src)
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

// expectEOF reads on behind the last byte: any further byte is one too many. Any other end of
// src is good, since all bytes are here to be checked.
func (g *Guard) expectEOF(src io.Reader) error {
	var one [1]byte
	if _, err := io.ReadFull(src, one[:]); err != nil {
		return nil //nolint:nilerr // see above
	}
	_, err := g.proof.Write(one[:])
	return err
}

// block returns the slot of the block of byte at.
func (g *Guard) block(at int64) *[]byte { return &g.blocks[at/blockSize%int64(len(g.blocks))] }

// room waits for free room for the next bytes; nil when the stream is complete.
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
		if free := g.most - (g.in - g.out); free > 0 {
			block := g.block(g.in)
			if *block == nil {
				*block = blocks.get()
			}
			at := g.in % blockSize
			room := (*block)[at:min(at+free, at+g.size-g.in, blockSize)]
			g.mu.Unlock()
			return room, nil
		}
		g.mu.Unlock()
		<-g.toFill
	}
}

// End is called once by the filler, after the last Fill. If err is nil the stream is checked,
// and released or refused; otherwise nothing further is released. It returns the result, which
// Drain returns too.
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

// Drain writes released bytes to dst until the end, and returns the result of End or the error
// of dst. After it has returned the filler is refused, and once End was called too the Guard's
// memory may be given back with Free.
func (g *Guard) Drain(dst io.Writer) error {
	defer func() { // also when dst panics: the filler must not wait forever
		g.mu.Lock()
		g.gone = true
		g.mu.Unlock()
		wake(g.toFill)
	}()
	timer := time.NewTimer(g.tail.Patience(g.size))
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
				timer.Reset(g.shrink())
			}
			continue
		}
		n, err := dst.Write(piece)
		if err != nil {
			return err
		}
		g.drained(int64(n))
		wake(g.toFill)
		timer.Reset(patience)
	}
}

// released returns the next piece that may leave; done if there will be none.
func (g *Guard) released() (piece []byte, done bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended && (g.err != nil || g.out == g.in) {
		return nil, true, g.err
	}
	free := g.tail.Visible(g.in, g.size, g.ended) - g.out
	if free <= 0 {
		return nil, false, nil
	}
	at := g.out % blockSize
	return (*g.block(g.out))[at:min(at+free, blockSize)], false, nil
}

// drained counts the next n bytes as written: they do not go beyond one block.
func (g *Guard) drained(n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	block := g.block(g.out)
	if g.out += n; g.out%blockSize == 0 && n > 0 {
		blocks.put(*block)
		*block = nil
	}
}

// shrink lets more out because the client has waited, and returns how long to wait next.
func (g *Guard) shrink() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tail.Shrink(g.size)
	return g.tail.Patience(g.size)
}

// Free gives the memory back. Neither Fill nor Drain may be running or be called again.
func (g *Guard) Free() {
	for _, b := range g.blocks {
		if b != nil {
			blocks.put(b)
		}
	}
	g.blocks = nil
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func roundUp(n int64) int64 { return (n + blockSize - 1) / blockSize * blockSize }

// blocks keeps the memory of all Guards, in pieces of one size.
var blocks blockPool

type blockPool struct{ sync.Pool }

func (p *blockPool) get() []byte {
	if b, ok := p.Get().(*[blockSize]byte); ok {
		return b[:]
	}
	return new([blockSize]byte)[:]
}

func (p *blockPool) put(b []byte) { p.Put((*[blockSize]byte)(b)) }
