package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nixp2p/nixp2p/httpfront"
	"github.com/nixp2p/nixp2p/internal/config"
	"github.com/nixp2p/nixp2p/internal/infocache"
	"github.com/nixp2p/nixp2p/internal/ledger"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/narcache"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/upstream"
	"github.com/nixp2p/nixp2p/localstore"
	"github.com/nixp2p/nixp2p/p2p"
	"github.com/nixp2p/nixp2p/verify"
)

// The one place that sees both sides of each interface.
var (
	_ resolve.Source     = (*localstore.Store)(nil)
	_ resolve.Source     = (*p2p.Node)(nil)
	_ resolve.Far        = (*upstream.Upstreams)(nil)
	_ resolve.Memory     = (*infocache.Cache)(nil)
	_ resolve.Cache      = (*narcache.Cache)(nil)
	_ httpfront.Resolver = front{}
)

// cacheSubdir is the NAR cache's place below --cache-dir.
const cacheSubdir = "nar"

// node is all that answers, wired together.
type node struct {
	started  time.Time
	cfg      *config.Config
	metrics  *metrics.Metrics
	store    *localstore.Store
	disk     *infocache.Cache // nil when the state directory cannot be used
	cache    *narcache.Cache  // nil when the cache directory cannot be used
	upstream *upstream.Upstreams
	holder   *holder
	peers    *p2p.Node // nil when peers are off
	resolver *resolve.Resolver
	front    http.Handler
	ledger   *ledger.Ledger
	trouble  ledger.Failures

	mu       sync.Mutex
	degraded []string // what does not work, for people
}

// newNode wires a node. A part that only makes it better, such as a directory on disk, may
// fail: the node goes on without it and says so.
func newNode(cfg *config.Config, m *metrics.Metrics, id string, log *slog.Logger) (*node, error) {
	n := &node{started: time.Now(), cfg: cfg, metrics: m, holder: newHolder(cfg.ShareKeys)}
	keys := cfg.Keys
	err := n.openLedger(log)
	n.without(log, "what was saved is not kept over a restart", err)
	n.disk, err = infocache.Open(infocache.Config{Dir: filepath.Join(cfg.StateDir, "narinfo"), Keys: keys, Log: log, Metrics: m})
	n.without(log, "narinfos are not kept over a restart", err)
	if n.upstream, err = upstream.New(upstream.Config{
		URLs: cfg.Upstreams, Keys: keys, ID: id, Version: version(), Netrc: netrcFile(), Trouble: n.trouble.Note, Log: log, Metrics: m,
	}); err != nil {
		return nil, err
	}
	if n.store, err = localstore.Open(localstore.Config{
		Root: cfg.StoreRoot, Keys: keys, ShareKeys: cfg.ShareKeys, Log: log, Metrics: m,
		Remembered: n.remembered, Changed: n.changed,
	}); err != nil {
		return nil, err
	}
	// Also with size 0: what an earlier configuration left behind goes.
	n.cache, err = narcache.Open(narcache.Config{
		Dir: filepath.Join(cfg.CacheDir, cacheSubdir), Size: cfg.CacheSize, InStore: n.inStore, Trouble: n.trouble.Note, Log: log, Metrics: m,
	})
	n.without(log, "NARs are not kept and not shared between clients", err)
	n.without(log, "this machine has no peers", n.joinSite(m, log))
	if n.resolver, err = resolve.New(n.sources(m, log)); err != nil {
		return nil, err
	}
	n.holder.resolver = n.resolver
	n.front, err = httpfront.New(httpfront.Config{
		Resolver: front{n.resolver}, Metrics: m, Share: cfg.ShareKeys, Priority: cfg.Priority, ID: id, Log: log,
	})
	return n, err
}

// netrcFile returns the file with credentials for upstreams: $NETRC, or the one that Nix reads
// (nix.conf: netrc-file) where this user may read it.
func netrcFile() string {
	if name := os.Getenv("NETRC"); name != "" {
		return name
	}
	const nixes = "/etc/nix/netrc"
	f, err := os.Open(nixes)
	if err != nil {
		return ""
	}
	_ = f.Close()
	return nixes
}

// joinSite makes this machine a node among peers, if that is wanted.
func (n *node) joinSite(m *metrics.Metrics, log *slog.Logger) (err error) {
	h := n.holder
	h.store, h.cache, h.disk = n.store, n.cache, n.disk
	if !n.cfg.P2P {
		return nil
	}
	n.peers, err = p2p.New(p2p.Config{
		StateDir: n.cfg.StateDir, Listen: n.cfg.P2PListen, Bootstrap: n.cfg.Bootstrap, MDNS: n.cfg.MDNS,
		MaxPeers: n.cfg.MaxPeers, SwarmKeyFile: n.cfg.SwarmKeyFile, AllowCIDRs: n.cfg.AllowCIDRs,
		AllowOnLink: n.cfg.AllowOnLink, UploadLimit: n.cfg.UploadLimit, Keys: n.cfg.Keys, ShareKeys: n.cfg.ShareKeys,
		Leases: n.cfg.Leases, Holder: h, Trouble: n.trouble.Note, Metrics: m, Log: log,
	})
	if err == nil {
		h.changed = n.peers.Changed
	}
	return err
}

// without notes a part that failed.
func (n *node) without(log *slog.Logger, consequence string, err error) {
	if err == nil {
		return
	}
	log.Warn("going on without a part", "consequence", consequence, "err", err)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.degraded = append(n.degraded, fmt.Sprintf("%s: %v", consequence, err))
}

