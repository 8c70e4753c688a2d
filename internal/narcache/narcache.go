// Package narcache keeps NARs on disk in the forms in which they came, together with the
// downloads that are still in progress, which any number of readers can follow. Their bytes
// are bounded at every moment; what was used least goes first, and what was used only once
// before what is used again and again. A file gets its name only after it was proven and
// written through, and is hashed once more before it is first offered after a start. A disk
// that fails makes the cache refuse, never the answer wrong. It fetches nothing.
package narcache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/disk"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// name is this source's metric label.
const name = "cache"

var (
	// ErrLocked says that another process works in the directory.
	ErrLocked = disk.ErrLocked
	// ErrDoesNotFit says that a NAR has no room beside what is in use.
	ErrDoesNotFit = errors.New("does not fit into the cache")
	// ErrDegraded says that the disk failed and the cache takes nothing for a while.
	ErrDegraded = errors.New("the disk of the cache failed")

	errExists  = errors.New("is in the cache or on its way into it")
	errStopped = errors.New("the cache is closed")
)

// Config is what Open needs. Zero fields mean the default.
type Config struct {
	Dir string // made with mode 0700 when it does not exist
	// Size is the bound in bytes of all that the directory holds, downloads in progress
	// with their whole size included. 0 refuses everything.
	Size int64
	// InStore tells whether this machine's store can serve a NAR to everybody, so that no
	// second copy is needed. It may be called at any time. nil: it never can.
	InStore func(nix.NarHash) bool
	// Trouble is told when the disk fails, when it works again, and of files that had to be
	// removed. nil: nobody is told.
	Trouble func(source, what, storePath string, err error)
	Log     *slog.Logger // default: discard
	Metrics *metrics.Metrics
}

// Cache is the directory. It is safe for concurrent use.
type Cache struct {
	cfg  Config
	log  *slog.Logger
	lock *os.File
	max  int64 // bytes that files may take

	// space is held while room is made, so that one Create does not take what another
	// freed. It comes before mu.
	space sync.Mutex

	mu        sync.Mutex
	index     map[nix.NarHash]*entry // the first of a chain by sibling
	ranks     ranks
	downloads map[key]*Download
	dying     map[key]struct{} // entries whose file is being removed
	proving   map[*entry]chan struct{}
	used      int64 // bytes of entries, of reservations, and of removed files that are still open
	idle      int64 // the part of used that could be evicted at once
	queue     []unnamed
	closed    bool

	work    chan struct{} // capacity 1: the queue has something
	nextTmp atomic.Uint64
	health  health
	disk    device
}

// device is what the tests make fail.
type device struct {
	allocate func(*os.File, int64) error
	sync     func(*os.File) error
}

// key names one file: a NAR in one form.
type key struct {
	nar  nix.NarHash
	form nix.Form
}

// Open opens or begins the cache in cfg.Dir: it looks at the files' names and sizes, not
// into them, and removes what a crash left unfinished. The error wraps ErrLocked when
// another process has the directory. It starts no goroutine.
func Open(cfg Config) (*Cache, error) {
	c := &Cache{
		cfg: cfg, log: cfg.Log, max: max(cfg.Size-dirBytes, 0),
		index: make(map[nix.NarHash]*entry), downloads: make(map[key]*Download),
		dying: make(map[key]struct{}), proving: make(map[*entry]chan struct{}),
		work: make(chan struct{}, 1), disk: device{allocate, (*os.File).Sync},
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.cfg.Trouble == nil {
		c.cfg.Trouble = func(_, _, _ string, _ error) {}
	}
	c.ranks = newRanks(c.max)
	if err := c.start(); err != nil {
		if c.lock != nil {
			_ = c.lock.Close()
		}
		return nil, fmt.Errorf("narcache: %w", err)
	}
	return c, nil
}

// Name returns "cache".
func (c *Cache) Name() string { return name }

// Usage returns the bytes that the files take on disk, the whole size of downloads in
// progress included.
func (c *Cache) Usage() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}

// Forms returns the forms in which a NAR is here as a whole, raw first. Whether they are right
// is known once NAR was asked for them.
func (c *Cache) Forms(nar nix.NarHash) []nix.Form {
	c.mu.Lock()
	defer c.mu.Unlock()
	var forms []nix.Form
	for e := c.index[nar]; e != nil; e = e.sibling {
		forms = append(forms, e.form)
		if e.form.IsRaw() {
			forms[0], forms[len(forms)-1] = forms[len(forms)-1], forms[0]
		}
	}
	return forms
}

