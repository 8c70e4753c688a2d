package p2p

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nixp2p/nixp2p/internal/nix"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/reputation"
	"github.com/nixp2p/nixp2p/p2p/server"
	"github.com/nixp2p/nixp2p/p2p/site"
	"github.com/nixp2p/nixp2p/p2p/swarmkey"
	"github.com/nixp2p/nixp2p/verify"
)

// Node is this machine among its peers. It is safe for concurrent use. Run must be running;
// before and after, no peer is connected.
type Node struct {
	cfg      Config
	identity *identity
	book     *reputation.Book
	member   atomic.Pointer[member] // another one when the identity is replaced
	zone     atomic.Pointer[string]
	started  atomic.Bool
	up       sync.Once
	ready    chan struct{}
}

var _ source.Peers = (*Node)(nil)

// New returns a Node with its identity. It opens no socket and starts nothing.
func New(cfg Config) (*Node, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, book: reputation.New(cfg.Reputation), ready: make(chan struct{})}
	n.identity = &identity{machine: thisMachine(machineID), log: cfg.Log, conditions: cfg.Conditions}
	if cfg.StateDir != "" {
		n.identity.path = filepath.Join(cfg.StateDir, "identity.key")
	}
	if err := n.identity.load(); err != nil {
		return nil, err
	}
	return n, n.join()
}

// join makes the member that has the present identity.
func (n *Node) join() error {
	m, err := newMember(n.cfg, n.book, n.identity.key)
	if err != nil {
		return err
	}
	n.member.Store(m)
	if zone := n.zone.Load(); zone != nil {
		m.site.SetZone(*zone)
	}
	return nil
}

// SetZone says which zone this node is in, "" if none.
func (n *Node) SetZone(zone string) {
	n.zone.Store(&zone)
	n.member.Load().site.SetZone(zone)
}

// Run makes the node live until ctx ends. It returns an error if it cannot, and when it is called a
// second time. When another machine turns out to have the same identity, as copies of one image
// have, the node goes on with a new one.
func (n *Node) Run(ctx context.Context) error {
	if n.started.Swap(true) {
		return errors.New("p2p: Run was called before")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var keeping sync.WaitGroup
	defer keeping.Wait()
	defer cancel()
	keeping.Go(func() { n.identity.run(ctx) })
	for {
		err := n.member.Load().run(ctx, func() { n.up.Do(func() { close(n.ready) }) })
		var twin *twinError
		if !errors.As(err, &twin) || ctx.Err() != nil {
			return err
		}
		if err := n.replaceIdentity(twin.addr); err != nil {
			return err
		}
	}
}

// copiedFor is how long it is shown that the identity was replaced.
const copiedFor = 24 * time.Hour

// replaceIdentity takes a new identity, since the machine at addr has the same one. It takes a new
// one as well, if it is such a node: it does not matter which of the two keeps what both had.
func (n *Node) replaceIdentity(addr string) error {
	old := n.ID()
	n.identity.mu.Lock()
	err := n.identity.renew()
	n.identity.mu.Unlock()
	if err != nil {
		return err
	}
	if err := n.join(); err != nil {
		return err
	}
	n.cfg.Conditions.ReportFor(n.cfg.Log, "identity-copied", source.Condition{
		Part: source.PartIdentity, Note: true,
		Text: fmt.Sprintf("another machine, at %s, has the same identity %s: state was cloned; this node has taken a new identity, %s", addr, old, n.ID()),
		Hint: "leave the state directory out of images: docs/ci.md",
	}, copiedFor)
	return nil
}

// KeptOut explains which of the configured addresses of peers cfg.AllowCIDRs keeps out. Names are not
// looked up.
func KeptOut(cfg Config) []source.Condition {
	return site.KeptOut(site.Config{Listen: cfg.Listen, Bootstrap: cfg.Bootstrap, AllowCIDRs: cfg.AllowCIDRs, AllowOnLink: cfg.AllowOnLink})
}

// NewSwarmKey returns a fresh secret for a closed site, a line of its key file.
func NewSwarmKey() string { return swarmkey.New() }

// ID returns this node's peer ID.
func (n *Node) ID() string { return n.member.Load().site.ID().String() }

// Ready is closed when the node is up.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Addrs returns the addresses, with the peer ID, under which others reach this node.
func (n *Node) Addrs() []string { return n.member.Load().site.Addrs() }

// Drain withdraws this node from the site, which it is about to leave: others are told that it
// shares nothing, and no peer begins an upload or asks it as coordinator any more. It returns
// when the uploads that were going on have ended, or ctx has.
func (n *Node) Drain(ctx context.Context) {
	m := n.member.Load()
	m.announcer.Withdraw()
	m.server.Drain(ctx)
}

// Info is part of source.Peers.
func (n *Node) Info(ctx context.Context, h nix.StoreHash) (*verify.Info, error) {
	return n.member.Load().client.Info(ctx, h)
}

// MayHave is part of source.Peers.
func (n *Node) MayHave(h nix.StoreHash) bool { return n.member.Load().client.MayHave(h) }

// Raw is part of source.Peers.
func (n *Node) Raw(info *verify.Info) bool { return n.member.Load().client.Raw(info) }

// FileSize is part of source.Peers.
func (n *Node) FileSize(info *verify.Info) int64 { return n.member.Load().client.FileSize(info) }

// Begin is part of source.Peers.
func (n *Node) Begin(ctx context.Context, want source.Want) source.Session {
	return n.member.Load().client.Begin(ctx, want)
}

// Search is part of source.Peers.
func (n *Node) Search(ctx context.Context, info *verify.Info) bool {
	return n.member.Load().client.Search(ctx, info)
}

// DeltaBases returns the bases that are proposed to a peer for a NAR, if the link to it is slow.
func (n *Node) DeltaBases(info *verify.Info) []source.Base {
	return n.member.Load().client.DeltaBases(info)
}

// Peers returns the connected peers, and those that are blamed and not connected, by ID.
func (n *Node) Peers() []PeerStatus { return n.member.Load().status() }

// Uploads returns the NARs that are on their way to peers now, in no order.
func (n *Node) Uploads() []server.Upload { return n.member.Load().server.Uploads() }

// Holders returns the IDs of the connected peers whose inventory may have the path.
func (n *Node) Holders(h nix.StoreHash) []string { return n.member.Load().client.Holders(h) }

// Providers asks the DHT who announced a NAR, and waits for the answer: up to some seconds. It
// is for people who want to know. The IDs are of those that could be connected to.
func (n *Node) Providers(ctx context.Context, nar nix.NarHash) []string {
	return n.member.Load().providers(ctx, nar)
}
