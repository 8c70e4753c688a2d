// Package client asks the connected peers for narinfos and NARs. What they answer is proven by
// others: narinfos by verify.Keys, bytes by whoever reads them. It asks about a path only if a
// share key signed it, or by hashed question.
package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"slices"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/semaphore"

	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/internal/hedge"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/taskgroup"
	"github.com/nixp2p/nixp2p/internal/update"
	"github.com/nixp2p/nixp2p/p2p/balance"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/lease"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/reputation"
	"github.com/nixp2p/nixp2p/p2p/site"
	"github.com/nixp2p/nixp2p/verify"
)

// Site is the connected peers, as far as they are admitted.
type Site interface {
	// Any reports whether a peer is connected.
	Any() bool
	// Holders returns the peers whose inventory says that they may share what k stands for.
	Holders(k inventory.Key) []*site.Peer
	// Peer returns a connected peer, or nil.
	Peer(id peer.ID) *site.Peer
	// Connect returns a peer, connecting to it if it is not.
	Connect(ctx context.Context, id peer.ID, addr string) (*site.Peer, error)
	// Learn takes addresses that a peer named, and returns the peers that they belong to.
	Learn(by *site.Peer, addrs []string) []peer.ID
	// RoundTrip sends a request to a peer. The end of its context ends the body as well.
	RoundTrip(p *site.Peer, req *http.Request) (*http.Response, error)
}

// DHT finds holders beyond the connected peers.
type DHT interface {
	// Providers returns peers that announced a NAR and are connected by now, as far as that
	// is known when ctx ends.
	Providers(ctx context.Context, nar nix.NarHash) []peer.ID
}

// Config is what a Client works with. Leases, DHT, Bases, Events and Log may be nil.
type Config struct {
	Site       Site
	Keys       *verify.Keys
	ShareKeys  []string // names
	Reputation *reputation.Book
	Leases     *lease.Client // nil: no coordination
	Zone       Zone
	DHT        DHT
	Bases      *update.Bases   // nil: no deltas are asked for
	Clock      *runclock.Clock // of the time that streams take; nil: the ordinary one
	Events     source.Events
	Metrics    *metrics.Metrics
	Log        *slog.Logger
}

// Zone is the part of the site that this node is in: what crosses zones costs money, or time.
type Zone struct {
	Name   func() string // "": all peers are alike. Nil: the same
	Leases *lease.Client // of the nodes in the zone; nil: no coordination
}

func (z Zone) name() string {
	if z.Name == nil {
		return ""
	}
	return z.Name()
}

// near reports whether a peer is in the zone, or there is none.
func near(zone string, p *site.Peer) bool { return zone == "" || p.Zone() == zone }

// Client asks peers. It is safe for concurrent use. Close waits for what it started.
type Client struct {
	cfg      Config
	log      *slog.Logger
	infos    hedge.Timer // of narinfos
	opens    hedge.Timer // of NARs
	answers  *lru.Cache[asked, answer]
	avoid    *backoff.Set[asked]
	decoders *semaphore.Weighted
	group    taskgroup.Group

	// liars are hosts on which a peer was blamed for wrong bytes: no other identity there is
	// trusted by delivering a correct NAR.
	liars *backoff.Set[machine.ID]
	// resting are hosts on which an unverified peer said that it has a NAR and did not deliver it in
	// time: peers there that are not trusted are asked for nothing. That they answer narinfos at once
	// proves nothing.
	resting     *backoff.Set[machine.ID]
	noDelta     *backoff.Set[peer.ID] // peers that are not asked for deltas
	wrongDeltas *backoff.Set[peer.ID] // peers that have sent a wrong one
	all         balance.Meter         // of what comes from peers together
}

// asked is a peer and a NAR.
type asked struct {
	peer peer.ID
	nar  nix.NarHash
}

const (
	// A second peer is asked when the first is slower than nine of ten answers were. For NARs
	// never sooner than openLeast: what is cut off again costs both sides.
	infoStart, infoLeast, infoMost = 15 * time.Millisecond, 3 * time.Millisecond, 50 * time.Millisecond
	openStart, openLeast           = 100 * time.Millisecond, 30 * time.Millisecond

	// maxAnswers bounds what is remembered of the forms that peers have: some 1 MB.
	maxAnswers = 4096
	// maxAvoided bounds the peers that took part in a wrong NAR with others.
	maxAvoided = 4096
	// avoidFor is how long these are not asked for that NAR together.
	avoidFor = 10 * time.Minute
	// maxDecoders bounds the memory of streams that peers compress on the way: each may have a
	// window of 8 MiB. A delta takes 20 MB: it counts as deltaDecoders of them.
	maxDecoders   = 8
	deltaDecoders = 2
)

