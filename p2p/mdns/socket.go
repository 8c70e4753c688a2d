package mdns

import (
	"context"
	"net"
	"net/netip"
	"reflect"
	"sync"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/nixp2p/nixp2p/p2p/netif"
)

const (
	port = 5353
	hops = 255 // RFC 6762 §11
)

var (
	group4 = net.IPv4(224, 0, 0, 251)
	group6 = net.ParseIP("ff02::fb")
)

// socket is one address family. It joins the group on every link there is.
type socket struct {
	conn  net.PacketConn
	join  func(*net.Interface) error
	leave func(*net.Interface) error
	read  func([]byte) (n, link int, from netip.AddrPort, err error)
	send  func(b []byte, link int, to *net.UDPAddr) error
	group *net.UDPAddr

	mu    sync.Mutex
	links map[int]netif.Link
}

// shared lets other programs of this machine, and other nodes, have the port as well.
var shared = net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) {
		if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}
	})
	if cerr != nil {
		return cerr
	}
	return err
}}

func open4(ctx context.Context) (*socket, error) {
	c, err := shared.ListenPacket(ctx, "udp4", "0.0.0.0:5353")
	if err != nil {
		return nil, err
	}
	p := ipv4.NewPacketConn(c)
	// Several nodes on one machine find each other by the loop.
	for _, err := range []error{p.SetControlMessage(ipv4.FlagInterface, true), p.SetMulticastLoopback(true), p.SetMulticastTTL(hops)} {
		if err != nil {
			_ = c.Close()
			return nil, err
		}
	}
	return &socket{
		conn: c, links: map[int]netif.Link{}, group: &net.UDPAddr{IP: group4, Port: port},
		join:  func(i *net.Interface) error { return p.JoinGroup(i, &net.UDPAddr{IP: group4}) },
		leave: func(i *net.Interface) error { return p.LeaveGroup(i, &net.UDPAddr{IP: group4}) },
		read: func(b []byte) (int, int, netip.AddrPort, error) {
			n, cm, from, err := p.ReadFrom(b)
			link := 0
			if cm != nil {
				link = cm.IfIndex
			}
			return n, link, sourceOf(from), err
		},
		send: func(b []byte, link int, to *net.UDPAddr) error {
			_, err := p.WriteTo(b, &ipv4.ControlMessage{IfIndex: link}, to)
			return err
		},
	}, nil
}

func open6(ctx context.Context) (*socket, error) {
	c, err := shared.ListenPacket(ctx, "udp6", "[::]:5353")
	if err != nil {
		return nil, err
	}
	p := ipv6.NewPacketConn(c)
	for _, err := range []error{p.SetControlMessage(ipv6.FlagInterface, true), p.SetMulticastLoopback(true), p.SetMulticastHopLimit(hops)} {
		if err != nil {
			_ = c.Close()
			return nil, err
		}
	}
	return &socket{
		conn: c, links: map[int]netif.Link{}, group: &net.UDPAddr{IP: group6, Port: port},
		join:  func(i *net.Interface) error { return p.JoinGroup(i, &net.UDPAddr{IP: group6}) },
		leave: func(i *net.Interface) error { return p.LeaveGroup(i, &net.UDPAddr{IP: group6}) },
		read: func(b []byte) (int, int, netip.AddrPort, error) {
			n, cm, from, err := p.ReadFrom(b)
			link := 0
			if cm != nil {
				link = cm.IfIndex
			}
			return n, link, sourceOf(from), err
		},
		send: func(b []byte, link int, to *net.UDPAddr) error {
			_, err := p.WriteTo(b, &ipv6.ControlMessage{IfIndex: link}, to)
			return err
		},
	}, nil
}

func sourceOf(a net.Addr) netip.AddrPort {
	if u, ok := a.(*net.UDPAddr); ok {
		return u.AddrPort()
	}
	return netip.AddrPort{}
}

// follow joins the group on links that have come and reports whether any has, or has other
// addresses than before. Links that are gone need no leaving.
func (k *socket) follow() (changed bool) {
	links, err := netif.Links()
	if err != nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	now := make(map[int]netif.Link, len(links))
	for _, l := range links {
		if l.Loopback || !l.Multicast || len(l.Prefixes) == 0 {
			continue
		}
		if _, joined := k.links[l.Index]; !joined {
			i := &net.Interface{Index: l.Index, Name: l.Name}
			if k.join(i) != nil {
				// A link may have lost its membership, but not its place, while it was down.
				if _ = k.leave(i); k.join(i) != nil {
					continue
				}
			}
		}
		now[l.Index] = l
		changed = changed || !reflect.DeepEqual(k.links[l.Index], l)
	}
	k.links = now
	return changed
}

// link returns the addresses of a link that was joined.
func (k *socket) link(index int) ([]netip.Prefix, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l, ok := k.links[index]
	return l.Prefixes, ok
}

// multicast sends b on one link, or on all with 0. What cannot be sent is lost, as packets
// are.
func (k *socket) multicast(b []byte, link int) {
	k.mu.Lock()
	links := make([]int, 0, len(k.links))
	for i := range k.links {
		if link == 0 || i == link {
			links = append(links, i)
		}
	}
	k.mu.Unlock()
	for _, i := range links {
		_ = k.send(b, i, k.group)
	}
}

func (k *socket) unicast(b []byte, to netip.AddrPort) {
	_ = k.send(b, 0, net.UDPAddrFromAddrPort(to))
}