// troubles returns what does not work, a sentence each.
func (n *node) troubles() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.degraded)
}

// sources fills in what there is: a nil pointer in an interface would not be nil.
func (n *node) sources(m *metrics.Metrics, log *slog.Logger) resolve.Config {
	rc := resolve.Config{
		Store: n.store, Upstream: n.upstream, Shared: sharedStore{n.store}, Share: n.cfg.ShareKeys,
		Fetching: n.holder.fetching, Trouble: n.trouble.Note, Metrics: m, Log: log,
	}
	if n.peers != nil {
		rc.Peers, rc.AtHand, rc.Leases = n.peers, p2p.AtHand{Node: n.peers}, leases{n.peers}
	}
	if n.disk != nil {
		rc.Disk = n.disk
	}
	if n.cache != nil {
		rc.Cache = n.cache
		rc.Spool = func(nar nix.NarHash, form nix.Form, size int64) (resolve.Download, error) {
			d, err := n.cache.Create(nar, form, size)
			if err != nil {
				return nil, err
			}
			return download{d}, nil
		}
	}
	return rc
}

// remembered answers the store's question for a narinfo that signs an unsigned row.
func (n *node) remembered(h nix.StoreHash) *verify.Info {
	if n.disk == nil {
		return nil
	}
	info, err := n.disk.Info(context.Background(), h)
	if err != nil {
		return nil
	}
	return info
}

// changed makes the resolver ask again for paths that came or went, and tells the peers.
func (n *node) changed(added, removed []nix.StoreHash) {
	n.resolver.Forget(added...)
	n.resolver.Forget(removed...)
	n.holder.storeChanged(added, removed)
}

// inStore tells the NAR cache that the store can serve a NAR to everybody.
func (n *node) inStore(nar nix.NarHash) bool {
	_, err := n.store.SharedByNar(context.Background(), nar)
	return err == nil
}

// run works until ctx ends and returns when everything has.
func (n *node) run(ctx context.Context, log *slog.Logger) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.store.Run(ctx) })
	g.Go(func() error { return n.upstream.Run(ctx) })
	g.Go(func() error { return n.resolver.Run(ctx) })
	g.Go(func() error { return n.holder.run(ctx) })
	g.Go(func() error { return n.ledger.Run(ctx) })
	if n.peers != nil {
		g.Go(func() error {
			// Peers only make it better: a taken port must not stop what works without them.
			n.without(log, "this machine has no peers", n.peers.Run(ctx))
			return nil
		})
	}
	if n.disk != nil {
		g.Go(func() error { return n.disk.Run(ctx) })
	}
	if n.cache != nil {
		g.Go(func() error { return n.cache.Run(ctx) })
	}
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// close gives up what newNode opened.
func (n *node) close() error {
	errs := []error{n.ledger.Close()}
	if n.cache != nil {
		errs = append(errs, n.cache.Close())
	}
	if n.disk != nil {
		errs = append(errs, n.disk.Close())
	}
	if n.store != nil {
		errs = append(errs, n.store.Close())
	}
	return errors.Join(errs...)
}

// front joins the resolver to the door.
type front struct{ r *resolve.Resolver }

func (f front) Narinfo(ctx context.Context, h nix.StoreHash, reach resolve.Reach) ([]byte, *verify.Info, error) {
	a, err := f.r.Info(ctx, h, reach)
	if err != nil {
		return nil, nil, err
	}
	return a.Text(), a.Info, nil
}

func (f front) NAR(ctx context.Context, name nix.NARName, q resolve.Query) (httpfront.NAR, error) {
	n, err := f.r.NAR(ctx, name, q)
	if err != nil {
		return nil, err
	}
	return n, nil
}

// leases joins the agreements of the site to the resolver.
type leases struct{ site *p2p.Node }

func (l leases) Lease(ctx context.Context, info *verify.Info, form nix.Form, size int64) resolve.Lease {
	if a := l.site.Lease(ctx, info, form, size); a != nil {
		return agreement{a}
	}
	return nil
}

type agreement struct{ *p2p.Lease }

func (a agreement) Next(ctx context.Context) (resolve.NARSource, context.Context) {
	from, turn := a.Lease.Next(ctx)
	if from == nil {
		return nil, turn
	}
	return named{from}, turn
}

// named is the nodes that a coordinator named.
type named struct{ *p2p.Following }

func (s named) NAR(ctx context.Context, info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error) {
	claim, err := s.Following.NAR(ctx, info, form, off)
	var other *p2p.OtherFormError
	if errors.As(err, &other) {
		err = &resolve.OtherFormError{Form: other.Form, Size: other.Size}
	}
	return claim, err
}

// download joins the NAR cache's downloads to the resolver.
type download struct{ *narcache.Download }

func (d download) Reader(off int64) resolve.Reader { return d.Download.Reader(off) }
func (d download) Filled() resolve.Reader          { return d.Download.Filled() }

// nothing is the resolver of a daemon that cannot work: it has nothing, which hurts no build.
type nothing struct{}

func (nothing) Narinfo(context.Context, nix.StoreHash, resolve.Reach) ([]byte, *verify.Info, error) {
	return nil, nil, fs.ErrNotExist
}

func (nothing) NAR(context.Context, nix.NARName, resolve.Query) (httpfront.NAR, error) {
	return nil, fs.ErrNotExist
}
