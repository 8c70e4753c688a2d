package delta

import (
	"encoding/binary"
	"io"
)

// writer writes segments.
type writer struct {
	w     io.Writer
	flush func(indexed int64) error // after each segment
	head  []byte
	err   error

	pending // of the segment
	openOp

	at     int64 // bytes of the NAR that were written
	count  int64 // ops that were written
	copied int64 // bytes that were copied unchanged
}

// pending is a segment that is not written yet.
type pending struct {
	ops, runs, changes, inserts []byte
	equal                       int64 // bytes that were copied since the last run
	span                        int64 // bytes of the NAR
	indexed                     int64 // of these, bytes for which an index was asked
}

// openOp is an op that is not written yet, because the move at its end is not known.
type openOp struct {
	place int64 // in the base, after the last op that was written
	next  int64 // in the base, where the copy of this one begins
	open  bool  // there is one
	c, m  int64 // bytes that it copies and inserts
}

const (
	// segmentLists is where a segment is ended: well below maxLists.
	segmentLists = 1 << 20
	// pieceBytes: longer copies and inserts are cut into such pieces, so that no list grows
	// far beyond segmentLists.
	pieceBytes = 256 << 10
)

// affords reports whether n more ops are within the limit, and leaves as many for what has to be
// written in any case.
func (w *writer) affords(n int64) bool {
	return w.count+n < opsFree/2+w.at/opsBytes
}

// copy writes that target is like the base from byte pos on, with the given bytes there. Both have
// the same length.
func (w *writer) copy(target, base []byte, pos int64) {
	for len(target) > 0 {
		n := min(len(target), pieceBytes, int(maxSpan-w.span))
		if !w.open || w.m > 0 || pos != w.next+w.c {
			w.begin(pos)
		}
		w.c += int64(n)
		w.diff(target[:n], base[:n])
		w.advance(n)
		target, base, pos = target[n:], base[n:], pos+int64(n)
	}
}

// diff appends the runs of a copy.
func (w *writer) diff(target, base []byte) {
	for i := 0; i < len(target); {
		k := commonPrefix(target[i:], base[i:])
		w.equal += int64(k)
		w.copied += int64(k)
		i += k
		from := i
		for i < len(target) && target[i] != base[i] {
			w.changes = append(w.changes, target[i]-base[i])
			i++
		}
		if i > from {
			w.runs = binary.AppendUvarint(w.runs, uint64(w.equal))
			w.runs = binary.AppendUvarint(w.runs, uint64(i-from))
			w.equal = 0
		}
	}
}

// insert writes bytes that are not taken from the base.
func (w *writer) insert(b []byte) {
	for len(b) > 0 {
		n := min(len(b), pieceBytes, int(maxSpan-w.span))
		if !w.open {
			w.begin(w.next)
		}
		w.m += int64(n)
		w.inserts = append(w.inserts, b[:n]...)
		w.advance(n)
		b = b[n:]
	}
}

// begin ends the op before, and begins one that copies from byte pos on.
func (w *writer) begin(pos int64) {
	w.endOp(pos)
	w.next, w.open = pos, true
}

// endOp writes the op that is open, which is followed by one at pos.
func (w *writer) endOp(pos int64) {
	if !w.open {
		if pos != w.place {
			w.append(0, 0, pos-w.place) // at the beginning of a segment
		}
		w.place = pos
		return
	}
	after := w.next + w.c
	w.append(w.c, w.m, pos-after)
	w.place, w.next, w.c, w.m, w.open = pos, pos, 0, 0, false
}

func (w *writer) append(c, m, move int64) {
	w.ops = binary.AppendUvarint(w.ops, uint64(c))
	w.ops = binary.AppendUvarint(w.ops, uint64(m))
	w.ops = binary.AppendVarint(w.ops, move)
	w.count++
}

// advance notes n bytes, and ends the segment when it is full.
func (w *writer) advance(n int) {
	w.at += int64(n)
	w.span += int64(n)
	if w.span == maxSpan || len(w.ops)+len(w.runs)+len(w.changes)+len(w.inserts) >= segmentLists {
		w.end()
	}
}

// end ends the segment.
func (w *writer) end() {
	w.endOp(w.next + w.c)
	if w.span == 0 {
		return // an op that only moves is left for the next segment
	}
	w.head = w.head[:0]
	for _, list := range [][]byte{w.ops, w.runs, w.changes, w.inserts} {
		w.head = binary.AppendUvarint(w.head, uint64(len(list)))
	}
	for _, b := range [][]byte{w.head, w.ops, w.runs, w.changes, w.inserts} {
		if w.err == nil && len(b) > 0 {
			_, w.err = w.w.Write(b)
		}
	}
	if w.err == nil {
		w.err = w.flush(w.indexed)
	}
	w.ops, w.runs, w.changes, w.inserts = w.ops[:0], w.runs[:0], w.changes[:0], w.inserts[:0]
	w.equal, w.span, w.indexed = 0, 0, 0
}
