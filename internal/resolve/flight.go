package resolve

import (
	"context"
	"sync"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// question is what one look-up answers: the same path may have another answer for somebody
// who is shown less.
type question struct {
	hash  nix.StoreHash
	reach Reach
}

// flights shares one look-up among all who ask the same. A look-up runs on a context of its
// own with the values of the first caller's: who leaves cancels nobody.
type flights struct {
	mu      sync.Mutex
	running map[question]*flight
	closed  bool
	group   sync.WaitGroup
}

// deadline derives a context that ends when an answer is of no use any more.
type deadline func(context.Context) (context.Context, context.CancelFunc)

type flight struct {
	cancel context.CancelFunc
	done   chan struct{}
	res    *known
	err    error

	mu    *sync.Mutex // of the flights
	stale bool        // under mu
}

// do returns fn's result for q, from a running flight or a new one, or ctx's error. Nobody
// joins a flight whose time is over: a source that ignores its context would else keep the
// path from all who ask later.
func (f *flights) do(ctx context.Context, q question, deadline deadline, fn func(context.Context, *flight) (*known, error)) (*known, error) {
	f.mu.Lock()
	fl, ok := f.running[q]
	if !ok {
		if f.closed {
			f.mu.Unlock()
			return nil, errClosed
		}
		own, cancel := deadline(context.WithoutCancel(ctx))
		fl = &flight{cancel: cancel, done: make(chan struct{}), mu: &f.mu}
		if f.running == nil {
			f.running = make(map[question]*flight)
		}
		f.running[q] = fl
		over := context.AfterFunc(own, func() { f.remove(q, fl) })
		f.group.Go(func() {
			defer cancel()
			fl.res, fl.err = fn(own, fl)
			over()
			f.remove(q, fl)
			close(fl.done)
		})
	}
	f.mu.Unlock()
	select {
	case <-fl.done:
		return fl.res, fl.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (f *flights) remove(q question, fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running[q] == fl {
		delete(f.running, q)
	}
}

// keep calls save, which remembers the flight's answer, unless the path was forgotten while
// the flight was under way: the answer may be from before that.
func (fl *flight) keep(save func()) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if !fl.stale {
		save()
	}
}

// forget calls drop, which forgets what is remembered of the path; running flights for it
// end as they will, but leave nothing behind, and nobody joins them.
func (f *flights) forget(h nix.StoreHash, drop func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for reach := range reaches {
		q := question{h, reach}
		if fl, ok := f.running[q]; ok {
			fl.stale = true
			delete(f.running, q)
		}
	}
	drop()
}

// close ends all flights and waits for them; none begins any more.
func (f *flights) close() {
	f.mu.Lock()
	f.closed = true
	for _, fl := range f.running {
		fl.cancel()
	}
	f.mu.Unlock()
	f.group.Wait()
}
