package main

import (
	"context"
	"errors"
	"io/fs"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/admin"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/resolve"
	"github.com/nixp2p/nixp2p/localstore"
	"github.com/nixp2p/nixp2p/verify"
)

// adminNode tells the admin listener about the node: there may be none yet, or none at all
// because its start failed.
type adminNode struct {
	node   atomic.Pointer[node]
	broken atomic.Pointer[error]
}

var errStarting = errors.New("starting")

func (a *adminNode) Ready() error {
	if err := a.broken.Load(); err != nil {
		return *err
	}
	if a.node.Load() == nil {
		return errStarting
	}
	return nil
}

func (a *adminNode) State() admin.State {
	n := a.node.Load()
	if n == nil {
		return admin.State{}
	}
	s := admin.State{
		Degraded: n.troubles(), Store: storeState(n.store), StateDir: n.cfg.StateDir,
		Saved: admin.Saved(n.ledger.Saved()), Transfers: n.transfers(), Failures: n.failures(),
	}
	for _, h := range n.upstream.Health() {
		s.Upstreams = append(s.Upstreams, admin.Upstream{
			URL: h.URL, Up: h.Up, Why: h.Why, Since: h.Since, LastError: h.LastError,
			LatencyMS: milliseconds(h.LatencyP50), Priority: h.Priority, Requests: h.Requests,
		})
	}
	if n.cache != nil {
		s.Cache = admin.Cache{Dir: n.cfg.CacheDir, Bytes: n.cache.Usage(), Limit: n.cfg.CacheSize, Entries: len(n.cache.Entries())}
	}
	return s
}

// storeState says what the own store is worth.
func storeState(store *localstore.Store) admin.Store {
	c := store.Census()
	s := admin.Store{
		Database: c.Mode, Complete: c.Complete, Paths: c.Rows, Shared: c.Shared, Trusted: c.Trusted, Unsigned: c.Unsigned,
		Untrusted: c.Untrusted, Addressed: c.Addressed, Unreadable: c.NoSize + c.Invalid, Quarantined: c.Quarantined,
	}
	for share := range store.Shares() {
		s.Sample = share.Store.String()
		break
	}
	return s
}

func (a *adminNode) Why(ctx context.Context, h nix.StoreHash) []admin.Answer {
	n := a.node.Load()
	if n == nil {
		return nil
	}
	var answers []admin.Answer
	for _, f := range n.resolver.Why(ctx, h) {
		answers = append(answers, answerOf(f))
	}
	return answers
}

func (a *adminNode) Peers() []admin.Peer {
	n := a.node.Load()
	if n == nil || n.peers == nil {
		return nil
	}
	var peers []admin.Peer
	for _, p := range n.peers.Peers() {
		peers = append(peers, admin.Peer{
			ID: p.ID, Addresses: p.Addresses, FoundBy: p.FoundBy, RTTMS: p.RTT, Paths: int64(p.Paths),
			SentBytes: p.SentBytes, ReceivedBytes: p.ReceivedBytes, Standing: p.Standing,
			SendingBytesPerSecond: p.Sending, ReceivingBytesPerSecond: p.Receiving,
		})
	}
	return peers
}

func (a *adminNode) Prefetch(ctx context.Context, h nix.StoreHash, dry bool) (admin.Prefetched, error) {
	n := a.node.Load()
	if n == nil {
		return admin.Prefetched{}, a.Ready()
	}
	p, err := n.resolver.Prefetch(ctx, h, dry)
	if err != nil {
		return admin.Prefetched{}, err
	}
	out := admin.Prefetched{
		StorePath: p.Info.StorePath().String(), NarSize: p.Info.NarSize(), Size: p.Size, AtHand: p.AtHand, References: []string{},
	}
	for _, ref := range p.Info.References() {
		if ref != p.Info.StorePath() {
			out.References = append(out.References, ref.Hash().String())
		}
	}
	return out, nil
}

var errNoCache = errors.New("there is no NAR cache: `nixp2p status` says why")

func (a *adminNode) Trim(limit int64) (any, error) {
	n := a.node.Load()
	if n == nil || n.cache == nil {
		return nil, errNoCache
	}
	return n.cache.GC(limit), nil
}

// answerOf says for people and programs what a source said.
func answerOf(f resolve.Finding) admin.Answer {
	ans := admin.Answer{Source: f.Source, Result: admin.Has, TookMS: milliseconds(f.Took)}
	var lie *verify.InvalidError
	switch {
	case f.Err == nil:
		ans.StorePath, ans.NarHash, ans.NarSize = f.Info.StorePath().String(), f.Info.NarHash().String(), f.Info.NarSize()
		ans.Signers = f.Info.Signers()
	case errors.Is(f.Err, fs.ErrNotExist):
		ans.Result = admin.Absent
	case errors.As(f.Err, &lie):
		ans.Result, ans.Err = admin.Lied, f.Err.Error()
	default:
		ans.Result, ans.Err = admin.Unavailable, f.Err.Error()
	}
	for _, form := range f.Forms {
		ans.Forms = append(ans.Forms, form.String())
	}
	return ans
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