// New returns a Client. It starts nothing.
func New(cfg Config) *Client {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	answers, err := lru.New[asked, answer](maxAnswers)
	if err != nil {
		panic(err) // the size is positive
	}
	return &Client{
		cfg: cfg, log: cfg.Log, answers: answers, avoid: backoff.NewSet[asked](maxAvoided),
		infos:    hedge.Timer{Start: infoStart, Least: infoLeast, Most: infoMost},
		opens:    hedge.Timer{Start: openStart, Least: openLeast, Most: openTime},
		decoders: semaphore.NewWeighted(maxDecoders),
		liars:    backoff.NewSet[machine.ID](maxAvoided), resting: backoff.NewSet[machine.ID](maxAvoided),
		noDelta: backoff.NewSet[peer.ID](maxAvoided), wrongDeltas: backoff.NewSet[peer.ID](maxAvoided),
	}
}

// Close waits for the requests that are still being given up. Sessions that begin afterwards
// find nobody.
func (c *Client) Close() { c.group.Close() }

// errNobody costs nothing: it is the answer for most paths.
var errNobody = fmt.Errorf("p2p: no peer has it: %w", fs.ErrNotExist)

var errQuiet = errors.New("p2p: the peers that may have it do not answer")

func keyOf(info *verify.Info) inventory.Key {
	return inventory.KeyOf(info.StorePath().Hash().Question())
}

// MayHave reports whether the inventory of a peer may have the path. It asks nobody.
func (c *Client) MayHave(h nix.StoreHash) bool {
	return len(c.cfg.Site.Holders(inventory.KeyOf(h.Question()))) > 0
}

// Holders returns the IDs of the peers whose inventory may have the path.
func (c *Client) Holders(h nix.StoreHash) []string {
	ids := []string{}
	for _, p := range c.cfg.Site.Holders(inventory.KeyOf(h.Question())) {
		ids = append(ids, p.Key)
	}
	slices.Sort(ids)
	return ids
}

// Search looks for holders beyond the connected peers, until ctx ends, and reports whether it
// found any.
func (c *Client) Search(ctx context.Context, info *verify.Info) bool {
	if c.cfg.DHT == nil || info.NarSize() < largeNAR || !info.SignedByAny(c.cfg.ShareKeys) {
		return false
	}
	return len(c.cfg.DHT.Providers(ctx, info.NarHash())) > 0
}

// blamed reports whether a peer gave wrong data.
func (c *Client) blamed(p *site.Peer) bool {
	_, blamed := c.cfg.Reputation.Blamed(p.Key)
	return blamed
}

// trusted reports whether what a peer on a host sends may be seen before the whole is proven.
func (c *Client) trusted(key string, on machine.ID) bool {
	return c.cfg.Reputation.Trusted(key) && !c.liars.Has(on)
}

const (
	// restFirst is how long a host rests, twice as long each time, up to restMost.
	restFirst = 5 * time.Second
	restMost  = time.Minute // it may be the only one that has a NAR when the upstreams go down
)

// rest notes that a peer did not deliver what it said it has.
func (c *Client) rest(p *site.Peer) {
	if p.Host == (machine.ID{}) || c.trusted(p.Key, p.Host) {
		return
	}
	c.log.Debug("peer did not deliver what it said it has", "peer", p.Key)
	c.resting.Grow(p.Host, restFirst, restMost)
}

// late has a peer rest that did not give in time what was said to be there: at is the byte that comes next. One
// that gave that much and is getting the rest may be waiting itself.
func (c *Client) late(st *stream, at int64) {
	if at < st.has {
		c.rest(st.p)
	}
}

// rests reports whether a peer is not to be asked now because its host rests.
func (c *Client) rests(p *site.Peer) bool {
	return c.resting.Has(p.Host) && !c.trusted(p.Key, p.Host)
}

// together reports whether a peer and the node that named it are on the same host. Only then is what was
// said of the peer its own word: a coordinator must not have others rest.
func together(all Site, p *site.Peer, by lease.NodeID) bool {
	if p.ID == peer.ID(by) {
		return true
	}
	b := all.Peer(peer.ID(by))
	return b != nil && b.Host == p.Host && p.Host != machine.ID{}
}

// countWrong counts a narinfo or a NAR that was refused, whoever is to blame.
func (c *Client) countWrong(r verify.Reason) {
	c.cfg.Metrics.VerifyFailures.WithLabelValues(source.Peer.String(), string(r)).Inc()
}

// corruptFor is how long a peer is blamed for a narinfo that cannot be read: an older version
// may have passed it on in good faith.
const corruptFor = 10 * time.Minute

// blame has a peer not asked any more, for data that it alone is responsible for.
func (c *Client) blame(key string, kind source.EventKind, path string, invalid *verify.InvalidError) {
	d := reputation.BlameFor
	if invalid.Reason == verify.ReasonCorrupt {
		d = corruptFor
	}
	c.log.Warn("peer sent wrong data and is not asked for a while", "peer", key, "for", d, "err", invalid)
	c.cfg.Reputation.Blame(key, invalid.Error(), d)
	c.cfg.Events.Send(source.Event{Kind: kind, Source: source.Peer, Peer: key, StorePath: path, Err: invalid})
}
