package compress

import (
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// ZstdWriter compresses a stream with zstd at the level that is fastest, some 200 MB/s, for
// links that are slower than that. It is not safe for concurrent use. Close ends the stream;
// Release gives the memory back and must be called, once.
type ZstdWriter struct{ enc *zstd.Encoder }

// encoders are kept because one has some megabytes, zeroed when made.
var encoders sync.Pool

// NewZstdWriter returns a ZstdWriter to dst.
func NewZstdWriter(dst io.Writer) *ZstdWriter {
	if enc, ok := encoders.Get().(*zstd.Encoder); ok {
		enc.Reset(dst)
		return &ZstdWriter{enc}
	}
	enc, err := zstd.NewWriter(dst, zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(fastWindow))
	if err != nil {
		panic(err) // only wrong options are errors
	}
	return &ZstdWriter{enc}
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
	encoders.Put(z.enc)
	z.enc = nil
}
