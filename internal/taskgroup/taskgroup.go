// Package taskgroup starts goroutines that have an owner: the owner closes the group and
// waits for all of them.
package taskgroup

import "sync"

// Group is a set of goroutines. The zero value is ready. It is safe for concurrent use.
type Group struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// Go runs f in a new goroutine and reports whether it did: a closed group starts nothing.
func (g *Group) Go(f func()) bool {
	done, ok := g.Enter()
	if ok {
		go func() {
			defer done()
			f()
		}()
	}
	return ok
}

// Enter counts the calling goroutine, which somebody else started, as a member of the group
// until done is called. It reports false when the group is closed; done is then nil.
func (g *Group) Enter() (done func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, false
	}
	g.wg.Add(1)
	return sync.OnceFunc(g.wg.Done), true
}

// Close lets no further goroutine start and waits for those that run. It may be called more
// than once.
func (g *Group) Close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.wg.Wait()
}
