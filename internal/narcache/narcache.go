// Package narcache keeps NARs on disk in the forms in which they came, together with the
// downloads that are in progress, which any number of readers can follow. Its bytes are bounded at
// every moment; what was used least goes first, and what was used once before what is used again
// and again. A file gets its name when it was written through, and is hashed again before it is
// first offered after a start. A compressed file is named by its hash, which proves nothing: it
// was decoded once to the signed NAR before anybody but the download's own readers gets it. If the
// disk fails, the cache refuses; answers stay right. An older version of a NAR may be kept as a delta of a newer
// one: see Deltas.
package narcache

import (
	"errors"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/nixp2p/nixp2p/internal/atomicfile"
	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
)

var (
	// ErrLocked says that another process uses the directory.
	ErrLocked = atomicfile.ErrLocked
	// ErrDoesNotFit says that a NAR has no room next to what is in use.
	ErrDoesNotFit = errors.New("does not fit into the cache")
	// ErrDegraded says that the disk failed and the cache takes nothing for a while.
	ErrDegraded = errors.New("the disk of the cache failed")

	errExists = errors.New("is in the cache or being downloaded")
	errClosed = errors.New("the cache is closed")
)

// Config is what Open needs. Zero fields mean the default.
type Config struct {
	Dir string // created with mode 0700 if it does not exist
	// Size is the bound in bytes of all that the directory holds, downloads in progress
	// with their whole size included. 0 refuses everything.
	Size int64
	// InStore reports whether this machine's store can serve a NAR to everybody, so that no
	// second copy is needed. It may be called at any time. If nil, it never can.
	InStore func(nix.NarHash) bool
	// Kept reports whether a NAR is to be evicted last. It is called with locks held and must only
	// look something up; KeptChanged says that its answers have changed. If nil, none is.
	Kept   func(nix.NarHash) bool
	Events source.Events // of the disk, and of files that had to be removed
	// Conditions is told while the directory cannot be used. If nil, only the log is.
	Conditions *source.Conditions
	Log        *slog.Logger // if nil, nothing is logged
	Metrics    *metrics.Metrics
}

// Cache is NARs on disk and downloads in progress. It is safe for concurrent use.
type Cache struct {
	*directory
	work     chan struct{} // capacity workers: the queue has something
	restores chan struct{} // has one for each NAR that is being restored
	decodes  chan struct{} // has one for each file that is being decoded to prove it
	nextTmp  atomic.Uint64
	scratch  atomic.Int64 // bytes reserved for Scratches
}

// directory is the files: where they are, what they cost, and what goes when room is needed. It
// knows no narinfos.
//
// Locks are taken in this order: space, naming, mu, Download.mu. Nothing is logged, reported or
// called back while mu or Download.mu is held.
type directory struct {
	cfg    Config
	place  atomic.Pointer[place] // nil until the directory could be opened
	max    int64                 // bytes that files may take
	health health
	disk   device

	space  sync.Mutex // held while room is made, so that one Create does not take what another freed
	naming sync.Mutex // held while a file is renamed or removed

	mu    sync.Mutex
	state contents
}

// place is the directory once it is open.
type place struct {
	*os.Root // of all files, so that no link leads out of the directory
	lock     *os.File
}

func (p *place) close() error {
	if p == nil {
		return nil
	}
	return errors.Join(p.Root.Close(), p.lock.Close())
}

// contents is what is guarded by directory.mu.
type contents struct {
	index     map[nix.NarHash]*entry // the first of a chain by sibling
	policy    policy
	downloads map[key][]*Download // in progress, at most two: the first is hidden if there is a second
	removing  map[key]*entry      // their file is being removed
	proving   map[*entry]*proof
	used      int64    // bytes of entries, of reservations, and of removed files that are still open
	idle      int64    // the part of used that could be evicted at once
	trees     trees    // of used
	queue     []*entry // committed, not written through
	deltas    Deltas
	closed    bool
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

var _ source.NARs = (*Cache)(nil)

// Open opens or creates the cache in cfg.Dir: it looks at the names and sizes of the files, not
// into them, and removes what a crash left unfinished. If that fails, the cache is empty and takes
// nothing until Run, which tries again, could open the directory; the error wraps ErrLocked if
// another process uses it. It starts no goroutine.
func Open(cfg Config) (*Cache, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Conditions == nil {
		cfg.Conditions = new(source.Conditions)
	}
	dir := &directory{
		cfg: cfg, max: max(cfg.Size-dirBytes, 0), disk: device{allocate, (*os.File).Sync},
		state: contents{
			index: make(map[nix.NarHash]*entry), downloads: make(map[key][]*Download),
			removing: make(map[key]*entry), proving: make(map[*entry]*proof),
		},
	}
	dir.health.cfg, dir.health.rest = &dir.cfg, backoff.Delay{First: degradedFor, Most: degradedFor}
	dir.state.policy = newPolicy(dir.max, cfg.Kept)
	c := &Cache{
		directory: dir, work: make(chan struct{}, workers), restores: make(chan struct{}, maxRestores),
		decodes: make(chan struct{}, runtime.GOMAXPROCS(0)+moreDecodes),
	}
	if err := dir.start(); err != nil {
		return c, dir.health.failed("open", err)
	}
	return c, nil
}

// Usage returns the bytes that the files take on disk, the whole size of downloads in progress
// included.
func (c *Cache) Usage() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.used
}

