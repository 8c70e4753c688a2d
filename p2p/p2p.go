// Package p2p makes this machine a node of its site: it finds other nodes, tells them what
// this machine shares and learns what they do, asks them for narinfos and NARs, and answers
// them from a Holder. What peers say is proven by others: narinfos by verify.Keys, NARs by
// the reader. On behalf of a peer it never goes to anybody else.
package p2p

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/semaphore"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/p2p/dht"
	"github.com/nixp2p/nixp2p/p2p/discovery"
	"github.com/nixp2p/nixp2p/p2p/inventory"
	"github.com/nixp2p/nixp2p/p2p/lease"
	"github.com/nixp2p/nixp2p/p2p/leasing"
	"github.com/nixp2p/nixp2p/p2p/pick"
	"github.com/nixp2p/nixp2p/p2p/quota"
	"github.com/nixp2p/nixp2p/p2p/standing"
	"github.com/nixp2p/nixp2p/p2p/swarmkey"
	"github.com/nixp2p/nixp2p/verify"
)

// Held is one path that this machine shares.
type Held struct {
	Question nix.Question
	NarHash  nix.NarHash
	NarSize  int64 // bytes
}

// Holder is what this machine shares. Only what a share key signed comes out of it; all else
// is absent, an error that wraps fs.ErrNotExist, whatever the reason and in the same time. One
// that also has a method HasRaw(context.Context, nix.NarHash) bool says with it whether a NAR is
// there raw, or coming so: else it is only as an upstream's file, and decoding it takes time.
type Holder interface {
	Info(ctx context.Context, q nix.Question) (*verify.Info, error)
	// NAR returns the bytes in exactly this form from byte off on; those of a download in
	// progress grow as it does. A body that also has a method Have() int64 says with it how
	// many bytes of the form are there so far, one with About() (storePath, source string)
	// what they are, for people.
	NAR(ctx context.Context, nar nix.NarHash, form nix.Form, off int64) (*verify.Unverified, error)
	// Held lists everything that is shared now.
	Held(ctx context.Context) iter.Seq[Held]
}

// Config says how a Node works. Zero fields mean what is said beside them.
type Config struct {
	// StateDir keeps the identity, the peers of last time and the liars. Empty: nothing is
	// kept, and the identity is a fresh one.
	StateDir     string
	Listen       []string // multiaddrs; none: /ip4/0.0.0.0/tcp/7656 and /ip6/::/tcp/7656
	Bootstrap    []string // as in --bootstrap
	MDNS         bool
	MaxPeers     int    // 0: 256
	SwarmKeyFile string // empty: an open site
	// AllowCIDRs are the networks of which peers may be; nil: the private ones. Loopback is
	// allowed besides when Listen names a loopback address.
	AllowCIDRs  []netip.Prefix
	AllowOnLink bool  // also the networks that this machine's interfaces are on
	UploadLimit int64 // bytes a second; 0: no limit
	Leases      bool  // agree with the site on who fetches what nobody has
	Keys        *verify.Keys
	ShareKeys   []string
	Holder      Holder             // nil shares nothing
	Resolver    discovery.Resolver // nil: the system's
	// Trouble is told of peers that lied or did not keep to the protocol. nil: nobody is told.
	Trouble func(source, what, storePath string, err error)
	Metrics *metrics.Metrics // required
	Log     *slog.Logger     // nil discards
}

const defaultMaxPeers = 256

// defaultCIDRs are private and link-local networks: a site, not the internet.
var defaultCIDRs = []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10"}

var defaultListen = []string{"/ip4/0.0.0.0/tcp/7656", "/ip6/::/tcp/7656"}

// Node is this machine among its peers. It is safe for concurrent use. Run must be running;
// before and after, nobody is known.
type Node struct {
	cfg      Config
	log      *slog.Logger
	identity crypto.PrivKey
	self     peer.ID
	swarm    swarmkey.Keys
	sources  []*discovery.Source

	gate     *gate
	addrs    *advertiser
	book     *discovery.Book
	standing *standing.Book
	own      *inventory.Own
	share    *share
	uploads  *quota.Uploads
	limiter  *quota.Limiter
	sending  uploads
	hedge    pick.Hedge // of narinfos
	opens    pick.Hedge // of NARs
	trails   standing.Trails
	evidence standing.Evidence
	table    table
	incoming *semaphore.Weighted // bytes of inventories on their way in
	crew     crew                // what libp2p starts, and what outlives its caller

	host        atomic.Pointer[host.Host]
	dht         atomic.Pointer[dht.DHT]
	lookups     lookups
	leases      *leasing.Leases
	coordinator *lease.Table
	live        atomic.Pointer[live] // as of a moment ago
	draining    atomic.Bool          // it gives nothing new to others any more
	leave       chan struct{}        // closed with that
	ways        ways                 // to nodes that others named
	vouched     sync.Map             // by ID as text: who has given right bytes
	ready       chan struct{}        // closed when the host listens
	news        signal               // the inventory has changed
	kick        chan struct{}        // somebody is to be dialled
}

