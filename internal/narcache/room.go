package narcache

import (
	"fmt"
	"sync"
	"time"
)

// reserve counts n bytes, after evicting what has to go for them.
func (c *Cache) reserve(n int64) error {
	c.mu.Lock()
	if c.used+n <= c.max {
		c.count(n)
		c.mu.Unlock()
		return nil
	}
	c.mu.Unlock()
	c.space.Lock()
	defer c.space.Unlock()
	for {
		c.mu.Lock()
		if c.used+n <= c.max {
			c.count(n)
			c.mu.Unlock()
			return nil
		}
		// What cannot fit costs nobody his place.
		if c.used-c.idle+n > c.max {
			c.mu.Unlock()
			return fmt.Errorf("%d bytes: %w", n, ErrDoesNotFit)
		}
		e := c.evict()
		c.mu.Unlock()
		if err := c.destroy(e); err != nil {
			return err
		}
	}
}

// evict detaches the next victim; there is one while idle > 0. The caller holds mu, and
// destroys it.
func (c *Cache) evict() *entry {
	e := c.ranks.victim()
	c.detach(e)
	c.ranks.mourn(e)
	return e
}

// Trim evicts until at most max bytes are used, as far as they are not in use, and returns
// what it evicted.
func (c *Cache) Trim(max int64) (removed []Entry) {
	c.space.Lock()
	defer c.space.Unlock()
	for {
		c.mu.Lock()
		if c.used <= max || c.idle == 0 {
			c.mu.Unlock()
			return removed
		}
		e := c.evict()
		c.mu.Unlock()
		if c.destroy(e) != nil {
			return removed
		}
		removed = append(removed, e.describe())
	}
}

// degradedFor is how long nothing is written after the disk failed: long enough not to try in
// vain for every NAR, short enough to be back soon after somebody made room.
const degradedFor = 30 * time.Second

// health is whether the disk takes what is written.
type health struct {
	mu    sync.Mutex
	ill   bool
	until time.Time
}

// fault notes that the disk failed, says so once an episode, and returns the error to return.
func (c *Cache) fault(operation string, err error) error {
	h := &c.health
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ill {
		c.log.Warn("the cache cannot write; NARs stream through", "source", name, "operation", operation, "err", err)
		c.cfg.Trouble(name, "cannot write: NARs stream through and are not kept", "", err)
	}
	h.ill, h.until = true, time.Now().Add(degradedFor)
	c.showHealth(1)
	return fmt.Errorf("narcache: %s: %w: %w", operation, ErrDegraded, err)
}

// well notes that a file was written through.
func (c *Cache) well() {
	h := &c.health
	h.mu.Lock()
	defer h.mu.Unlock()
	// What was written before the fault proves nothing.
	if !h.ill || time.Now().Before(h.until) {
		return
	}
	h.ill = false
	c.showHealth(0)
	c.log.Info("the cache writes again", "source", name)
	c.cfg.Trouble(name, "writes again", "", nil)
}

func (c *Cache) showHealth(v float64) {
	if m := c.cfg.Metrics; m != nil {
		m.CacheDegraded.Set(v)
	}
}

// resting tells that nothing is to be written for now.
func (c *Cache) resting() bool {
	h := &c.health
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ill && time.Now().Before(h.until)
}
