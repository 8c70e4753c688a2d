package inventory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

const (
	// deltaVersion is the first byte of a list of changes on the wire.
	deltaVersion = 1
	deltaHead    = 1 + 4 + 4
	// maxDelta is the most keys in one list; more changes at once are a new filter.
	maxDelta = 16 << 10
	// MaxDeltaBytes bounds a list of changes on the wire.
	MaxDeltaBytes = deltaHead + 8*maxDelta

	// minChanges lets small sets change without a new filter each time.
	minChanges = 4 << 10
)

// softLimit is how many changes a set of n collects before it is worth a new filter.
func softLimit(n int) int { return max(minChanges, n/20) }

// hardLimit is how many it may collect at most, however quickly they come.
func hardLimit(n int) int { return 2 * softLimit(n) }

var (
	errDelta   = errors.New("inventory: not a list of changes")
	errTooMany = errors.New("inventory: more changes than a new filter would take")
)

// appendDelta encodes changes: version, number of keys added and removed, the keys.
func appendDelta(b []byte, added, removed []Key) []byte {
	b = append(b, deltaVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(len(added)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(removed)))
	for _, keys := range [2][]Key{added, removed} {
		for _, k := range keys {
			b = binary.BigEndian.AppendUint64(b, uint64(k))
		}
	}
	return b
}

// parseDelta reads what appendDelta wrote.
func parseDelta(b []byte) (added, removed []Key, err error) {
	if len(b) < deltaHead || b[0] != deltaVersion {
		return nil, nil, fmt.Errorf("%w: head", errDelta)
	}
	na, nr := uint64(binary.BigEndian.Uint32(b[1:])), uint64(binary.BigEndian.Uint32(b[5:]))
	b = b[deltaHead:]
	if na+nr > maxDelta || uint64(len(b)) != 8*(na+nr) {
		return nil, nil, fmt.Errorf("%w: %d and %d keys in %d bytes", errDelta, na, nr, len(b))
	}
	keys := make([]Key, na+nr)
	for i := range keys {
		keys[i] = Key(binary.BigEndian.Uint64(b[8*i:]))
	}
	return keys[:na], keys[na:], nil
}

// Remote is what one peer has told of itself. It is safe for concurrent use. The zero value
// knows nothing.
type Remote struct {
	// What is asked thousands of times a second for each peer takes no lock while there
	// are no changes since the filter.
	filter  atomic.Pointer[filter]
	changes atomic.Int64 // len(changed)

	mu      sync.RWMutex
	changed map[Key]bool // since the filter: true for added
	count   int          // about: a false positive that is added is not counted
}

// Full takes a filter from the wire in place of all that was known. A refusal leaves the
// view as it was.
func (v *Remote) Full(b []byte) error {
	f, err := parseFilter(b)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.filter.Store(&f)
	v.changed, v.count = nil, f.count
	v.changes.Store(0)
	return nil
}

// Delta takes a list of changes from the wire. A peer that sends changes without end, where
// an honest one would have sent a new filter, is refused: what it makes us keep is bounded.
func (v *Remote) Delta(b []byte) error {
	added, removed, err := parseDelta(b)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	f := v.filter.Load()
	if f == nil {
		return fmt.Errorf("%w: before the first filter", errDelta)
	}
	if len(v.changed)+len(added)+len(removed) > hardLimit(f.count)+maxDelta {
		return errTooMany
	}
	if v.changed == nil {
		v.changed = make(map[Key]bool, len(added)+len(removed))
	}
	for _, k := range added {
		if !v.has(f, k) {
			v.count++
		}
		v.changed[k] = true
	}
	for _, k := range removed {
		if v.has(f, k) {
			v.count--
		}
		v.changed[k] = false
	}
	v.changes.Store(int64(len(v.changed)))
	return nil
}

// Has reports whether the peer may share what k stands for. One in some 65,000 of what it has
// not is a false positive.
func (v *Remote) Has(k Key) bool {
	f := v.filter.Load()
	if f == nil {
		return false
	}
	if v.changes.Load() == 0 {
		return f.has(k)
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.has(f, k)
}

func (v *Remote) has(f *filter, k Key) bool {
	if added, ok := v.changed[k]; ok {
		return added
	}
	return f.has(k)
}

// Count returns about how many paths the peer says it shares.
func (v *Remote) Count() int {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return max(v.count, 0)
}

// Bytes returns about how much memory the view takes.
func (v *Remote) Bytes() int {
	f := v.filter.Load()
	if f == nil {
		return 0
	}
	return f.bytes() + 32*int(v.changes.Load())
}

// Loaded reports whether a filter has come.
func (v *Remote) Loaded() bool { return v.filter.Load() != nil }
