package compress

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

var (
	errDict    = errors.New("dictionary is too large")
	errBehind  = errors.New("bytes behind the end")
	errMagic   = errors.New("not an lzip member")
	errTrailer = errors.New("checksum or size is wrong")
)

// lzmaCodec is a codec whose dictionary may have maxXZDict bytes, as that of xz.
func lzmaCodec(least int64, open func(src *bufio.Reader) io.Reader) *codec {
	c := once(least, open)
	c.tooLarge = []error{errDict}
	return c
}

// newLZMA reads a stream with the header of an LZMA file. It takes no byte of src behind the
// stream. An end of src is io.ErrUnexpectedEOF.
func newLZMA(header []byte, src *bufio.Reader) (io.Reader, error) {
	in := struct {
		io.Reader
		io.ByteReader
	}{bytes.NewReader(header), src}
	r, err := lzma.ReaderConfig{DictCap: maxXZDict}.NewReader(in)
	var large *lzma.ErrDictSize
	switch {
	case errors.As(err, &large):
		return nil, fmt.Errorf("%w: %d bytes", errDict, large.HeaderDictSize)
	case errors.Is(err, io.EOF):
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	}
	return r, nil
}

// readFull fills p. An end of src is io.ErrUnexpectedEOF.
func readFull(src io.Reader, p []byte) error {
	_, err := io.ReadFull(src, p)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// lzmaReader decodes the format of the lzma tool: a header of 13 bytes and one stream.
type lzmaReader struct {
	src *bufio.Reader
	dec io.Reader // nil before the header
}

func (r *lzmaReader) Read(p []byte) (n int, err error) {
	if r.dec == nil {
		var header [lzma.HeaderLen]byte
		if err = readFull(r.src, header[:]); err != nil {
			return 0, err
		}
		if r.dec, err = newLZMA(header[:], r.src); err != nil {
			return 0, err
		}
	}
	n, err = r.dec.Read(p)
	if n == 0 && err == io.EOF { //nolint:errorlint // a wrapped EOF is not the end
		if _, err := r.src.Peek(1); !errors.Is(err, io.EOF) {
			return 0, errBehind
		}
	}
	if n > 0 && err == io.EOF { //nolint:errorlint // a wrapped EOF is not the end
		err = nil // it comes again
	}
	return n, err
}

// lzipReader decodes lzip files: members, each with a header, an LZMA stream and a trailer
// (https://www.nongnu.org/lzip/manual/lzip_manual.html#File-format).
type lzipReader struct {
	src  *bufio.Reader
	dec  io.Reader // nil between members
	any  bool      // a member was read
	crc  uint32
	size uint64
}

const lzipMagic = "LZIP\x01" // with the version

func (r *lzipReader) Read(p []byte) (int, error) {
	for {
		if r.dec == nil {
			if _, err := r.src.Peek(1); r.any && err != nil {
				return 0, err
			}
			if err := r.begin(); err != nil {
				return 0, err
			}
		}
		n, err := r.dec.Read(p)
		r.crc = crc32.Update(r.crc, crc32.IEEETable, p[:n])
		r.size += uint64(n)
		switch {
		case n > 0:
			if err == io.EOF { //nolint:errorlint // a wrapped EOF is not the end
				err = nil // it comes again
			}
			return n, err
		case err == io.EOF: //nolint:errorlint // a wrapped EOF is not the end
			if err := r.end(); err != nil {
				return 0, err
			}
		default:
			return 0, err
		}
	}
}

// begin reads the header of a member.
func (r *lzipReader) begin() (err error) {
	var head [len(lzipMagic) + 1]byte
	if err = readFull(r.src, head[:]); err != nil {
		return err
	}
	if string(head[:len(lzipMagic)]) != lzipMagic {
		return errMagic
	}
	coded := head[len(lzipMagic)]
	dict := uint32(1) << (coded & 0x1f)
	dict -= dict / 16 * uint32(coded>>5)
	var header [lzma.HeaderLen]byte
	header[0] = lzma.Properties{LC: 3, LP: 0, PB: 2}.Code()
	binary.LittleEndian.PutUint32(header[1:], dict)
	binary.LittleEndian.PutUint64(header[5:], 1<<64-1) // the stream says where it ends
	r.crc, r.size, r.any = 0, 0, true
	r.dec, err = newLZMA(header[:], r.src)
	return err
}

// end reads the trailer of a member.
func (r *lzipReader) end() error {
	r.dec = nil
	var trailer [20]byte // CRC-32, size of the data, size of the member
	if err := readFull(r.src, trailer[:]); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(trailer[:]) != r.crc || binary.LittleEndian.Uint64(trailer[4:]) != r.size {
		return errTrailer
	}
	return nil
}
