package update

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/delta"
	"github.com/nixp2p/nixp2p/internal/nix"
)

const (
	// keepFor is how long a delta is kept after it was sent last, and keepShared the same once it was asked for
	// twice: a site updates within minutes.
	keepFor    = time.Minute
	keepShared = 10 * time.Minute
	// maxCodings deltas are made or kept at a time.
	maxCodings = 256
)

// Scratch is a file in which a delta is kept while machines get it. One goroutine writes, others read.
type Scratch interface {
	io.Writer
	io.ReaderAt
	io.Closer
}

// pair is the NARs of a delta.
type pair struct{ base, nar nix.NarHash }

// codings are deltas in files, which are made once for all who ask for them.
type codings struct {
	scratch func() (Scratch, error) // nil: none can be kept

	mu   sync.Mutex
	list map[pair]*coding
}

// coding is a delta that is being made, or is kept. Its fields are under codings.mu but for file, which is written by
// its maker and read below size by all.
type coding struct {
	pair
	file    Scratch
	cancel  context.CancelFunc // of making it
	changed chan struct{}      // closed when any of the following changes

	size  int64 // bytes of the delta that can be read
	read  int64 // bytes of the NAR that have been read
	done  bool
	stats delta.Stats
	err   error

	readers int
	shared  bool        // it was asked for again
	used    time.Time   // somebody read it last
	expiry  *time.Timer // nil while it has readers
}

// join returns the coding of a pair, if there is one that may still succeed. If not, and a file can be had for it, it
// returns a new one, which the caller makes. Nil: there is none.
func (c *codings) join(p pair) (k *coding, isNew bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k = c.list[p]; k != nil && k.err == nil {
		k.readers++
		k.shared = true
		if k.expiry != nil {
			k.expiry.Stop()
			k.expiry = nil
		}
		return k, false
	}
	if c.scratch == nil || k != nil {
		return nil, false
	}
	if len(c.list) >= maxCodings && !c.dropOldest() {
		return nil, false
	}
	file, err := c.scratch()
	for err != nil && c.dropOldest() { // there may be no room
		file, err = c.scratch()
	}
	if err != nil {
		return nil, false
	}
	k = &coding{pair: p, file: file, cancel: func() {}, changed: make(chan struct{}), readers: 1}
	c.list[p] = k
	return k, true
}

// dropOldest drops what nobody has read for longest, and reports whether there was any. The caller holds mu.
func (c *codings) dropOldest() bool {
	var oldest *coding
	for _, k := range c.list {
		if k.readers == 0 && k.done && (oldest == nil || k.used.Before(oldest.used)) {
			oldest = k
		}
	}
	if oldest == nil {
		return false
	}
	c.drop(oldest)
	return true
}

// drop removes a coding that is done and has no readers. The caller holds mu.
func (c *codings) drop(k *coding) {
	if k.expiry != nil {
		k.expiry.Stop()
	}
	delete(c.list, k.pair)
	_ = k.file.Close() // only read
}

// leave ends one reading of a coding. What nobody waits for is not made to its end.
func (c *codings) leave(k *coding) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.readers--; k.readers > 0 {
		return
	}
	if k.done {
		c.rest(k)
		return
	}
	k.err = errLeft // nobody joins it any more
	k.cancel()      // whoever makes it calls ended
}

// rest keeps a coding for a while that is done and has no readers. The caller holds mu.
func (c *codings) rest(k *coding) {
	if k.err != nil {
		c.drop(k)
		return
	}
	k.used = time.Now()
	keep := keepFor
	if k.shared {
		keep = keepShared
	}
	k.expiry = time.AfterFunc(keep, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.list[k.pair] == k && k.readers == 0 {
			c.drop(k)
		}
	})
}

// tell changes a coding, and tells its readers.
func (c *codings) tell(k *coding, change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
	close(k.changed)
	k.changed = make(chan struct{})
}

// ended notes how the making of a coding ended.
func (c *codings) ended(k *coding, stats delta.Stats, err error) {
	c.tell(k, func() {
		k.done, k.stats = true, stats
		if k.err == nil {
			k.err = err
		}
		if k.readers == 0 {
			c.rest(k)
		}
	})
}

// stop ends the making of all.
func (c *codings) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.list {
		k.cancel()
	}
}

// close drops all. Nobody makes or reads any.
func (c *codings) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.list {
		c.drop(k)
	}
}

// codingWriter writes a coding.
type codingWriter struct {
	c *codings
	k *coding
}

// Write appends to the delta.
func (w *codingWriter) Write(p []byte) (int, error) {
	n, err := w.k.file.Write(p)
	w.c.tell(w.k, func() { w.k.size += int64(n) })
	return n, err
}

// read notes that n more bytes of the NAR have been read.
func (w *codingWriter) read(n int) { w.c.tell(w.k, func() { w.k.read += int64(n) }) }

// follow writes a coding to w as it is made. Until its first byte the receiver is told from time to time that there will
// be one.
func (c *codings) follow(ctx context.Context, k *coding, w io.Writer, read func(n int)) (delta.Stats, error) {
	awake := time.NewTicker(awakeEvery)
	defer awake.Stop()
	buf := make([]byte, 64<<10)
	var at, told int64
	for {
		c.mu.Lock()
		size, made, done, stats, err, changed := k.size, k.read, k.done, k.stats, k.err, k.changed
		c.mu.Unlock()
		if made > told {
			read(int(made - told))
			told = made
		}
		switch {
		case err != nil:
			return stats, err
		case at < size:
			n, err := k.file.ReadAt(buf[:min(size-at, int64(len(buf)))], at)
			if n == 0 && err != nil {
				return stats, err
			}
			if _, err := w.Write(buf[:n]); err != nil {
				return stats, err
			}
			at += int64(n)
			continue
		case done:
			return stats, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return stats, ctx.Err()
		case <-awake.C:
			if at > 0 {
				continue
			}
			if _, err := w.Write(skippable); err != nil {
				return stats, err
			}
		}
	}
}

var (
	errNoSlot = errors.New("update: no encoder is free")
	errClosed = errors.New("update: closed")
	errLeft   = errors.New("update: nobody waits for it")
)

// make makes a coding of d, after it has waited for an encoder for most if it has none yet.
func (d *Delta) make(ctx context.Context, k *coding, most time.Duration) {
	var stats delta.Stats
	err := errNoSlot
	if d.release == nil {
		d.release, _ = d.e.slots.wait(ctx, d.to, d.info.NarSize(), most)
	}
	if d.release == nil {
		d.e.metrics.Delta.WithLabelValues("no_slot").Inc()
		d.release = func(time.Duration) {}
	} else {
		w := &codingWriter{&d.e.codings, k}
		if stats, err = d.encode(ctx, w, w.read); err == nil {
			err = ctx.Err()
		}
	}
	_ = d.Close() // only read
	d.e.codings.ended(k, stats, err)
}
