// Package dht announces large NARs to a Kademlia table that the nodes of a site hold
// together, and finds which peers have one. Only this package uses the library for it.
// A record proves nothing: the peer that it names may not have the NAR.
package dht

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	kad "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/provider"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	mh "github.com/multiformats/go-multihash"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/machine"
)

const (
	// prefix keeps the table apart from all others: /nixp2p/kad/1.0.0.
	prefix = "/nixp2p"
	// replication is on how many nodes a record lies.
	replication = 5
	// validity is how long a record holds: no message takes one back.
	validity = time.Hour
	// again is how often records are sent anew, spread over that time.
	again      = 30 * time.Minute
	againDelay = 5 * time.Minute
	// cleanup is how often expired records are thrown away.
	cleanup = 10 * time.Minute
	// sendTime bounds sending records to one node.
	sendTime = 3 * time.Second
	// findMost providers are enough.
	findMost = 8
	// findMore is how long more are waited for after the first.
	findMore = 100 * time.Millisecond
	// offlineDelay is after how long alone the library would drop what is queued.
	offlineDelay = 24 * time.Hour
	// alone is how often it is looked whether anybody is there to announce to.
	alone = 500 * time.Millisecond
	// wanted is for how long announcing must be of use before it begins: while a site starts,
	// everybody meets somebody first who knows nothing yet.
	wanted = 5 * time.Second
	// refresh is how often the table is looked after.
	refresh     = 5 * time.Minute
	refreshTime = 3 * time.Second
)

// maxAnnounced bounds what one node puts on others: 20,000 records take some 6 seconds of
// a small site and 4 MB of each node.
const maxAnnounced = 20_000

// Config says among whom the table lies.
type Config struct {
	// Host opens streams only to those who may be asked, and hands in only those of whom
	// questions may come.
	Host host.Host
	// Machine returns the machine that a peer is on. If nil, all are on one.
	Machine func(peer.ID) machine.ID
	// Wanted reports whether somebody may be there who does not learn otherwise what this node
	// has. Nothing is announced before it has said so for five seconds. If nil, there always is.
	Wanted func() bool
	Log    *slog.Logger // nil discards
}

// DHT is this node's part of the table. It is safe for concurrent use.
type DHT struct {
	cfg Config
	kad *kad.IpfsDHT
	run sync.WaitGroup

	mu        sync.Mutex
	announced map[nix.NarHash]struct{}
	prov      *provider.SweepingProvider // nil until somebody else is there
	begun     bool                       // it takes what it is given
}

// Open joins the table as a server. The caller closes the DHT.
func Open(cfg Config) (*DHT, error) {
	if cfg.Host == nil {
		return nil, errors.New("dht: no host")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	k, err := kad.New(cfg.Host,
		kad.Mode(kad.ModeServer),
		kad.ProtocolPrefix(prefix),
		kad.DisableValues(),
		// The library's own store scans all records on each look-up.
		kad.ProviderDatastore(newStore(cfg.Machine)),
		kad.ProviderManagerOpts(records.ProvideValidity(validity), records.ProviderAddrTTL(validity), records.CleanupInterval(cleanup)),
		kad.RoutingTableRefreshPeriod(refresh),
		kad.RoutingTableRefreshQueryTimeout(refreshTime),
	)
	if err != nil {
		return nil, fmt.Errorf("dht: %w", err)
	}
	d := &DHT{cfg: cfg, kad: k, announced: make(map[nix.NarHash]struct{})}
	d.run.Go(d.waitForOthers)
	return d, nil
}

// waitForOthers begins to announce when there is somebody to announce to and for. The library
// drops what it is given while it thinks itself alone, without an error, and is not told
// when it is not: it is given everything until it has taken it.
func (d *DHT) waitForOthers() {
	ctx := d.kad.Context()
	tick := time.NewTicker(alone)
	defer tick.Stop()
	var since time.Time // it is wanted
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if w := d.cfg.Wanted; w != nil {
			if !w() {
				since = time.Time{}
				continue
			}
			if since.IsZero() {
				since = time.Now()
			}
			if time.Since(since) < wanted {
				continue
			}
		}
		if d.kad.RoutingTable().Size() == 0 || !d.any() {
			continue
		}
		switch begun, err := d.begin(ctx); {
		case err != nil:
			d.cfg.Log.Error("nothing is announced", "err", err)
			return
		case begun:
			return
		}
	}
}

// any reports whether there is something to announce.
func (d *DHT) any() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.announced) > 0
}

