package delta

import (
	"context"
	"errors"
	"io"

	"github.com/nixp2p/nixp2p/internal/compress"
)

// Windows: what of the target and of the base is in memory together. An Encode needs the two, 8 MiB
// for the index, half as much again for the spare files, and 20 MiB for zstd.
const (
	targetWindow = 16 << 20
	baseWindow   = 32 << 20
	spareWindow  = 16 << 20
	// chunk is coded before it is decided again whether that is worth it.
	chunk = 1 << 20
	// leastSpare is the least file that is looked for among the spare files.
	leastSpare = 1 << 10
)

// Stats is what an Encode did, in bytes.
type Stats struct {
	Target  int64 // of the NAR
	Delta   int64 // that were written
	Matched int64 // of the NAR, for which an index was used
	Given   int64 // of the NAR, that were inserted because looking for them was in vain
}

// Encode writes to w the delta that makes target of base. What has been coded is passed on after at
// most 16 MiB of the NAR. It stops when ctx ends; reads and writes are the caller's to end.
//
// It needs at most 128 MiB, and falls back to inserting where the base is of no use.
func Encode(ctx context.Context, w io.Writer, base, target Tree) (Stats, error) {
	out := &counter{w: w}
	e := &encoder{
		base: base, target: target, out: out,
		zip: compress.NewZstdDelta(out),
	}
	defer e.zip.Release()
	e.w = writer{w: e.zip, flush: e.flushed}
	e.gain.probe = compress.NewZstdWriter(&e.gain.sampled)
	defer e.gain.probe.Release()
	err := e.encode(ctx)
	if err == nil {
		err = e.zip.Close()
	}
	e.stats.Target, e.stats.Delta = e.w.at, out.n
	return e.stats, err
}

type encoder struct {
	base, target Tree
	w            writer
	out          *counter
	zip          *compress.ZstdWriter
	gain         gain
	stats        Stats

	at   int64 // of the target, that is coded
	t, b []byte
	x    index
	left *spares // made when it is needed
}

func (e *encoder) encode(ctx context.Context) error {
	p := pair(e.base, e.target)
	for units := p.units; len(units) > 0; {
		if err := errors.Join(ctx.Err(), e.w.err); err != nil {
			return err
		}
		n, err := batch(units), error(nil)
		switch {
		case n > 0:
			err = e.batch(ctx, units[:n])
		case units[0].m == 0:
			n, err = 1, e.unpaired(ctx, units[0], p.spare)
		default:
			n, err = 1, e.large(ctx, units[0])
		}
		if err != nil {
			return err
		}
		units = units[n:]
	}
	if err := e.insertTo(ctx, e.target.Size()); err != nil {
		return err
	}
	e.w.end()
	return e.w.err
}

// flushed is called after each segment.
func (e *encoder) flushed(indexed int64) error {
	if err := e.zip.Flush(); err != nil {
		return err
	}
	e.stats.Matched += indexed
	e.gain.note(indexed, e.out.n)
	return nil
}

// batch returns how many units can be coded together: they follow each other in both trees, and fit
// into the windows.
func batch(units []unit) int {
	first, end := units[0], int64(0)
	for i, u := range units {
		if u.m == 0 || u.b < end || u.tEnd()-first.t > targetWindow || u.bEnd()-first.b > baseWindow {
			return i
		}
		end = u.bEnd()
	}
	return len(units)
}

// batch codes units that fit into the windows.
func (e *encoder) batch(ctx context.Context, units []unit) error {
	first, last := units[0], units[len(units)-1]
	if err := e.insertTo(ctx, first.t); err != nil {
		return err
	}
	t, err := read(&e.t, e.target, first.t, last.tEnd())
	if err != nil {
		return err
	}
	b, err := read(&e.b, e.base, first.b, last.bEnd())
	if err != nil {
		return &BaseError{err}
	}
	m := e.matcher(b, first.b)
	for len(units) > 0 {
		n := run(units)
		u, end := units[0], units[n-1].tEnd()
		e.w.insert(t[e.at-first.t : u.t-first.t])
		e.at = u.t
		if !e.aligned(t[u.t-first.t:end-first.t], b, u.b-first.b, first.b) {
			for _, u := range units[:n] {
				part := t[u.t-first.t : u.tEnd()-first.t]
				if u.n != u.m || n == 1 || !e.aligned(part, b, u.b-first.b, first.b) {
					e.matched(m, part, int(u.b-first.b))
				}
			}
		}
		e.at = end
		units = units[n:]
	}
	return e.w.err
}

