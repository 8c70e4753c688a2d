package compress

import (
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// ZstdWriter compresses a stream with zstd. It is not safe for concurrent use. Close ends the
// stream; Release gives the memory back and must be called, once.
type ZstdWriter struct {
	enc  *zstd.Encoder
	pool *sync.Pool // to which enc goes back
}

// Encoders are kept because one has some megabytes, zeroed when made.
var fastEncoders, deltaEncoders sync.Pool

// NewZstdWriter returns a ZstdWriter to dst at the level that is fastest, some 200 MB/s, for links
// that are slower than that.
func NewZstdWriter(dst io.Writer) *ZstdWriter {
	return newZstdWriter(dst, &fastEncoders, zstd.SpeedFastest, fastWindow)
}

// NewZstdDelta returns a ZstdWriter to dst that gains more, at some 100 MB/s, with a window of
// MaxStreamWindow.
func NewZstdDelta(dst io.Writer) *ZstdWriter {
	return newZstdWriter(dst, &deltaEncoders, zstd.SpeedDefault, MaxStreamWindow)
}

func newZstdWriter(dst io.Writer, pool *sync.Pool, level zstd.EncoderLevel, window int) *ZstdWriter {
	if enc, ok := pool.Get().(*zstd.Encoder); ok {
		enc.Reset(dst)
		return &ZstdWriter{enc, pool}
	}
	enc, err := zstd.NewWriter(dst, zstd.WithEncoderLevel(level),
		zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(window))
	if err != nil {
		panic(err) // only wrong options are errors
	}
	return &ZstdWriter{enc, pool}
}

// fastWindow is what the other side has to keep in memory.
const fastWindow = 1 << 20

// Write compresses b. Not all of it may be passed on before Flush or Close.
func (z *ZstdWriter) Write(b []byte) (int, error) { return z.enc.Write(b) }

// Flush passes on all that was written.
func (z *ZstdWriter) Flush() error { return z.enc.Flush() }

// Close ends the stream. It does not close what is written to.
func (z *ZstdWriter) Close() error { return z.enc.Close() }

// Release makes the writer's memory ready for another one.
func (z *ZstdWriter) Release() {
	z.enc.Reset(nil)
	z.pool.Put(z.enc)
	z.enc = nil
}
