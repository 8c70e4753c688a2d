package mirror

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
)

// ReplicatorConfig is what NewReplicator needs.
type ReplicatorConfig struct {
	// Peers returns the connected peers that may be asked what they share.
	Peers func() []source.Sharer
	// Page asks a peer for a part of the list of what it shares: what has numbers below before, or the
	// newest paths if it is 0. The error wraps fs.ErrNotExist if the peer has no list.
	Page func(ctx context.Context, peer string, before uint64) (source.SharedPage, error)
	// Copies returns on how many machines of peers a path may be.
	Copies func(nix.StoreHash) int
	// Fetch brings a path from peers, and from nobody else, into the cache, and has it shared once it
	// was verified as a whole. If dry, it only says what it would do; it has the path shared if the
	// cache has its NAR by another name.
	Fetch func(ctx context.Context, h nix.StoreHash, dry bool) (Fetched, error)
	// Have reports whether this machine shares the path, or has its NAR in its store.
	Have func(source.SharedPath) bool
	// Used returns the bytes that the cache takes, Room is its size.
	Used func() int64
	Room int64
	// Busy reports whether this machine's own clients wait for bytes.
	Busy    func() bool
	Metrics *metrics.Metrics
	Log     *slog.Logger // if nil, nothing is logged
}

const (
	// lookEvery is how often peers are asked what is new. With many peers it is longer: each of them
	// costs perPeer.
	lookEvery = 10 * time.Second
	perPeer   = 250 * time.Millisecond
	lookers   = 8 // peers that are asked at once
	// copiers is how many NARs are fetched at once: this is what nobody waits for.
	copiers = 2
	// A NAR that comes slower than slowest, in bytes a second, after patience is given up.
	patience = 30 * time.Second
	slowest  = 128 << 10
	// roundFor is how long what was listed is worked off before peers are asked again what is newer.
	roundFor = 2 * time.Minute
	// Of a machine that failed maxFailures times in a row nothing is copied for restFirst, doubling up
	// to restMost until something was copied from it. What could not be had is not tried again for failedFirst, doubling up to failedMost:
	// it may have been late, or listed before the inventory that says so came.
	maxFailures             = 8
	restFirst, restMost     = 20 * time.Second, 24 * time.Hour
	failedFirst, failedMost = 20 * time.Second, time.Hour
	maxFailed               = 64 << 10
	// A path larger than a tenth of the cache is not copied.
	largest = 10
	// In a full cache what is copied takes the place of something else. What one machine offers may do
	// that for a quarter of the cache a day.
	dayPart = 4
)

// Replicator copies into the cache what peers share and this machine lacks, from peers alone: the
// newest paths first, and before them those that one machine alone has. What peers list is not
// believed: a path is copied only with a narinfo that is proven, and what a machine can make this
// one do and keep is bounded. It is safe for concurrent use.
type Replicator struct {
	cfg    ReplicatorConfig
	failed *backoff.Set[claim]
	rest   *backoff.Set[string] // machines that are left alone

	mu       sync.Mutex
	walks    map[string]walk    // by peer
	machines map[string]*charge // of connected peers
	copying  map[nix.NarHash]underway
	state    Replication
}

// claim is a NAR that a machine listed. What one says of it does not count for another one.
type claim struct {
	machine string
	nar     nix.NarHash
}

// charge is what is known of a machine.
type charge struct {
	failures int
	day      time.Time // when replaced was begun to be counted
	replaced int64     // bytes that took the place of others
}

// Replication is how copying goes.
type Replication struct {
	Peers       int // that could be asked the last time
	Copied      int // NARs since the start
	CopiedBytes int64
	// Of what was listed and is wanted, at the moment:
	MissingPaths int
	MissingBytes int64
	Full         bool // only what is new and on one machine alone is copied: the cache has no room for more
}

// NewReplicator returns a Replicator. It starts nothing.
func NewReplicator(cfg ReplicatorConfig) *Replicator {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Replicator{
		cfg: cfg, failed: backoff.NewSet[claim](maxFailed), rest: backoff.NewSet[string](maxFailed),
		walks: make(map[string]walk), machines: make(map[string]*charge),
		copying: make(map[nix.NarHash]underway),
	}
}

// Status returns how it goes.
func (r *Replicator) Status() Replication {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.Full = !r.roomy()
	return r.state
}

