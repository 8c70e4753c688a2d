package compress

import (
	"bufio"
	"compress/bzip2"
	"errors"
	"io"
	"sync"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Limits of what a decoder may allocate because a file asks for it. They are what the
// strongest levels need that people use for caches: xz -9 and zstd --long.
const (
	maxXZDict     = 64 << 20
	maxZstdWindow = 128 << 20
)

// decoder is what the decoders have in common: Reset makes one ready for another stream,
// whatever became of the last one.
type decoder interface {
	io.Reader
	Reset(src io.Reader) error
}

// codec is one way to decode.
type codec struct {
	least    int64 // bytes of the smallest whole file: some decoders take less for nothing at all
	open     func() (decoder, error)
	cut      []error // what the decoder says when its input ends too early
	tooLarge []error // what it says when it is not allowed the memory
	pool     sync.Pool
}

// codecs are kept for the life of the process for the pools in them: a decoder has up to
// some 100 MB, which the garbage collector takes back when no stream uses it.
var codecs = map[nix.Compression]*codec{
	nix.XZ: {
		least:    32,
		open:     func() (decoder, error) { return xz.NewReader(nil, maxXZDict) },
		cut:      []error{xz.ErrBuf},
		tooLarge: []error{xz.ErrMemlimit},
	},
	nix.Zstd: {
		least:    9,
		open:     openZstd,
		tooLarge: []error{zstd.ErrWindowSizeExceeded, zstd.ErrDecoderSizeExceeded},
	},
	nix.Bzip2:  {least: 14, open: func() (decoder, error) { return new(bzip2Decoder), nil }},
	nix.Brotli: {least: 1, open: func() (decoder, error) { return &brotliDecoder{brotli.NewReader(nil)}, nil }},
	nix.Gzip:   {least: 18, open: func() (decoder, error) { return new(gzip.Reader), nil }},
}

// openZstd returns a decoder that works in the caller's goroutine: one with its own
// would leak them if it were dropped unclosed.
func openZstd() (decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderLowmem(true))
}

// get returns a decoder that reads src.
func (c *codec) get(src io.Reader) (*kit, error) {
	k, ok := c.pool.Get().(*kit)
	if !ok {
		dec, err := c.open()
		if err != nil {
			return nil, err
		}
		k = &kit{dec, bufio.NewReaderSize(nil, inputBuffer)}
	}
	k.in.Reset(src)
	return k, k.dec.Reset(k.in)
}

// put keeps k for the next stream. The source that k still refers to has been emptied by
// its reader.
func (c *codec) put(k *kit) {
	k.in.Reset(nil)
	c.pool.Put(k)
}

func (c *codec) isCut(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || isAny(err, c.cut)
}

func (c *codec) isTooLarge(err error) bool { return isAny(err, c.tooLarge) }

func isAny(err error, targets []error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}

// bzip2Decoder gives the standard library's reader, which cannot be used again, the shape
// of the others.
type bzip2Decoder struct{ io.Reader }

func (d *bzip2Decoder) Reset(src io.Reader) error {
	d.Reader = bzip2.NewReader(src)
	return nil
}

// brotliDecoder takes what stands behind a whole stream for the end: the decoder calls
// the last bytes of a good file excessive when they come singly.
type brotliDecoder struct{ *brotli.Reader }

func (d *brotliDecoder) Read(p []byte) (int, error) {
	n, err := d.Reader.Read(p)
	if err != nil && err.Error() == "brotli: excessive input" {
		err = io.EOF
	}
	return n, err
}
