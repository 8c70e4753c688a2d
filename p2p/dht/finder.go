package dht

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/taskgroup"
)

const (
	// lookupTime is how long a look-up goes on, whether or not its caller still waits.
	lookupTime = 4 * time.Second
	// foundFor and missedFor are how long a result is used.
	foundFor  = time.Minute
	missedFor = 30 * time.Second
	// maxLookups go on at a time, maxFound results are kept.
	maxLookups = 16
	maxFound   = 1024
	// maxConnect is how many providers are connected to.
	maxConnect = 4
)

// Finder looks for providers and connects to them. It is safe for concurrent use. Its fields
// are set before use.
type Finder struct {
	DHT *DHT
	// Connect returns whether a peer is connected, or could be.
	Connect func(ctx context.Context, p peer.AddrInfo) bool
	Metrics *metrics.Metrics

	group taskgroup.Group

	mu      sync.Mutex
	byNAR   map[nix.NarHash]*lookup
	running int
}

// lookup is one question to the DHT, which many may wait for.
type lookup struct {
	done  chan struct{}
	peers []peer.ID // valid when done
	until time.Time // zero while it goes on
}

// Close waits for the look-ups, which end with the DHT.
func (f *Finder) Close() { f.group.Close() }

// Providers returns connected peers that announced a NAR, as far as that is known when ctx
// ends. The look-up goes on, for the next caller.
func (f *Finder) Providers(ctx context.Context, nar nix.NarHash) []peer.ID {
	l := f.lookup(nar)
	if l == nil {
		return nil
	}
	select {
	case <-l.done:
		return l.peers
	case <-ctx.Done():
		return nil
	}
}

// lookup returns the look-up for a NAR, a new one if there is none; nil if there are too many.
func (f *Finder) lookup(nar nix.NarHash) *lookup {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if l := f.byNAR[nar]; l != nil && (l.until.IsZero() || l.until.After(now)) {
		return l
	}
	l := &lookup{done: make(chan struct{})}
	if f.running >= maxLookups || !f.group.Go(func() { f.run(l, nar) }) {
		f.Metrics.DHTLookups.WithLabelValues("dropped").Inc()
		return nil
	}
	for k, old := range f.byNAR {
		if !old.until.IsZero() && (len(f.byNAR) >= maxFound || old.until.Before(now)) {
			delete(f.byNAR, k)
		}
	}
	if f.byNAR == nil {
		f.byNAR = make(map[nix.NarHash]*lookup)
	}
	f.byNAR[nar] = l
	f.running++
	return l
}

// run asks the DHT and connects to some of those that it names.
func (f *Finder) run(l *lookup, nar nix.NarHash) {
	ctx, cancel := context.WithTimeout(f.DHT.Context(), lookupTime)
	defer cancel()
	var peers []peer.ID
	for _, p := range f.DHT.Find(ctx, nar) {
		if p.ID != f.DHT.cfg.Host.ID() && len(peers) < maxConnect && !slices.Contains(peers, p.ID) && f.Connect(ctx, p) {
			peers = append(peers, p.ID)
		}
	}
	result, keep := "none", missedFor
	if len(peers) > 0 {
		result, keep = "found", foundFor
	}
	f.Metrics.DHTLookups.WithLabelValues(result).Inc()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running--
	l.peers, l.until = peers, time.Now().Add(keep)
	close(l.done)
}
