// Package p2p makes this machine a node of its site. It only composes the parts: site knows
// who is connected, client asks peers, server answers them from what share shows, lease agrees
// who fetches, dht and inventory say who has what, and reputation how far each is believed.
package p2p

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/crypto"
	"time"

	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/internal/update"
	"github.com/nixp2p/nixp2p/p2p/client"
	"github.com/nixp2p/nixp2p/p2p/discovery"
	"github.com/nixp2p/nixp2p/p2p/lease"
	"github.com/nixp2p/nixp2p/p2p/reputation"
	"github.com/nixp2p/nixp2p/p2p/server"
	"github.com/nixp2p/nixp2p/p2p/share"
	"github.com/nixp2p/nixp2p/p2p/site"
	"github.com/nixp2p/nixp2p/verify"
)

// Config says how a Node works. Zero fields mean what is said beside them.
type Config struct {
	StateDir     string   // keeps the identity; "": it is a fresh one each time
	Listen       []string // multiaddrs; none: /ip4/0.0.0.0/tcp/7656 and /ip6/::/tcp/7656
	Bootstrap    []string // as in --bootstrap
	MDNS         bool
	MaxPeers     int    // 0: 256
	SwarmKeyFile string // "": an open site
	Name         string // of this machine, exchanged with peers; "": names are not exchanged
	// AllowCIDRs are the networks whose machines may be peers; nil: the private ones. Loopback
	// is allowed as well if Listen names a loopback address.
	AllowCIDRs  []netip.Prefix
	AllowOnLink bool            // also the networks that this machine's interfaces are on
	Zone        string          // this node's; "": none. SetZone changes it
	UploadLimit int64           // bytes a second; 0: no limit
	Leases      bool            // agree with the site who fetches what no peer has
	Clock       *runclock.Clock // of the time that peers take; nil: the ordinary one
	Bases       *update.Bases   // nil: no deltas are asked for
	Encoder     *update.Encoder // nil: no deltas are sent
	Keys        *verify.Keys
	ShareKeys   []string         // names
	Holder      *share.Holder    // nil shares nothing
	Saved       site.Saved       // addresses of the last run; may be nil
	Reputation  reputation.Saved // may be nil
	Resolver    discovery.Resolver
	Events      source.Events
	Conditions  *source.Conditions // what holds now is noted here; nil drops it
	Metrics     *metrics.Metrics   // required
	Log         *slog.Logger       // nil discards
}

// defaultCIDRs are private and link-local networks: a site, not the internet.
var defaultCIDRs = []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10"}

// member is this machine among its peers, under one identity.
type member struct {
	cfg         Config
	log         *slog.Logger
	site        *site.Site
	reputation  *reputation.Book
	client      *client.Client
	server      *server.Server
	announcer   *share.Announcer
	leases      *lease.Client
	zoneLeases  *lease.Client
	coordinator *lease.Coordinator
	leaseless   *backoff.Set[string] // peers that do not coordinate, by ID
	live        atomic.Pointer[live]
	directory   atomic.Pointer[directory] // nil without a DHT
	twin        chan string               // capacity 1: the address of another machine with this identity
}

const (
	// leaselessFor is how long a node is not asked that does not coordinate.
	leaselessFor = 10 * time.Minute
	maxLeaseless = 512
	// tidyEvery is how often what is over is dropped, and the metric of standings is set.
	tidyEvery = 2 * time.Second
)

