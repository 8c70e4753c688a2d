// Package infocache remembers narinfos on disk, so that what this machine once learned
// outlives a restart. What it reads back is a claim like any other: each text is opened
// again with today's keys before it leaves, so neither a damaged disk nor a key that is no
// longer trusted gets through. Its size is bounded, what was not used for longest goes
// first, and writing happens in the background. It remembers no misses and fetches nothing.
package infocache

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/disk"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// name is this source's metric label.
const name = "disk"

const (
	defaultEntries = 200_000
	defaultBytes   = 256 << 20

	// keepFor is how long a narinfo is kept after its last use. Its signed facts never go
	// stale, but the hints beside them do, and Nix itself remembers narinfos this long.
	keepFor = 30 * 24 * time.Hour
	// touchEvery is how exactly the last use is known after a restart.
	touchEvery = 24 * time.Hour

	// maxPending bounds what waits to be written. What comes above it is not remembered:
	// the disk is then slower than the network, and nobody may wait for it.
	maxPending = 8192
)

// ErrLocked says that another process works in the directory.
var ErrLocked = disk.ErrLocked

// Config is what Open needs. Zero fields mean the default.
type Config struct {
	Dir        string       // made with mode 0700 when it does not exist
	Keys       *verify.Keys // required: what is trusted today
	MaxEntries int          // default 200,000
	MaxBytes   int64        // of all files together; default 256 MiB
	Log        *slog.Logger // default: discard
	Metrics    *metrics.Metrics
}

// Cache is the memory of narinfos. It is safe for concurrent use.
type Cache struct {
	cfg  Config
	log  *slog.Logger
	lock *os.File

	mu       sync.Mutex
	index    map[nix.StoreHash]place // what is on disk
	segs     map[uint32]*segment
	live     int64                 // bytes of text that the index points to
	pending  map[nix.StoreHash]*op // to be written, newer than flushing
	flushing map[nix.StoreHash]*op // being written, newer than the index
	ops      uint64                // how many there were
	closed   bool

	wake chan struct{} // capacity 1: something is pending

	// writing is held by whoever writes: Run's loop or Close.
	writing  sync.Mutex
	head     *segment // appended to; nil until the first write
	nextSeq  uint32
	illUntil time.Time // no write is tried before; zero while the disk is well

	sync      func(*os.File) error // (*os.File).Sync, but for tests
	diskFault func() error         // tests only: an error instead of the next write
}

// place says where a text lies. It holds no pointers, so that the collector need not look
// into an index of 200,000 of them.
type place struct {
	seg, off, size, sum uint32
	used                uint32 // unix seconds of the last use
	stored              uint32 // what the disk knows of used
	hot                 bool   // used since it was written or read from disk
}

// op is one change that is not on disk yet.
type op struct {
	kind kind
	info *verify.Info // of a put
	used uint32
	seq  uint64 // the order in which ops came
}

// Open opens or begins the memory in cfg.Dir. Damaged parts are skipped or set aside with a
// warning. The error wraps ErrLocked when another process has the directory. It starts no
// goroutine.
func Open(cfg Config) (*Cache, error) {
	if cfg.Keys == nil {
		return nil, errors.New("infocache: no keys")
	}
	if cfg.MaxEntries <= 0 {
		cfg.MaxEntries = defaultEntries
	}
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = defaultBytes
	}
	c := &Cache{
		cfg: cfg, log: cfg.Log,
		index: make(map[nix.StoreHash]place), segs: make(map[uint32]*segment),
		pending: make(map[nix.StoreHash]*op), wake: make(chan struct{}, 1),
		sync: (*os.File).Sync,
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("infocache: %w", err)
	}
	var err error
	if c.lock, err = disk.Lock(cfg.Dir); err != nil {
		return nil, fmt.Errorf("infocache: %w", err)
	}
	if err := c.load(); err != nil {
		_ = c.lock.Close()
		return nil, fmt.Errorf("infocache: %w", err)
	}
	return c, nil
}

// Name returns "disk".
func (c *Cache) Name() string { return name }

// Len returns how many narinfos are remembered, written or not.
func (c *Cache) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.index)
	count := func(h nix.StoreHash, o *op) {
		_, written := c.index[h]
		switch {
		case o.kind == kindPut && !written:
			n++
		case o.kind == kindGone && written:
			n--
		}
	}
	for h, o := range c.pending {
		count(h, o)
	}
	for h, o := range c.flushing {
		if c.pending[h] == nil {
			count(h, o)
		}
	}
	return n
}

// Hashes returns which paths are remembered, in no order.
func (c *Cache) Hashes() []nix.StoreHash {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]nix.StoreHash, 0, len(c.index))
	for h := range c.index {
		all = append(all, h)
	}
	return all
}

