package infocache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// On disk the memory is a log, cut into segments of two files each: SEQ.dat has the texts
// one after the other, SEQ.idx a record of fixed size for each change. A start reads only the
// records. Every record and every text has its checksum, so whatever a crash or the disk does
// to some of them leaves the others usable. The oldest segment is dropped to make room, after
// what is still wanted of it was written anew at the head; so a record never outlives an
// older one that it supersedes.

type kind byte

const (
	kindPut   kind = 1 // the text lies at off, size
	kindTouch kind = 2 // it was used
	kindGone  kind = 3 // it was forgotten
)

// A record: "ni" and a version; the kind; hash; off; size; sum of the text; used; zero; sum of
// all before. Numbers are little-endian.
const (
	recordSize    = 48
	recordVersion = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type record struct {
	kind           kind
	hash           nix.StoreHash
	off, size, sum uint32
	used           uint32
}

func (r record) append(b []byte) []byte {
	start := len(b)
	b = append(b, 'n', 'i', recordVersion, byte(r.kind))
	b = append(b, r.hash[:]...)
	for _, v := range [...]uint32{r.off, r.size, r.sum, r.used, 0} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// parseRecord reads what append wrote; false for anything else.
func parseRecord(b []byte) (r record, ok bool) {
	if len(b) != recordSize || b[0] != 'n' || b[1] != 'i' || b[2] != recordVersion {
		return record{}, false
	}
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	if u32(44) != crc32.Checksum(b[:44], castagnoli) || u32(40) != 0 {
		return record{}, false
	}
	r = record{kind: kind(b[3]), hash: nix.StoreHash(b[4:24]), off: u32(24), size: u32(28), sum: u32(32), used: u32(36)}
	if r.kind < kindPut || r.kind > kindGone || r.kind == kindPut && (r.size == 0 || r.size > nix.MaxNarInfo) {
		return record{}, false
	}
	return r, true
}

// segment is one pair of files.
type segment struct {
	seq              uint32
	dat              *os.File
	idx              *os.File // open in the head only
	datSize, idxSize int64
}

func (s *segment) bytes() int64 { return s.datSize + s.idxSize }

func (s *segment) close() {
	_ = s.dat.Close()
	if s.idx != nil {
		_ = s.idx.Close()
	}
}

const (
	idxSuffix = ".idx"
	datSuffix = ".dat"
	// aside is the name of files that could not be read: kept for whoever wants to know
	// why, until the next ones.
	aside = "damaged"
)

func segmentPath(dir string, seq uint32, suffix string) string {
	return filepath.Join(dir, fmt.Sprintf("%08x%s", seq, suffix))
}

// load reads the records of all segments, oldest first. Only a directory that cannot be
// listed is an error.
func (c *Cache) load() error {
	names, err := os.ReadDir(c.cfg.Dir)
	if err != nil {
		return err
	}
	var seqs []uint32
	for _, d := range names {
		stem, ok := strings.CutSuffix(d.Name(), idxSuffix)
		if !ok {
			if stem, ok = strings.CutSuffix(d.Name(), datSuffix); !ok {
				continue
			}
		}
		seq, err := strconv.ParseUint(stem, 16, 32)
		if err != nil || len(stem) != 8 {
			continue
		}
		seqs = append(seqs, uint32(seq))
	}
	slices.Sort(seqs)
	var last *segment
	clean := false
	for _, seq := range slices.Compact(seqs) {
		s, whole := c.loadSegment(seq)
		if s != nil {
			c.segs[seq], last, clean = s, s, whole
		}
		c.nextSeq = seq + 1
	}
	now := seconds(time.Now())
	for h, at := range c.index {
		if expired(at.used, now) {
			c.forget(h)
		}
	}
	// Going on in the last one keeps their number small over many restarts.
	if last != nil && clean && last.seq == c.nextSeq-1 {
		if idx, err := os.OpenFile(segmentPath(c.cfg.Dir, last.seq, idxSuffix), os.O_RDWR, 0o600); err == nil {
			last.idx, c.head = idx, last
		}
	}
	return nil
}

// loadSegment reads one segment into the index; nil when it cannot be used at all, whole when
// nothing in it is damaged.
func (c *Cache) loadSegment(seq uint32) (s *segment, whole bool) {
	idx := segmentPath(c.cfg.Dir, seq, idxSuffix)
	records, err := os.ReadFile(idx)
	if err != nil {
		return c.setAside(seq, err), false
	}
	dat, err := os.OpenFile(segmentPath(c.cfg.Dir, seq, datSuffix), os.O_RDWR, 0)
	if err != nil {
		return c.setAside(seq, err), false
	}
	size, err := dat.Seek(0, io.SeekEnd)
	if err != nil {
		_ = dat.Close()
		return c.setAside(seq, err), false
	}
	// A record that was being written when the machine stopped is cut and gets overwritten.
	s = &segment{seq: seq, dat: dat, datSize: size, idxSize: int64(len(records) / recordSize * recordSize)}
	bad := 0
	for chunk := range slices.Chunk(records[:s.idxSize], recordSize) {
		r, ok := parseRecord(chunk)
		if !ok || r.kind == kindPut && int64(r.off)+int64(r.size) > size {
			bad++
			continue
		}
		c.apply(seq, r)
	}
	total := int(s.idxSize / recordSize)
	if bad > 0 && bad == total {
		_ = dat.Close()
		return c.setAside(seq, errors.New("no record in it is whole")), false
	}
	if bad > 0 {
		c.log.Warn("part of the remembered narinfos is damaged and left out", "source", name, "file", idx, "damaged", bad, "of", total)
	}
	return s, bad == 0
}

// setAside renames a segment that cannot be read, so that its number is free of it. It
// returns nil.
func (c *Cache) setAside(seq uint32, why error) *segment {
	if !errors.Is(why, fs.ErrNotExist) { // else half a pair: a crash between making or removing the two
		c.log.Warn("a file of remembered narinfos is damaged and set aside", "source", name,
			"file", segmentPath(c.cfg.Dir, seq, idxSuffix), "err", why)
	}
	for _, suffix := range [...]string{idxSuffix, datSuffix} {
		path := segmentPath(c.cfg.Dir, seq, suffix)
		if errors.Is(why, fs.ErrNotExist) {
			_ = os.Remove(path)
			continue
		}
		to := filepath.Join(c.cfg.Dir, aside+suffix)
		_ = os.RemoveAll(to)
		_ = os.Rename(path, to)
	}
	return nil
}

// apply brings the index to what r says. The caller holds mu or is alone.
func (c *Cache) apply(seq uint32, r record) {
	switch r.kind {
	case kindPut:
		c.forget(r.hash)
		c.index[r.hash] = place{seg: seq, off: r.off, size: r.size, sum: r.sum, used: r.used, stored: r.used}
		c.live += int64(r.size)
	case kindTouch:
		if at, ok := c.index[r.hash]; ok {
			at.used, at.stored, at.hot = max(at.used, r.used), max(at.stored, r.used), true
			c.index[r.hash] = at
		}
	case kindGone:
		c.forget(r.hash)
	}
}

// forget takes h out of the index.
func (c *Cache) forget(h nix.StoreHash) {
	if at, ok := c.index[h]; ok {
		c.live -= int64(at.size)
		delete(c.index, h)
	}
}
