package narcache

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/internal/source"
)

// take counts n bytes if they fit. If evicting would make them fit, victim is what is to be
// evicted first; the caller destroys it.
func (c *Cache) take(n int64, evict bool) (ok bool, victim *entry, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch s := &c.state; {
	case s.used+n <= c.max:
		c.count(n)
		return true, nil, nil
	case s.used-s.idle+n > c.max: // what cannot fit costs nobody its place
		return false, nil, fmt.Errorf("%d bytes: %w", n, ErrDoesNotFit)
	case !evict:
		return false, nil, nil
	default:
		return false, s.evict(), nil
	}
}

// reserve counts n bytes, after evicting what has to go for them.
func (c *Cache) reserve(n int64) error {
	if ok, _, err := c.take(n, false); ok || err != nil {
		return err
	}
	c.space.Lock()
	defer c.space.Unlock()
	for {
		ok, victim, err := c.take(n, true)
		if ok || err != nil {
			return err
		}
		if err := c.destroy(victim); err != nil {
			return err
		}
	}
}

// evict detaches the next victim; there is one while idle > 0. The caller holds mu, and destroys
// it after releasing mu.
func (s *contents) evict() *entry {
	e := s.policy.victim()
	s.detach(e)
	s.policy.rememberEvicted(e)
	return e
}

// trim evicts until at most max bytes are used, as far as they are not in use, and returns what
// it evicted.
func (c *Cache) trim(max int64) []Item {
	removed := []Item{}
	c.space.Lock()
	defer c.space.Unlock()
	for {
		c.mu.Lock()
		if c.state.used <= max || c.state.idle == 0 {
			c.mu.Unlock()
			return removed
		}
		e := c.state.evict()
		c.mu.Unlock()
		if c.destroy(e) != nil {
			return removed
		}
		removed = append(removed, e.item())
	}
}

// degradedFor is how long nothing is written after the disk failed: long enough not to try in
// vain for every NAR, short enough to be back soon after somebody made room.
const degradedFor = 30 * time.Second

// health is whether the disk takes what is written.
type health struct {
	failing *atomic.Bool
	rest    *backoff.Delay
}

func newHealth() health {
	return health{new(atomic.Bool), &backoff.Delay{First: degradedFor, Most: degradedFor}}
}

// failed notes that the disk failed, reports it once an episode, and returns the error to return.
func (c *Cache) failed(operation string, err error) error {
	c.health.rest.Fail()
	if !c.health.failing.Swap(true) {
		c.showHealth(1)
		c.log.Warn("the cache cannot write; NARs are passed through and not kept", "operation", operation, "err", err)
		c.cfg.Events.Send(source.Event{Kind: source.CacheFailed, Source: source.Cache, Err: err})
	}
	return fmt.Errorf("narcache: %s: %w: %w", operation, ErrDegraded, err)
}

// recovered notes that a file was written through.
func (c *Cache) recovered() {
	// What was written before the failure proves nothing.
	if c.health.rest.Ready() && c.health.failing.Swap(false) {
		c.health.rest.Succeed()
		c.showHealth(0)
		c.log.Info("the cache writes again")
	}
}

func (c *Cache) showHealth(v float64) {
	if m := c.cfg.Metrics; m != nil {
		m.CacheDegraded.Set(v)
	}
}

// degraded reports whether nothing is to be written for now.
func (c *Cache) degraded() bool { return !c.health.rest.Ready() }
