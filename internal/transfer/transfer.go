// Package transfer sends one NAR to one client: it chooses where the bytes come from, downloads
// them into the cache if they come from elsewhere, goes on with another source when one fails,
// and lets nothing leave that is not verified as far as the holdback rules say.
//
// From top to bottom: Server.NAR → plan (local bytes, a running download, a new one) →
// NAR.Send → section → the client; and beside it download.run → attempt → leg → sink.
package transfer

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/semaphore"

	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/narcache"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/taskgroup"
	"github.com/nixp2p/nixp2p/verify"
)

// Config is what a Server works with. A source that is nil is left out.
type Config struct {
	Resolver   *resolve.Resolver // required; it also knows the upstreams
	Store      source.LocalStore
	Cache      *narcache.Cache // if nil, nothing is kept, and each client gets a stream of its own
	Peers      source.Peers
	Coordinate bool            // agree with the site who fetches what no peer has
	Clock      *runclock.Clock // of the time budgets; required
	// OnDownload is called when a download into the cache begins. If nil, nobody is told.
	OnDownload func(info *verify.Info)
	// OnFetched is called when the cache has a form of a NAR that came from an upstream, in whole or
	// in part. It must not block. If nil, nobody is told.
	OnFetched func(info *verify.Info, form nix.Form)
	// OnCached is called when a NAR is given from the cache, whoever brought it there and for
	// which path. It must not block. If nil, nobody is told.
	OnCached func(info *verify.Info)
	Events   source.Events    // of wrong bytes and of sources that ended early
	Metrics  *metrics.Metrics // required
	Log      *slog.Logger     // if nil, logs are discarded
}

// Limits and times. Those of verification are the contract's.
const (
	storeFirst = 64 << 20 // of the store: verified before the first byte, to the machine's own Nix
	peerFirst  = 64 << 20 // of peers, if the cache has no room for it
	// trustedFirst is how long a client waits for the whole of what trusted peers send, so that
	// a wrong NAR is usually not noticed.
	trustedFirst = time.Second
	// memoryMost is what all responses together hold in memory, also for slow clients.
	memoryMost = 128 << 20
	sumsKept   = 8 << 10 // 8 bytes for each 128 KiB of a NAR

	cutFor = 10 * time.Minute // no Range for a URL that was cut for wrong bytes
	// wrongFor is how long a wrong NAR of peers is remembered; after the second one within this
	// time only upstreams are asked for it, for as long again.
	wrongFor = time.Minute
	// linger is how long a download goes on when nobody follows it: the client of a broken
	// connection comes back within it.
	linger     = 5 * time.Second
	giveUp     = time.Second             // for a download that was cancelled to end
	searchTime = 1500 * time.Millisecond // for holders beyond the connected peers

	remembered = 4096 // entries of each set
)

var (
	errNoRoom     = errors.New("the NAR does not fit into the cache")
	errSinkFailed = errors.New("the cache failed")
	errClosed     = errors.New("shutting down")
)

// Server sends NARs. It is safe for concurrent use. Run must be running.
type Server struct {
	cfg     Config
	log     *slog.Logger
	sums    *lru.Cache[sumsKey, *verify.BlockSums]
	memory  *semaphore.Weighted // bytes
	buffers sync.Pool           // of *[copyBuffer]byte

	cut        *backoff.Set[nix.NARName] // responses that were cut for wrong bytes
	wrongPeers *backoff.Set[nix.NarHash] // peers sent it wrong once
	noPeers    *backoff.Set[nix.NarHash] // peers sent it wrong twice

	prover    prover
	downloads downloads
	responses responses
	savings   *savings
	tasks     taskgroup.Group
}

// sumsKey names a form of a NAR that was proven when it came into the cache. When it is sent
// from there it is compared with these sums, which costs a twentieth of hashing it again.
type sumsKey struct {
	nar  nix.NarHash
	form nix.Form
}

// New returns a Server. It starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Resolver == nil || cfg.Clock == nil || cfg.Metrics == nil {
		return nil, errors.New("transfer: no resolver, clock or metrics")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	sums, err := lru.New[sumsKey, *verify.BlockSums](sumsKept)
	if err != nil {
		return nil, err
	}
	return &Server{
		cfg: cfg, log: cfg.Log, sums: sums,
		memory:     semaphore.NewWeighted(memoryMost),
		cut:        backoff.NewSet[nix.NARName](remembered),
		wrongPeers: backoff.NewSet[nix.NarHash](remembered),
		noPeers:    backoff.NewSet[nix.NarHash](remembered),
		prover:     newProver(),
		savings:    newSavings(),
		downloads:  downloads{running: make(map[nix.NarHash]*download)},
	}, nil
}

// Run proves files in the background until ctx ends, then ends all downloads and waits for
// them.
func (s *Server) Run(ctx context.Context) error {
	s.tasks.Go(func() { s.prove(ctx) })
	<-ctx.Done()
	s.downloads.close()
	s.tasks.Close()
	return nil
}

// copyBuffer is a good size for one read or write: larger ones leave the CPU's cache.
const copyBuffer = 256 << 10

// smallBuffer is used when memory is short.
const smallBuffer = 32 << 10

// buffer returns room for copying, and what gives it back.
func (s *Server) buffer() (buf []byte, release func()) {
	give, ok := s.hold(copyBuffer)
	if !ok {
		return make([]byte, smallBuffer), give
	}
	b, ok := s.buffers.Get().(*[copyBuffer]byte)
	if !ok {
		b = new([copyBuffer]byte)
	}
	return b[:], func() {
		s.buffers.Put(b)
		give()
	}
}

// hold reports whether a response may hold so many bytes in memory. One that may not makes do
// with a small part of it.
func (s *Server) hold(bytes int64) (release func(), ok bool) {
	if !s.memory.TryAcquire(bytes) {
		return func() {}, false
	}
	return func() { s.memory.Release(bytes) }, true
}