// roomy reports whether the cache has room without evicting anything. A tenth is left to what clients
// fetch.
func (r *Replicator) roomy() bool { return r.cfg.Used() < r.cfg.Room-r.cfg.Room/spare }

// Run copies until ctx ends.
func (r *Replicator) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		peers := r.peers()
		again := time.Now().Add(max(lookEvery, time.Duration(len(peers))*perPeer))
		r.round(ctx, peers)
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(again)):
		}
	}
	return nil
}

// peers returns the peers to ask, and forgets what is known of others.
func (r *Replicator) peers() []source.Sharer {
	all := r.cfg.Peers()
	r.mu.Lock()
	defer r.mu.Unlock()
	walks, machines := make(map[string]walk, len(all)), make(map[string]*charge, len(all))
	for _, p := range all {
		if w, ok := r.walks[p.ID]; ok {
			walks[p.ID] = w
		}
		if machines[p.Machine] = r.machines[p.Machine]; machines[p.Machine] == nil {
			machines[p.Machine] = &charge{day: time.Now()}
		}
	}
	for m, c := range r.machines { // who leaves and comes back is not forgiven
		if machines[m] == nil && c.replaced > 0 && time.Since(c.day) < 24*time.Hour && len(machines) < maxFailed {
			machines[m] = c
		}
	}
	r.walks, r.machines = walks, machines
	return slices.DeleteFunc(all, func(p source.Sharer) bool { return r.rest.Has(p.Machine) })
}

// round reads what peers list and works it off, or a part of it.
func (r *Replicator) round(ctx context.Context, peers []source.Sharer) {
	walks, lists := make([]walk, len(peers)), make([][]wanted, len(peers))
	errs := each(ctx, make(chan struct{}, lookers), len(peers), func(i int) (err error) {
		r.mu.Lock()
		w := r.walks[peers[i].ID]
		r.mu.Unlock()
		walks[i], lists[i], err = r.read(ctx, peers[i], w)
		return err
	})
	asked := 0
	for i, err := range errs {
		switch {
		case err == nil:
			asked++
		case errors.Is(err, fs.ErrNotExist): // an older version
		case ctx.Err() == nil:
			r.cfg.Log.Debug("a peer does not list what it shares", "peer", peers[i].ID, "err", err)
			r.blame(peers[i].Machine)
		}
	}
	all, whole := merge(peers, lists)
	if ctx.Err() != nil {
		return
	}
	r.mu.Lock()
	r.state.Peers = asked
	r.mu.Unlock()
	r.missing(all)
	ended := r.copyAll(ctx, all)
	r.missing(nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, p := range peers { // what was not worked off is read again
		if errs[i] == nil && (ended && whole[i] || len(lists[i]) == 0) {
			r.walks[p.ID] = walks[i]
		}
	}
}

// merge puts what peers list into the order in which it is copied: first what one machine alone has,
// then what is newest. Machines take turns, and each has maxBatch at most, however many identities it
// has; whole says whose list is in it as a whole. The same path may come from several machines: what
// one says of it may be wrong.
func merge(peers []source.Sharer, lists [][]wanted) (all []wanted, whole []bool) {
	ranks := make(map[string]int)
	for i, p := range peers {
		most := maxBatch - ranks[p.Machine]
		whole = append(whole, len(lists[i]) <= most)
		for _, w := range lists[i][:min(len(lists[i]), most)] {
			w.rank = ranks[p.Machine]
			ranks[p.Machine]++
			all = append(all, w)
		}
	}
	slices.SortStableFunc(all, func(a, b wanted) int {
		return cmp.Or(cmp.Compare(min(a.copies, 2), min(b.copies, 2)), cmp.Compare(a.rank, b.rank))
	})
	return all, whole
}

// missing notes what is to be copied.
func (r *Replicator) missing(all []wanted) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.MissingPaths, r.state.MissingBytes = len(all), 0
	for _, w := range all {
		r.state.MissingBytes += w.Size
	}
}

