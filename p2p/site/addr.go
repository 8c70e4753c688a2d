package site

import (
	"errors"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/nixp2p/nixp2p/p2p/machine"
	"github.com/nixp2p/nixp2p/p2p/netif"
)

// errNoAddr says that a text is not an address that may be dialled.
var errNoAddr = errors.New("not an IP address and TCP port")

// maxAddrText is more than an address of any kind has.
const maxAddrText = 256

// parseAddr reads a multiaddr with or without a peer ID. Only IP addresses with a TCP port are
// accepted: a peer must not make this machine look up names.
func parseAddr(s string) (addr ma.Multiaddr, id peer.ID, err error) {
	if len(s) > maxAddrText {
		return nil, "", errNoAddr
	}
	m, err := ma.NewMultiaddr(s)
	if err != nil {
		return nil, "", err
	}
	if addr = m; m[len(m)-1].Protocol().Code == ma.P_P2P {
		if addr, id = peer.SplitAddr(m); id == "" {
			return nil, "", errNoAddr
		}
	}
	if !dialable(addr) {
		return nil, "", errNoAddr
	}
	return addr, id, nil
}

// dialable reports whether an address is an IP address, maybe with a zone, and a TCP port,
// and nothing else.
func dialable(m ma.Multiaddr) bool {
	if len(m) > 0 && m[0].Protocol().Code == ma.P_IP6ZONE {
		m = m[1:]
	}
	if len(m) != 2 || m[1].Protocol().Code != ma.P_TCP {
		return false
	}
	code := m[0].Protocol().Code
	return code == ma.P_IP4 || code == ma.P_IP6
}

// fullAddrs returns addresses with the peer ID.
func fullAddrs(id peer.ID, addrs []ma.Multiaddr) (list []string) {
	for _, a := range addrs {
		list = append(list, a.String()+"/p2p/"+id.String())
	}
	return list
}

// listensOnLoopback reports whether one of the multiaddrs names a loopback address: then
// several nodes of one machine are meant to find each other.
func listensOnLoopback(listen []string) bool {
	for _, l := range listen {
		for i, s := range strings.Split(l, "/") {
			if ip, err := netip.ParseAddr(s); err == nil && i > 0 && ip.IsLoopback() {
				return true
			}
		}
	}
	return false
}

// linksFor is how long a look at the interfaces is used.
const linksFor = 5 * time.Second

// advertiser chooses the addresses that others are told.
type advertiser struct {
	loopback bool

	mu   sync.Mutex
	seen time.Time
	real map[netip.Addr]bool
}

// maxAdvertised addresses of this node are told: each one is in every record of the DHT and
// in every list of peers.
const maxAdvertised = 3

// choose is libp2p's AddrsFactory. It leaves out addresses that lead nowhere from outside.
func (a *advertiser) choose(all []ma.Multiaddr) (chosen []ma.Multiaddr) {
	real := a.realAddrs()
	for _, m := range all {
		addr, ok := machine.Addr(m)
		switch {
		case !ok || len(chosen) == maxAdvertised:
		case addr.IsLoopback() && a.loopback, real[addr] && !addr.Is6():
			chosen = append(chosen, m)
		case real[addr] && !addr.IsLinkLocalUnicast():
			chosen = append(chosen, m)
		}
	}
	return chosen
}

func (a *advertiser) realAddrs() map[netip.Addr]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := time.Now(); now.Sub(a.seen) > linksFor {
		if links, err := netif.Links(); err == nil {
			a.seen, a.real = now, make(map[netip.Addr]bool)
			for _, ip := range netif.Advertised(links) {
				a.real[ip] = true
			}
		}
	}
	return a.real
}
