package site

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/nixp2p/nixp2p/internal/backoff"
	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/netif"
)

// gate says with whom a connection may exist: machines of the allowed networks, and peers
// that are not banned.
type gate struct {
	allow  []netip.Prefix
	onLink bool
	bans   *backoff.Set[peer.ID]

	mu    sync.Mutex
	links []netip.Prefix
	seen  time.Time
}

// maxBans bounds the memory of banned peers.
const maxBans = 4096

func newGate(cfg *Config) *gate {
	allow := cfg.AllowCIDRs
	if listensOnLoopback(cfg.Listen) {
		allow = append(allow[:len(allow):len(allow)], netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"))
	}
	return &gate{allow: allow, onLink: cfg.AllowOnLink, bans: backoff.NewSet[peer.ID](maxBans)}
}

// allowed reports whether a machine with this address may be a peer.
func (g *gate) allowed(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	if g.configured(ip) {
		return true
	}
	if !g.onLink {
		return false
	}
	for _, p := range g.linkPrefixes() {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// configured reports whether a configured network contains an address.
func (g *gate) configured(ip netip.Addr) bool {
	return slices.ContainsFunc(g.allow, func(p netip.Prefix) bool { return p.Contains(ip) })
}

func (g *gate) linkPrefixes() []netip.Prefix {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := time.Now(); now.Sub(g.seen) > linksFor {
		if links, err := netif.Links(); err == nil {
			g.links, g.seen = netif.OnLink(links), now
		}
	}
	return g.links
}

// allowedAddr reports whether an address may be dialled and accepted.
func (g *gate) allowedAddr(m ma.Multiaddr) bool {
	a, ok := machine.Addr(m)
	return ok && g.allowed(a)
}
