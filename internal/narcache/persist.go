package narcache

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"
)

const (
	// workers is how many files are written through at once: file systems gather such requests.
	workers = 4
	// closeFor is how long Close goes on writing files through. What is left is lost.
	closeFor = 3 * time.Second

	// duplicateAfter is how long after its last use an entry goes that the store has too.
	duplicateAfter = 10 * time.Minute
	duplicateEvery = time.Minute
)

// Run writes committed files through and drops what the store has too, until ctx ends.
func (c *Cache) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() { c.persistAll(ctx) })
	}
	tick := time.NewTicker(duplicateEvery)
	defer tick.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			wg.Wait()
			return nil
		case <-tick.C:
			c.dropDuplicates(ctx)
		case <-look.C:
			c.comeBack()
		}
	}
}

func (c *Cache) persistAll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.work:
		}
		for ctx.Err() == nil {
			e := c.nextPending()
			if e == nil {
				break
			}
			c.persist(e)
		}
	}
}

func (c *Cache) wake() {
	select {
	case c.work <- struct{}{}:
	default: // all workers look
	}
}

func (dir *directory) nextPending() *entry {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	q := dir.state.queue
	if len(q) == 0 {
		return nil
	}
	e := q[0]
	q[0], dir.state.queue = nil, q[1:]
	return e
}

// persist writes a file through and then gives it its name, so that after a power failure what
// has a name has its bytes. The directory is not written through: a name that is lost costs one
// entry.
func (dir *directory) persist(e *entry) {
	f, err := dir.openEntry(e)
	if err != nil {
		return // evicted or found wrong already
	}
	defer dir.release(e)
	err = dir.disk.sync(f)
	_ = f.Close()
	if err == nil {
		err = dir.rename(e, true)
	}
	switch {
	case err == nil:
		dir.health.recovered()
	case !dir.isGone(e) || !errors.Is(err, os.ErrNotExist):
		_ = dir.health.failed("commit", err)
		dir.drop(e)
	}
}

func (dir *directory) isGone(e *entry) bool {
	dir.mu.Lock()
	defer dir.mu.Unlock()
	return e.gone
}

// rename gives the file of e the name that its record has now. Unless it is synced, a file that
// has none yet keeps its temporary one: it gets the right one later.
func (dir *directory) rename(e *entry, synced bool) error {
	dir.naming.Lock()
	defer dir.naming.Unlock()
	dir.mu.Lock()
	from, to := e.file, e.record.name()
	skip := e.gone || from == to || !e.named && !synced
	dir.mu.Unlock()
	if skip {
		return nil
	}
	if err := dir.place.Load().Rename(from, to); err != nil {
		return err
	}
	dir.mu.Lock()
	e.file, e.named = to, true
	dir.mu.Unlock()
	return nil
}

// dropDuplicates drops entries that were not used for a while and that are here as a delta, too, or in
// the store. What others are made of stays.
func (c *Cache) dropDuplicates(ctx context.Context) {
	before := time.Now().Add(-duplicateAfter).Unix()
	is := func(e *entry) bool { return e.refs == 0 && e.used <= before && len(e.members) == 0 }
	isCopy := func(e *entry) bool { return is(e) && e.copied }
	var unused []*entry
	c.mu.Lock()
	for e := range c.state.policy.all() {
		if is(e) {
			unused = append(unused, e)
		}
	}
	c.mu.Unlock()
	for _, e := range unused {
		if ctx.Err() != nil {
			return
		}
		if c.dropIf(e, isCopy) || c.cfg.InStore != nil && c.cfg.InStore(e.nar) && c.dropIf(e, is) {
			c.cfg.Log.Debug("dropped a NAR that is here twice", "nar", e.nar.String(), "form", e.form.String())
		}
	}
}

// Close ends the downloads in progress, writes through what was committed, and unlocks the
// directory. Run must have ended. Readers that are still open may read on.
func (c *Cache) Close() error {
	c.mu.Lock()
	if c.state.closed {
		c.mu.Unlock()
		return nil
	}
	c.state.closed = true
	var open []*Download
	for _, d := range c.state.downloads {
		open = append(open, d...)
	}
	c.mu.Unlock()
	for _, d := range open {
		if d.started() { // else Create is about to notice
			d.Abort(errClosed)
		}
	}
	deadline := time.Now().Add(closeFor)
	for e := c.nextPending(); e != nil && time.Now().Before(deadline); e = c.nextPending() {
		c.persist(e)
	}
	return c.place.Load().close()
}
