package compress

import (
	"bufio"
	"errors"
	"io"
)

// lzwReader decodes the format of compress(1). It has no end mark and no checksum: a file that
// is cut between two codes decodes to less.
type lzwReader struct {
	src   *bufio.Reader
	out   []byte // decoded and not read yet: the end of stack
	begun bool
	err   error

	group     lzwGroup
	width     int // bits of a code
	most      int // bits of a code at most
	clears    bool
	next      int // code of the next entry
	last      int // the code before, -1 at the beginning and behind a clear
	lastFirst byte

	prefix [1 << lzwMaxBits]uint16
	suffix [1 << lzwMaxBits]byte
	stack  [1 << lzwMaxBits]byte
}

// lzwGroup is as many bytes as a code has bits: eight codes, fewer at the end. What is left of a
// group is dropped when the width changes.
type lzwGroup struct {
	bytes    [lzwMaxBits]byte
	at, have int // bits that were read, and that are there
}

const (
	lzwMinBits = 9
	lzwMaxBits = 16
	lzwClear   = 256
)

var errLZW = errors.New("not a file of compress")

func newLZWReader(src *bufio.Reader) io.Reader {
	r := &lzwReader{src: src, width: lzwMinBits, last: -1}
	for i := range 256 {
		r.suffix[i] = byte(i)
	}
	return r
}

func (r *lzwReader) Read(p []byte) (n int, err error) {
	if !r.begun {
		r.begun = true
		r.err = r.header()
	}
	for n < len(p) {
		if len(r.out) == 0 {
			if r.err == nil {
				r.err = r.decode()
			}
			if r.err != nil {
				break
			}
		}
		k := copy(p[n:], r.out)
		r.out = r.out[k:]
		n += k
	}
	if n > 0 {
		return n, nil // the error comes again
	}
	return 0, r.err
}

func (r *lzwReader) header() error {
	var head [3]byte
	if err := readFull(r.src, head[:]); err != nil {
		return err
	}
	r.most = int(head[2] & 0x1f)
	if head[0] != 0x1f || head[1] != 0x9d || head[2]&0x60 != 0 || r.most < lzwMinBits || r.most > lzwMaxBits {
		return errLZW
	}
	r.clears = head[2]&0x80 != 0
	r.next = r.first()
	return nil
}

// first is the code of the first entry.
func (r *lzwReader) first() int {
	if r.clears {
		return lzwClear + 1
	}
	return lzwClear
}

// code reads the next code.
func (r *lzwReader) code() (int, error) {
	if r.next > 1<<r.width-1 && r.width < r.most {
		r.width++
		r.group.have = 0
	}
	g := &r.group
	if g.at+r.width > g.have {
		n, err := io.ReadFull(r.src, g.bytes[:r.width])
		if n == 0 {
			return 0, err
		}
		if g.at, g.have = 0, 8*n; g.have < r.width {
			return 0, io.ErrUnexpectedEOF
		}
	}
	code := 0
	for bit := 0; bit < r.width; {
		k := min(8-g.at%8, r.width-bit)
		code |= int(g.bytes[g.at/8]>>(g.at%8)) & (1<<k - 1) << bit
		g.at += k
		bit += k
	}
	return code, nil
}

// decode decodes one code to out.
func (r *lzwReader) decode() error {
	code, err := r.code()
	for err == nil && r.clears && code == lzwClear {
		r.width, r.group.have = lzwMinBits, 0
		r.next, r.last = r.first(), -1
		code, err = r.code()
	}
	if err != nil {
		return err
	}
	entry := code
	i := len(r.stack)
	switch {
	case r.last < 0 && code < 256: // nothing stands before it
	case r.last < 0 || code > r.next || code == r.next && r.next == 1<<r.most:
		return errLZW
	case code == r.next: // the entry that this code makes
		i--
		r.stack[i] = r.lastFirst
		code = r.last
	}
	for ; code >= 256; code = int(r.prefix[code]) {
		i--
		r.stack[i] = r.suffix[code]
	}
	i--
	r.stack[i] = byte(code)
	r.lastFirst = byte(code)
	if r.last >= 0 && r.next < 1<<r.most {
		r.prefix[r.next], r.suffix[r.next] = uint16(r.last), r.lastFirst
		r.next++
	}
	r.last = entry
	r.out = r.stack[i:]
	return nil
}
