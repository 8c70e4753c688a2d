package infocache

import (
	"cmp"
	"context"
	"hash/crc32"
	"os"
	"slices"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

const (
	// batchFor is how long changes gather before they are written together: what a power
	// cut may cost.
	batchFor = 500 * time.Millisecond
	// illFor is how long nothing is written after the disk refused.
	illFor = 30 * time.Second

	// segments is into how many parts the bytes are cut: as coarse is forgetting.
	segments   = 16
	minSegment = 64 << 10
	maxSegment = 1 << 30 // offsets are 32 bits wide
)

// Run writes what Put noted until ctx ends, and what is left then.
func (c *Cache) Run(ctx context.Context) error {
	timer := time.NewTimer(batchFor)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			c.flush()
			return nil
		case <-c.wake:
		}
		timer.Reset(batchFor)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		c.flush()
	}
}

// Close writes what is left and gives the directory free. Run must have ended.
func (c *Cache) Close() error {
	c.flush()
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	for _, s := range c.segs {
		s.close()
	}
	return c.lock.Close()
}

// change is an op on its way to disk.
type change struct {
	hash nix.StoreHash
	op   *op
}

// flush writes all that is pending. When the disk refuses, it is forgotten instead.
func (c *Cache) flush() {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	if c.closed || len(c.pending) == 0 {
		c.mu.Unlock()
		return
	}
	c.flushing, c.pending = c.pending, make(map[nix.StoreHash]*op)
	batch := make([]change, 0, len(c.flushing))
	for h, o := range c.flushing {
		batch = append(batch, change{h, o})
	}
	c.mu.Unlock()
	// Place in a segment tells age where the second of the last use does not.
	slices.SortFunc(batch, func(a, b change) int { return cmp.Compare(a.op.seq, b.op.seq) })

	err := c.write(batch)

	c.mu.Lock()
	for h, o := range c.flushing {
		if o.kind == kindGone {
			c.forget(h) // also when the disk did not take it
		}
	}
	c.flushing = nil
	c.mu.Unlock()
	c.health(err)
}

// health notes whether the disk takes what is written, and says so once each way.
func (c *Cache) health(err error) {
	switch {
	case err == nil:
		if !c.illUntil.IsZero() && time.Now().After(c.illUntil) {
			c.illUntil = time.Time{}
			c.log.Info("narinfos are remembered again", "source", name)
		}
	default:
		if c.illUntil.IsZero() {
			c.log.Warn("narinfos are not remembered: cannot write", "source", name, "dir", c.cfg.Dir, "err", err)
		}
		c.illUntil = time.Now().Add(illFor)
	}
}

// write appends batch to the log and brings the index to it. While the disk is ill it does
// nothing.
func (c *Cache) write(batch []change) error {
	if time.Now().Before(c.illUntil) {
		return nil
	}
	for len(batch) > 0 {
		n, err := c.writePart(batch)
		if err != nil {
			return err
		}
		batch = batch[n:]
		if err := c.makeRoom(); err != nil {
			return err
		}
	}
	return nil
}

// writePart appends as many changes as the head takes and returns their number, at least one.
func (c *Cache) writePart(batch []change) (int, error) {
	head, err := c.headWithRoom()
	if err != nil {
		return 0, err
	}
	var texts, records []byte
	var done []record
	n := 0
	for ; n < len(batch) && head.bytes()+int64(len(texts)+len(records)) < c.segmentSize(); n++ {
		r, text, needed := c.encode(batch[n])
		if !needed {
			continue
		}
		if r.kind == kindPut {
			r.off = uint32(head.datSize) + uint32(len(texts))
			texts = append(texts, text...)
		}
		records = r.append(records)
		done = append(done, r)
	}
	return n, c.appendTo(head, texts, records, done)
}

// encode returns the record and text of a change; needed is false when the disk knows it.
func (c *Cache) encode(ch change) (r record, text []byte, needed bool) {
	r = record{kind: ch.op.kind, hash: ch.hash}
	c.mu.Lock()
	at, known := c.index[ch.hash]
	r.used = ch.op.used
	c.mu.Unlock()
	switch r.kind {
	case kindTouch, kindGone:
		return r, nil, known
	}
	text = ch.op.info.Text()
	if len(text) > nix.MaxNarInfo {
		return record{}, nil, false
	}
	r.size, r.sum = uint32(len(text)), crc32.Checksum(text, castagnoli)
	if known && at.size == r.size && at.sum == r.sum { // the same text again is no more than a use
		r = record{kind: kindTouch, hash: ch.hash, used: r.used}
		fresh := time.Duration(r.used-min(at.stored, r.used))*time.Second < touchEvery
		return r, nil, !fresh
	}
	return r, text, true
}

// appendTo writes texts and records at the end of head: texts first, so that a record without
// its text is rare, though its checksum would tell. Then the index follows.
func (c *Cache) appendTo(head *segment, texts, records []byte, done []record) error {
	if len(records) == 0 {
		return nil
	}
	if c.diskFault != nil {
		if err := c.diskFault(); err != nil {
			return err
		}
	}
	_, err := head.dat.WriteAt(texts, head.datSize)
	if err == nil {
		_, err = head.idx.WriteAt(records, head.idxSize)
	}
	if err != nil {
		// What was half written would be overwritten; a full disk gets it back now.
		_ = head.dat.Truncate(head.datSize)
		_ = head.idx.Truncate(head.idxSize)
		return err
	}
	c.mu.Lock()
	head.datSize += int64(len(texts))
	head.idxSize += int64(len(records))
	for _, r := range done {
		c.apply(head.seq, r)
	}
	c.mu.Unlock()
	if err := c.sync(head.dat); err != nil {
		return err
	}
	return c.sync(head.idx)
}

