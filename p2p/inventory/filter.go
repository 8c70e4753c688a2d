// Package inventory holds what machines tell each other of what they share: a binary fuse
// filter of everything, then lists of changes. A Local is this machine's side, a Remote what
// one peer has told. It knows no network and no peers, and it does not believe a positive:
// that is confirmed with the peer.
package inventory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/FastFilter/xorfilter"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// Key is what stands for a question in filters and lists: its first 64 bits.
type Key uint64

// KeyOf returns the key of a question.
func KeyOf(q nix.Question) Key { return Key(binary.BigEndian.Uint64(q[:8])) }

// MaxKeys is the most that one machine tells of: larger stores leave the rest out. It
// bounds what a peer may make another one keep, at some 2.3 bytes a key.
const MaxKeys = 3 << 20

const (
	// filterVersion is the first byte of a filter on the wire.
	filterVersion = 1
	// filterHead is version, count, seed, segment length and segment count.
	filterHead = 1 + 4 + 8 + 4 + 4
	// maxSegment is the longest segment that the filter's own formula gives.
	maxSegment = 1 << 18
	// maxFingerprints follows from MaxKeys: 1.125 for large sets, and room for rounding.
	maxFingerprints = MaxKeys + MaxKeys/4 + 2*maxSegment
	// MaxFilterBytes bounds a filter on the wire.
	MaxFilterBytes = filterHead + 2*maxFingerprints
)

// filter is a binary fuse filter with 16-bit fingerprints; nil fuse is the empty set.
type filter struct {
	fuse  *xorfilter.BinaryFuse[uint16]
	count int
}

// build makes a filter. It may reorder keys, which must be distinct.
func build(keys []uint64) (filter, error) {
	if len(keys) == 0 {
		return filter{}, nil
	}
	f, err := xorfilter.NewBinaryFuse[uint16](keys)
	if err != nil {
		return filter{}, fmt.Errorf("inventory: build a filter of %d keys: %w", len(keys), err)
	}
	return filter{f, len(keys)}, nil
}

func (f filter) has(k Key) bool { return f.fuse != nil && f.fuse.Contains(uint64(k)) }

func (f filter) bytes() int {
	if f.fuse == nil {
		return 0
	}
	return 2 * len(f.fuse.Fingerprints)
}

// append encodes f: version, then big-endian count, seed, segment length and segment
// count, then the fingerprints.
func (f filter) append(b []byte) []byte {
	b = append(b, filterVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(f.count))
	if f.fuse == nil {
		return append(b, make([]byte, filterHead-5)...)
	}
	b = binary.BigEndian.AppendUint64(b, f.fuse.Seed)
	b = binary.BigEndian.AppendUint32(b, f.fuse.SegmentLength)
	b = binary.BigEndian.AppendUint32(b, f.fuse.SegmentCount)
	for _, p := range f.fuse.Fingerprints {
		b = binary.BigEndian.AppendUint16(b, p)
	}
	return b
}

var errFilter = errors.New("inventory: not a filter")

// parseFilter reads what append wrote. All that Contains relies on is checked: a look-up
// must stay within the fingerprints whatever the key.
func parseFilter(b []byte) (filter, error) {
	if len(b) < filterHead || b[0] != filterVersion {
		return filter{}, fmt.Errorf("%w: head", errFilter)
	}
	count := binary.BigEndian.Uint32(b[1:])
	seed := binary.BigEndian.Uint64(b[5:])
	length, segments := binary.BigEndian.Uint32(b[13:]), binary.BigEndian.Uint32(b[17:])
	b = b[filterHead:]
	if count == 0 {
		if seed != 0 || length != 0 || segments != 0 || len(b) != 0 {
			return filter{}, fmt.Errorf("%w: an empty one with contents", errFilter)
		}
		return filter{}, nil
	}
	slots := (uint64(segments) + 2) * uint64(length)
	switch {
	case count > MaxKeys:
		return filter{}, fmt.Errorf("%w: %d keys", errFilter, count)
	case segments == 0 || length == 0 || length > maxSegment || bits.OnesCount32(length) != 1:
		return filter{}, fmt.Errorf("%w: %d segments of %d", errFilter, segments, length)
	case slots > maxFingerprints || uint64(len(b)) != 2*slots:
		return filter{}, fmt.Errorf("%w: %d fingerprints in %d bytes", errFilter, slots, len(b))
	case uint64(count) > slots:
		return filter{}, fmt.Errorf("%w: %d keys in %d fingerprints", errFilter, count, slots)
	}
	f := &xorfilter.BinaryFuse[uint16]{
		Seed: seed, SegmentLength: length, SegmentLengthMask: length - 1,
		SegmentCount: segments, SegmentCountLength: segments * length,
		Fingerprints: make([]uint16, slots),
	}
	for i := range f.Fingerprints {
		f.Fingerprints[i] = binary.BigEndian.Uint16(b[2*i:])
	}
	return filter{f, int(count)}, nil
}
