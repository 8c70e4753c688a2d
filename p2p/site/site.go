// Package site tracks the connected peers of this node's site: it listens and dials, admits
// peers, keeps a session with each, exchanges inventories, and notices when one is gone.
// Whatever others can make it keep or do is bounded by machine (package machine).
package site

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/nixp2p/nixp2p/internal/metrics"
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
	// AllowCIDRs are the networks whose machines may be peers. Loopback is allowed as well
	// if Listen names a loopback address.
	AllowCIDRs  []netip.Prefix
	AllowOnLink bool           // also the networks that this machine's interfaces are on
	Identity    crypto.PrivKey // nil: a fresh one
	Saved       Saved          // nil: nothing is kept
	// Banned returns why a peer is blamed, if it is. Nil: no peer is.
	Banned    func(id string) (reason string, banned bool)
	Inventory *inventory.Local   // what this machine shares
	Resolver  discovery.Resolver // of configured names; nil: the system's
	Events    source.Events
	Metrics   *metrics.Metrics // required
	Log       *slog.Logger     // nil discards
	OnLost    func(*Peer)      // a peer is not connected any more; nil: nobody is told
	// MaxInventoryBytes bounds the memory of all peers' inventories together; 0: 64 MiB.
	MaxInventoryBytes int64
}

// Site is the connected peers. It is safe for concurrent use. Run must be running; before
// and after, no peer is connected.
type Site struct{}

var errTODO = errors.New("not yet")

func New(Config) (*Site, error)                                              { return nil, errTODO }
func (s *Site) Run(ctx context.Context) error                                { return errTODO }
func (s *Site) Ready() <-chan struct{}                                       { return nil }
func (s *Site) ID() peer.ID                                                  { return "" }
func (s *Site) Addrs() []string                                              { return nil }
func (s *Site) Peers() []*Peer                                               { return nil }
func (s *Site) Peer(id peer.ID) *Peer                                        { return nil }
func (s *Site) RoundTrip(p *Peer, req *http.Request) (*http.Response, error) { return nil, errTODO }
func (s *Site) Listen() net.Listener                                         { return nil }
func PeerOf(addr string) (peer.ID, error)                                    { return "", errTODO }
func (s *Site) Connect(ctx context.Context, id peer.ID, addr string) (*Peer, error) {
	return nil, errTODO
}

// Dialing reports whether a dial to the peer that Connect began is young enough to wait for.
func (s *Site) Dialing(id peer.ID) bool { return false }

// Unreachable reports whether Connect failed to reach the peer lately.
func (s *Site) Unreachable(id peer.ID) bool { return false }

func (s *Site) Ban(id peer.ID, why error, d time.Duration) {}
func (s *Site) Reachable(id peer.ID) []string              { return nil }
func (s *Site) RemoteAddrs(id peer.ID) []string            { return nil }
func (s *Site) FoundBy(id peer.ID) string                  { return "" }
func (s *Site) Learn(by *Peer, addrs []string) []peer.ID   { return nil }
func (s *Site) Host() host.Host                            { return nil }
func (s *Site) InventoryChanged()                          {}
