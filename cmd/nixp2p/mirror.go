package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/bucket"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/mirror"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
)

// follow makes the follower of lists, which knows what is kept before the cache opens.
func (n *node) follow(m *metrics.Metrics, log *slog.Logger) {
	if len(n.cfg.Follow) == 0 {
		return
	}
	var lists []mirror.List
	for _, text := range n.cfg.Follow {
		if l, err := mirror.ParseList(text); err == nil { // config has checked it
			lists = append(lists, l)
		}
	}
	n.follower = mirror.New(mirror.Config{
		Lists: lists, Room: n.cfg.CacheSize, Storage: n.state.Generations(), Client: n.upstream.Client(),
		Closure: n.store.Closure, Fetch: n.fetchAhead, Have: n.has, Busy: n.clientsWait,
		KeptChanged: n.keptChanged, Collect: n.collect, Metrics: m, Log: log,
	})
	n.infos.Keep(n.follower.Kept)
}

// kept reports whether a followed list has a NAR.
func (n *node) kept(nar nix.NarHash) bool { return n.follower != nil && n.follower.Kept(nar) }

func (n *node) keptChanged() {
	if n.cache != nil { // else it is about to be opened
		n.cache.KeptChanged()
	}
}

func (n *node) collect(nars []nix.NarHash) {
	if n.cache != nil {
		n.cache.Collect(nars)
	}
}

// has reports whether this machine can give a NAR to everybody.
func (n *node) has(nar nix.NarHash) bool {
	return n.cache != nil && len(n.cache.Forms(nar)) > 0 || n.inStore(nar)
}

// fetchAhead brings a path into the cache.
func (n *node) fetchAhead(ctx context.Context, h nix.StoreHash, dry bool) (mirror.Fetched, error) {
	p, err := n.transfer.Prefetch(ctx, h, dry)
	return mirror.Fetched{Info: p.Info, Size: p.Size, Here: p.Local != source.None}, err
}

// clientsWait reports whether clients are being sent what comes over the network.
func (n *node) clientsWait() bool {
	for _, t := range n.transfer.Transfers() {
		if !t.Inbound && (t.Source == source.Upstream || t.Source == source.Peer) {
			return true
		}
	}
	return false
}

// Follow is part of admin.Node.
func (a *adminNode) Follow(ctx context.Context, dry bool) ([]admin.FollowPlan, error) {
	n := a.node.Load()
	switch {
	case n == nil:
		return nil, a.Ready()
	case n.cache == nil:
		return nil, errNoCache
	case n.follower == nil:
		return nil, errors.New("nothing is followed: name lists with --follow")
	case !dry:
		return nil, n.follower.Now(ctx)
	}
	plans, err := n.follower.Plan(ctx)
	if err != nil {
		return nil, err
	}
	out := []admin.FollowPlan{}
	for _, p := range plans {
		out = append(out, admin.FollowPlan{
			List: p.List, From: p.From, Paths: p.Paths, Bytes: p.Bytes, Here: p.Here, MissingPaths: p.MissingPaths,
			MissingBytes: p.MissingBytes, Absent: p.Absent, Failed: p.Failed, RoomBytes: p.Room,
		})
	}
	return out, nil
}

// addMirror adds what is followed and the bucket.
func (n *node) addMirror(s *admin.State) {
	if n.bucket != nil {
		h := n.bucket.Health()
		s.Bucket = &admin.Written{
			Waiting: h.Waiting, LastError: h.LastError,
			Read: metrics.Value(n.metrics.BucketBytes.WithLabelValues("read")), Sent: metrics.Value(n.metrics.BucketBytes.WithLabelValues("written")),
		}
		if at, err := bucket.Parse(n.cfg.Bucket, func(string) string { return "" }); err == nil {
			s.Bucket.URL = at.String()
		}
	}
	if n.follower == nil {
		return
	}
	for _, f := range n.follower.Status() {
		x := admin.Followed{
			List: f.List, Checked: f.Checked, Error: f.Error, MissingPaths: f.MissingPaths, MissingBytes: f.MissingBytes,
			LeftOutPaths: f.LeftOutPaths, LeftOutBytes: f.LeftOutBytes, Absent: f.Absent, Generations: []admin.Generation{},
		}
		for _, g := range f.Generations {
			x.Generations = append(x.Generations, admin.Generation(g))
		}
		s.Follow = append(s.Follow, x)
	}
}
