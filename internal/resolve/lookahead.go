package resolve

import (
	"context"

	"github.com/nixp2p/nixp2p/internal/nix"
)

// A client that walks a closure one narinfo after the other pays a round trip for each. Its
// next questions are the references of the last answer, so they are looked up meanwhile.
const (
	lookAheadWorkers = 16
	lookAheadQueue   = 4096
)

// expand queues the references of an answer that a client was given, once. What does not fit
// is left out: looking ahead is a favour, never a load.
func (r *Resolver) expand(k *known) {
	if k.expanded.Load() || k.expanded.Swap(true) {
		return
	}
	for _, ref := range k.Info.References() {
		h := ref.Hash()
		if h == k.Info.StorePath().Hash() || r.infos.Contains(h) {
			continue
		}
		select {
		case r.lookAhead <- h:
		default:
			return
		}
	}
}

func (r *Resolver) runLookAhead(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case h := <-r.lookAhead:
			r.lookUpAhead(ctx, h)
		}
	}
}

func (r *Resolver) lookUpAhead(ctx context.Context, h nix.StoreHash) {
	if r.infos.Contains(h) || r.misses.has(h) || r.farDown() {
		return
	}
	// The answer is in memory then; an error will be the asker's own.
	_, _ = r.find(ctx, h, Anywhere)
}