// begin gives the library all that is announced, and reports whether it has taken it.
func (d *DHT) begin(ctx context.Context) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.prov == nil {
		p, err := d.newProvider()
		if err != nil {
			return false, err
		}
		d.prov = p
	}
	keys := make([]mh.Multihash, 0, len(d.announced))
	for nar := range d.announced {
		keys = append(keys, multihash(nar))
	}
	if err := d.prov.StartProviding(true, keys...); err != nil {
		return false, err
	}
	st, err := d.prov.Stats(ctx)
	if err != nil {
		return false, nil // closed meanwhile
	}
	past := st.Operations.Past
	d.begun = st.Queues.PendingKeyProvides+int64(past.KeysProvided)+int64(past.KeysFailed) > 0
	return d.begun, nil
}

func (d *DHT) newProvider() (*provider.SweepingProvider, error) {
	return provider.New(
		provider.WithHost(d.cfg.Host),
		provider.WithRouter(d.kad),
		provider.WithMessageSender(d.kad.MessageSender()),
		provider.WithSelfAddrs(d.kad.FilteredAddrs),
		provider.WithAddLocalRecord(func(ctx context.Context, h mh.Multihash) error {
			return d.kad.Provide(ctx, cid.NewCidV1(cid.Raw, h), false)
		}),
		provider.WithReplicationFactor(replication),
		provider.WithReprovideInterval(again),
		provider.WithMaxReprovideDelay(againDelay),
		provider.WithSendProviderRecordTimeout(sendTime),
		provider.WithOfflineDelay(offlineDelay),
		// Otherwise all that is announced at once is sent twice.
		provider.WithSkipBootstrapReprovide(true),
		provider.WithResumeCycle(false),
	)
}

// Close leaves the table.
func (d *DHT) Close() {
	cancelled := d.kad.Close() // ends the context that the rest lives by
	d.run.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.prov != nil {
		_ = d.prov.Close()
	}
	if cancelled != nil {
		d.cfg.Log.Debug("closing the table", "err", cancelled)
	}
}

// Context ends with Close.
func (d *DHT) Context() context.Context { return d.kad.Context() }

// Remove takes a peer out of the table of routes: it is gone, and each look-up would wait
// for it.
func (d *DHT) Remove(p peer.ID) { d.kad.RoutingTable().RemovePeer(p) }

// Nodes returns how many others are in the table of routes.
func (d *DHT) Nodes() int { return d.kad.RoutingTable().Size() }

func multihash(nar nix.NarHash) mh.Multihash {
	h, err := mh.Encode(nar[:], mh.SHA2_256)
	if err != nil {
		panic(err) // the length is right
	}
	return h
}

// Provide announces that this node has these NARs, now and from time to time until Withdraw,
// as many as one node may announce. It does not wait.
func (d *DHT) Provide(nars []nix.NarHash) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var keys []mh.Multihash
	for _, nar := range nars {
		if _, ok := d.announced[nar]; !ok && len(d.announced) < maxAnnounced {
			d.announced[nar] = struct{}{}
			keys = append(keys, multihash(nar))
		}
	}
	if !d.begun || len(keys) == 0 {
		return
	}
	if err := d.prov.StartProviding(false, keys...); err != nil {
		d.cfg.Log.Debug("announcing", "err", err)
	}
}

// Withdraw stops announcing them. Records that are out hold for up to an hour.
func (d *DHT) Withdraw(nars []nix.NarHash) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var keys []mh.Multihash
	for _, nar := range nars {
		if _, ok := d.announced[nar]; ok {
			delete(d.announced, nar)
			keys = append(keys, multihash(nar))
		}
	}
	if d.prov == nil || len(keys) == 0 {
		return
	}
	if err := d.prov.StopProviding(keys...); err != nil {
		d.cfg.Log.Debug("withdrawing", "err", err)
	}
}

// Find returns who announced a NAR, this node perhaps among them, as far as ctx and findMore
// let it find out.
func (d *DHT) Find(ctx context.Context, nar nix.NarHash) (found []peer.AddrInfo) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := d.kad.FindProvidersAsync(ctx, cid.NewCidV1(cid.Raw, multihash(nar)), findMost)
	var enough <-chan time.Time
	for {
		select {
		case p, ok := <-c:
			if !ok {
				return found
			}
			if p.ID != d.cfg.Host.ID() && enough == nil {
				enough = time.After(findMore)
			}
			found = append(found, p)
		case <-enough:
			return found
		}
	}
}
