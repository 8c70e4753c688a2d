// Package resolve decides, for one path, which source answers: it orders the sources by
// cost, shares the work of callers who ask the same, remembers answers and misses, and
// lets one response survive the death of the source that it began with. It knows its
// sources by small interfaces only, and it speaks no protocol.
package resolve

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/semaphore"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/verify"
)

// InfoSource says who has a path. An error that wraps fs.ErrNotExist means that it has not,
// a *verify.InvalidError that it said something wrong, any other that it could not say.
type InfoSource interface {
	Name() string // the label in metrics: store, disk, peer, upstream
	Info(ctx context.Context, h nix.StoreHash) (*verify.Info, error)
}

// NARSource gives the bytes of NARs.
type NARSource interface {
	Name() string // the label in metrics: store, cache, peer, upstream
	// NAR returns the bytes of info's NAR in exactly this form, from byte off of the form
	// on. Errors are of the three kinds of InfoSource. The body is bound to ctx to its end:
	// a Read that waits returns when ctx ends.
	NAR(ctx context.Context, info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error)
	// Convict says that this source alone sent all bytes and that they were wrong. What it
	// does for it, it has done on return: the next thing that it is asked may be the same NAR.
	Convict(info *verify.Info, form nix.Form, err error)
}

// Source is one that knows narinfos and has NARs.
type Source interface {
	InfoSource
	NARSource
}

// Far is the source across the uplink.
type Far interface {
	Source
	// Down tells that asking is no use at the moment.
	Down() bool
	// Crowded tells that answers are late because of what else comes over the same line.
	Crowded() bool
}

// Memory keeps narinfos on disk.
type Memory interface {
	InfoSource
	Put(info *verify.Info)
}

// Cache keeps whole NARs on disk.
type Cache interface {
	NARSource
	// Held tells in which forms a NAR is there.
	Held(nar nix.NarHash) (raw bool, files []nix.Form)
}

// Download is a NAR on its way into the cache: one fills it, any number follow.
type Download interface {
	// Write appends. It is called by one goroutine. When it fails the cache may end the
	// download for the followers by itself.
	Write(p []byte) (int, error)
	// Doubt keeps what is written from now on from other machines, until the end or until
	// there is no doubt any more.
	Doubt(doubted bool)
	// Reader follows from byte off on. It sees all but a held-back tail, everything after
	// Commit, and nothing but the error after Abort.
	Reader(off int64) Reader
	// Filled reads what was written so far, the tail included, for the filler's own eyes.
	Filled() Reader
	// Commit says that the bytes are proven. They are whole for the followers at once, and
	// the cache holds them when it returns.
	Commit() error
	// Abort ends the download for all who follow, with an error that wraps err. After a
	// Commit or Abort it does nothing.
	Abort(err error)
}

// Reader is what a follower reads. Close may be called at any time.
type Reader interface {
	Read(p []byte) (int, error)
	Close() error
}

// Leaser agrees with the other nodes of the site on who fetches a NAR that none of them has.
type Leaser interface {
	// Lease begins that for a download of info's NAR in a form of size bytes. Nil: nobody may
	// know that this machine wants it, or nobody is there.
	Lease(ctx context.Context, info *verify.Info, form nix.Form, size int64) Lease
}

// OtherFormError is the error of a source that a Lease named and that gets the NAR in another
// form.
type OtherFormError struct {
	Form nix.Form
	Size int64 // of that form in bytes
}

func (e *OtherFormError) Error() string { return "others get it as " + e.Form.String() }

// Lease is such an agreement about one download. Moved may be called while Next works.
type Lease interface {
	// Next says who gives the bytes that come next: another node, or nil for upstream. The
	// turn ends with ctx, or when the site wants somebody else to give. It is called again
	// whenever a turn has ended early.
	Next(ctx context.Context) (from NARSource, turn context.Context)
	// Moved says how many bytes can be followed by now, and how many have come.
	Moved(bytes, got int64)
	// End says that the NAR is here, whole and proven, or that it is given up.
	End(ctx context.Context, whole bool)
}

// Config says what a Resolver works with. Nil sources are left out.
type Config struct {
	Store    Source
	Disk     Memory
	Cache    Cache
	Peers    Source
	Upstream Far
	// AtHand is the same Peers for NARs that none of them is to decode. Nil: they are.
	AtHand NARSource
	Leases Leaser
	// Shared is the Store as others may see it. It answers for a private path as it does for
	// one that it has not, also in time. Nil: the Store is asked, and its answer held back.
	Shared InfoSource
	// Share names the keys whose paths others may see.
	Share []string
	// Spool begins a download into the cache. An error says that it does not fit or that the
	// disk is ill: the NAR then streams through and cannot be followed.
	Spool func(nar nix.NarHash, form nix.Form, size int64) (Download, error)
	// Fetching is told of each download into the cache as it begins. Nil: nobody is told.
	Fetching func(info *verify.Info)
	// Trouble is told of what people may want to know of: lies, and sources that ended early.
	// Nil: nobody is told.
	Trouble func(source, what, storePath string, err error)
	Metrics *metrics.Metrics // required
	Log     *slog.Logger     // nil discards
}

