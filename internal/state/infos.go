package state

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/verify"
)

// The buckets, each by store hash: the sealed text; what is known about its use; and which
// narinfos are public, alone, so that a question for a private one ends where one for a path that
// is not remembered does.
var (
	textBucket   = []byte("narinfo")
	useBucket    = []byte("use")
	publicBucket = []byte("public")
)

// sharedKey has the share keys that the index of public narinfos was made for, in the bucket of values.
var sharedKey = []byte("narinfo share keys")

const (
	// maxEntries and maxBytes bound what is remembered. The file is about twice as large as
	// the texts at most, for pages are half full and freed ones are used again.
	maxEntries = 200_000
	maxBytes   = 128 << 20
	// maxFile stops the file from growing, whatever happens.
	maxFile = 512 << 20

	// keepFor is how long a narinfo is kept after its last use. Its signed facts never become
	// wrong, but the hints beside them do, and Nix itself remembers narinfos this long.
	keepFor = 30 * 24 * time.Hour
	// touchEvery is how exactly the last use is known.
	touchEvery = time.Hour
	// sweepEvery is how often what has expired is looked for.
	sweepEvery = 24 * time.Hour

	// maxPending and maxPendingBytes bound what waits to be written. What comes above that is
	// not remembered: the disk is slower than the network, and nobody may wait for it.
	maxPending      = 8192
	maxPendingBytes = 16 << 20
	// maxWriting is how many a transaction writes: it holds each page that it changes in memory,
	// which is one for each narinfo where there are many.
	maxWriting = 2048
)

// Infos remembers narinfos. It is safe for concurrent use.
type Infos struct {
	db      *DB
	keys    *verify.Keys
	share   []string
	metrics *metrics.Metrics

	maxEntries, maxBytes int64
	// kept reports whether the narinfo of a NAR is never dropped to make room, nor for its age. It is
	// set before anything runs. If nil, none is.
	kept func(nix.NarHash) bool

	mu      sync.Mutex
	pending map[nix.StoreHash]*change // newer than the database
	writing map[nix.StoreHash]*change // those of pending that the transaction has
	bytes   int64                     // of pending texts
	sum     totals                    // of what the database has, if counted
	counted time.Time                 // zero if a sweep has to count
}

// change is what is to be written about one path.
type change struct {
	kind kind
	info *verify.Info // of a put
	text []byte
	used uint32 // Unix seconds
}

type kind uint8

const (
	put kind = iota
	touch
	forget
)

var _ source.InfoCache = (*Infos)(nil)

// Infos returns the narinfos, each of which is opened with keys when it is read. Those that a
// key named in shareKeys signed are public. It is called once.
func (db *DB) Infos(keys *verify.Keys, shareKeys []string, m *metrics.Metrics) *Infos {
	i := &Infos{
		db: db, keys: keys, share: shareKeys, metrics: m, maxEntries: maxEntries, maxBytes: maxBytes,
		pending: make(map[nix.StoreHash]*change),
	}
	db.attach(i)
	return i
}

// Info returns the narinfo of h as today's keys see it. What they do not open is forgotten. The
// error wraps fs.ErrNotExist if h is not remembered.
func (i *Infos) Info(ctx context.Context, h nix.StoreHash) (*verify.Info, error) {
	return i.get(ctx, h, false)
}

// Public is Info among those that a share key signed.
func (i *Infos) Public(ctx context.Context, h nix.StoreHash) (*verify.Info, error) {
	return i.get(ctx, h, true)
}

// Keep has the narinfos of NARs that kept accepts stay, however old they are and however many there
// are. It is called before the database runs.
func (i *Infos) Keep(kept func(nix.NarHash) bool) { i.kept = kept }

func (i *Infos) keeps(u use) bool { return i.kept != nil && i.kept(u.nar) }

