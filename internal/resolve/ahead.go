package resolve

import (
	"context"

	"github.com/nixp2p/nixp2p/internal/source"
)

// A client that walks a closure one narinfo after the other pays a round trip for each. Its
// next questions are the references of the last answer, so these are looked up in advance.
const (
	aheadWorkers = 16
	aheadQueue   = 4096
)

// prefetchReferences queues the references of an answer that a client was given, once. What
// does not fit into the queue is dropped.
func (r *Resolver) prefetchReferences(k *cached) {
	if k.ahead.Load() || k.ahead.Swap(true) {
		return
	}
	for _, ref := range k.Info.References() {
		h := ref.Hash()
		if h == k.Info.StorePath().Hash() || r.memory.has(h) {
			continue
		}
		select {
		case r.ahead <- h:
		default:
			return
		}
	}
}

func (r *Resolver) lookAhead(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case h := <-r.ahead:
			if !r.memory.has(h) && !r.misses.Has(h) && !r.down(source.All) {
				// The answer is in memory then. Whoever asks later gets an error of their own.
				_, _ = r.find(ctx, question{h, source.All}, r.memory.add)
			}
		}
	}
}
