// Package netif finds the links of this machine: interfaces, their addresses and
// prefixes, leaving out those that lead only to containers and virtual machines on this
// very machine.
package netif

import (
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Link is an interface that is up.
type Link struct {
	Index     int
	Name      string
	Loopback  bool
	Multicast bool
	Prefixes  []netip.Prefix // its addresses with the length of their networks
}

// virtual are the names that programs give to bridges of their own: machines behind them
// cannot be reached from elsewhere under these addresses, which are the same on every
// machine that runs the program.
var virtual = []string{"docker", "br-", "virbr", "vnet", "veth", "cni", "flannel", "podman", "lxcbr", "lxdbr", "incusbr"}

// Virtual reports whether an interface of this name leads only into this machine.
func Virtual(name string) bool {
	return slices.ContainsFunc(virtual, func(p string) bool { return strings.HasPrefix(name, p) })
}

// Links returns the interfaces that are up, without the virtual ones unless there is
// nothing else except loopback.
func Links() ([]Link, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var real, inner []Link
	found := false
	for _, i := range all {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		l := Link{Index: i.Index, Name: i.Name, Loopback: i.Flags&net.FlagLoopback != 0, Multicast: i.Flags&net.FlagMulticast != 0}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it went away
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if p, ok := prefixOf(n); ok {
					l.Prefixes = append(l.Prefixes, p)
				}
			}
		}
		if Virtual(i.Name) {
			inner = append(inner, l)
			continue
		}
		real = append(real, l)
		found = found || !l.Loopback && len(l.Prefixes) > 0
	}
	if !found {
		real = append(real, inner...)
	}
	return real, nil
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	ip, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	if !ok {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(ip.Unmap(), ones), true
}

// Advertised returns the addresses under which others may reach this machine, best first:
// IPv4, then IPv6, then link-local ones; no loopback.
func Advertised(links []Link) []netip.Addr {
	var addrs []netip.Addr
	for _, l := range links {
		if l.Loopback {
			continue
		}
		for _, p := range l.Prefixes {
			if a := p.Addr(); !a.IsLoopback() && !a.IsMulticast() {
				addrs = append(addrs, a)
			}
		}
	}
	rank := func(a netip.Addr) int {
		switch {
		case a.IsLinkLocalUnicast():
			return 2
		case a.Is4():
			return 0
		}
		return 1
	}
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return rank(a) - rank(b) })
	return addrs
}

// OnLink returns the networks that this machine is part of, loopback left out.
func OnLink(links []Link) []netip.Prefix {
	var nets []netip.Prefix
	for _, l := range links {
		if l.Loopback {
			continue
		}
		for _, p := range l.Prefixes {
			nets = append(nets, p.Masked())
		}
	}
	return nets
}
