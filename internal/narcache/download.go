package narcache

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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
	info *verify.Info

	mu      sync.Mutex
	file    *os.File // nil once it has ended and nobody uses it
	users   int      // of file: the filler, readers, and who writes it through
	written int64
	doubted bool  // others see nothing from doubt on
	doubt   int64 // byte
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

// Create begins a download of size bytes, all of which are counted from now on; others are
// evicted for them. The error wraps ErrDoesNotFit when what is in use leaves no room,
// ErrDegraded when the disk failed, now or a moment ago. The caller ends it with Commit or Abort.
//
// A file is not larger than the signed NAR and a container around it, so that no size that
// somebody names empties the cache for a NAR that is small.
func (c *Cache) Create(info *verify.Info, form nix.Form, size int64) (*Download, error) {
	nar := info.NarHash()
	if size <= 0 || size > c.max {
		return nil, fmt.Errorf("narcache: %s: %d bytes: %w", nar, size, ErrDoesNotFit)
	}
	if c.resting() {
		return nil, fmt.Errorf("narcache: %s: %w", nar, ErrDegraded)
	}
	d := &Download{info: info,
		c: c, key: key{nar, form}, size: size, users: 1,
		tmp: filepath.Join(c.cfg.Dir, tmpDir, strconv.FormatUint(c.nextTmp.Add(1), 10)),
	}
	if err := c.announce(d); err != nil {
		return nil, fmt.Errorf("narcache: %s: %w", nar, err)
	}
	if err := c.reserve(cost(size)); err != nil {
		c.withdraw(d)
		return nil, fmt.Errorf("narcache: %s: %w", nar, err)
	}
	if err := d.open(); err != nil {
		_ = os.Remove(d.tmp)
		c.withdraw(d)
		c.mu.Lock()
		c.count(-cost(size))
		c.mu.Unlock()
		return nil, c.fault("create", err)
	}
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed { // Close may not have seen its file
		d.Abort(errStopped)
		return nil, fmt.Errorf("narcache: %s: %w", nar, errStopped)
	}
	return d, nil
}

// announce lets nobody else begin the same download. Downloading shows it only when it has a
// file.
func (c *Cache) announce(d *Download) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, dying := c.dying[d.key]
	switch {
	case c.closed:
		return errStopped
	case dying || c.downloads[d.key] != nil || c.find(d.key) != nil:
		return errExists
	}
	c.downloads[d.key] = d
	return nil
}

func (c *Cache) withdraw(d *Download) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.downloads, d.key)
}

func (d *Download) open() error {
	f, err := os.OpenFile(d.tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
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

// Downloading returns the download of this form that is in progress, or nil. Ask it before
// NAR: what it does not show any more NAR has.
func (c *Cache) Downloading(nar nix.NarHash, form nix.Form) *Download {
	c.mu.Lock()
	d := c.downloads[key{nar, form}]
	c.mu.Unlock()
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.file == nil {
		return nil
	}
	return d
}

// HideFromPeers keeps what is written from now on from other machines, until the end or until there is no
// doubt any more: then they see all.
func (d *Download) HideFromPeers(doubted bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case doubted && !d.doubted:
		d.doubt = d.written
	case !doubted && d.doubted:
		d.wakeLocked()
	}
	d.doubted = doubted
}

// Downloads returns all downloads of a NAR that are in progress.
func (c *Cache) Downloads(nar nix.NarHash) []*Download {
	return nil
}

// Info returns the narinfo under which the NAR is fetched.
func (d *Download) Info() *verify.Info { return d.info }

// Form returns the form of the bytes.
func (d *Download) Form() nix.Form { return d.key.form }

// Readable returns how many bytes another machine can read now.
func (d *Download) Readable() int64 { return 0 }

// Size returns the bytes that the whole will have.
func (d *Download) Size() int64 { return d.size }

// Write appends. When the disk fails, the download ends for all, and the error wraps
// ErrDegraded.
func (d *Download) Write(p []byte) (int, error) {
	d.mu.Lock()
	at, f := d.written, d.file
	if err := d.endedLocked(); err != nil {
		d.mu.Unlock()
		return 0, err
	}
	d.mu.Unlock()
	if int64(len(p)) > d.size-at {
		return 0, fmt.Errorf("narcache: %s: more than %d bytes", d.key.nar, d.size)
	}
	n, err := f.WriteAt(p, at)
	if err != nil {
		d.mu.Lock()
		ended := d.endedLocked()
		d.mu.Unlock()
		if ended != nil { // its file was closed under us
			return n, ended
		}
		err = d.c.fault("write", err)
		d.Abort(err)
		return n, err
	}
	d.mu.Lock()
	d.written += int64(n)
	d.wakeLocked()
	d.mu.Unlock()
	return n, nil
}

// endedLocked returns why there can be no more writing.
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

// Commit says that the caller has proven the bytes. They are visible and whole for the readers
// when it returns; writing them through and giving the file its name follows in the background.
func (d *Download) Commit() error {
	c := d.c
	c.mu.Lock()
	d.mu.Lock()
	err := d.endedLocked()
	if err == nil && c.closed {
		err = errStopped
	}
	if err == nil && d.written != d.size {
		err = fmt.Errorf("narcache: commit %s: %d of %d bytes: %w", d.key.nar, d.written, d.size, io.ErrUnexpectedEOF)
	}
	if err != nil {
		d.mu.Unlock()
		c.mu.Unlock()
		d.Abort(err)
		return err
	}
	now := time.Now().Unix()
	// The reference is d's, for as long as its file is open.
	d.entry = &entry{
		key: d.key, size: d.size, tmp: d.tmp, refs: 1,
		proven: true, used: now, stamped: now,
	}
	d.state = committed
	d.wakeLocked()
	delete(c.downloads, d.key)
	c.add(d.entry)
	// The filler's use of the file goes to who writes it through, unless many wait for that.
	open := len(c.queue) < maxOpen
	c.queue = append(c.queue, unnamed{d, open})
	d.mu.Unlock()
	c.mu.Unlock()
	if !open {
		d.leave()
	}
	select {
	case c.work <- struct{}{}:
	default:
	}
	return nil
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
	freed = os.Remove(d.tmp) == nil || freed
	d.leave()
	c := d.c
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.downloads, d.key)
	if freed {
		c.count(-cost(d.size))
	}
}

// enter returns the file for another user, and what to call when done with it. Whoever comes
// when it is closed after Commit gets one of his own.
func (d *Download) enter() (f *os.File, leave func(), err error) {
	d.mu.Lock()
	if d.state == aborted {
		defer d.mu.Unlock()
		return nil, nil, d.err
	}
	if d.file != nil {
		defer d.mu.Unlock()
		d.users++
		return d.file, d.leave, nil
	}
	d.mu.Unlock()
	e := d.entry // set, for there is no file any more
	if f, err = d.c.openEntry(e); err != nil {
		return nil, nil, err
	}
	return f, func() {
		_ = f.Close()
		d.c.release(e)
	}, nil
}

// leave gives up one use of the file. With the last it is closed.
func (d *Download) leave() {
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