// Proven reports whether a form is here as a whole and is known to be the signed NAR: a file
// was decoded once to NarHash.
func (c *Cache) Proven(nar nix.NarHash, form nix.Form) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.find(key{nar, form})
	return e != nil && e.proven
}

// Prove checks that a form that is here as a whole is the signed NAR: a file is decoded.
// Callers at the same time share the work, and what is proven already costs nothing, also after
// a restart. A form that is wrong is removed, and the error is a *verify.InvalidError; one that
// the disk damaged is removed, and the error wraps fs.ErrNotExist, as for one that is not here.
func (c *Cache) Prove(ctx context.Context, info *verify.Info, form nix.Form) error {
	return errors.ErrUnsupported
}

// Entry is a NAR that is there as a whole.
type Entry struct {
	Nar     nix.NarHash
	Form    nix.Form
	Size    int64     // bytes of the form
	LastUse time.Time // to about ten minutes, over a restart
}

// Entries returns what is there, what would be evicted first at the front.
func (c *Cache) Entries() []Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]Entry, 0, c.ranks.fresh.n+c.ranks.kept.n)
	for _, l := range [...]*rank{&c.ranks.fresh, &c.ranks.kept} {
		for e := l.last; e != nil; e = e.prev {
			all = append(all, e.describe())
		}
	}
	return all
}

func (e *entry) describe() Entry {
	return Entry{Nar: e.nar, Form: e.form, Size: e.size, LastUse: time.Unix(e.used, 0).UTC()}
}

// find returns the entry of k, or nil. The caller holds mu.
func (c *Cache) find(k key) *entry {
	for e := c.index[k.nar]; e != nil; e = e.sibling {
		if e.form == k.form {
			return e
		}
	}
	return nil
}

// add makes e visible. The caller holds mu and has its bytes counted.
func (c *Cache) add(e *entry) {
	e.sibling = c.index[e.nar]
	c.index[e.nar] = e
	c.ranks.add(e)
	if e.refs == 0 {
		c.idle += cost(e.size)
	}
}

// acquire keeps e from being evicted until release. The caller holds mu.
func (c *Cache) acquire(e *entry) {
	if e.refs == 0 && !e.gone {
		c.idle -= cost(e.size)
	}
	e.refs++
}

// release undoes acquire; the caller has closed its file and does not hold mu. What was
// removed while it was in use stops counting with its last user.
func (c *Cache) release(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.refs--
	if e.refs > 0 {
		return
	}
	switch {
	case !e.gone:
		c.idle += cost(e.size)
	case e.unlinked:
		c.count(-cost(e.size))
	}
}

// detach takes e out of sight. The caller holds mu and calls destroy after giving it up;
// false when somebody else did.
func (c *Cache) detach(e *entry) bool {
	if e.gone {
		return false
	}
	if e.refs == 0 {
		c.idle -= cost(e.size)
	}
	e.gone = true
	c.dying[e.key] = struct{}{}
	c.ranks.remove(e)
	if c.index[e.nar] == e {
		if c.index[e.nar] = e.sibling; e.sibling == nil {
			delete(c.index, e.nar)
		}
		return true
	}
	for at := c.index[e.nar]; at != nil; at = at.sibling {
		if at.sibling == e {
			at.sibling = e.sibling
		}
	}
	return true
}

// destroy removes the file of an entry that the caller has detached. Removing a large file
// takes the file system a while, so it is done without mu. A file that cannot be removed goes
// on counting.
func (c *Cache) destroy(e *entry) error {
	if e.tmp != "" {
		_ = os.Remove(e.tmp) // it may have got its name this moment
	}
	err := os.Remove(c.path(e.key, e.size))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil {
		err = c.fault("remove", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.dying, e.key)
	e.unlinked = err == nil
	if e.unlinked && e.refs == 0 {
		c.count(-cost(e.size))
	}
	return err
}

// drop removes e, for a reason other than room; false when somebody did before.
func (c *Cache) drop(e *entry) bool {
	c.mu.Lock()
	mine := c.detach(e)
	c.mu.Unlock()
	if mine {
		_ = c.destroy(e) // it was noted as a fault of the disk
	}
	return mine
}

// count adds n to the bytes in use. The caller holds mu.
func (c *Cache) count(n int64) {
	c.used += n
	if m := c.cfg.Metrics; m != nil {
		m.CacheBytes.Set(float64(c.used))
	}
}

// path returns where a whole file lies.
func (c *Cache) path(k key, size int64) string {
	return filepath.Join(c.cfg.Dir, shard(k.nar), fileName(k, size))
}
