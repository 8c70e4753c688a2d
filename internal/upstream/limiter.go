package upstream

import (
	"context"
	"slices"
	"sync"
	"time"
)

// limiter bounds how many narinfos a cache is asked for at a time. If all machines of a site ask
// at once over a slow line, hundreds of short answers are more than its queue holds: most are
// lost, and each loss doubles the wait for that one. So late answers halve the limit and others
// raise it by one (AIMD), as TCP does with its window. The zero value is ready; it is safe for
// concurrent use.
type limiter struct {
	mu     sync.Mutex
	size   float64 // 0 before the first
	out    int
	least  time.Duration // that an answer took
	shrunk time.Time
	queue  []chan struct{} // in order of arrival
}

const (
	limitMost  = 256 // ten Nix ask so many at a time
	limitLeast = 6
	// An answer is late that took longer than lateAfter and lateTimes the shortest: a cache that
	// is slow by nature gets no faster by being asked less.
	lateAfter  = 500 * time.Millisecond
	lateTimes  = 4
	limitPause = time.Second // between two halvings: what is late then was requested before the first
)

// acquire waits for a place. Whoever gets one calls release.
func (l *limiter) acquire(ctx context.Context) error {
	l.mu.Lock()
	if l.size == 0 {
		l.size = limitMost
	}
	if l.out < int(l.size) {
		l.out++
		l.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	l.queue = append(l.queue, turn)
	l.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.queue, turn); i >= 0 {
		l.queue = slices.Delete(l.queue, i, i+1)
		return ctx.Err()
	}
	return nil // its turn came at that moment
}

// release gives the place back, after an answer or none in that time. A request that was
// cancelled early or refused says nothing.
func (l *limiter) release(took time.Duration, answered bool) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if answered && (l.least == 0 || took < l.least) {
		l.least = took
	}
	late := took > lateAfter+lateTimes*l.least
	switch {
	case late && now.Sub(l.shrunk) > limitPause:
		l.size = max(min(l.size, float64(l.out))/2, limitLeast)
		l.shrunk = now
	case !late && answered:
		l.size = min(l.size+1/l.size, limitMost)
	}
	for l.out--; l.out < int(l.size) && len(l.queue) > 0; l.out++ {
		close(l.queue[0])
		l.queue = l.queue[1:]
	}
}