// Sizes returns the forms in which a NAR is here as a whole with their sizes, raw first: raw is what a delta
// is restored to. Whether they are right is known once NAR was asked for them.
func (c *Cache) Sizes(nar nix.NarHash) (list []source.Sized) {
	c.mu.Lock()
	defer c.mu.Unlock()
	raw := int64(0)
	for e := c.state.index[nar]; e != nil; e = e.sibling {
		switch {
		case e.form.IsRaw():
			raw = e.size
		case e.packed():
			raw = e.narSize
		default:
			list = append(list, source.Sized{Form: e.form, Size: e.size})
		}
	}
	if raw > 0 {
		list = slices.Insert(list, 0, source.Sized{Form: nix.Raw, Size: raw})
	}
	return list
}

// Forms returns the forms that Sizes does.
func (c *Cache) Forms(nar nix.NarHash) (forms []nix.Form) {
	for _, s := range c.Sizes(nar) {
		forms = append(forms, s.Form)
	}
	return forms
}

// find returns the entry of k, or nil. The caller holds mu.
func (s *contents) find(k key) *entry {
	for e := s.index[k.nar]; e != nil; e = e.sibling {
		if e.form == k.form {
			return e
		}
	}
	return nil
}

// add makes e visible. The caller holds mu and has counted its bytes.
func (s *contents) add(e *entry) {
	e.sibling = s.index[e.nar]
	s.index[e.nar] = e
	e.copied = !e.packed() && s.delta(e.nar) != nil
	s.policy.add(e)
	if e.refs == 0 {
		s.idle += cost(e.size)
	}
}

// acquire keeps e from being evicted until release, and its base as well. The caller holds mu.
func (s *contents) acquire(e *entry) {
	if e.refs == 0 && !e.gone {
		s.idle -= cost(e.size)
	}
	if e.refs == 0 && e.base != nil {
		s.acquire(e.base)
	}
	e.refs++
}

// release undoes acquire; the caller has closed its file and does not hold mu. What was removed
// while it was in use stops counting with its last user.
func (dir *directory) release(e *entry) {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	for ; e != nil; e = e.base {
		e.refs--
		if e.refs > 0 {
			return
		}
		switch {
		case !e.gone:
			dir.state.idle += cost(e.size)
		case e.unlinked:
			dir.count(-cost(e.size))
		}
	}
}

// detach hides e. The caller holds mu and calls destroy after releasing it. It returns false if
// e was detached before.
func (s *contents) detach(e *entry) bool {
	if e.gone {
		return false
	}
	if e.refs == 0 {
		s.idle -= cost(e.size)
	}
	e.gone = true
	s.removing[e.key] = e
	e.in.remove(e)
	if at := s.index[e.nar]; at != e {
		for at.sibling != e {
			at = at.sibling
		}
		at.sibling = e.sibling
	} else if s.index[e.nar] = e.sibling; e.sibling == nil {
		delete(s.index, e.nar)
	}
	if e.packed() {
		s.leave(e)
	}
	return true
}

// destroy removes the file of an entry that the caller has detached. Removing a large file takes
// the file system a while, so it is done without mu. A file that cannot be removed goes on
// counting.
func (dir *directory) destroy(e *entry) error {
	dir.naming.Lock()
	err := dir.place.Load().Remove(dir.fileOf(e))
	dir.naming.Unlock()
	switch {
	case errors.Is(err, os.ErrNotExist):
		err = nil
	case err != nil && !errors.Is(err, os.ErrClosed):
		err = dir.health.failed("remove", err)
	}
	dir.mu.Lock()
	defer dir.mu.Unlock()
	if dir.state.removing[e.key] == e {
		delete(dir.state.removing, e.key)
	}
	e.unlinked = err == nil
	if e.unlinked && e.refs == 0 {
		dir.count(-cost(e.size))
	}
	return err
}

// fileOf returns where the file of e is now.
func (dir *directory) fileOf(e *entry) string {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	return e.file
}

// settled is fileOf after a rename that goes on: the file has its new name before e has it.
func (dir *directory) settled(e *entry) string {
	dir.naming.Lock()
	defer dir.naming.Unlock()
	return dir.fileOf(e)
}

// drop removes e, for a reason other than room, and what cannot be made without it. It returns false if
// e was removed before.
func (dir *directory) drop(e *entry) bool {
	return dir.dropIf(e, func(*entry) bool { return true })
}

// dropIf is drop if ok says so, which is called with mu held.
func (dir *directory) dropIf(e *entry, ok func(*entry) bool) bool {
	dir.mu.Lock()
	mine := ok(e) && dir.state.detach(e)
	members := slices.Clone(e.members)
	dir.mu.Unlock()
	if !mine {
		return false
	}
	_ = dir.destroy(e) // reported as a failure of the disk
	for _, m := range members {
		dir.drop(m)
	}
	return true
}

// count adds n to the bytes in use. The caller holds mu.
func (dir *directory) count(n int64) {
	dir.state.used += n
	if m := dir.cfg.Metrics; m != nil {
		m.CacheBytes.Set(float64(dir.state.used))
		m.CacheDeltaBytes.Set(float64(dir.state.deltas.Bytes))
		m.CacheDeltaSaved.Set(float64(dir.state.deltas.Was - dir.state.deltas.Bytes))
	}
}
