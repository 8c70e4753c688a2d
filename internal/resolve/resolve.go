// Package resolve finds which source has a path. It remembers answers and misses, lets all who
// ask for the same path at the same time share one look-up (a flight), asks the sources in
// order of cost within a deadline, and looks up in advance what a client will ask for next.
//
// From top to bottom: Info → recall (memory) → find (flight, deadline) → lookup.local (store,
// disk) → lookup.remote (peers, upstreams).
package resolve

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/taskgroup"
	"github.com/nixp2p/nixp2p/verify"
)

// Forms lists the forms of a NAR that are kept on disk as a whole.
type Forms interface {
	Forms(nar nix.NarHash) []nix.Form
}

// Config is what a Resolver works with. A source that is nil is left out.
type Config struct {
	Store    source.LocalStore
	Disk     source.InfoCache
	Cache    Forms
	Peers    source.Peers
	Upstream source.Upstreams
	Share    []string        // names of the keys whose paths others may see
	Clock    *runclock.Clock // of the wait for upstreams when peers have only a file; nil: the ordinary one
	// OnInfo is called with each narinfo that a peer or an upstream answered. If nil, nobody is told.
	OnInfo  func(info *verify.Info)
	Events  source.Events    // of wrong narinfos
	Metrics *metrics.Metrics // required
	Log     *slog.Logger     // if nil, logs are discarded
}

// Limits and times. The deadlines are those of the contract.
const (
	infoDeadline = 10 * time.Second
	// saturatedDeadline replaces infoDeadline while bytes come over a full line: the next
	// substituter that Nix would ask is behind the same line, and if there is none a build fails.
	saturatedDeadline = 45 * time.Second
	saturatedTick     = time.Second
	downDeadline      = 100 * time.Millisecond
	peerDeadline      = time.Second // when the upstreams are down and peers may have the path
	// fileWait is how long upstreams are waited for when peers would have to decode a file.
	fileWait = 3 * time.Second
	// peerHeadStart is how long peers are waited for before upstreams are asked too: a silent
	// peer is not noticed, and one that answers in time saves a request.
	peerHeadStart = 20 * time.Millisecond

	// A miss is remembered for missFirst, and twice as long each time that it is one again, up
	// to missMost, for which Nix itself remembers it: builds that repeat ask for the same
	// private paths each time.
	missFirst     = time.Minute
	missMost      = time.Hour
	memoryMisses  = 64 << 10
	memoryBytes   = 32 << 20
	distrustFor   = 24 * time.Hour // a FileHash that was wrong
	distrustFiles = 4096
)

var (
	// ErrUnavailable is wrapped by errors that say that no source could answer.
	ErrUnavailable = errors.New("no source could answer")

	errClosed = errors.New("shutting down")
)

// Resolver answers for all sources. It is safe for concurrent use. Run must be running.
type Resolver struct {
	cfg       Config
	log       *slog.Logger
	anonymous source.Upstreams // nil if there are no upstreams
	count     counters

	memory       *memory
	misses       *backoff.Set[nix.StoreHash]
	publicMisses *backoff.Set[nix.StoreHash] // for those to whom private paths do not exist
	distrusted   *backoff.Set[nix.FileHash]
	flights      flights
	ahead        chan nix.StoreHash
}

// New returns a Resolver. It starts nothing.
func New(cfg Config) (*Resolver, error) {
	if cfg.Metrics == nil {
		return nil, errors.New("resolve: no metrics")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	r := &Resolver{
		cfg: cfg, log: cfg.Log, count: newCounters(cfg.Metrics),
		memory:       newMemory(memoryBytes),
		misses:       backoff.NewSet[nix.StoreHash](memoryMisses),
		publicMisses: backoff.NewSet[nix.StoreHash](memoryMisses),
		distrusted:   backoff.NewSet[nix.FileHash](distrustFiles),
		ahead:        make(chan nix.StoreHash, aheadQueue),
	}
	if cfg.Upstream != nil {
		r.anonymous = cfg.Upstream.Anonymous()
	}
	return r, nil
}

// Run looks up in advance until ctx ends, then ends all look-ups and waits for them.
func (r *Resolver) Run(ctx context.Context) error {
	var workers taskgroup.Group
	for range aheadWorkers {
		workers.Go(func() { r.lookAhead(ctx) })
	}
	<-ctx.Done()
	r.flights.close()
	workers.Close()
	return nil
}

// Forget drops what is remembered in memory of the paths: they came to this machine's store or
// left it, and the form in which they are offered changes with that.
func (r *Resolver) Forget(hashes ...nix.StoreHash) {
	for _, h := range hashes {
		r.flights.forget(h, func() {
			r.memory.remove(h)
			r.misses.Remove(h)
			r.publicMisses.Remove(h)
		})
	}
}

// Distrust says that form, a file that info names, does not have its FileHash, or does not
// hold the signed NAR. The narinfo is forgotten, also on disk, and the file is not offered for
// a day.
func (r *Resolver) Distrust(info *verify.Info, form nix.Form) {
	if form.IsRaw() {
		return
	}
	r.distrusted.Add(form.File, distrustFor)
	h := info.StorePath().Hash()
	r.Forget(h)
	if r.cfg.Disk != nil {
		r.cfg.Disk.Forget(h)
	}
}

// Gone says that no source has the NAR of info. The narinfo is forgotten, also on disk, so that the
// next question goes to the sources again: one may have another build of the path.
func (r *Resolver) Gone(info *verify.Info) {
	h := info.StorePath().Hash()
	if k, ok := r.memory.get(h); ok && k.Info.NarHash() != info.NarHash() {
		return // another one is remembered
	}
	r.Forget(h)
	if r.cfg.Disk != nil {
		r.cfg.Disk.Forget(h)
	}
}

// Distrusted reports whether form is a file that is not believed.
func (r *Resolver) Distrusted(form nix.Form) bool {
	return !form.IsRaw() && r.distrusted.Has(form.File)
}

// Upstreams returns the caches that may be asked for the scope, nil if none.
func (r *Resolver) Upstreams(scope source.Scope) source.Upstreams {
	switch {
	case scope.Local():
		return nil
	case scope.Public():
		return r.anonymous
	}
	return r.cfg.Upstream
}

// down reports whether there is no upstream to ask.
func (r *Resolver) down(scope source.Scope) bool {
	u := r.Upstreams(scope)
	return u == nil || u.Down()
}
