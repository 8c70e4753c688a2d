package narcache

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// Download is one file on its way into the cache. One goroutine fills it with Write and ends it
// with Commit or Abort; any number follow it with readers of their own.
type Download struct {
	c    *Cache
	key  key
	size int64
	tmp  string

	mu      sync.Mutex
	file    *os.File // nil once it has ended and nobody uses it
	users   int      // of file: the writer and readers
	written int64
	hidden  bool  // other machines see nothing from hideAt on
	hideAt  int64 // byte
	state   state
	err     error         // of Abort
	entry   *entry        // after Commit
	changed chan struct{} // closed at the next change; nil while nobody waits
}

type state int

const (
	filling state = iota
	committed
	aborted
)

// containerRoom is what a file may be larger than its NAR: containers store what cannot be
// compressed with a few bytes for each 64 KiB.
func containerRoom(narSize int64) int64 { return narSize/1024 + 64<<10 }

// Create begins a download of size bytes, all of which are counted from now on; others are
// evicted for them. A raw NAR has the signed size, and a file is not larger than that and a
// container around it, so that no size that somebody names empties the cache for a small NAR. The
// error wraps ErrDoesNotFit if what is in use leaves no room, ErrDegraded if the disk failed, now
// or a moment ago. The caller ends the download with Commit or Abort.
//
// There is one download of a form at a time, and a second one if the first is hidden from peers:
// the first that is committed is kept, and the other is then dropped by its own Commit.
func (c *Cache) Create(info *verify.Info, form nix.Form, size int64) (_ *Download, err error) {
	n := info.NarSize()
	if form.IsRaw() && size != n || size > n+containerRoom(n) {
		return nil, fmt.Errorf("narcache: %s: %s of %d bytes, for a NAR of %d", info.NarHash(), form, size, n)
	}
	return c.create(key{info.NarHash(), form}, size)
}

func (c *Cache) create(k key, size int64) (_ *Download, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("narcache: %s: %w", k.nar, err)
		}
	}()
	switch {
	case size <= 0 || size > c.max:
		return nil, fmt.Errorf("%d bytes: %w", size, ErrDoesNotFit)
	case c.health.degraded() || c.place.Load() == nil:
		return nil, ErrDegraded
	}
	d := &Download{
		c: c, key: k, size: size, users: 1,
		tmp: tmpDir + "/" + strconv.FormatUint(c.nextTmp.Add(1), 10),
	}
	if err := c.announce(d); err != nil {
		return nil, err
	}
	if err := c.reserve(cost(size)); err != nil {
		c.withdraw(d, 0)
		return nil, err
	}
	if err := d.open(); err != nil {
		_ = c.place.Load().Remove(d.tmp)
		c.withdraw(d, cost(size))
		return nil, c.health.failed("create", err)
	}
	c.mu.Lock()
	closed := c.state.closed
	c.mu.Unlock()
	if closed { // Close may not have seen its file
		d.Abort(errClosed)
		return nil, errClosed
	}
	return d, nil
}

// announce makes d one of the downloads in progress. Downloads shows it once it has a file.
func (c *Cache) announce(d *Download) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.state
	others := s.downloads[d.key]
	switch {
	case s.closed:
		return errClosed
	case s.removing[d.key] != nil || s.find(d.key) != nil || len(others) > 1 || len(others) == 1 && !others[0].isHidden():
		return errExists
	}
	s.downloads[d.key] = append(others, d)
	return nil
}

// withdraw ends what announce began and counts freed bytes less.
func (c *Cache) withdraw(d *Download, freed int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.ended(d)
	c.count(-freed)
}

// ended takes d out of the downloads in progress. The caller holds mu.
func (s *contents) ended(d *Download) {
	rest := slices.DeleteFunc(slices.Clone(s.downloads[d.key]), func(o *Download) bool { return o == d })
	if s.downloads[d.key] = rest; len(rest) == 0 {
		delete(s.downloads, d.key)
	}
}

func (d *Download) open() error {
	f, err := d.c.place.Load().OpenFile(d.tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := d.c.disk.allocate(f, d.size); err != nil {
		_ = f.Close()
		return err
	}
	d.mu.Lock()
	d.file = f
	d.mu.Unlock()
	return nil
}

// started reports whether the download has a file.
func (d *Download) started() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.file != nil
}

func (d *Download) isHidden() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.hidden
}

// Downloads returns the downloads of a NAR that are in progress, and of files those that have
// just ended and are not proven: raw before others, and what is not hidden before what is. Ask it
// before NAR: what it no longer shows NAR has.
func (c *Cache) Downloads(nar nix.NarHash) (list []*Download) {
	c.mu.Lock()
	for k, downloads := range c.state.downloads {
		if k.nar == nar {
			list = append(list, downloads...)
		}
	}
	var ended []*Download
	for e := c.state.index[nar]; e != nil; e = e.sibling {
		if d := e.followed(time.Now()); d != nil {
			ended = append(ended, d)
		}
	}
	c.mu.Unlock()
	list = append(slices.DeleteFunc(list, func(d *Download) bool { return !d.started() }), ended...)
	rank := func(d *Download) (n int) {
		if !d.key.form.IsRaw() {
			n += 2
		}
		if d.isHidden() {
			n++
		}
		return n
	}
	slices.SortFunc(list, func(a, b *Download) int { return rank(a) - rank(b) })
	return list
}