func (i *Infos) get(ctx context.Context, h nix.StoreHash, public bool) (*verify.Info, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	absent := func(why string) error { return fmt.Errorf("state: %s: %s: %w", h, why, fs.ErrNotExist) }
	// A question for a private narinfo goes the same way as one for none, also if it is not
	// written yet.
	i.mu.Lock()
	c := i.pending[h]
	i.mu.Unlock()
	if c != nil && c.kind == put && (!public || c.info.SignedByAny(i.share)) {
		return c.info, nil
	}
	var text []byte
	var use use
	var known, intact bool
	err := i.db.read(func(tx *bolt.Tx) error {
		if public && tx.Bucket(publicBucket).Get(h[:]) == nil {
			return nil
		}
		if sealed := tx.Bucket(textBucket).Get(h[:]); sealed != nil {
			text, intact = unseal(h[:], sealed)
			use, _ = parseUse(tx.Bucket(useBucket).Get(h[:]))
			known = (!use.expired(now()) || i.keeps(use)) && (c == nil || c.kind != forget)
		}
		return nil
	})
	switch {
	case errors.Is(err, errDamaged), errors.Is(err, errClosed), err == nil && !known:
		return nil, absent("not remembered")
	case err != nil:
		return nil, fmt.Errorf("state: %s: %w", h, err)
	case !intact:
		i.Forget(h)
		i.db.log.Warn("a remembered narinfo is damaged on disk and forgotten", "store_hash", h.String())
		return nil, absent("damaged")
	}
	info, err := i.keys.Open(text, h)
	if err != nil {
		i.Forget(h)
		i.refused(h, err)
		return nil, absent("no longer trusted")
	}
	if public && !info.SignedByAny(i.share) {
		return nil, absent("not public")
	}
	i.used(h, info, use)
	return info, nil
}

// refused counts a text that the keys do not open. A key that was removed from the configuration
// does not make it invalid.
func (i *Infos) refused(h nix.StoreHash, err error) {
	invalid := source.Invalid(err)
	if invalid == nil || invalid.Reason == verify.ReasonUnsigned {
		i.db.log.Debug("a remembered narinfo has no trusted signature any more", "store_hash", h.String())
		return
	}
	if i.metrics != nil {
		i.metrics.VerifyFailures.WithLabelValues(source.Disk.String(), string(invalid.Reason)).Inc()
	}
	i.db.log.Warn("a remembered narinfo is invalid and forgotten", "store_hash", h.String(), "err", err)
}

// used notes the use of what was read. One that is public and is not known as such, since the
// share keys have changed, is written again.
func (i *Infos) used(h nix.StoreHash, info *verify.Info, u use) {
	at := now()
	switch {
	case u.public != info.SignedByAny(i.share):
		i.Put(info)
	case at > u.used && time.Duration(at-u.used)*time.Second >= touchEvery:
		i.enqueue(h, &change{kind: touch, used: at})
	}
}

// Put remembers info. It does not block: writing happens within about a second, and what a full
// or slow disk cannot take is dropped.
func (i *Infos) Put(info *verify.Info) {
	i.enqueue(info.StorePath().Hash(), &change{kind: put, info: info, text: info.Text(), used: now()})
}

// Forget drops the narinfo of a path. This is never refused: what was found wrong must not come
// back.
func (i *Infos) Forget(h nix.StoreHash) { i.enqueue(h, &change{kind: forget}) }

func (i *Infos) enqueue(h nix.StoreHash, c *change) {
	i.mu.Lock()
	old := i.pending[h]
	size := i.bytes + int64(len(c.text))
	if old != nil {
		size -= int64(len(old.text))
	}
	full := old == nil && len(i.pending) >= maxPending || size > maxPendingBytes
	ok := c.kind == forget || !full && (c.kind == put || old == nil)
	if ok {
		i.pending[h], i.bytes = c, size
	}
	i.mu.Unlock()
	if ok {
		i.db.changed()
	}
}

