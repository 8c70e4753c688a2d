package delta

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/nixp2p/nixp2p/internal/compress"
	"github.com/nixp2p/nixp2p/internal/nix"
)

// Reader makes a NAR from a delta and its base. It is for one goroutine.
//
// It needs some 20 MB at most, whatever the sizes: the zstd window of 8 MiB and one segment.
type Reader struct {
	in   io.ReadCloser
	src  *bufio.Reader
	base page
	size int64 // of the NAR
	at   int64 // bytes that were made
	ops  int64 // that were read
	pos  int64 // the place in the base
	err  error // sticky

	segment
	copying   int64 // of the op, to be copied
	inserting int64 // of the op, to be inserted
	move      int64 // of the op, when it is done
}

// segment is what is left of the lists of a segment.
type segment struct {
	buf                        []byte // backs the four
	opList, runs, changes, ins []byte
	equal, changed             int64 // left of the present run
	span                       int64 // bytes that the segment has made
}

// NewReader returns a Reader of the NAR of size bytes that the delta in src makes of base. It reads
// nothing yet. The errors of reading: ErrCorrupt, *BaseError, io.ErrUnexpectedEOF for a delta
// that ends too early, and those of src. The caller closes it; src and base stay open.
func NewReader(src io.Reader, base io.ReaderAt, baseSize, size int64) *Reader {
	r := &Reader{base: page{r: base, size: baseSize}, size: size}
	in, err := compress.NewStreamReader(nix.Zstd, src)
	if err != nil { // zstd is known
		r.err = err
		return r
	}
	r.in, r.src = in, bufio.NewReaderSize(in, 32<<10)
	return r
}

// Read returns the next bytes of the NAR. io.EOF comes after exactly size bytes, and only if
// the delta ends there, too.
func (r *Reader) Read(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	for n == 0 && r.err == nil {
		n, r.err = r.step(p)
	}
	if n > 0 {
		return n, nil // an error stays for the next call
	}
	return 0, r.err
}

// Done reports whether all of the NAR has been made.
func (r *Reader) Done() bool { return r.at == r.size }

// Close gives the memory back.
func (r *Reader) Close() error {
	if r.err == nil || errors.Is(r.err, io.EOF) {
		r.err = os.ErrClosed
	}
	r.segment, r.base.buf = segment{}, nil
	if r.in == nil {
		return nil
	}
	return r.in.Close()
}

// step does a part of an op, or goes to the next op or segment.
func (r *Reader) step(p []byte) (int, error) {
	switch {
	case r.copying > 0:
		return r.copy(p[:min(int64(len(p)), r.copying)])
	case r.inserting > 0:
		n := copy(p[:min(int64(len(p)), r.inserting)], r.ins)
		r.ins = r.ins[n:]
		r.inserting -= int64(n)
		r.at += int64(n)
		return n, nil
	case r.move != 0:
		r.pos += r.move
		r.move = 0
		return 0, nil
	case len(r.opList) > 0:
		return 0, r.nextOp()
	case len(r.runs)+len(r.changes)+len(r.ins) > 0 || r.equal+r.changed > 0:
		return 0, corrupt("a list of a segment is too long")
	default:
		return 0, r.nextSegment()
	}
}

// nextOp reads an op and checks all that it does.
func (r *Reader) nextOp() error {
	c, l1 := binary.Uvarint(r.opList)
	m, l2 := binary.Uvarint(r.opList[max(l1, 0):])
	s, l3 := binary.Varint(r.opList[max(l1, 0)+max(l2, 0):])
	if l1 <= 0 || l2 <= 0 || l3 <= 0 {
		return corrupt("op")
	}
	r.opList = r.opList[l1+l2+l3:]
	r.ops++
	n := c + m
	switch {
	case c > maxSpan || m > maxSpan || r.span+int64(n) > maxSpan || int64(n) > r.size-r.at:
		return corrupt("more bytes than there are")
	case m > uint64(len(r.ins)):
		return corrupt("inserts are missing")
	case r.ops > opsFree+(r.at+int64(n))/opsBytes:
		return corrupt("too many ops")
	case c > 0 && (r.pos < 0 || int64(c) > r.base.size-r.pos):
		return corrupt("copy beyond the base")
	case s < -r.base.size || s > r.base.size || r.pos < -r.base.size || r.pos > 2*r.base.size:
		return corrupt("move beyond the base")
	}
	r.span += int64(n)
	r.copying, r.inserting, r.move = int64(c), int64(m), s
	return nil
}

