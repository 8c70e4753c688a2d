package resolve

import (
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// expiring is a bounded set whose members leave after a time of their own.
type expiring[K comparable] struct{ c *lru.Cache[K, time.Time] }

func newExpiring[K comparable](size int) *expiring[K] {
	c, err := lru.New[K, time.Time](size)
	if err != nil {
		panic(err) // only for a size that is not positive
	}
	return &expiring[K]{c}
}

func (e *expiring[K]) add(k K, lifetime time.Duration) { e.c.Add(k, time.Now().Add(lifetime)) }

func (e *expiring[K]) remove(k K) { e.c.Remove(k) }

func (e *expiring[K]) has(k K) bool {
	until, ok := e.c.Get(k)
	if !ok {
		return false
	}
	if time.Now().After(until) {
		e.c.Remove(k)
		return false
	}
	return true
}
