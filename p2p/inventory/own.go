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

// Own is what this machine shares. It is safe for concurrent use. What the neighbours hold
// follows by itself: each is sent what Since returns for the mark of what it has.
type Own struct {
	mu      sync.Mutex
	keys    map[Key]struct{}
	pending map[Key]bool // not yet in full or deltas: true for added
	loaded  bool

	full   []byte // filter on the wire
	deltas [][]byte
	drift  int // keys in deltas
	epoch  uint64
	built  time.Time
	spent  time.Duration // of FilterBurst * FilterEvery, at the time built
}

// NewOwn returns an empty set that has not been loaded: until Replace there is nothing to
// tell, for a set that is half known would be taken for the whole.
func NewOwn() *Own {
	return &Own{keys: make(map[Key]struct{}), pending: make(map[Key]bool)}
}

// Replace makes keys the whole set. What differs from before is pending.
func (o *Own) Replace(keys map[Key]struct{}) (added, removed int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for k := range keys {
		if _, ok := o.keys[k]; !ok {
			o.add(k)
			added++
		}
	}
	for k := range o.keys {
		if _, ok := keys[k]; !ok {
			o.remove(k)
			removed++
		}
	}
	o.loaded = true
	return added, removed
}

// Add puts k into the set.
func (o *Own) Add(k Key) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.add(k)
}

// Remove takes k out of the set.
func (o *Own) Remove(k Key) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.remove(k)
}

func (o *Own) add(k Key) {
	if _, ok := o.keys[k]; ok || len(o.keys) >= MaxKeys {
		return
	}
	o.keys[k] = struct{}{}
	o.change(k, true)
}

func (o *Own) remove(k Key) {
	if _, ok := o.keys[k]; !ok {
		return
	}
	delete(o.keys, k)
	o.change(k, false)
}

// change notes what is to be told. What comes and goes between two flushes is told
// nevertheless: it is rare, and the last word is right.
func (o *Own) change(k Key, added bool) { o.pending[k] = added }

// Len returns the size of the set.
func (o *Own) Len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.keys)
}

// Flush makes what is pending ready to be told, as a list of changes or as a new filter
// where the lists have grown too long, and tells whether there is something new.
func (o *Own) Flush(now time.Time) (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.loaded || o.epoch > 0 && len(o.pending) == 0 {
		return false, nil
	}
	drift := o.drift + len(o.pending)
	soft := drift > softDrift(len(o.keys)) && now.Sub(o.built) >= rebuildEvery
	// The receivers count from the size of the filter that they have.
	hard := drift > softDrift(0)*2 && drift > hardDrift(len(o.keys)) || len(o.pending) > maxDelta
	if hard && !soft && o.epoch > 0 && !o.mayGrow(now) {
		return false, nil
	}
	if o.epoch == 0 || soft || hard {
		return true, o.rebuild(now)
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
	o.drift = drift
	clear(o.pending)
	return true, nil
}

// owed is how much of a receiver's patience is spent at now.
func (o *Own) owed(now time.Time) time.Duration { return max(0, o.spent-now.Sub(o.built)) }

// mayGrow tells whether a filter may follow the last one already.
func (o *Own) mayGrow(now time.Time) bool {
	// One less than the receiver takes: its clock began when the first one came.
	return now.Sub(o.built) >= growGap && o.owed(now) <= (FilterBurst-2)*FilterEvery
}

func (o *Own) rebuild(now time.Time) error {
	spent := o.owed(now) + FilterEvery
	keys := make([]uint64, 0, len(o.keys))
	for k := range o.keys {
		keys = append(keys, uint64(k))
	}
	f, err := build(keys)
	if err != nil {
		return err
	}
	o.full = f.append(make([]byte, 0, filterHead+f.bytes()))
	o.deltas, o.drift, o.built, o.spent = nil, 0, now, spent
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
func (o *Own) Since(m Mark) (full []byte, deltas [][]byte, now Mark) {
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