// Limits and times. They are the contract's (narinfo deadline, remembered misses, bytes
// verified ahead) or bound memory.
const (
	infoDeadline = 10 * time.Second
	// crowdedDeadline is the same while bytes come from upstream. Where a line is full, the next
	// substituter that Nix would ask is behind it too, and if there is none a build breaks.
	crowdedDeadline = 45 * time.Second
	crowdedTick     = time.Second
	downDeadline    = 100 * time.Millisecond
	peerDeadline    = time.Second // when the upstreams are down and peers may know
	// laterDeadline is how long upstreams are waited for when peers would have to decode.
	laterDeadline = 3 * time.Second
	missLifetime  = time.Minute
	memoryInfos   = 16 << 10 // about 2 KiB each
	memoryMisses  = 64 << 10
	memoryPrints  = 8 << 10 // 8 bytes for each 128 KiB

	storeAhead = 64 << 20 // of one NAR from the own store, proven before its first byte
	peerAhead  = 64 << 20
	// peerWait is how long a client may receive nothing while what a peer gives is proven: a liar
	// is not felt then, and a client whose machine is busy, or whose line is slow, waits no longer.
	peerWait = 15 * time.Second
	// heldMost is what all responses together hold back, and what waits for slow clients.
	heldMost = 128 << 20

	avoidFor = time.Hour // sources that together sent wrong bytes
	// avoidPeersFor is the same for peers of whom two in a row sent a NAR wrong: there may be no
	// upstream, and others who have it.
	avoidPeersFor = time.Minute
	cutFor        = 10 * time.Minute // no Range for a URL that was cut for wrong bytes
	// linger is how long a download goes on when nobody follows it: the client of a cut
	// connection comes back within it.
	linger = 5 * time.Second
	giveUp = time.Second // for a download that was cancelled to end
)

// Reach says how far a question may go, and for whose eyes the answer is.
type Reach uint8

const (
	// Anywhere lets all sources be asked.
	Anywhere Reach = 0
	// ThisMachine asks only what needs no network: the question has already been here.
	ThisMachine Reach = 1 << 0
	// SharedOnly is for an asker on another machine: what no share key signed does not exist
	// for it, and takes as long to answer as what does not exist.
	SharedOnly Reach = 1 << 1

	reaches Reach = 1 << 2
)

func (r Reach) stays() bool { return r&ThisMachine != 0 }

func (r Reach) shared() bool { return r&SharedOnly != 0 }

// ErrUnavailable is wrapped by errors that say that nobody could tell.
var ErrUnavailable = errors.New("no source could say")

// Resolver answers for all sources. It is safe for concurrent use. Run must be running.
type Resolver struct {
	cfg     Config
	log     *slog.Logger
	count   counters
	infos   *lru.Cache[nix.StoreHash, *known]
	prints  *lru.Cache[printKey, *verify.BlockSums]
	misses  *expiring[nix.StoreHash]
	hidden  *expiring[nix.StoreHash] // misses of those who see only what is shared
	flights flights

	avoided   *expiring[avoidKey]
	lied      *expiring[avoidKey] // once, lately
	cuts      *expiring[nix.NARName]
	badFiles  *expiring[nix.FileHash]
	held      *semaphore.Weighted // bytes of memory
	buffers   sync.Pool           // of *[copyBuffer]byte
	lookAhead chan nix.StoreHash

	mu        sync.Mutex
	downloads map[downloadKey]*download
	closed    bool
	fillers   sync.WaitGroup
	responses responses
}

// printKey names a form of a NAR that came into the cache and was proven then: sent from there it
// is compared with what was proven, which costs a twentieth of another SHA-256.
type printKey struct {
	nar  nix.NarHash
	form nix.Form
}

// New returns a Resolver. It starts nothing.
func New(cfg Config) (*Resolver, error) {
	if cfg.Metrics == nil {
		return nil, errors.New("resolve: no metrics")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Trouble == nil {
		cfg.Trouble = func(_, _, _ string, _ error) {}
	}
	infos, err := lru.New[nix.StoreHash, *known](memoryInfos)
	if err != nil {
		return nil, err
	}
	prints, err := lru.New[printKey, *verify.BlockSums](memoryPrints)
	if err != nil {
		return nil, err
	}
	return &Resolver{
		prints: prints,
		cfg:    cfg, log: cfg.Log, count: newCounters(cfg.Metrics),
		infos:  infos,
		misses: newExpiring[nix.StoreHash](memoryMisses),
		hidden: newExpiring[nix.StoreHash](memoryMisses),

		avoided:   newExpiring[avoidKey](4096),
		lied:      newExpiring[avoidKey](4096),
		cuts:      newExpiring[nix.NARName](4096),
		badFiles:  newExpiring[nix.FileHash](4096),
		held:      semaphore.NewWeighted(heldMost),
		lookAhead: make(chan nix.StoreHash, lookAheadQueue),
		downloads: make(map[downloadKey]*download),
	}, nil
}

// Run looks ahead until ctx ends, then ends all downloads and look-ups and waits for them.
func (r *Resolver) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	for range lookAheadWorkers {
		workers.Go(func() { r.runLookAhead(ctx) })
	}
	<-ctx.Done()
	r.closeDownloads()
	r.flights.close()
	workers.Wait()
	r.fillers.Wait()
	return nil
}

// Forget drops what is remembered of the paths: they came to this machine's store or left it,
// and the form in which they are offered changes with that.
func (r *Resolver) Forget(hashes ...nix.StoreHash) {
	for _, h := range hashes {
		r.flights.forget(h, func() {
			r.infos.Remove(h)
			r.misses.remove(h)
			r.hidden.remove(h)
		})
	}
}
