package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nixp2p/nixp2p/p2p/netif"
)

// lookOnline says what the nix command makes of the network when it starts.
func lookOnline(context.Context, *patient) []Finding {
	if at := online(); at != "" {
		return ok("Nix takes this machine to be online (%s)", at)
	}
	return warn("`nix build --option substitute true` asks all the same, and `nix-store -r` always does",
		"no interface but loopback is up: the nix command takes itself to be offline and asks no substituter, not even this one")
}

// online returns an address for which the nix command takes the machine to be online, "" when
// there is none. It goes by any address but the two of loopback and IPv6's link-local ones.
func online() string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return err.Error() // Nix, too, takes that for online
	}
	for _, a := range addrs {
		n, isNet := a.(*net.IPNet)
		if !isNet {
			continue
		}
		ip, valid := netip.AddrFromSlice(n.IP)
		ip = ip.Unmap()
		if valid && ip != netip.AddrFrom4([4]byte{127, 0, 0, 1}) && ip != netip.IPv6Loopback() && (ip.Is4() || !ip.IsLinkLocalUnicast()) {
			return ip.String()
		}
	}
	return ""
}

// peerPorts returns where the node listens for peers.
func (p *patient) peerPorts() (at []netip.AddrPort) {
	for _, m := range p.P2PListen {
		part := strings.Split(m, "/")
		for i := 0; i+3 < len(part); i++ {
			if part[i] != "ip4" && part[i] != "ip6" || part[i+2] != "tcp" {
				continue
			}
			ip, err := netip.ParseAddr(part[i+1])
			port, e := strconv.ParseUint(part[i+3], 10, 16)
			if err == nil && e == nil && port != 0 {
				at = append(at, netip.AddrPortFrom(ip, uint16(port)))
			}
		}
	}
	return at
}

// lookPort connects to the peer port from here.
func lookPort(ctx context.Context, p *patient) []Finding {
	switch at := p.peerPorts(); {
	case !p.P2P:
		return ok("peers are off (--p2p=false)")
	case len(at) == 0:
		return unknown("the port for peers is another one after each start")
	case p.status == nil:
		return unknown("the daemon does not say")
	default:
		var open, shut []string
		for _, a := range at {
			if connects(ctx, a) {
				open = append(open, a.String())
			} else {
				shut = append(shut, a.String())
			}
		}
		if len(open) == 0 {
			return fail("`journalctl -u nixp2p` says why; `ss -ltnp` whether another program has the port",
				"nothing listens on %s: no peer can reach this machine", strings.Join(shut, ", "))
		}
		return ok("listening for peers on %s", strings.Join(open, ", "))
	}
}

// connectTime bounds a connection within this machine.
const connectTime = time.Second

func connects(ctx context.Context, at netip.AddrPort) bool {
	ip := at.Addr()
	switch {
	case ip.IsUnspecified() && ip.Is4():
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case ip.IsUnspecified():
		ip = netip.IPv6Loopback()
	}
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(ip, at.Port()).String())
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

// The group and port of multicast DNS (RFC 6762).
var mdnsGroup = net.IPv4(224, 0, 0, 251)

const mdnsPort = 5353

// lookMulticast sends a packet to the group on each link and waits for it to come back, as
// the system does for everybody on this machine who listens.
func lookMulticast(ctx context.Context, p *patient) []Finding {
	if !p.P2P || !p.MDNS {
		return ok("peers are not looked for on the link (--p2p, --mdns)")
	}
	links, err := netif.Links()
	if err != nil {
		return unknown("%v", err)
	}
	var back, lost []string
	for _, l := range links {
		if l.Loopback || !l.Multicast || !slices.ContainsFunc(l.Prefixes, func(x netip.Prefix) bool { return x.Addr().Is4() }) {
			continue
		}
		// A port that nobody uses disturbs nobody; a firewall may let in none but the real one.
		if comesBack(ctx, l.Name, 0) == nil || comesBack(ctx, l.Name, mdnsPort) == nil {
			back = append(back, l.Name)
		} else {
			lost = append(lost, l.Name)
		}
	}
	switch {
	case len(lost) > 0:
		return warn("let 5353/udp in on this machine; or name peers with --bootstrap", "multicast does not come back on %s: peers there are not found by themselves", strings.Join(lost, ", "))
	case len(back) == 0:
		return warn("name peers with --bootstrap", "no link here can do multicast: peers are not found by themselves")
	}
	return ok("multicast goes out and comes back on %s; whether the network passes it on to others only they can tell", strings.Join(back, ", "))
}

// echoTime bounds the way of a packet through this machine.
const echoTime = 400 * time.Millisecond

var errLost = errors.New("did not come back")

// comesBack sends a packet to the group on one link and hears it; port 0 is one that nobody has.
func comesBack(ctx context.Context, link string, port int) error {
	ifi, err := net.InterfaceByName(link)
	if err != nil {
		return err
	}
	in, err := net.ListenMulticastUDP("udp4", ifi, &net.UDPAddr{IP: mdnsGroup, Port: port})
	if err != nil {
		return err
	}
	defer in.Close()
	to, isUDP := in.LocalAddr().(*net.UDPAddr)
	if !isUDP {
		return errLost
	}
	text := question()
	if err := sendOn(ctx, ifi, &net.UDPAddr{IP: mdnsGroup, Port: to.Port}, text); err != nil {
		return err
	}
	if err := in.SetReadDeadline(time.Now().Add(echoTime)); err != nil {
		return err
	}
	for buf := make([]byte, 9000); ; {
		n, _, err := in.ReadFromUDP(buf)
		if err != nil {
			return err
		}
		if bytes.Equal(buf[:n], text) {
			return nil
		}
	}
}

// question is a well-formed question of multicast DNS, for a name that nobody has.
func question() []byte {
	label := fmt.Sprintf("nixp2p-doctor-%d-%d", os.Getpid(), time.Now().UnixNano())
	q := []byte{0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for _, l := range []string{label, "local"} {
		q = append(append(q, byte(len(l))), l...)
	}
	return append(q, 0, 0, 1, 0, 1) // end of name, A, IN
}

// lookWifi warns where strangers are on the same network.
func lookWifi(_ context.Context, p *patient) []Finding {
	if !p.P2P || p.Closed {
		return ok("only who is meant to be a peer can be one")
	}
	sys := p.Sys
	if sys == "" {
		sys = "/sys"
	}
	if _, err := os.Stat(filepath.Join(sys, "class/net")); err != nil {
		return unknown("%v", err)
	}
	names, _ := filepath.Glob(filepath.Join(sys, "class/net/*/wireless"))
	var up []string
	for _, n := range names {
		dir := filepath.Dir(n)
		if state, err := os.ReadFile(filepath.Join(dir, "operstate")); err == nil && strings.TrimSpace(string(state)) == "up" {
			up = append(up, filepath.Base(dir))
		}
	}
	if len(up) == 0 {
		return ok("no Wi-Fi is up")
	}
	return warn("close the site with `nixp2p swarm-key` and --swarm-key-file, or keep to yourself with --p2p=false; docs/privacy.md says what is seen",
		"on Wi-Fi (%s) without a swarm key: who is on the same network can be a peer, and sees which public paths this machine has", strings.Join(up, ", "))
}