// copy copies from the base, and changes what the runs say.
func (r *Reader) copy(p []byte) (int, error) {
	if err := r.base.read(p, r.pos); err != nil {
		return 0, err
	}
	for rest := p; len(rest) > 0; {
		switch {
		case r.equal > 0:
			n := min(r.equal, int64(len(rest)))
			r.equal -= n
			rest = rest[n:]
		case r.changed > 0:
			n := min(r.changed, int64(len(rest)))
			for i, d := range r.changes[:n] {
				rest[i] += d
			}
			r.changed -= n
			r.changes, rest = r.changes[n:], rest[n:]
		case len(r.runs) > 0:
			if err := r.nextRun(); err != nil {
				return 0, err
			}
		default:
			rest = nil // all to the end of the segment is equal
		}
	}
	r.pos += int64(len(p))
	r.copying -= int64(len(p))
	r.at += int64(len(p))
	return len(p), nil
}

// nextRun reads a run. One that changes nothing is not written, so that runs cost nothing.
func (r *Reader) nextRun() error {
	e, l1 := binary.Uvarint(r.runs)
	c, l2 := binary.Uvarint(r.runs[max(l1, 0):])
	if l1 <= 0 || l2 <= 0 || e > maxSpan || c == 0 || c > uint64(len(r.changes)) {
		return corrupt("run")
	}
	r.runs = r.runs[l1+l2:]
	r.equal, r.changed = int64(e), int64(c)
	return nil
}

// nextSegment reads the lists of a segment.
func (r *Reader) nextSegment() error {
	var lens [4]int64
	total := int64(0)
	for i := range lens {
		n, err := binary.ReadUvarint(r.src)
		switch {
		case i == 0 && errors.Is(err, io.EOF) && r.at == r.size:
			return io.EOF
		case err != nil:
			return fromSource(err)
		case n > maxLists:
			return corrupt("list of %d bytes", n)
		}
		lens[i] = int64(n)
		total += int64(n)
	}
	if total > maxLists || lens[0] == 0 || r.at == r.size {
		return corrupt("segment of %d bytes", total)
	}
	b := r.buf
	if int64(cap(b)) < total {
		b = make([]byte, total)
	}
	b = b[:total]
	if _, err := io.ReadFull(r.src, b); err != nil {
		return fromSource(err)
	}
	r.segment = segment{buf: b}
	for i, list := range []*[]byte{&r.opList, &r.runs, &r.changes, &r.ins} {
		*list, b = b[:lens[i]], b[lens[i]:]
	}
	return nil
}

// fromSource sorts an error of the compressed stream.
func fromSource(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return io.ErrUnexpectedEOF
	case errors.Is(err, compress.ErrCorrupt), errors.Is(err, compress.ErrTooLarge):
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return err
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}

// page reads a base. Small copies mostly follow each other closely, so it reads some more than
// it is asked for.
type page struct {
	r    io.ReaderAt
	size int64
	buf  []byte
	off  int64 // where buf lies
}

const pageSize = 8 << 10

// read fills p from byte off on; all of it lies inside.
func (g *page) read(p []byte, off int64) error {
	if len(p) >= pageSize {
		return g.at(p, off)
	}
	if off < g.off || off+int64(len(p)) > g.off+int64(len(g.buf)) {
		if g.buf == nil {
			g.buf = make([]byte, pageSize)
		}
		g.buf, g.off = g.buf[:min(pageSize, g.size-off)], off
		if err := g.at(g.buf, off); err != nil {
			g.buf = g.buf[:0]
			return err
		}
	}
	copy(p, g.buf[off-g.off:])
	return nil
}

func (g *page) at(p []byte, off int64) error {
	n, err := g.r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return &BaseError{err}
}
