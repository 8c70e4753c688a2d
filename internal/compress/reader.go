package compress

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/nixp2p/nixp2p/internal/nix"
)

var (
	// ErrCorrupt is wrapped by errors that say that the bytes are not what the compression
	// says. A cut is io.ErrUnexpectedEOF instead, and whatever the source itself reports is
	// wrapped as it is: neither is anybody's fault.
	ErrCorrupt = errors.New("corrupt data")
	// ErrTooLarge is wrapped by errors that say that the file cannot be decoded within the
	// memory that is allowed for it. It may be a good file.
	ErrTooLarge = errors.New("needs too much memory to decode")
	// ErrUnknown is wrapped by the error for a compression that cannot be decoded.
	ErrUnknown = errors.New("unknown compression")
)

// NewReader decodes src. It reads nothing yet. Reading the result returns an error when
// src is not what c says or is cut, wrapped as ErrCorrupt, ErrTooLarge and the errors
// beside them say; the bytes before it are good as far as the container can tell. What is
// decoded is not bounded: the caller knows the size and has to stop there. With nix.None
// the bytes and errors are those of src.
//
// Close gives the decoder's memory back, and must be called; it does not close src.
// The reader is not safe for concurrent use.
func NewReader(c nix.Compression, src io.Reader) (io.ReadCloser, error) {
	r, err := newReader(codecs, c, src)
	if r, ok := r.(*reader); ok {
		r.sniff = c != nix.Brotli // which has no mark
	}
	return r, err
}

// NewStreamReader is NewReader for a content coding on the way, with less memory: a window of
// at most MaxStreamWindow. It knows zstd, br and gzip.
func NewStreamReader(c nix.Compression, src io.Reader) (io.ReadCloser, error) {
	return newReader(streamCodecs, c, src)
}

func newReader(known map[nix.Compression]*codec, c nix.Compression, src io.Reader) (io.ReadCloser, error) {
	if c == nix.None {
		return io.NopCloser(src), nil
	}
	codec, ok := known[c]
	if !ok {
		return nil, fmt.Errorf("compress: decode %q: %w", string(c), ErrUnknown)
	}
	return &reader{compression: c, codec: codec, src: source{r: src}}, nil
}

// reader puts one decoder, borrowed from its pool at the first Read, between a source
// and the errors that callers tell apart.
type reader struct {
	compression nix.Compression
	codec       *codec
	sniff       bool // the file's first bytes count before its name
	src         source
	kit         *kit // nil before the first Read and after Close
	err         error
}

func (r *reader) Read(p []byte) (n int, err error) {
	if r.err != nil {
		return 0, r.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	defer func() {
		if fault := recover(); fault != nil {
			n, err = 0, r.crashed(fault)
		}
		r.err = err
	}()
	if r.kit == nil {
		if r.sniff {
			r.codec = fitting(r.src.peek(), r.codec)
		}
		if r.kit, err = r.codec.get(&r.src); err != nil {
			return 0, r.fail(err)
		}
	}
	for range maxEmptyReads {
		n, err = r.kit.dec.Read(p)
		switch {
		case err != nil:
			return n, r.fail(err)
		case n > 0:
			return n, nil
		}
	}
	return 0, r.fail(io.ErrNoProgress)
}

// crashed makes an error of a decoder's panic: the decoders are other people's code on
// anybody's bytes, and one that runs out of an array must end this stream, not the daemon.
// Its state is not used again. A panic of the source goes on.
func (r *reader) crashed(fault any) error {
	err, ok := fault.(runtime.Error)
	if !ok || r.src.reading {
		panic(fault)
	}
	r.kit = nil
	return r.fail(err)
}

// fail sorts a decoder's error by who is to blame.
func (r *reader) fail(err error) error {
	drained := r.src.ended && len(r.src.head) == 0 && (r.kit == nil || r.kit.in.Buffered() == 0)
	switch {
	case r.src.err != nil:
		err = r.src.err
	case err == io.EOF && r.src.n >= r.codec.least: //nolint:errorlint // a wrapped EOF is not the end
		return io.EOF
	case errors.Is(err, io.EOF), drained && r.codec.isCut(err):
		err = io.ErrUnexpectedEOF
	case r.codec.isTooLarge(err):
		err = fmt.Errorf("%w: %w", ErrTooLarge, err)
	default:
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return fmt.Errorf("compress: decode %s: %w", r.compression, err)
}

func (r *reader) Close() error {
	if r.kit != nil {
		r.codec.put(r.kit)
		r.kit = nil
	}
	r.src.r = nil
	if r.err == nil {
		r.err = fmt.Errorf("compress: decode %s: %w", r.compression, os.ErrClosed)
	}
	return nil
}

// maxEmptyReads bounds reads that return neither bytes nor an error, which io.Reader
// allows: a decoder would take them for the end, or spin.
const maxEmptyReads = 100

// source remembers what the caller's reader said, since decoders report its errors in
// their own words.
type source struct {
	r       io.Reader
	head    []byte // read already, and not yet returned
	n       int64  // bytes read
	reading bool
	ended   bool
	err     error // other than io.EOF
}

// peek returns the first bytes, which Read returns again.
func (s *source) peek() []byte {
	b := make([]byte, maxMagic)
	n, _ := io.ReadFull(s, b) // an error comes again
	s.head = b[:n]
	return s.head
}

func (s *source) Read(p []byte) (int, error) {
	if n := copy(p, s.head); n > 0 {
		s.head = s.head[n:]
		return n, nil
	}
	if s.err != nil {
		return 0, s.err
	}
	if s.ended || s.r == nil {
		return 0, io.EOF
	}
	for range maxEmptyReads {
		s.reading = true
		n, err := s.r.Read(p)
		s.reading = false
		s.n += int64(n)
		switch {
		case errors.Is(err, io.EOF):
			s.ended = true
			return n, io.EOF
		case err != nil:
			s.err = err
			return n, err
		case n > 0 || len(p) == 0:
			return n, nil
		}
	}
	s.err = io.ErrNoProgress
	return 0, s.err
}

// inputBuffer is read from the source at once: some decoders ask for single bytes.
const inputBuffer = 64 << 10

// kit is a decoder with its input buffer, kept for the next stream: both are large and
// zeroed when made.
type kit struct {
	dec decoder
	in  *bufio.Reader
}