// run returns how many units adjoin each other in both trees, with the same distance.
func run(units []unit) int {
	for i := 1; i < len(units); i++ {
		if u, v := units[i-1], units[i]; u.n != u.m || v.n != v.m || v.t != u.tEnd() || v.b != u.bEnd() {
			return i
		}
	}
	return len(units)
}

// aligned writes a copy if t is like the base at byte off of b, which lies at byte origin.
func (e *encoder) aligned(t, b []byte, off, origin int64) bool {
	if off < 0 || int64(len(b))-off < int64(len(t)) {
		return false
	}
	if b = b[off : off+int64(len(t))]; !similar(t, b) {
		return false
	}
	e.w.copy(t, b, origin+off)
	return true
}

// matcher returns one for a part of the base, which has no index yet.
func (e *encoder) matcher(b []byte, origin int64) *matcher {
	e.x.table = e.x.table[:0]
	return &matcher{w: &e.w, x: &e.x, base: b, place: func(i int) (int64, int) { return origin + int64(i), len(b) - i }}
}

// matched codes t, which presumably begins at byte start of the matcher's base, or inserts parts of
// it while matching does not pay. It returns what byte after t corresponds to.
func (e *encoder) matched(m *matcher, t []byte, start int) int {
	for len(t) > 0 {
		n := min(len(t), chunk)
		part := t[:n]
		t = t[n:]
		built := len(m.x.table) > 0
		if e.gain.skips(n) && !(built && e.promising(m, &part, &start)) {
			e.stats.Given += int64(len(part))
			e.w.insert(part)
			start += len(part)
			continue
		}
		if e.gain.fresh() {
			e.w.end()
		}
		if !built {
			m.x.build(m.base)
		}
		n = len(part)
		e.gain.sample(part)
		e.w.indexed += int64(n)
		start = m.code(part, start)
	}
	return start
}

// promising codes the beginning of a part that would be skipped, where an index is at hand, and
// reports whether most of it was found.
func (e *encoder) promising(m *matcher, part *[]byte, start *int) bool {
	n := min(len(*part), probeBytes)
	had := e.w.copied
	*start = m.code((*part)[:n], *start)
	*part = (*part)[n:]
	if e.w.copied-had < int64(n)*7/8 {
		return false
	}
	e.gain.again()
	return true
}

// unpaired codes a file that has no version in the base.
func (e *encoder) unpaired(ctx context.Context, u unit, spare []File) error {
	if u.n < leastSpare || len(spare) == 0 {
		return e.insertTo(ctx, u.tEnd())
	}
	if err := e.insertTo(ctx, u.t); err != nil {
		return err
	}
	if e.left == nil {
		left, err := readSpares(e.base, spare)
		if err != nil {
			return err
		}
		e.left = left
	}
	m := &matcher{w: &e.w, x: &e.left.x, base: e.left.b, place: e.left.place}
	for start := 0; e.at < u.tEnd(); {
		t, err := read(&e.t, e.target, e.at, min(e.at+targetWindow, u.tEnd()))
		if err != nil {
			return errors.Join(err, ctx.Err())
		}
		start = e.matched(m, t, start)
		e.at += int64(len(t))
	}
	return e.w.err
}

// insertTo inserts the target up to byte end.
func (e *encoder) insertTo(ctx context.Context, end int64) error {
	for e.at < end && e.w.err == nil {
		t, err := read(&e.t, e.target, e.at, min(e.at+chunk, end))
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		e.w.insert(t)
		e.at += int64(len(t))
	}
	return e.w.err
}

// read reads a range into a buffer that is kept.
func read(buf *[]byte, r io.ReaderAt, from, to int64) ([]byte, error) {
	n := int(to - from)
	if cap(*buf) < n {
		*buf = make([]byte, n, roundUp(n))
	}
	b := (*buf)[:n]
	k, err := r.ReadAt(b, from)
	if k == n {
		return b, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return nil, err
}

// roundUp returns the size of a buffer that will not have to grow many times.
func roundUp(n int) int {
	size := chunk
	for size < n {
		size *= 2
	}
	return size
}

// counter counts what is written, and passes it on unless w is nil.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (n int, err error) {
	if c.w == nil {
		c.n += int64(len(b))
		return len(b), nil
	}
	n, err = c.w.Write(b)
	c.n += int64(n)
	return n, err
}