// Each returns the narinfos whose path and NAR hash keep accepts, each opened as by Info.
func (i *Infos) Each(ctx context.Context, keep func(nix.StoreHash, nix.NarHash) bool) iter.Seq[*verify.Info] {
	return func(yield func(*verify.Info) bool) {
		// No transaction is held while others work: it would keep freed pages from being used.
		var found []nix.StoreHash
		_ = i.db.read(func(tx *bolt.Tx) error {
			return tx.Bucket(useBucket).ForEach(func(k, v []byte) error {
				if u, ok := parseUse(v); ok && len(k) == len(nix.StoreHash{}) && keep(nix.StoreHash(k), u.nar) {
					found = append(found, nix.StoreHash(k))
				}
				return ctx.Err()
			})
		})
		for _, h := range found {
			if info, err := i.Info(ctx, h); err == nil && keep(h, info.NarHash()) && !yield(info) {
				return
			}
		}
	}
}

func now() uint32 { return uint32(max(time.Now().Unix(), 0)) }

// use is what is known about a narinfo without reading it.
type use struct {
	used   uint32 // Unix seconds of the last use
	size   uint32 // of key and sealed text in bytes
	public bool
	nar    nix.NarHash
}

const useSize = 4 + 4 + 1 + 32

func (u use) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, u.used)
	b = binary.LittleEndian.AppendUint32(b, u.size)
	if u.public {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	return append(b, u.nar[:]...)
}

// parseUse reads what append wrote; false for anything else.
func parseUse(b []byte) (u use, ok bool) {
	if len(b) != useSize || b[8] > 1 {
		return use{}, false
	}
	return use{
		used: binary.LittleEndian.Uint32(b), size: binary.LittleEndian.Uint32(b[4:]),
		public: b[8] == 1, nar: nix.NarHash(b[9:]),
	}, true
}

func (u use) expired(now uint32) bool {
	return now > u.used && time.Duration(now-u.used)*time.Second > keepFor
}

// totals is how much is remembered.
type totals struct{ entries, bytes int64 }

// batch is one transaction over the narinfos.
type batch struct {
	texts, uses, public, values *bolt.Bucket
	sum                         totals
}