// Info returns the narinfo of h as today's keys see it. What they no longer sign for is
// forgotten. The error wraps fs.ErrNotExist when h is not remembered.
func (c *Cache) Info(ctx context.Context, h nix.StoreHash) (*verify.Info, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		info, at, file := c.find(h)
		if info != nil {
			return info, nil
		}
		if file == nil {
			return nil, fmt.Errorf("infocache: %s: %w", h, fs.ErrNotExist)
		}
		text := make([]byte, at.size)
		_, err := file.ReadAt(text, int64(at.off))
		if errors.Is(err, fs.ErrClosed) {
			if c.moved(h, at) {
				continue
			}
			return nil, fmt.Errorf("infocache: %s: %w", h, err) // after Close
		}
		// A text that is cut or changed is damage; only its signature could say more, and the
		// checksum costs less.
		if err != nil || crc32.Checksum(text, castagnoli) != at.sum {
			c.drop(h, at)
			c.log.Warn("a remembered narinfo is damaged on disk", "source", name, "store_hash", h.String(), "err", err)
			return nil, fmt.Errorf("infocache: %s: damaged: %w", h, fs.ErrNotExist)
		}
		info, err = c.cfg.Keys.Open(text, h)
		if err != nil {
			c.drop(h, at)
			c.refused(h, err)
			return nil, fmt.Errorf("infocache: %s: no longer trusted: %w", h, fs.ErrNotExist)
		}
		return info, nil
	}
}

// refused counts a text that the keys do not open. A key that was removed from the
// configuration is no lie, all else is.
func (c *Cache) refused(h nix.StoreHash, err error) {
	var lie *verify.InvalidError
	if !errors.As(err, &lie) || lie.Reason == verify.ReasonUnsigned {
		c.log.Debug("a remembered narinfo has no trusted signature any more", "source", name, "store_hash", h.String())
		return
	}
	if m := c.cfg.Metrics; m != nil {
		m.VerifyFailures.WithLabelValues(name, string(lie.Reason)).Inc()
	}
	c.log.Warn("a remembered narinfo is wrong", "source", name, "store_hash", h.String(), "err", err)
}

// find looks h up and notes the use: it returns what waits to be written, or where the text
// lies, or neither.
func (c *Cache) find(h nix.StoreHash) (*verify.Info, place, *os.File) {
	now := seconds(time.Now())
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.unwritten(h)
	if o != nil && o.kind == kindPut {
		o.used = now
		return o.info, place{}, nil
	}
	at, ok := c.index[h]
	if !ok || o != nil && o.kind == kindGone {
		return nil, place{}, nil
	}
	if expired(at.used, now) {
		c.enqueue(h, &op{kind: kindGone})
		return nil, place{}, nil
	}
	at.used, at.hot = max(now, at.used), true
	if at.used-at.stored >= uint32(touchEvery/time.Second) {
		c.enqueue(h, &op{kind: kindTouch, used: at.used})
		at.stored = at.used
	}
	c.index[h] = at
	return nil, at, c.segs[at.seg].dat
}

// unwritten returns the newest change of h that the index does not show yet, or nil. The
// caller holds mu.
func (c *Cache) unwritten(h nix.StoreHash) *op {
	if o := c.pending[h]; o != nil {
		return o
	}
	return c.flushing[h]
}

// moved tells whether the text is now elsewhere than at: its segment was dropped between
// find and reading.
func (c *Cache) moved(h nix.StoreHash, at place) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, ok := c.index[h]
	return !ok || now.seg != at.seg
}

// drop forgets h if it still lies where it was found bad.
func (c *Cache) drop(h nix.StoreHash, at place) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.index[h]; now.seg == at.seg && now.off == at.off {
		c.enqueue(h, &op{kind: kindGone})
	}
}

// Put remembers info. It only notes it: writing happens within about a second, and what a
// full or slow disk cannot take is dropped.
func (c *Cache) Put(info *verify.Info) {
	h := info.StorePath().Hash()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.enqueue(h, &op{kind: kindPut, info: info, used: seconds(time.Now())})
}

// Forget removes h.
func (c *Cache) Forget(h nix.StoreHash) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.index[h]; ok || c.unwritten(h) != nil {
		c.enqueue(h, &op{kind: kindGone})
	}
}

// enqueue notes a change. The caller holds mu.
func (c *Cache) enqueue(h nix.StoreHash, o *op) {
	if c.closed {
		return
	}
	// To forget is never refused: what was found wrong must not come back.
	if len(c.pending) >= maxPending && c.pending[h] == nil && o.kind != kindGone {
		return
	}
	c.ops++
	o.seq = c.ops
	c.pending[h] = o
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func seconds(t time.Time) uint32 { return uint32(max(t.Unix(), 0)) }

func expired(used, now uint32) bool {
	return now > used && time.Duration(now-used)*time.Second > keepFor
}
