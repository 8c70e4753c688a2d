// Package machine counts what others make this node keep or do by the machine they are on:
// identities cost nothing, addresses do. When a limit is reached, the machine that holds the
// most gives way.
package machine

import (
	"net/netip"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// ID names a machine: an IPv4 address, or an IPv6 network of 64 bits, which one machine can
// fill with addresses. The zero value is a machine that is not known.
type ID struct{ prefix netip.Prefix }

// v6Bits is the size of the network that counts as one IPv6 machine.
const v6Bits = 64

// Of returns the machine that has an address. Loopback addresses are a machine each.
func Of(a netip.Addr) ID {
	a = a.Unmap().WithZone("")
	if !a.IsValid() {
		return ID{}
	}
	bits := a.BitLen()
	if a.Is6() && !a.IsLoopback() {
		bits = v6Bits
		if a.IsLinkLocalUnicast() {
			bits = a.BitLen() // all machines of a link share one such network
		}
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return ID{}
	}
	return ID{p}
}

// OfMultiaddr returns the machine that a multiaddr leads to, the zero ID if it has no IP
// address.
func OfMultiaddr(m ma.Multiaddr) ID {
	a, ok := Addr(m)
	if !ok {
		return ID{}
	}
	return Of(a)
}

// HostOf returns the one address that a multiaddr begins with, the zero ID if it has none. What is held
// against a neighbour is held against that: all hosts of an IPv6 LAN are in the same network of 64 bits,
// and one of them must not have the others left alone.
func HostOf(m ma.Multiaddr) ID {
	a, ok := Addr(m)
	if !ok {
		return ID{}
	}
	a = a.WithZone("")
	return ID{netip.PrefixFrom(a, a.BitLen())}
}

// Addr returns the IP address that a multiaddr begins with.
func Addr(m ma.Multiaddr) (netip.Addr, bool) {
	if len(m) == 0 {
		return netip.Addr{}, false
	}
	ip, err := manet.ToIP(m)
	if err != nil {
		return netip.Addr{}, false
	}
	a, ok := netip.AddrFromSlice(ip)
	return a.Unmap(), ok
}

// Loopback reports whether it is this machine, under a loopback address.
func (id ID) Loopback() bool { return id.prefix.Addr().IsLoopback() }

// String returns the address or the network.
func (id ID) String() string {
	switch {
	case !id.prefix.IsValid():
		return "unknown"
	case id.prefix.IsSingleIP():
		return id.prefix.Addr().String()
	}
	return id.prefix.String()
}

// Prefix returns the address or the network as a prefix, the zero one if the machine is not known.
func (id ID) Prefix() netip.Prefix { return id.prefix }