// New returns a Node with its identity. It opens no socket and starts nothing.
func New(cfg Config) (*Node, error) {
	if cfg.Metrics == nil || cfg.Keys == nil {
		return nil, errors.New("p2p: no metrics or no keys")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxPeers <= 0 {
		cfg.MaxPeers = defaultMaxPeers
	}
	if len(cfg.Listen) == 0 {
		cfg.Listen = defaultListen
	}
	if cfg.AllowCIDRs == nil {
		for _, c := range defaultCIDRs {
			cfg.AllowCIDRs = append(cfg.AllowCIDRs, netip.MustParsePrefix(c))
		}
	}
	n := &Node{
		cfg: cfg, log: cfg.Log,
		own: inventory.NewOwn(), share: newShare(),
		uploads: quota.NewUploads(), limiter: quota.NewLimiter(cfg.UploadLimit),
		incoming: semaphore.NewWeighted(maxIncoming),
		opens:    pick.Hedge{Start: openStart, Least: openLeast, Most: openTime},
		ready:    make(chan struct{}), kick: make(chan struct{}, 1), leave: make(chan struct{}),
	}
	n.news.init()
	if err := n.load(); err != nil {
		return nil, err
	}
	n.book = discovery.NewBook(n.self.String())
	n.leases, n.coordinator = leasing.New(coordinators{n}), lease.NewTable(nodeID(n.self))
	loopback := listensOnLoopback(cfg.Listen)
	n.gate = newGate(cfg.AllowCIDRs, cfg.AllowOnLink, loopback)
	n.addrs = &advertiser{loopback: loopback}
	return n, nil
}

// load reads what is kept in files.
func (n *Node) load() error {
	var err error
	if n.identity, err = identity(n.statePath("identity.key")); err != nil {
		return fmt.Errorf("p2p: identity: %w", err)
	}
	if n.self, err = peer.IDFromPrivateKey(n.identity); err != nil {
		return fmt.Errorf("p2p: identity: %w", err)
	}
	if name := n.cfg.SwarmKeyFile; name != "" {
		text, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("p2p: swarm key: %w", err)
		}
		if n.swarm, err = swarmkey.Parse(text); err != nil {
			return fmt.Errorf("p2p: %s: %w", name, err)
		}
	}
	for _, b := range n.cfg.Bootstrap {
		s, err := discovery.Parse(b, n.cfg.Resolver)
		if err != nil {
			return fmt.Errorf("p2p: bootstrap: %w", err)
		}
		n.sources = append(n.sources, s)
	}
	if n.standing, err = standing.Open(n.statePath("standing.json")); err != nil {
		n.log.Warn("who lied is forgotten", "err", err)
	}
	return nil
}

// statePath returns the name of a file of the state directory, "" without one.
func (n *Node) statePath(name string) string {
	if n.cfg.StateDir == "" {
		return ""
	}
	return filepath.Join(n.cfg.StateDir, name)
}

// Name returns the label of this source in metrics.
func (n *Node) Name() string { return "peer" }

// ID returns this node's peer ID.
func (n *Node) ID() string { return n.self.String() }

// NewSwarmKey returns a fresh secret for a closed site, a line of its key file.
func NewSwarmKey() string { return swarmkey.New() }

// Ready is closed when the node listens.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Addrs returns the addresses, with the peer ID, under which others reach this node.
func (n *Node) Addrs() []string {
	h := n.host.Load()
	if h == nil {
		return nil
	}
	return fullAddrs(peer.AddrInfo{ID: n.self, Addrs: (*h).Addrs()})
}

// Run makes the node live until ctx ends. An error says that it cannot: an address that it
// cannot listen on, for one.
func (n *Node) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var parts sync.WaitGroup
	h, err := n.open()
	if err != nil {
		return fmt.Errorf("p2p: %w", err)
	}
	// From here on everything ends in the reverse order: no new work, then the host with
	// its streams, then those who worked on them.
	server := n.server(ctx)
	n.host.Store(&h)
	requests := n.listener(h)
	parts.Go(func() { _ = server.Serve(requests) })
	watched, stop, err := n.watch(h)
	if err == nil {
		d, derr := dht.Open(n.dhtConfig(h))
		if derr != nil {
			n.log.Error("no DHT", "err", derr)
		} else {
			n.dht.Store(d)
		}
		n.answerSessions(ctx, h)
		for _, part := range []func(context.Context){
			func(ctx context.Context) { n.followConnections(ctx, watched) },
			n.find, n.keepShare, n.keepHouse,
		} {
			parts.Go(func() { part(ctx) })
		}
		if n.cfg.MDNS {
			parts.Go(func() { n.findOnLink(ctx) })
		}
		close(n.ready)
		n.log.Info("peers can connect", "peer", n.self, "addresses", n.Addrs())
		<-ctx.Done()
	}
	cancel()
	n.savePeers()
	n.leases.Close()
	n.host.Store(nil)
	if d := n.dht.Swap(nil); d != nil {
		d.Close()
	}
	stop()
	_ = server.Close()
	_ = h.Close()
	parts.Wait()
	n.crew.dismiss()
	n.table.clear()
	n.cfg.Metrics.Peers.Set(0)
	return err
}

// signal wakes all who wait for the next event.
type signal struct {
	mu sync.Mutex
	c  chan struct{}
}

func (s *signal) init() { s.c = make(chan struct{}) }

// next returns a channel that is closed at the next event.
func (s *signal) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.c
}

func (s *signal) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.c)
	s.c = make(chan struct{})
}

// crew is goroutines that others start. It ends when all have and lets no more begin.
type crew struct {
	mu     sync.Mutex
	closed bool
	all    sync.WaitGroup
}

// enter notes that the caller's goroutine works; false means that it must not. It calls
// leave at its end.
func (c *crew) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.all.Add(1)
	return true
}

func (c *crew) leave() { c.all.Done() }

// start runs f in a goroutine, unless it is too late.
func (c *crew) start(f func()) {
	if c.enter() {
		go func() {
			defer c.leave()
			f()
		}()
	}
}

func (c *crew) dismiss() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.all.Wait()
}

// pause waits, or returns false when ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
