package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nixp2p/nixp2p/httpfront"
	"github.com/nixp2p/nixp2p/internal/bucket"
	"github.com/nixp2p/nixp2p/internal/config"
	"github.com/nixp2p/nixp2p/internal/history"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/mirror"
	"github.com/nixp2p/nixp2p/internal/narcache"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/state"
	"github.com/nixp2p/nixp2p/internal/transfer"
	"github.com/nixp2p/nixp2p/internal/update"
	"github.com/nixp2p/nixp2p/internal/upstream"
	"github.com/nixp2p/nixp2p/localstore"
	"github.com/nixp2p/nixp2p/p2p"
	"github.com/nixp2p/nixp2p/p2p/share"
	"github.com/nixp2p/nixp2p/verify"
)

// The one place that sees the sources and their users.
var (
	_ source.LocalStore = (*localstore.Store)(nil)
	_ source.Peers      = (*p2p.Node)(nil)
	_ source.Upstreams  = (*upstream.Upstreams)(nil)
	_ source.InfoCache  = (*state.Infos)(nil)
	_ source.NARs       = (*narcache.Cache)(nil)
)

// cacheSubdir is the place of the NAR cache below --cache-dir.
const cacheSubdir = "nar"

// node is all that answers, wired together.
type node struct {
	basics
	deltas
	cfg   *config.Config
	state *state.DB
	infos *state.Infos
	store *localstore.Store
	caches
	holder     *share.Holder
	peers      *p2p.Node // nil if peers are off
	resolver   *resolve.Resolver
	transfer   *transfer.Server
	front      http.Handler
	asked      atomic.Int64 // when a Nix asked last, in seconds since 1970; 0 before
	past       past
	conditions *source.Conditions
}

// deltas is how NARs come and leave as what differs from an older version: nil if they do not.
type deltas struct {
	bases   *update.Bases
	encoder *update.Encoder
}

// basics is what the parts share.
type basics struct {
	started time.Time
	metrics *metrics.Metrics
	clock   *runclock.Clock
}

// caches are the caches on this machine and elsewhere, and what they are filled with.
type caches struct {
	cache    *narcache.Cache // nil if the cache directory cannot be used
	upstream *upstream.Upstreams
	bucket   *bucket.Bucket   // nil if there is none
	follower *mirror.Follower // nil if there is nothing to follow

	replication *replication // nil if nothing is copied from peers
}

// past is what happened: counted over restarts, and the last failures.
type past struct {
	history  *history.History
	failures history.Failures
}

// without notes that a part failed and what that means.
func (n *node) without(log *slog.Logger, part source.Part, effect string, err error) {
	if err == nil {
		return
	}
	log.Warn("working without a part", "effect", effect, "err", err)
	n.conditions.Set(string(part), source.Condition{Part: part, Text: fmt.Sprintf("%s: %v", effect, err)})
}

// newNode wires a node. A part that is not needed to answer Nix, such as a directory on disk,
// may fail: the node works without it and says so.
func newNode(cfg *config.Config, m *metrics.Metrics, id string, conditions *source.Conditions, log *slog.Logger) (*node, error) {
	n := &node{basics: basics{time.Now(), m, runclock.New()}, cfg: cfg, conditions: conditions}
	events := source.Events(n.past.failures.Note)
	var err error
	n.state, _ = state.Open(cfg.StateDir, log) // its Err is shown as long as there is one
	n.past.history = history.New(history.Config{Storage: n.state.History(), Read: n.counts, Log: log})
	n.infos = n.state.Infos(cfg.Keys, cfg.ShareKeys, m)
	if n.store, err = localstore.Open(localstore.Config{
		Root: cfg.StoreRoot, Keys: cfg.Keys, ShareKeys: cfg.ShareKeys, Log: log, Metrics: m,
		Remembered: n.remembered, Changed: n.storeChanged,
	}); err != nil {
		return nil, err
	}
	if cfg.Delta {
		n.bases = update.NewBases(n.store, cfg.ShareKeys, m)
	}
	if err := n.openCaches(m, id, events, log); err != nil {
		return nil, err
	}
	n.follow(m, log)
	// Also with size 0: what an earlier configuration left behind is removed.
	n.cache, _ = narcache.Open(narcache.Config{ // an error is a condition, and it is tried again
		Dir: filepath.Join(cfg.CacheDir, cacheSubdir), Size: cfg.CacheSize, InStore: n.inStore, Kept: n.kept, Events: events,
		Conditions: conditions, Log: log, Metrics: m,
	})
	n.without(log, source.PartPeers, "this machine has no peers", n.joinSite(m, events, log))
	if err := n.wire(m, events, log); err != nil {
		return nil, err
	}
	if err := n.replicate(m, events, log); err != nil {
		return nil, err
	}
	front, err := httpfront.New(httpfront.Config{
		Resolver: n.resolver, Transfer: n.transfer, Metrics: m, Share: cfg.ShareKeys, Names: hostNames(cfg.Listen), Public: cfg.ServerNames,
		// A trusted key that is not a share key signs private paths.
		Private:  slices.ContainsFunc(cfg.Keys.Names(), func(k string) bool { return !slices.Contains(cfg.ShareKeys, k) }),
		Priority: cfg.Priority, Encoder: n.encoder, ID: id, Log: log,
	})
	if err != nil {
		return nil, err
	}
	n.front = n.noteNix(front)
	return n, nil
}

