package compress

import (
	"bufio"
	"compress/bzip2"
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
	"github.com/pierrec/lz4/v4"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Limits of what a decoder may allocate because its input asks for it. Those of files are what
// the strongest levels need that people use for caches: xz -9 and zstd --long.
const (
	maxXZDict     = 64 << 20
	maxZstdWindow = 128 << 20

	// MaxStreamWindow is the limit of NewStreamReader: no encoder uses more unless it is told to.
	MaxStreamWindow = 8 << 20
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
	nix.Zstd:   zstdCodec(maxZstdWindow),
	nix.Bzip2:  once(14, func(src *bufio.Reader) io.Reader { return bzip2.NewReader(src) }),
	nix.LZ4:    once(11, func(src *bufio.Reader) io.Reader { return lz4.NewReader(src) }),
	nix.LZMA:   lzmaCodec(18, func(src *bufio.Reader) io.Reader { return &lzmaReader{src: src} }),
	nix.Lzip:   lzmaCodec(36, func(src *bufio.Reader) io.Reader { return &lzipReader{src: src} }),
	nix.LZW:    once(4, func(src *bufio.Reader) io.Reader { return newLZWReader(src) }),
	nix.Brotli: {least: 1, open: func() (decoder, error) { return &brotliDecoder{Reader: brotli.NewReader(nil)}, nil }},
	nix.Gzip:   gzipCodec,
}

// magics are how files begin.
var magics = []struct {
	magic string
	c     nix.Compression
}{
	{"\xfd7zXZ\x00", nix.XZ}, {"\x28\xb5\x2f\xfd", nix.Zstd}, {"BZh", nix.Bzip2}, {"\x1f\x8b", nix.Gzip},
	{"\x04\x22\x4d\x18", nix.LZ4}, {"LZIP", nix.Lzip}, {"\x1f\x9d", nix.LZW},
}

const maxMagic = 6

// fitting returns the codec of a file that begins so, named if nothing is known about it: Nix before 2.19 goes by what
// is in the file, whatever its narinfo says.
func fitting(head []byte, named *codec) *codec {
	for _, m := range magics {
		if strings.HasPrefix(string(head), m.magic) {
			return codecs[m.c]
		}
	}
	return named
}

// streamCodecs are the content codings that are asked for, within MaxStreamWindow. gzip has a
// window of 32 KiB.
var streamCodecs = map[nix.Compression]*codec{
	nix.Zstd: zstdCodec(MaxStreamWindow),
	nix.Brotli: {
		least: 1,
		open: func() (decoder, error) {
			return &brotliDecoder{Reader: brotli.NewReader(nil), most: MaxStreamWindow}, nil
		},
		tooLarge: []error{errBrotliWindow},
	},
	nix.Gzip: gzipCodec,
}

var gzipCodec = &codec{least: 18, open: func() (decoder, error) { return new(gzip.Reader), nil }}

// zstdCodec returns a decoder that works in the caller's goroutine: one with its own
// would leak them if it were dropped unclosed.
func zstdCodec(window uint64) *codec {
	return &codec{
		least: 9,
		open: func() (decoder, error) {
			return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1),
				zstd.WithDecoderMaxWindow(window), zstd.WithDecoderLowmem(true))
		},
		tooLarge: []error{zstd.ErrWindowSizeExceeded, zstd.ErrDecoderSizeExceeded},
	}
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

// once is a codec whose readers cannot be used again.
func once(least int64, open func(src *bufio.Reader) io.Reader) *codec {
	return &codec{least: least, open: func() (decoder, error) { return &onceDecoder{open: open}, nil }}
}

// onceDecoder gives such a reader the shape of the others. open reads nothing.
type onceDecoder struct {
	io.Reader
	open func(src *bufio.Reader) io.Reader
}

func (d *onceDecoder) Reset(src io.Reader) error {
	in, ok := src.(*bufio.Reader) // every kit reads through one
	if !ok {
		in = bufio.NewReader(src)
	}
	d.Reader = d.open(in)
	return nil
}

// brotliDecoder takes what stands behind a whole stream for the end: the decoder calls
// the last bytes of a good file excessive when they come singly.
type brotliDecoder struct {
	*brotli.Reader
	most int // bytes of window, 0 for what the format allows (16 MiB)
	in   *bufio.Reader
}

var errBrotliWindow = errors.New("window is too large")

func (d *brotliDecoder) Reset(src io.Reader) error {
	d.in = nil
	if d.most > 0 {
		d.in, _ = src.(*bufio.Reader) // every kit reads through one
	}
	return d.Reader.Reset(src)
}

func (d *brotliDecoder) Read(p []byte) (int, error) {
	if d.in != nil {
		if first, err := d.in.Peek(1); err == nil && brotliWindow(first[0]) > d.most {
			return 0, errBrotliWindow
		}
		d.in = nil
	}
	n, err := d.Reader.Read(p)
	if err != nil && err.Error() == "brotli: excessive input" {
		err = io.EOF
	}
	return n, err
}

// brotliWindow reads the window size from the first byte of a stream (RFC 7932, 9.1).
func brotliWindow(b byte) int {
	switch {
	case b&1 == 0:
		return 1 << 16
	case b&0xe != 0:
		return 1 << (17 + b>>1&7)
	case b>>4&7 == 0:
		return 1 << 17
	default:
		return 1 << (8 + b>>4&7)
	}
}
