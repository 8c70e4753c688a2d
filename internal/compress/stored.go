package compress

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// container is the framing of a stored container: a file that any xz or zstd reads, but
// whose pieces hold the bytes as they are. What stands around the bytes depends on their
// number alone, so that the size of the file is known before its first byte.
type container interface {
	// begin appends what stands before the first piece.
	begin(b []byte, size int64) []byte
	// piece appends the header of the piece of n bytes that begins at offset at.
	piece(b []byte, size, at, n int64) []byte
	// end appends what stands behind the last piece.
	end(b []byte, size int64) []byte
	// most is the number of bytes in all pieces but the last.
	most() int64
	// stored is the size of the whole file.
	stored(size int64) int64
}

func containerFor(c nix.Compression) (container, bool) {
	switch c {
	case nix.XZ:
		return xzContainer{}, true
	case nix.Zstd:
		return zstdContainer{}, true
	default:
		return nil, false
	}
}

// StoredSize returns the size of the stored container of size raw bytes. c is nix.XZ or
// nix.Zstd; for any other it returns -1.
func StoredSize(c nix.Compression, size int64) int64 {
	ct, ok := containerFor(c)
	if !ok || size < 0 {
		return -1
	}
	return ct.stored(size)
}

var (
	errStoredLong  = errors.New("more bytes than the size that was named")
	errStoredShort = errors.New("closed before the last byte")
)

// NewStored returns a writer that wraps exactly size raw bytes into a stored container on
// dst: c is nix.XZ or nix.Zstd. When a Write returns, all of its bytes have been given to
// dst, mostly in one write for 256 KiB. Close writes the end, and must be called in any
// case to give memory back; before size bytes were written it writes nothing and is an
// error. The first error of dst is final. The writer is not safe for concurrent use.
func NewStored(c nix.Compression, dst io.Writer, size int64) (io.WriteCloser, error) {
	ct, ok := containerFor(c)
	if !ok {
		return nil, fmt.Errorf("compress: store as %q: %w", string(c), ErrUnknown)
	}
	if size < 0 {
		return nil, fmt.Errorf("compress: store as %s: size %d", c, size)
	}
	buf := storedBuffers.Get().(*storedBuffer) //nolint:errcheck,forcetypeassert // New makes no other
	return &storedWriter{compression: c, container: ct, dst: dst, size: size, buf: buf}, nil
}

// storedBuffer gathers headers and bytes: copying costs less than the many short writes
// that headers of their own would be.
type storedBuffer [256<<10 + 512]byte

var storedBuffers = sync.Pool{New: func() any { return new(storedBuffer) }}

// frame is the most that begin, piece and end append.
const frame = 64

type storedWriter struct {
	compression nix.Compression
	container   container
	dst         io.Writer
	size        int64
	at          int64         // raw bytes taken
	left        int64         // of the current piece
	buf         *storedBuffer // nil after Close
	n           int           // bytes in buf
	err         error
}

func (w *storedWriter) Write(p []byte) (int, error) {
	if w.err == nil && int64(len(p)) > w.size-w.at {
		w.err = w.wrap(errStoredLong)
	}
	if w.err != nil {
		return 0, w.err
	}
	taken := 0
	for taken < len(p) {
		if w.n+frame >= len(w.buf) {
			w.flush()
		}
		w.open()
		n := copy(w.buf[w.n:], p[taken:min(int64(len(p)), int64(taken)+w.left)])
		w.n += n
		w.at += int64(n)
		w.left -= int64(n)
		taken += n
	}
	w.flush()
	if w.err != nil {
		return 0, w.err
	}
	return taken, nil
}

// open puts the framing that is due before the next byte.
func (w *storedWriter) open() {
	b := w.buf[:w.n]
	if w.at == 0 {
		b = w.container.begin(b, w.size)
	}
	if w.left == 0 {
		w.left = min(w.size-w.at, w.container.most())
		b = w.container.piece(b, w.size, w.at, w.left)
	}
	w.n = len(b)
}

func (w *storedWriter) flush() {
	if w.err == nil && w.n > 0 {
		if _, err := w.dst.Write(w.buf[:w.n]); err != nil {
			w.err = w.wrap(err)
		}
	}
	w.n = 0
}

func (w *storedWriter) Close() error {
	if w.buf == nil {
		return w.err
	}
	switch {
	case w.err != nil:
	case w.at < w.size:
		w.err = w.wrap(fmt.Errorf("%w: %d of %d", errStoredShort, w.at, w.size))
	default:
		if w.size == 0 {
			w.open()
		}
		w.n = len(w.container.end(w.buf[:w.n], w.size))
		w.flush()
	}
	storedBuffers.Put(w.buf)
	w.buf = nil
	if w.err != nil {
		return w.err
	}
	w.err = w.wrap(errStoredLong)
	return nil
}

func (w *storedWriter) wrap(err error) error {
	return fmt.Errorf("compress: store as %s: %w", w.compression, err)
}
