package inventory

import (
	"sync"
	"time"
)

// rebuildEvery is how often at most a new filter is sent because of changes that a list
// could still carry: while a large closure comes in, each one costs all neighbours.
const rebuildEvery = 10 * time.Second

// A store that is read for the first time grows faster than lists of changes carry. Its
// filters come at most every growGap, and over time no faster than a receiver takes them
// (FilterBurst, then one every FilterEvery): the last one, with everything, would wait behind
// all others.
const growGap = 2 * time.Second

// FilterBurst filters are taken at once from one peer, then one every FilterEvery.
const (
	FilterBurst = 6
	FilterEvery = 5 * time.Second
)

// Set is the keys that this machine shares.
type Set interface {
	Len() int
	// All calls yield for each key until it returns false.
	All(yield func(Key) bool)
}

// Keys is the simplest Set.
type Keys map[Key]struct{}

// Len returns the number of keys.
func (k Keys) Len() int { return len(k) }

// All goes through the keys, in no order.
func (k Keys) All(yield func(Key) bool) {
	for x := range k {
		if !yield(x) {
			return
		}
	}
}

// Local is what this machine tells others of the set that it shares. It does not keep the
// set itself. Neighbours are sent what Since returns for the mark of what they have. It is
// safe for concurrent use.
type Local struct {
	mu      sync.Mutex
	pending map[Key]bool // not yet in full or deltas: true for added

	full    []byte // filter on the wire; nil before the first Flush
	deltas  [][]byte
	changes int // keys in deltas
	epoch   uint64
	built   time.Time
	spent   time.Duration // of FilterBurst * FilterEvery, at the time built
}

// NewLocal returns a Local that has nothing to tell until the first Flush: a set that is half
// known would be taken for the whole.
func NewLocal() *Local { return &Local{pending: make(map[Key]bool)} }

// Changed notes that k came into the set or left it. What comes and goes between two flushes
// is told nevertheless: it is rare, and the last word is right.
func (o *Local) Changed(k Key, added bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pending[k] = added
}

// Flush makes what changed ready to be told, as a list of changes, or as a new filter of set
// where the lists have grown too long. It reports whether there is something new.
func (o *Local) Flush(now time.Time, set Set) (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.epoch > 0 && len(o.pending) == 0 {
		return false, nil
	}
	n := min(set.Len(), MaxKeys)
	changes := o.changes + len(o.pending)
	soft := changes > softLimit(n) && now.Sub(o.built) >= rebuildEvery
	// The receivers count from the size of the filter that they have.
	hard := changes > softLimit(0)*2 && changes > hardLimit(n) || len(o.pending) > maxDelta
	if hard && !soft && o.epoch > 0 && !o.mayGrow(now) {
		return false, nil
	}
	if o.epoch == 0 || soft || hard {
		return true, o.rebuild(now, set)
	}
	var added, removed []Key
	for k, is := range o.pending {
		if is {
			added = append(added, k)
		} else {
			removed = append(removed, k)
		}
	}
	o.deltas = append(o.deltas, appendDelta(nil, added, removed))
	o.changes = changes
	clear(o.pending)
	return true, nil
}

// owed is how much of a receiver's patience is spent at now.
func (o *Local) owed(now time.Time) time.Duration { return max(0, o.spent-now.Sub(o.built)) }

// mayGrow reports whether a filter may follow the last one already.
func (o *Local) mayGrow(now time.Time) bool {
	// One less than the receiver takes: its clock began when the first one came.
	return now.Sub(o.built) >= growGap && o.owed(now) <= (FilterBurst-2)*FilterEvery
}

func (o *Local) rebuild(now time.Time, set Set) error {
	spent := o.owed(now) + FilterEvery
	keys := make([]uint64, 0, min(set.Len(), MaxKeys))
	set.All(func(k Key) bool {
		keys = append(keys, uint64(k))
		return len(keys) < MaxKeys
	})
	f, err := build(keys)
	if err != nil {
		return err
	}
	o.full = f.append(make([]byte, 0, filterHead+f.bytes()))
	o.deltas, o.changes, o.built, o.spent = nil, 0, now, spent
	o.epoch++
	clear(o.pending)
	return nil
}

// Mark says how much somebody has been told; the zero value is nothing.
type Mark struct {
	epoch  uint64
	deltas int
}

// Since returns what has to be told to somebody who was told up to m, and the mark after
// that: a filter (nil if the one told still holds) and lists of changes. The caller must not
// change them.
func (o *Local) Since(m Mark) (full []byte, deltas [][]byte, now Mark) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.epoch == 0 {
		return nil, nil, m
	}
	if m.epoch != o.epoch {
		full, m = o.full, Mark{epoch: o.epoch}
	}
	deltas = o.deltas[m.deltas:]
	return full, deltas, Mark{o.epoch, len(o.deltas)}
}
