package narcache

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"
)

const (
	// namers is how many files are written through at once: file systems gather such
	// requests.
	namers = 4
	// maxOpen is how many files wait for that with their file open, for those who follow.
	maxOpen = 512
	// closeFor is how long Close goes on writing files through. What is left is lost.
	closeFor = 3 * time.Second

	// spareAfter is how long after its last use an entry goes that the store has too.
	spareAfter = 10 * time.Minute
	spareEvery = time.Minute
)

// unnamed is a committed download that has no name on disk yet.
type unnamed struct {
	d    *Download
	open bool // the filler's use of the file came along
}

// Run gives committed files their names and drops what the store has too, until ctx ends.
func (c *Cache) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range namers {
		wg.Go(func() { c.nameFiles(ctx) })
	}
	tick := time.NewTicker(spareEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			wg.Wait()
			return nil
		case <-tick.C:
			c.spare(ctx)
		}
	}
}

func (c *Cache) nameFiles(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.work:
		}
		for ctx.Err() == nil {
			u, more := c.nextUnnamed()
			if u.d == nil {
				break
			}
			if more {
				c.signal()
			}
			c.nameFile(u)
		}
	}
}

func (c *Cache) signal() {
	select {
	case c.work <- struct{}{}:
	default:
	}
}

func (c *Cache) nextUnnamed() (u unnamed, more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		return unnamed{}, false
	}
	u = c.queue[0]
	c.queue[0] = unnamed{}
	c.queue = c.queue[1:]
	return u, len(c.queue) > 0
}

// nameFile writes a file through and then gives it its name, so that after a power failure
// what has a name has its bytes. The directory is not written through: a name that is lost
// costs one entry.
func (c *Cache) nameFile(u unnamed) {
	d := u.d
	if u.open {
		defer d.leave()
	}
	file, leave, err := d.enter()
	if err != nil {
		return // evicted or convicted already
	}
	defer leave()
	e := d.entry
	c.mu.Lock()
	gone := e.gone
	c.mu.Unlock()
	if gone {
		return
	}
	err = c.disk.sync(file)
	if err == nil {
		err = os.Rename(e.tmp, c.path(e.key, e.size))
	}
	c.mu.Lock()
	gone = e.gone
	e.named = err == nil
	c.mu.Unlock()
	switch {
	case err == nil:
		c.well()
	case !gone || !errors.Is(err, os.ErrNotExist):
		_ = c.fault("commit", err)
		c.drop(e)
	}
}

// spare drops entries that were not used for a while and that the store has too.
func (c *Cache) spare(ctx context.Context) {
	if c.cfg.InStore == nil {
		return
	}
	before := time.Now().Add(-spareAfter).Unix()
	unused := func(e *entry) bool { return e.refs == 0 && !e.gone && e.used <= before }
	var candidates []*entry
	c.mu.Lock()
	for _, l := range [...]*rank{&c.ranks.fresh, &c.ranks.kept} {
		for e := l.last; e != nil; e = e.prev {
			if unused(e) {
				candidates = append(candidates, e)
			}
		}
	}
	c.mu.Unlock()
	for _, e := range candidates {
		if ctx.Err() != nil {
			return
		}
		if !c.cfg.InStore(e.nar) {
			continue
		}
		c.mu.Lock()
		mine := unused(e) && c.detach(e)
		c.mu.Unlock()
		if !mine {
			continue
		}
		c.log.Debug("dropped a NAR that the store has", "source", name, "nar", e.nar.String())
		if c.destroy(e) != nil {
			return
		}
	}
}

// Close ends the downloads in progress, writes through what was committed, and gives the
// directory free. Run must have ended. Readers that are still open may read on.
func (c *Cache) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	var open []*Download
	for _, d := range c.downloads {
		open = append(open, d)
	}
	c.mu.Unlock()
	for _, d := range open {
		d.mu.Lock()
		begun := d.file != nil
		d.mu.Unlock()
		if begun { // else Create is about to notice
			d.Abort(errStopped)
		}
	}
	deadline := time.Now().Add(closeFor)
	for u, _ := c.nextUnnamed(); u.d != nil; u, _ = c.nextUnnamed() {
		if time.Now().Before(deadline) {
			c.nameFile(u)
		} else if u.open {
			u.d.leave()
		}
	}
	return c.lock.Close()
}
