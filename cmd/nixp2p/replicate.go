package main

import (
	"context"
	"log/slog"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/mirror"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/internal/source"
)

// replication copies what peers share. It finds paths with a resolver of its own that knows no upstream, so that
// nothing is asked elsewhere.
type replication struct {
	n          *node
	resolver   *resolve.Resolver
	replicator *mirror.Replicator
}

// replicate makes the replication, if it is wanted and there are peers and a cache.
func (n *node) replicate(m *metrics.Metrics, events source.Events, log *slog.Logger) (err error) {
	if !n.cfg.Replicate || n.peers == nil || n.cache == nil || n.cfg.CacheSize == 0 {
		return nil
	}
	r := &replication{n: n}
	if r.resolver, err = resolve.New(resolve.Config{
		Store: n.store, Disk: n.infos, Cache: n.cache, Peers: n.peers, Share: n.cfg.ShareKeys, Clock: n.clock, Events: events, Metrics: m, Log: log,
	}); err != nil {
		return err
	}
	r.replicator = mirror.NewReplicator(mirror.ReplicatorConfig{
		Peers: n.peers.Sharers, Page: n.peers.Page, Copies: n.peers.Copies, Fetch: r.fetch, Have: r.has,
		Used: n.cache.Usage, Room: n.cfg.CacheSize, Busy: n.clientsWait, Metrics: m, Log: log,
	})
	n.replication = r
	return nil
}

// has reports whether this machine shares a path, or has its NAR in its store.
func (r *replication) has(p source.SharedPath) bool {
	return r.n.holder.Shares(p.Store) || r.n.inStore(p.Nar)
}

// fetch brings a path from peers into the cache. It is shared when all of it was verified, and so it
// is if the cache has its NAR as that of another path.
func (r *replication) fetch(ctx context.Context, h nix.StoreHash, dry bool) (mirror.Fetched, error) {
	a, err := r.resolver.Ahead(ctx, h)
	if err != nil {
		return mirror.Fetched{}, err
	}
	p, err := r.n.transfer.Copy(ctx, a, dry)
	if err == nil && (!dry || p.Local == source.Cache) {
		r.n.holder.Known(p.Info)
	}
	return mirror.Fetched{Info: p.Info, Size: p.Size, Here: p.Local != source.None}, err
}

// parts returns what is to run.
func (r *replication) parts() []func(context.Context) error {
	if r == nil {
		return nil
	}
	return []func(context.Context) error{r.resolver.Run, r.replicator.Run}
}

// addReplication adds what is copied from peers.
func (n *node) addReplication(s *admin.State) {
	if n.replication == nil {
		return
	}
	x := admin.Replicated(n.replication.replicator.Status())
	s.Replicate = &x
}
