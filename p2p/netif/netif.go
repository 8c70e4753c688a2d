// Package netif finds the links of this machine: interfaces, their addresses and prefixes. What
// an interface is good for is decided by facts (flags, addresses, the kernel's word for its kind,
// the ports of a bridge, where the default route goes), never by its name. Those that lead only to
// containers and virtual machines on this very machine are left out: their addresses are the same
// on every machine that runs the same program.
package netif

import (
	"net"
	"net/netip"
	"slices"
)

// Link is an interface with addresses.
type Link struct {
	Index     int
	Name      string
	Loopback  bool
	Multicast bool
	Prefixes  []netip.Prefix // its addresses with the length of their networks
	// LeftOut is why no peer is looked for here, and none is told the addresses; "" if the link
	// is used.
	LeftOut string
}

// Why links are left out.
const (
	isDown      = "it is down"
	isUnplugged = "nothing is connected to it"
	isDummy     = "it is a dummy, with no network behind it"
	isInner     = "it is a bridge without a port that leads out of this machine: only containers or virtual machines are behind it"
	isContainer = "its other end is a container on this machine"
)

// Links returns the links that are used.
func Links() ([]Link, error) {
	all, err := All()
	return slices.DeleteFunc(all, func(l Link) bool { return l.LeftOut != "" }), err
}

// All returns the interfaces that have addresses, those that are left out as well.
func All() ([]Link, error) {
	found, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	facts := kernelFacts()
	all := make([]iface, 0, len(found))
	for _, i := range found {
		f := iface{
			Link:    Link{Index: i.Index, Name: i.Name, Loopback: i.Flags&net.FlagLoopback != 0, Multicast: i.Flags&net.FlagMulticast != 0},
			up:      i.Flags&net.FlagUp != 0,
			carrier: i.Flags&net.FlagRunning != 0,
			fact:    facts[i.Index],
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it went away
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if p, ok := prefixOf(n); ok {
					f.Prefixes = append(f.Prefixes, p)
				}
			}
		}
		all = append(all, f)
	}
	return classify(all, wayOut()), nil
}

// fact is what the kernel says of an interface. The zero value is a network card.
type fact struct {
	kind   string // such as "bridge" or "veth", "" for hardware and where the system does not say
	bridge int    // index of the bridge of which it is a port, 0 if none
}

// iface is what is known of an interface.
type iface struct {
	Link
	fact
	up, carrier bool
}

// hardware reports whether this is a network card, as far as known.
func (i *iface) hardware() bool { return !i.Loopback && (i.kind == "" || i.kind == "wlan") }

// inside reports whether the other end of an interface of this kind is usually on this machine.
func (i *iface) inside() bool {
	return slices.Contains([]string{"veth", "netkit", "tun", "dummy", "ifb"}, i.kind)
}

// classify decides which interfaces are used. An interface with one of the addresses in out is on
// the way out of this machine, whatever its kind.
func classify(all []iface, out []netip.Addr) (links []Link) {
	hardware := slices.ContainsFunc(all, func(i iface) bool { return i.hardware() })
	leads := map[int]bool{} // bridges with a port that leads out
	for _, i := range all {
		// Without a network card this is a container itself, and a pair of interfaces is how
		// it is connected.
		if i.bridge != 0 && (!i.inside() || i.kind == "veth" && !hardware) {
			leads[i.bridge] = true
		}
	}
	used := false
	for _, i := range all {
		l := i.Link
		if len(l.Prefixes) == 0 {
			continue
		}
		onWay := slices.ContainsFunc(l.Prefixes, func(p netip.Prefix) bool { return slices.Contains(out, p.Addr()) })
		switch {
		case !i.up:
			l.LeftOut = isDown
		case l.Loopback, onWay:
		case !i.carrier:
			l.LeftOut = isUnplugged
		case i.kind == "dummy" || i.kind == "ifb":
			l.LeftOut = isDummy
		case i.kind == "bridge" && !leads[i.Index]:
			l.LeftOut = isInner
		case (i.kind == "veth" || i.kind == "netkit") && hardware:
			l.LeftOut = isContainer
		}
		used = used || !l.Loopback && l.LeftOut == ""
		links = append(links, l)
	}
	for i := range links { // an inner network is better than none
		if l := &links[i]; !used && (l.LeftOut == isInner || l.LeftOut == isContainer) {
			l.LeftOut = ""
		}
	}
	return links
}

// wayOut returns the addresses from which this machine would send to the internet. Nothing is sent:
// the addresses that are asked for are reserved for documentation.
func wayOut() (addrs []netip.Addr) {
	for _, to := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} {
		c, err := net.Dial("udp", to)
		if err != nil {
			continue
		}
		if a, ok := c.LocalAddr().(*net.UDPAddr); ok {
			addrs = append(addrs, a.AddrPort().Addr().Unmap())
		}
		_ = c.Close()
	}
	return addrs
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
