package delta

import (
	"encoding/binary"
	"math/bits"
)

const (
	// markBytes is how many bytes decide whether there is a mark, and are compared with others.
	markBytes = 32
	// One position in 16 is a mark: the upper four bits of its hash are 0.
	markBits = 4
	// Tables have at least minTable and at most maxTable entries of 4 bytes.
	minTable = 10 // bits
	maxTable = 21
	// leastMatch is the shortest match that is worth an op, and moreThanOld by how much it must
	// exceed what the copy that goes on anyway has of the same bytes.
	leastMatch  = 24
	moreThanOld = 12
	// hopeless is the distance after which a copy is not extended over changes any more.
	hopeless = 4 << 10
)

// gear has random numbers for the rolling hash. That of 0 keeps runs of zeros free of marks.
var gear = makeGear()

func makeGear() (g [256]uint32) {
	x := uint64(1)
	for i := range g { // splitmix64
		x += 0x9e3779b97f4a7c15
		z := (x ^ x>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		g[i] = uint32(z >> 32)
	}
	g[0] = 1 << 31
	return g
}

// index finds marked places of some bytes.
type index struct {
	table []uint32 // the byte after a mark; 0: none
	shift int
}

// build makes it an index of base.
func (x *index) build(base []byte) {
	b := min(max(bits.Len(uint(len(base)>>markBits))+1, minTable), maxTable)
	if cap(x.table) < 1<<b {
		x.table = make([]uint32, 1<<b)
	} else {
		x.table = x.table[:1<<b]
		clear(x.table)
	}
	x.shift = 32 - b
	h := uint32(0)
	for i, c := range base {
		if h = h<<1 + gear[c]; h>>(32-markBits) == 0 && i >= markBytes {
			if e := &x.table[x.slot(h)]; *e == 0 {
				*e = uint32(i + 1)
			}
		}
	}
}

func (x *index) slot(h uint32) uint32 { return h * 0x9e3779b1 >> x.shift }

// matcher codes a part of the target against a part of the base.
type matcher struct {
	w     *writer
	x     *index
	base  []byte
	place func(int) (pos int64, n int) // where base[i] lies in the base, and how much from there on

	t    []byte
	last int // where the present copy begins in t
	pos  int // the same in base
}

// code codes t, whose first byte presumably corresponds to base[start]. It returns what the byte
// after t corresponds to.
func (m *matcher) code(t []byte, start int) int {
	m.t, m.last, m.pos = t, 0, start
	for scan := 0; scan < len(t); {
		scan = m.follow(scan)
		if scan == len(t) {
			break
		}
		scan = m.search(scan)
	}
	end := len(t) + m.pos - m.last
	m.emit(len(t), -1)
	return end
}

// follow goes on along the present copy, over small changes, and returns where it ends.
func (m *matcher) follow(scan int) int {
	const reach, run = 32, 8
	d := m.pos - m.last
	if scan+d < 0 || scan+d > len(m.base) {
		return scan
	}
	t, b := m.t[scan:], m.base[scan+d:]
	n := min(len(t), len(b))
	at := commonPrefix(t, b)
	for i := at + 1; i < min(at+reach, n-run); i++ {
		if t[i] == b[i] {
			k := commonPrefix(t[i:], b[i:])
			if i += k; k >= run {
				at = i
			}
		}
	}
	return scan + at
}

// search looks for a match at byte scan or later, begins a copy there, and returns the byte
// after it; or the byte at which the present copy goes on.
func (m *matcher) search(scan int) int {
	t, base, d := m.t, m.base, m.pos-m.last
	h := uint32(0)
	for _, c := range t[max(scan-markBytes, 0):scan] {
		h = h<<1 + gear[c]
	}
	for i := scan; i < len(t); i++ {
		if i&15 == 0 && i > scan && i+16 <= len(t) && uint(i+d) < uint(len(base)) && i+d+16 <= len(base) && equal16(t[i:], base[i+d:]) {
			return i
		}
		if h = h<<1 + gear[t[i]]; h>>(32-markBits) != 0 {
			continue
		}
		p := int(m.x.table[m.x.slot(h)])
		if p == 0 || p-i-1 == d {
			continue
		}
		back := commonSuffix(t[m.last:i+1], base[:p])
		n := back + commonPrefix(t[i+1:], base[p:])
		if n < leastMatch || n <= m.old(i+1-back, n)+moreThanOld || !m.w.affords(2) {
			continue
		}
		m.emit(i+1-back, p-back)
		return i + 1 - back + n
	}
	return len(t)
}

// old returns how many of n bytes of the target from byte at on the present copy has right.
func (m *matcher) old(at, n int) (count int) {
	const most = 64 << 10
	n = min(n, most)
	d := m.pos - m.last
	lo, hi := max(at, -d), min(at+n, len(m.base)-d)
	for i := lo; i < hi; {
		k := commonPrefix(m.t[i:hi], m.base[i+d:])
		count += k
		i += k + 1
	}
	return count
}

// emit writes the present copy and what has to be inserted up to a match at byte scan of the target
// and pos of the base, which is extended backwards; both copies end where they have the most
// right. A negative pos is none: the target ends at scan.
func (m *matcher) emit(scan, pos int) {
	fore := m.forward(scan)
	back := 0
	if pos >= 0 {
		back = m.backward(scan, pos)
		if over := m.last + fore - (scan - back); over > 0 {
			keep := m.split(scan-back, pos-back, over)
			fore += keep - over
			back -= keep
		}
	}
	m.copy(m.t[m.last:m.last+fore], m.pos)
	m.w.insert(m.t[m.last+fore : scan-back])
	m.last, m.pos = scan-back, pos-back
}

// forward returns how many bytes the present copy extends before byte scan.
func (m *matcher) forward(scan int) int {
	t := m.t[m.last:scan]
	if m.pos < 0 || m.pos > len(m.base) {
		return 0
	}
	b := m.base[m.pos:]
	n := min(len(t), len(b))
	best, length, score := 0, 0, 0 // of equal bytes less changed ones
	for i := 0; i < n; {
		k := commonPrefix(t[i:n], b[i:])
		i, score = i+k, score+k
		if score > best || k > 0 && score == best {
			best, length = score, i
		}
		if i-length > hopeless {
			break
		}
		i, score = i+1, score-1
	}
	return length
}

// backward is forward from a match at byte scan of the target and pos of the base.
func (m *matcher) backward(scan, pos int) int {
	n := min(scan-m.last, pos)
	best, length, score := 0, 0, 0
	for i := 1; i <= n; i++ {
		if m.t[scan-i] == m.base[pos-i] {
			score++
		} else {
			score--
		}
		if score > best {
			best, length = score, i
		}
		if i-length > hopeless {
			break
		}
	}
	return length
}

// split returns how many of the over bytes from byte at on, which both the present copy and
// that to base[pos] cover, are better left to the present one.
func (m *matcher) split(at, pos, over int) (keep int) {
	best, score, d := 0, 0, m.pos-m.last
	for i := range over {
		if m.t[at+i] == m.base[at+i+d] {
			score++
		}
		if m.t[at+i] == m.base[pos+i] {
			score--
		}
		if score > best {
			best, keep = score, i+1
		}
	}
	return keep
}

// copy writes that t is like base from byte i on.
func (m *matcher) copy(t []byte, i int) {
	for len(t) > 0 {
		pos, n := m.place(i)
		n = min(n, len(t))
		m.w.copy(t[:n], m.base[i:i+n], pos)
		t, i = t[n:], i+n
	}
}

func equal16(a, b []byte) bool {
	return binary.LittleEndian.Uint64(a) == binary.LittleEndian.Uint64(b) &&
		binary.LittleEndian.Uint64(a[8:]) == binary.LittleEndian.Uint64(b[8:])
}

// commonPrefix returns how many bytes a and b have in common.
func commonPrefix(a, b []byte) int {
	n := min(len(a), len(b))
	a, b = a[:n], b[:n]
	i := 0
	for ; i+8 <= n; i += 8 {
		if x := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:]); x != 0 {
			return i + bits.TrailingZeros64(x)/8
		}
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

// commonSuffix returns how many bytes at their ends a and b have in common.
func commonSuffix(a, b []byte) int {
	n := min(len(a), len(b))
	a, b = a[len(a)-n:], b[len(b)-n:]
	i := n
	for ; i >= 8; i -= 8 {
		if x := binary.LittleEndian.Uint64(a[i-8:]) ^ binary.LittleEndian.Uint64(b[i-8:]); x != 0 {
			return n - i + bits.LeadingZeros64(x)/8
		}
	}
	for i > 0 && a[i-1] == b[i-1] {
		i--
	}
	return n - i
}

// similar reports whether two ranges of the same length differ in one byte of 16 at most.
func similar(a, b []byte) bool {
	wrong, most := 0, len(a)/16
	for i := 0; i < len(a); {
		i += commonPrefix(a[i:], b[i:])
		for i < len(a) && a[i] != b[i] {
			if wrong++; wrong > most {
				return false
			}
			i++
		}
	}
	return true
}