func (i *Infos) write(tx *bolt.Tx) error {
	i.mu.Lock()
	// In the order of the keys, as the pages are.
	keys := slices.SortedFunc(maps.Keys(i.pending), func(x, y nix.StoreHash) int { return bytes.Compare(x[:], y[:]) })
	keys = keys[:min(len(keys), maxWriting)]
	i.writing = make(map[nix.StoreHash]*change, len(keys))
	for _, h := range keys {
		i.writing[h] = i.pending[h]
	}
	changes, sum, counted := i.writing, i.sum, i.counted
	i.mu.Unlock()
	sweep := time.Since(counted) >= sweepEvery
	if len(changes) == 0 && !sweep {
		return nil
	}
	b := &batch{tx.Bucket(textBucket), tx.Bucket(useBucket), tx.Bucket(publicBucket), tx.Bucket(valueBucket), sum}
	if b.texts == nil || b.uses == nil || b.public == nil || b.values == nil {
		return fmt.Errorf("%w: a bucket is missing", errDamaged)
	}
	if err := b.checkShareKeys(tx, i.share); err != nil {
		return err
	}
	for _, h := range keys {
		if err := b.apply(h, changes[h], i.share); err != nil {
			return err
		}
	}
	if sweep || b.sum.entries > i.maxEntries || b.sum.bytes > i.maxBytes {
		if err := b.makeRoom(totals{i.maxEntries, i.maxBytes}, i.keeps); err != nil {
			return err
		}
		counted = time.Now()
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.sum, i.counted = b.sum, counted
	return nil
}

// checkShareKeys empties the index of public narinfos if other keys share than when it was made.
// What is public then gets into it when it is read.
func (b *batch) checkShareKeys(tx *bolt.Tx, share []string) error {
	text := []byte(fmt.Sprintf("%q", slices.Sorted(slices.Values(share))))
	if bytes.Equal(b.values.Get(sharedKey), text) {
		return nil
	}
	err := tx.DeleteBucket(publicBucket)
	if err == nil {
		b.public, err = tx.CreateBucket(publicBucket)
	}
	if err != nil {
		return err
	}
	return b.values.Put(sharedKey, text)
}

// apply makes one change.
func (b *batch) apply(h nix.StoreHash, c *change, share []string) error {
	old, known := parseUse(b.uses.Get(h[:]))
	switch c.kind {
	case forget:
		return b.remove(h[:], old)
	case touch:
		if !known {
			return nil
		}
		old.used = max(old.used, c.used)
		return b.uses.Put(h[:], old.append(nil))
	case put:
	}
	sealed := seal(h[:], c.text)
	u := use{used: c.used, size: uint32(len(h) + len(sealed)), public: c.info.SignedByAny(share), nar: c.info.NarHash()}
	if known && u.used < old.used+uint32(touchEvery/time.Second) && old.public == u.public &&
		(b.public.Get(h[:]) != nil) == u.public && bytes.Equal(b.texts.Get(h[:]), sealed) {
		return nil // the same text again is no more than a use
	}
	if err := b.remove(h[:], old); err != nil {
		return err
	}
	b.sum.entries++
	b.sum.bytes += int64(u.size)
	err := errors.Join(b.texts.Put(h[:], sealed), b.uses.Put(h[:], u.append(nil)))
	if u.public && err == nil {
		err = b.public.Put(h[:], []byte{1})
	}
	return err
}

// remove drops a narinfo, if it is there.
func (b *batch) remove(key []byte, u use) error {
	if u != (use{}) {
		b.sum.entries--
		b.sum.bytes -= int64(u.size)
	}
	return errors.Join(b.texts.Delete(key), b.uses.Delete(key), b.public.Delete(key))
}

// makeRoom counts what there is, drops what has expired, and then what was not used for longest
// until a sixteenth of the bounds is free, if they are exceeded. What keeps accepts stays.
func (b *batch) makeRoom(most totals, keeps func(use) bool) error {
	type entry struct {
		hash nix.StoreHash
		use
	}
	var all []entry
	var bad [][]byte
	b.sum = totals{}
	err := b.uses.ForEach(func(k, v []byte) error {
		u, ok := parseUse(v)
		if !ok || len(k) != len(nix.StoreHash{}) {
			bad = append(bad, bytes.Clone(k))
			return nil
		}
		all = append(all, entry{nix.StoreHash(k), u})
		b.sum.entries++
		b.sum.bytes += int64(u.size)
		return nil
	})
	if err != nil {
		return err
	}
	for _, k := range bad {
		if err := b.remove(k, use{}); err != nil {
			return err
		}
	}
	slices.SortFunc(all, func(x, y entry) int { return int(int64(x.used) - int64(y.used)) })
	over := b.sum.entries > most.entries || b.sum.bytes > most.bytes
	at := now()
	for _, e := range all {
		full := over && (b.sum.entries > most.entries-most.entries/16 || b.sum.bytes > most.bytes-most.bytes/16)
		if !full && !e.expired(at) {
			break
		}
		if keeps(e.use) {
			continue
		}
		if err := b.remove(e.hash[:], e.use); err != nil {
			return err
		}
	}
	return nil
}

// written ends a transaction. What could not be written is dropped, except what is to be forgotten.
func (i *Infos) written(err error) (more bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for h, c := range i.pending {
		if err == nil && i.writing[h] == c || err != nil && c.kind != forget {
			delete(i.pending, h)
			i.bytes -= int64(len(c.text))
		}
	}
	more = err == nil && len(i.writing) == maxWriting && len(i.pending) > 0
	i.writing = nil
	if err != nil {
		i.counted = time.Time{}
	}
	return more
}

func (i *Infos) reset() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.counted = time.Time{}
}
