package verify

import (
	"errors"
	"io"
	"sync"
	"time"
)

// Holdback says how much of a stream a Guard keeps back while it is not yet proven.
type Holdback struct {
	// Ahead: a stream of at most this many bytes is proven whole before its first byte
	// leaves. It is kept in memory meanwhile.
	Ahead int64
	// AheadFor ends that after some time, 0 for never: what a slow source sends must not
	// keep the client waiting.
	AheadFor time.Duration
	// Tail is kept back of all other streams until the end; 0 means TailSize.
	Tail int64
	// Narrow makes do with little memory: a short tail, and little room before it.
	Narrow bool
	// Known tells that the stream was proven before: its bytes are compared with those, not
	// hashed again, and none leaves that was not compared. Ahead and Tail do not matter then.
	Known *BlockSums
}

// Memory returns how many bytes a Guard for a stream of size bytes takes.
func (h Holdback) Memory(size int64) int64 {
	back, room := h.window(size)
	if size <= back+room {
		return roundUp(size)
	}
	return roundUp(back+room) + blockSize // of the first block a part has left already
}

// window returns how much is held back, and the room beside it.
func (h Holdback) window(size int64) (back, room int64) {
	switch {
	case h.Known != nil:
		return printBlock, narrowSlack
	case size <= h.Ahead:
		return size, slack
	case h.Narrow:
		return shrunkTail, narrowSlack
	case h.Tail > 0:
		return h.Tail, slack
	}
	return TailSize, slack
}

const (
	// TailSize is the tail that is held back of a stream: a client that lacks it can
	// neither use the NAR nor take it for whole.
	TailSize = 1 << 20
	// shrunkTail is the tail once the client has waited for patience: a client that hears
	// nothing gives up at its own time-out.
	shrunkTail = 64 << 10
	patience   = 20 * time.Second

	// slack is room for filling while held bytes wait.
	slack       = 1 << 20
	narrowSlack = 64 << 10
	// blockSize is the most that is read and written at once: small enough to be hashed while
	// it is in the CPU's cache.
	blockSize = 128 << 10
	// maxEmptyReads in a row, neither bytes nor an error, end a source that would spin.
	maxEmptyReads = 100
)

// ErrReaderGone is what Fill returns when the consumer has stopped.
var ErrReaderGone = errors.New("the reader has gone")

// Guard passes a stream from one goroutine that fills it to one that drains it, and keeps
// back the part that Holdback names until the whole is proven. Filling (read and hash) and
// draining (write) overlap. Its memory is bounded by Holdback, whatever the size of the stream.
type Guard struct {
	proof judge // the filler's
	size  int64
	most  int64 // that is in blocks

	mu       sync.Mutex
	blocks   [][]byte // of the stream, in turn: from the one of byte out on, as far as it was filled
	in, out  int64    // filled and drained, in bytes from the start
	hold     int64
	ended    bool
	err      error
	gone     bool
	toFill   chan struct{} // capacity 1: something changed for the filler
	toDrain  chan struct{} // capacity 1: something changed for the drainer
	aheadFor time.Duration
	tail     int64
	known    bool
}

// NewGuard returns a Guard for a stream that must turn out to be want.
func NewGuard(want Want, hold Holdback) *Guard {
	g := &Guard{
		size:   want.Size,
		toFill: make(chan struct{}, 1), toDrain: make(chan struct{}, 1),
		aheadFor: hold.AheadFor, known: hold.Known != nil,
	}
	if g.proof = NewProof(want); g.known {
		g.proof = hold.Known.again()
	}
	var room int64
	g.hold, room = hold.window(want.Size)
	g.most = min(g.hold+room, want.Size)
	g.blocks = make([][]byte, hold.Memory(want.Size)/blockSize)
	hold.Ahead = 0 // for when it was waited for too long
	g.tail, _ = hold.window(want.Size)
	return g
}

// judge says whether the bytes that pass are the right ones.
type judge interface {
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
// src, unless the stream is complete; a *InvalidError when src goes on past the size; or
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

// block returns the place of the block of byte at.
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
		g.left(int64(n))
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
	at := g.out % blockSize
	return (*g.block(g.out))[at:min(at+free-g.out, blockSize)], false, nil
}

// left counts the next n bytes as drained: they do not go beyond one block.
func (g *Guard) left(n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	block := g.block(g.out)
	if g.out += n; g.out%blockSize == 0 && n > 0 {
		blocks.put(*block)
		*block = nil
	}
}

// shrink lets more out because the client has waited; but of what can be compared, nothing that
// was not.
func (g *Guard) shrink(to int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.known {
		g.hold = min(g.hold, to)
	}
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

// blocks keeps memory for all Guards, all of it of one size: so much as the most that was held at
// once is enough.
var blocks blockPool

type blockPool struct{ sync.Pool }

func (p *blockPool) get() []byte {
	if b, ok := p.Get().(*[blockSize]byte); ok {
		return b[:]
	}
	return new([blockSize]byte)[:]
}

func (p *blockPool) put(b []byte) { p.Put((*[blockSize]byte)(b)) }