func (c *Cache) segmentSize() int64 {
	return min(max(c.cfg.MaxBytes/segments, minSegment), maxSegment)
}

// headWithRoom returns the segment to append to, a new one when the last is full.
func (c *Cache) headWithRoom() (*segment, error) {
	if c.head != nil && c.head.bytes() < c.segmentSize() {
		return c.head, nil
	}
	seq := c.nextSeq
	dat, err := os.OpenFile(segmentPath(c.cfg.Dir, seq, datSuffix), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	idx, err := os.OpenFile(segmentPath(c.cfg.Dir, seq, idxSuffix), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		_ = dat.Close()
		return nil, err
	}
	if c.head != nil {
		_ = c.head.idx.Close()
		c.head.idx = nil
	}
	c.head = &segment{seq: seq, dat: dat, idx: idx}
	c.nextSeq++
	c.mu.Lock()
	c.segs[seq] = c.head
	c.mu.Unlock()
	return c.head, nil
}

// makeRoom drops the oldest segments until the bounds hold, with room for one more segment
// so that they hold while it grows.
func (c *Cache) makeRoom() error {
	for {
		c.mu.Lock()
		total := c.segmentSize()
		var oldest *segment
		for _, s := range c.segs {
			total += s.bytes()
			if oldest == nil || s.seq < oldest.seq {
				oldest = s
			}
		}
		over := total > c.cfg.MaxBytes || len(c.index) > c.cfg.MaxEntries
		c.mu.Unlock()
		if !over || oldest == nil {
			return nil
		}
		if oldest == c.head {
			_ = c.head.idx.Close()
			c.head.idx, c.head = nil, nil // the next write begins a new one
		}
		if err := c.dropSegment(oldest); err != nil {
			return err
		}
	}
}

// dropSegment removes the oldest segment, after what survives it was written anew at the head.
func (c *Cache) dropSegment(s *segment) error {
	err := c.copyForward(s)
	c.mu.Lock()
	for h, at := range c.index {
		if at.seg == s.seq {
			c.forget(h)
		}
	}
	delete(c.segs, s.seq)
	c.mu.Unlock()
	s.close()
	// The index first: texts without records are removed at the next start.
	for _, suffix := range [...]string{idxSuffix, datSuffix} {
		if e := os.Remove(segmentPath(c.cfg.Dir, s.seq, suffix)); err == nil && e != nil {
			err = e
		}
	}
	return err
}

// survivor is a text that is written anew.
type survivor struct {
	hash nix.StoreHash
	at   place
}

// survivors returns what is to be kept of s: what was used since it came there, then the
// rest, each last used first. When bytes are short that is the used part alone; when only
// superseded texts or the number of entries are the trouble, it is all that the number allows.
func (c *Cache) survivors(s *segment) []survivor {
	var keep []survivor
	now := seconds(time.Now())
	c.mu.Lock()
	keepCold := c.live < c.cfg.MaxBytes*3/4
	others := 0
	for h, at := range c.index {
		switch {
		case at.seg != s.seq:
			others++
		case (keepCold || at.hot) && !expired(at.used, now):
			keep = append(keep, survivor{h, at})
		}
	}
	c.mu.Unlock()
	slices.SortFunc(keep, func(a, b survivor) int {
		if a.at.hot != b.at.hot && a.at.hot {
			return -1
		} else if a.at.hot != b.at.hot {
			return 1
		}
		return cmp.Or(cmp.Compare(b.at.used, a.at.used), cmp.Compare(b.at.off, a.at.off))
	})
	most := max(c.cfg.MaxEntries-c.cfg.MaxEntries/8-others, 0)
	return keep[:min(len(keep), most)]
}

// copyForward writes at most half a segment of s anew, so that dropping s always makes room.
func (c *Cache) copyForward(s *segment) error {
	var texts, records []byte
	var done []record
	most := int(c.segmentSize() / 2)
	var head *segment
	keep := c.survivors(s)
	n, size := 0, 0
	for ; n < len(keep) && size+int(keep[n].at.size)+recordSize <= most; n++ {
		size += int(keep[n].at.size) + recordSize
	}
	for _, k := range slices.Backward(keep[:n]) { // the last used comes last
		text := make([]byte, k.at.size)
		if _, err := s.dat.ReadAt(text, int64(k.at.off)); err != nil || crc32.Checksum(text, castagnoli) != k.at.sum {
			continue // damaged: it goes with the segment
		}
		if head == nil {
			var err error
			if head, err = c.headWithRoom(); err != nil {
				return err
			}
		}
		r := record{
			kind: kindPut, hash: k.hash, used: k.at.used,
			off: uint32(head.datSize) + uint32(len(texts)), size: k.at.size, sum: k.at.sum,
		}
		texts, records, done = append(texts, text...), r.append(records), append(done, r)
	}
	if head == nil {
		return nil
	}
	return c.appendTo(head, texts, records, done)
}