// copyAll copies what is wanted, and reports whether all of it was tried.
func (r *Replicator) copyAll(ctx context.Context, all []wanted) (ended bool) {
	work, cancel := context.WithTimeout(ctx, roundFor)
	defer cancel()
	each(work, make(chan struct{}, copiers), len(all), func(i int) error {
		w := all[i]
		if !r.rest.Has(w.from.Machine) {
			r.note(ctx, w, r.copy(ctx, w)) // the last one may take longer than the round
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.state.MissingPaths--
		r.state.MissingBytes -= w.Size
		return nil
	})
	return work.Err() == nil
}

// errLies says that a peer listed a path with something that its narinfo does not say.
var errLies = errors.New("the list of the peer is wrong about it")

// errNotNow says that a path is not copied though it could be.
var errNotNow = errors.New("not now")

// copy copies one path.
func (r *Replicator) copy(ctx context.Context, w wanted) (err error) {
	yield(ctx, r.cfg.Busy)
	done, ok := r.take(ctx, w)
	if !ok {
		return errNotNow
	}
	defer done()
	if !r.roomy() {
		if w.copies > 1 || !r.replace(w, w.Size) {
			return errNotNow
		}
		defer func() {
			if err != nil {
				r.replace(w, -w.Size)
			}
		}()
	}
	ctx, cancel := context.WithTimeout(ctx, patience+time.Duration(w.Size)*time.Second/slowest)
	defer cancel()
	f, err := r.cfg.Fetch(ctx, w.Store, true)
	switch {
	case err != nil:
		return err
	case f.Info.NarHash() != w.Nar || f.Info.NarSize() != w.Size:
		return errLies
	case f.Here:
		return errNotNow
	}
	_, err = r.cfg.Fetch(ctx, w.Store, false)
	return err
}

// underway is a NAR that is being copied.
type underway struct {
	path nix.StoreHash
	end  chan struct{} // closed when it is no more
}

// take reports whether a path is neither here nor being copied: several peers may have listed it. If its
// NAR is being copied as that of another path, take waits for that. The caller calls done.
func (r *Replicator) take(ctx context.Context, w wanted) (done func(), ok bool) {
	for {
		r.mu.Lock()
		other, copying := r.copying[w.Nar]
		if !copying && !r.cfg.Have(w.SharedPath) {
			break
		}
		r.mu.Unlock()
		if !copying || other.path == w.Store {
			return nil, false
		}
		select {
		case <-ctx.Done():
			return nil, false
		case <-other.end:
		}
	}
	defer r.mu.Unlock()
	u := underway{w.Store, make(chan struct{})}
	r.copying[w.Nar] = u
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.copying, w.Nar)
		close(u.end)
	}, true
}

// replace reports whether a machine may have so many bytes take the place of others, and counts them.
// A negative number gives them back.
func (r *Replicator) replace(w wanted, bytes int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.machines[w.from.Machine]
	if c == nil {
		return false
	}
	if time.Since(c.day) >= 24*time.Hour {
		c.day, c.replaced = time.Now(), 0
	}
	if c.replaced+bytes > r.cfg.Room/dayPart {
		return false
	}
	c.replaced += bytes
	return true
}

// note notes how copying a path ended.
func (r *Replicator) note(ctx context.Context, w wanted, err error) {
	switch {
	case errors.Is(err, errNotNow), ctx.Err() != nil:
		return
	case err != nil:
		r.cfg.Log.Debug("a path of a peer could not be copied", "peer", w.from.ID, "store_hash", w.Store.String(), "err", err)
		r.cfg.Metrics.Replicated.WithLabelValues("failed").Inc()
		r.failed.Grow(claim{w.from.Machine, w.Nar}, failedFirst, failedMost)
		r.blame(w.from.Machine)
		return
	}
	r.cfg.Metrics.Replicated.WithLabelValues("copied").Inc()
	r.cfg.Metrics.ReplicatedBytes.Add(float64(w.Size))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.Copied++
	r.state.CopiedBytes += w.Size
	if c := r.machines[w.from.Machine]; c != nil {
		c.failures = 0
	}
	if !r.rest.Has(w.from.Machine) { // else this copy was begun before
		r.rest.Remove(w.from.Machine)
	}
}

// blame counts a failure of a machine. After some it is left alone.
func (r *Replicator) blame(machine string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.machines[machine]
	if c == nil {
		return
	}
	if c.failures++; c.failures >= maxFailures {
		c.failures = 0
		r.rest.Grow(machine, restFirst, restMost)
		r.cfg.Log.Warn("nothing is copied from a machine for a while: what it lists cannot be had", "machine", machine)
	}
}
