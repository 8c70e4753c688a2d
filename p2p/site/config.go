package site

import (
	"errors"
	"log/slog"
	"net/netip"

	"github.com/libp2p/go-libp2p/core/crypto"

	"github.com/nixp2p/nixp2p/internal/metrics"
	"github.com/nixp2p/nixp2p/internal/runclock"
	"github.com/nixp2p/nixp2p/internal/source"
	"github.com/nixp2p/nixp2p/p2p/discovery"
	"github.com/nixp2p/nixp2p/p2p/inventory"
)

// Saved keeps the addresses of peers, with their IDs, from one run to the next.
type Saved interface {
	Load() []string
	Save(addrs []string)
}

// Config says how a Site works.
type Config struct {
	Listen       []string // multiaddrs
	Bootstrap    []string // as in --bootstrap
	MDNS         bool
	MaxPeers     int    // members; 0: 256
	SwarmKeyFile string // "": an open site
	// Name is how people call this machine. Peers are told it, and their names are taken; "":
	// neither.
	Name string
	// AllowCIDRs are the networks whose machines may be peers. Loopback is allowed as well
	// if Listen names a loopback address.
	AllowCIDRs  []netip.Prefix
	AllowOnLink bool           // also the networks that this machine's interfaces are on
	Identity    crypto.PrivKey // nil: a fresh one
	Saved       Saved          // nil: nothing is kept
	// Banned returns why a peer is blamed, if it is. Nil: no peer is.
	Banned     func(id string) (reason string, banned bool)
	Inventory  *inventory.Local   // what this machine shares
	Resolver   discovery.Resolver // of configured names; nil: the system's
	Clock      *runclock.Clock    // of the silence of peers; nil: the ordinary one
	Events     source.Events
	Conditions *source.Conditions // nil drops them
	Metrics    *metrics.Metrics   // required
	Log        *slog.Logger       // nil discards
	OnLost     func(*Peer)        // called when a peer is not connected any more; may be nil
	// OnTwin is called when another machine, at this address, turns out to have this node's
	// identity. It must not block. Nil: nobody is told.
	OnTwin func(addr string)
	// MaxInventoryBytes bounds the memory of all peers' inventories together; 0: 64 MiB.
	MaxInventoryBytes int64
}

const defaultMaxPeers = 256

var defaultListen = []string{"/ip4/0.0.0.0/tcp/7656", "/ip6/::/tcp/7656"}

// complete fills in what was left out.
func (c *Config) complete() error {
	if c.Metrics == nil || c.Inventory == nil {
		return errors.New("site: no metrics or no inventory")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.MaxPeers <= 0 {
		c.MaxPeers = defaultMaxPeers
	}
	if len(c.Listen) == 0 {
		c.Listen = defaultListen
	}
	return nil
}