// complete fills in what was left out.
func (cfg *Config) complete() error {
	if cfg.Metrics == nil || cfg.Keys == nil {
		return errors.New("p2p: no metrics or no keys")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.AllowCIDRs == nil {
		for _, c := range defaultCIDRs {
			cfg.AllowCIDRs = append(cfg.AllowCIDRs, netip.MustParsePrefix(c))
		}
	}
	if cfg.Holder == nil {
		cfg.Holder = share.New(share.Config{})
	}
	return nil
}

// newMember returns a member with this identity. It opens no socket and starts nothing.
func newMember(cfg Config, book *reputation.Book, key crypto.PrivKey) (_ *member, err error) {
	n := &member{
		cfg: cfg, log: cfg.Log, reputation: book, leaseless: backoff.NewSet[string](maxLeaseless), twin: make(chan string, 1),
	}
	n.site, err = site.New(site.Config{
		Listen: cfg.Listen, Bootstrap: cfg.Bootstrap, MDNS: cfg.MDNS, MaxPeers: cfg.MaxPeers, SwarmKeyFile: cfg.SwarmKeyFile, Name: cfg.Name,
		AllowCIDRs: cfg.AllowCIDRs, AllowOnLink: cfg.AllowOnLink, Identity: key, Saved: cfg.Saved, Banned: n.reputation.Blamed,
		Inventory: cfg.Holder.Inventory(), Resolver: cfg.Resolver, Clock: cfg.Clock, Events: cfg.Events, Conditions: cfg.Conditions,
		Metrics: cfg.Metrics, Log: cfg.Log, OnLost: n.lost, OnTwin: n.foundTwin,
	})
	if err != nil {
		return nil, fmt.Errorf("p2p: %w", err)
	}
	n.compose()
	return n, nil
}

// compose makes the parts that work on the site.
func (n *member) compose() {
	cfg, peers := &n.cfg, admitted{n.site}
	self := lease.NodeID(n.site.ID())
	n.coordinator = lease.NewCoordinator(self)
	sc := server.Config{Site: peers, Clock: cfg.Clock, Holder: cfg.Holder, UploadLimit: cfg.UploadLimit, Encoder: cfg.Encoder, Metrics: cfg.Metrics, Log: cfg.Log}
	cc := client.Config{
		Site: peers, Keys: cfg.Keys, ShareKeys: cfg.ShareKeys, Reputation: n.reputation, DHT: beyond{n}, Clock: cfg.Clock,
		Bases: cfg.Bases, Events: cfg.Events, Metrics: cfg.Metrics, Log: cfg.Log,
	}
	n.leases = lease.NewClient(coordinators{n}, cfg.Clock.Now)
	n.zoneLeases = lease.NewClient(zoneMates{coordinators{n}}, cfg.Clock.Now)
	n.site.SetZone(cfg.Zone)
	cc.Zone.Name = n.site.Zone
	if cfg.Leases {
		sc.Coordinate, cc.Leases, cc.Zone.Leases = n.coordinate, n.leases, n.zoneLeases
	}
	n.server, n.client = server.New(sc), client.New(cc)
	n.announcer = share.NewAnnouncer(cfg.Holder)
	n.announcer.Changed, n.announcer.Log = n.site.InventoryChanged, cfg.Log
}

// foundTwin notes that another machine has this identity.
func (n *member) foundTwin(addr string) {
	select {
	case n.twin <- addr:
	default:
	}
}

// twinError says that a member ended because another machine has its identity.
type twinError struct{ addr string }

// Error is part of error.
func (e *twinError) Error() string { return "p2p: the machine at " + e.addr + " has the same identity" }

// run makes the member live until ctx ends, or until another machine with its identity is found,
// which is a *twinError. Up is called when peers can connect.
func (n *member) run(ctx context.Context, up func()) error {
	// The site outlives the parts that work on it.
	outer, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- n.site.Run(outer) }()
	select {
	case <-n.site.Ready():
	case err := <-ended:
		return err
	case <-ctx.Done():
		stop()
		return <-ended
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n.openDHT()
	var parts sync.WaitGroup
	parts.Go(func() { n.server.Serve(ctx, n.site.Listen()) })
	parts.Go(func() { n.announcer.Run(ctx) })
	parts.Go(func() { n.tidy(ctx) })
	up()
	var err error
	select {
	case <-ctx.Done():
	case addr := <-n.twin:
		err = &twinError{addr}
	case err = <-ended:
		ended <- nil
	}
	cancel()
	n.leases.Close() // while the last reports can be sent
	n.zoneLeases.Close()
	if d := n.directory.Swap(nil); d != nil {
		d.dht.Close()
		d.finder.Close()
	}
	stop()
	if e := <-ended; err == nil {
		err = e
	}
	parts.Wait()
	n.client.Close()
	return err
}

// tidy drops what is over.
func (n *member) tidy(ctx context.Context) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		n.countStandings()
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			n.coordinator.Expire(now)
		}
	}
}

// lost is told of peers that are not connected any more.
func (n *member) lost(p *site.Peer) {
	n.coordinator.Lost(lease.NodeID(p.ID))
	if d := n.directory.Load(); d != nil {
		d.dht.Remove(p.ID)
	}
}