// openCaches opens the bucket and the upstreams, which read it.
func (n *node) openCaches(m *metrics.Metrics, id string, events source.Events, log *slog.Logger) error {
	access := nixCacheAccess(os.Getenv, log)
	if access.err != nil {
		n.conditions.Set("netrc", source.Condition{
			Part: source.PartUpstream, Text: fmt.Sprintf("caches are asked without the credentials that Nix has: %v", access.err),
			Hint: "put a copy into /etc/credstore/nixp2p.netrc and restart nixp2p; see docs/ci.md",
		})
	}
	uc := upstream.Config{
		URLs: n.cfg.Upstreams, Keys: n.cfg.Keys, ID: id, Version: version(), Netrc: access.netrc, CAFile: access.caFile,
		Bases: n.bases, Events: events, Clock: n.clock, Conditions: n.conditions, Log: log, Metrics: m,
	}
	if n.cfg.Bucket != "" {
		at, err := bucket.Parse(n.cfg.Bucket, os.Getenv)
		if err != nil {
			return err
		}
		if n.bucket, err = bucket.New(bucket.Config{
			Location: at, ShareKeys: n.cfg.ShareKeys, Files: fetched{n}, Infos: n.infos, Unwritten: n.state.Unwritten(), Log: log, Metrics: m,
		}); err != nil {
			return err
		}
		uc.Bucket = &upstream.Signed{Name: at.String(), URL: at.URL(), Sign: n.bucket.Sign}
	}
	var err error
	n.upstream, err = upstream.New(uc)
	return err
}

// fetched is the NARs that were fetched lately: the cache, which is opened later.
type fetched struct{ n *node }

func (f fetched) NAR(ctx context.Context, info *verify.Info, form nix.Form, off int64) (*verify.Unverified, error) {
	return f.n.cache.NAR(ctx, info, form, off)
}

// toBucket writes what came from an upstream to the bucket, unless it came from there.
func (n *node) toBucket(info *verify.Info, form nix.Form) {
	if n.bucket != nil && !n.upstream.FromBucket(info, form) {
		n.bucket.Put(info, form)
	}
}

// cachedToBucket writes what the cache has to the bucket if an upstream named it: its NAR may have come for
// another path, or before there was a bucket, or right before the machine went down.
func (n *node) cachedToBucket(info *verify.Info) {
	if n.bucket == nil || info.Hints().URL == "" {
		return
	}
	form := nix.Raw
	if file, ok := info.FileForm(); ok && slices.Contains(n.cache.Forms(info.NarHash()), file) {
		form = file
	}
	n.toBucket(info, form)
}

// joinSite makes this machine a node among peers, if that is wanted.
func (n *node) joinSite(m *metrics.Metrics, events source.Events, log *slog.Logger) (err error) {
	c := share.Config{Store: n.store, Infos: n.infos, ShareKeys: n.cfg.ShareKeys}
	if n.cache != nil {
		c.Cache = share.CacheOf(n.cache)
	}
	n.holder = share.New(c)
	if n.cfg.Delta {
		var scratch func() (update.Scratch, error)
		if n.cache != nil {
			scratch = func() (update.Scratch, error) { return narcache.NewScratch(n.cache) }
		}
		n.encoder = update.NewEncoder(n.holder, scratch, m, log)
	}
	if !n.cfg.P2P {
		return nil
	}
	stateDir := n.cfg.StateDir
	if errors.Is(n.state.Err(), state.ErrLocked) {
		stateDir = "" // the identity in it is another node's
	}
	n.peers, err = p2p.New(p2p.Config{
		StateDir: stateDir, Listen: n.cfg.P2PListen, Bootstrap: n.cfg.Bootstrap, MDNS: n.cfg.MDNS,
		MaxPeers: n.cfg.MaxPeers, SwarmKeyFile: n.cfg.SwarmKeyFile, Name: peerName(n.cfg), AllowCIDRs: n.cfg.AllowCIDRs,
		AllowOnLink: n.cfg.AllowOnLink, Zone: configuredZone(n.cfg), UploadLimit: n.cfg.UploadLimit, Leases: n.cfg.Leases, Clock: n.clock,
		Bases: n.bases, Encoder: n.encoder,
		Keys: n.cfg.Keys, ShareKeys: n.cfg.ShareKeys, Holder: n.holder,
		Saved: n.state.Peers(), Reputation: n.state.Reputation(), Events: events, Conditions: n.conditions,
		Metrics: m, Log: log,
	})
	return err
}

