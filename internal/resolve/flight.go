package resolve

import (
	"context"
	"sync"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/taskgroup"
)

// question is what one look-up answers: the same path may have another answer for those to
// whom private paths do not exist.
type question struct {
	hash  nix.StoreHash
	scope source.Scope
}

// flights shares one look-up among all who ask the same. A look-up runs on a context of its
// own with the values of the first caller's: a caller that leaves cancels nobody.
type flights struct {
	tasks taskgroup.Group

	mu      sync.Mutex
	running map[question]*flight
	closed  bool
}

// deadline derives a context that ends when an answer is of no use any more.
type deadline func(context.Context) (context.Context, context.CancelFunc)

type flight struct {
	cancel context.CancelFunc
	done   chan struct{}
	res    *cached
	err    error

	mu    *sync.Mutex // of the flights
	stale bool        // under mu
}

// do returns fn's result for q, from a running flight or a new one, or ctx's error. Nobody
// joins a flight whose time is over: otherwise a source that ignores its context would keep
// the path from all who ask later.
func (f *flights) do(ctx context.Context, q question, deadline deadline, fn func(context.Context, *flight) (*cached, error)) (*cached, error) {
	fl := f.join(ctx, q, deadline, fn)
	if fl == nil {
		return nil, errClosed
	}
	select {
	case <-fl.done:
		return fl.res, fl.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// join returns the running flight for q, or starts it. It returns nil after close.
func (f *flights) join(ctx context.Context, q question, deadline deadline, fn func(context.Context, *flight) (*cached, error)) *flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl, ok := f.running[q]; ok || f.closed {
		return fl
	}
	own, cancel := deadline(context.WithoutCancel(ctx))
	fl := &flight{cancel: cancel, done: make(chan struct{}), mu: &f.mu}
	if f.running == nil {
		f.running = make(map[question]*flight)
	}
	f.running[q] = fl
	over := context.AfterFunc(own, func() { f.remove(q, fl) })
	f.tasks.Go(func() {
		defer cancel()
		fl.res, fl.err = fn(own, fl)
		over()
		f.remove(q, fl)
		close(fl.done)
	})
	return fl
}

func (f *flights) remove(q question, fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running[q] == fl {
		delete(f.running, q)
	}
}

// remember calls save, which keeps the flight's answer, unless the path was forgotten while the
// flight was running: the answer may be from before that.
func (fl *flight) remember(save func()) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if !fl.stale {
		save()
	}
}

// forget calls drop, which forgets what is remembered of the path. Flights for it that are
// running leave nothing behind, and nobody joins them any more.
func (f *flights) forget(h nix.StoreHash, drop func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for scope := range source.Scopes {
		q := question{h, scope}
		if fl, ok := f.running[q]; ok {
			fl.stale = true
			delete(f.running, q)
		}
	}
	drop()
}

// close ends all flights and waits for them. No flight starts any more.
func (f *flights) close() {
	f.mu.Lock()
	f.closed = true
	for _, fl := range f.running {
		fl.cancel()
	}
	f.mu.Unlock()
	f.tasks.Close()
}