// HideFromPeers keeps what is written from now on from PeerReader and ClientReader, until the end
// or until it is called with false: then they see all.
func (d *Download) HideFromPeers(hide bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case hide && !d.hidden:
		d.hideAt = d.written
	case !hide && d.hidden:
		d.wakeLocked()
	}
	d.hidden = hide
}

// Form returns the form of the bytes.
func (d *Download) Form() nix.Form { return d.key.form }

// Size returns the bytes that the whole will have.
func (d *Download) Size() int64 { return d.size }

// Readable returns how many bytes from the first one on another machine can read now.
func (d *Download) Readable() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	tail := newPeerTail()
	return d.visibleLocked(&tail)
}

// visibleLocked returns how many bytes from the first one on a reader may see.
func (d *Download) visibleLocked(tail *verify.Tail) int64 {
	n := tail.Visible(d.written, d.size, d.state == committed)
	if d.hidden && d.state != committed {
		n = min(n, d.hideAt)
	}
	return n
}

// Write appends. If the disk fails, the download ends for all, and the error wraps ErrDegraded.
func (d *Download) Write(p []byte) (int, error) {
	d.mu.Lock()
	at, f := d.written, d.file
	err := d.endedLocked()
	d.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if int64(len(p)) > d.size-at {
		return 0, fmt.Errorf("narcache: %s: more than %d bytes", d.key.nar, d.size)
	}
	n, err := f.WriteAt(p, at)
	d.mu.Lock()
	if err == nil {
		d.written += int64(n)
		d.wakeLocked()
		d.mu.Unlock()
		return n, nil
	}
	ended := d.endedLocked()
	d.mu.Unlock()
	if ended != nil { // its file was closed meanwhile
		return n, ended
	}
	err = d.c.health.failed("write", err)
	d.Abort(err)
	return n, err
}

// endedLocked returns why nothing more can be written.
func (d *Download) endedLocked() error {
	switch d.state {
	case aborted:
		return d.err
	case committed:
		return fmt.Errorf("narcache: %s: %w", d.key.nar, os.ErrClosed)
	default:
		return nil
	}
}

func (d *Download) wakeLocked() {
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

// Commit says that the bytes are those that the form names: the caller has checked NarHash of a
// raw NAR, FileHash of a file. They are visible and whole for the readers when it returns; writing
// them through and giving the file its name follows in the background. A file is not proven by
// that: see Prove. If another download of this form was committed before, this one is dropped once
// its readers are done.
func (d *Download) Commit() error {
	kept, err := d.commit()
	if err != nil {
		d.Abort(err)
		return err
	}
	if !kept {
		_ = d.c.destroy(d.entry)
	}
	d.release()
	d.c.wake()
	return nil
}

// commit makes an entry of d and reports whether it is kept.
func (d *Download) commit() (kept bool, err error) {
	c := d.c
	c.mu.Lock()
	defer c.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	switch err := d.endedLocked(); {
	case err != nil:
		return false, err
	case c.state.closed:
		return false, errClosed
	case d.written != d.size:
		return false, fmt.Errorf("narcache: commit %s: %d of %d bytes: %w", d.key.nar, d.written, d.size, io.ErrUnexpectedEOF)
	}
	now := time.Now()
	// The reference is d's, for as long as its file is open.
	d.entry = &entry{
		record: record{key: d.key, size: d.size}, file: d.tmp, refs: 1,
		intact: true, used: now.Unix(), stamped: now.Unix(),
	}
	if !d.entry.proven() {
		d.entry.download, d.entry.ended = d, now
	}
	d.state = committed
	d.wakeLocked()
	s := &c.state
	s.ended(d)
	if s.removing[d.key] != nil || s.find(d.key) != nil {
		d.entry.gone = true
		return false, nil
	}
	s.add(d.entry)
	if !d.entry.copied { // else it goes again soon
		s.queue = append(s.queue, d.entry)
	}
	return true, nil
}

// Abort ends the download for all who follow it: they get err. After Commit or Abort it does
// nothing.
func (d *Download) Abort(err error) {
	if err == nil {
		err = errors.New("given up")
	}
	d.mu.Lock()
	if d.state != filling {
		d.mu.Unlock()
		return
	}
	d.state, d.err = aborted, err
	d.wakeLocked()
	f := d.file
	d.mu.Unlock()
	// Readers may keep the file open; its bytes go now.
	freed := f != nil && f.Truncate(0) == nil
	freed = d.c.place.Load().Remove(d.tmp) == nil || freed
	d.release()
	n := int64(0)
	if freed {
		n = cost(d.size)
	}
	d.c.withdraw(d, n)
}

// retain returns the file for another user, and what to call when done with it. After Commit,
// when it is closed, a user gets one of its own.
func (d *Download) retain() (f *os.File, release func(), err error) {
	d.mu.Lock()
	f, e := d.file, d.entry
	switch {
	case d.state == aborted:
		err = d.err
	case f != nil:
		d.users++
	}
	d.mu.Unlock()
	if err != nil || f != nil {
		return f, d.release, err
	}
	if f, err = d.c.openEntry(e); err != nil {
		return nil, nil, err
	}
	return f, func() {
		_ = f.Close()
		d.c.release(e)
	}, nil
}

// release gives up one use of the file. With the last it is closed.
func (d *Download) release() {
	d.mu.Lock()
	d.users--
	f, e := d.file, d.entry
	if d.users > 0 || f == nil {
		d.mu.Unlock()
		return
	}
	d.file = nil
	d.mu.Unlock()
	_ = f.Close()
	if e != nil {
		d.c.release(e)
	}
}