// peerName is what peers are told of this machine: a configured name, or its host name on a
// closed site; "" if nothing.
func peerName(cfg *config.Config) string {
	switch {
	case cfg.PeerName == config.NoName, cfg.PeerName == "" && cfg.SwarmKeyFile == "":
		return ""
	case cfg.PeerName != "":
		return cfg.PeerName
	}
	return machineName()
}

// wire joins the sources to their users. A source that is missing is left out: a nil pointer
// in an interface would not be nil.
func (n *node) wire(m *metrics.Metrics, events source.Events, log *slog.Logger) (err error) {
	rc := resolve.Config{
		Store: n.store, Disk: n.infos, Upstream: n.upstream, Share: n.cfg.ShareKeys, Clock: n.clock, OnInfo: n.holder.Known,
		Events: events, Metrics: m, Log: log,
	}
	tc := transfer.Config{
		Store: n.store, Cache: n.cache, Clock: n.clock, Coordinate: n.cfg.Leases, OnDownload: n.holder.Downloading, OnFetched: n.toBucket, OnCached: n.cachedToBucket,
		Events: events, Metrics: m, Log: log,
	}
	if n.cache != nil {
		rc.Cache = n.cache
	}
	if n.peers != nil {
		rc.Peers, tc.Peers = n.peers, n.peers
	}
	if n.resolver, err = resolve.New(rc); err != nil {
		return err
	}
	tc.Resolver = n.resolver
	n.transfer, err = transfer.New(tc)
	return err
}

// hostNames returns the names under which clients may address the substituter: that of the
// address it listens on, and this machine's own.
func hostNames(listen string) (names []string) {
	if host, _, err := net.SplitHostPort(listen); err == nil && host != "" {
		names = append(names, host)
	}
	if name, err := os.Hostname(); err == nil {
		names = append(names, name)
	}
	return names
}

// remembered returns the narinfo that signs an unsigned row of the store, or nil.
func (n *node) remembered(h nix.StoreHash) *verify.Info {
	info, err := n.infos.Info(context.Background(), h)
	if err != nil {
		return nil
	}
	return info
}

// storeChanged makes the resolver ask again for paths that came or went, and tells the peers.
func (n *node) storeChanged(added, removed []nix.StoreHash) {
	n.resolver.Forget(added...)
	n.resolver.Forget(removed...)
	n.holder.StoreChanged(added, removed)
}

// inStore reports whether the store can serve a NAR to everybody. The cache asks it once it
// runs, and then there is a holder.
func (n *node) inStore(nar nix.NarHash) bool { return n.holder.InStore(nar) }

// run works until ctx ends and returns when everything has ended.
func (n *node) run(ctx context.Context, log *slog.Logger) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, part := range []func(context.Context) error{
		n.state.Run, n.store.Run, n.upstream.Run, n.resolver.Run, n.transfer.Run, n.past.history.Run, n.clock.Run,
	} {
		g.Go(func() error { return part(ctx) })
	}
	for _, part := range n.replication.parts() {
		g.Go(func() error { return part(ctx) })
	}
	if n.cache != nil {
		g.Go(func() error { return n.cache.Run(ctx) })
	}
	if n.bucket != nil {
		g.Go(func() error { return n.bucket.Run(ctx) })
	}
	if n.follower != nil && n.cache != nil {
		g.Go(func() error { return n.follower.Run(ctx) })
	}
	if n.peers == nil { // else it is theirs
		g.Go(func() error { share.NewAnnouncer(n.holder).Run(ctx); return nil })
	} else {
		g.Go(func() error { return n.findZone(ctx, log) })
		g.Go(func() error {
			// A port that is taken must not stop what works without peers.
			n.without(log, source.PartPeers, "this machine has no peers", n.peers.Run(ctx))
			return nil
		})
	}
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// close closes what newNode opened. The state comes last: the others still write to it.
func (n *node) close() error {
	n.encoder.Close()
	var errs []error
	if n.cache != nil {
		errs = append(errs, n.cache.Close())
	}
	return errors.Join(append(errs, n.store.Close(), n.state.Close())...)
}
