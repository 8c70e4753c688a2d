package doctor

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// checkOnline reports what the nix command thinks of the network when it starts.
func checkOnline(context.Context, *facts) []Finding {
	if at := online(); at != "" {
		return ok("Nix considers this machine online (%s)", at)
	}
	return warn("`nix build --option substitute true` asks all the same, and `nix-store -r` always does",
		"no interface but loopback is up: the nix command considers itself offline and asks no substituter, not even this one")
}

// online returns an address for which the nix command considers the machine online, "" if there
// is none: any but the two of loopback and IPv6's link-local ones.
func online() string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return err.Error() // Nix considers that online, too
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
func (p *facts) peerPorts() (at []netip.AddrPort) {
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

// checkPort connects to the ports for peers. Whether it is the node that listens there, the node
// says: a port that it could not have is in its status.
func checkPort(ctx context.Context, p *facts) []Finding {
	at := p.peerPorts()
	switch {
	case !p.P2P:
		return ok("peers are off (--p2p=false)")
	case len(at) == 0:
		return unknown("the port for peers changes with each start")
	case p.status == nil:
		return unknown("the daemon is not running")
	}
	for _, d := range p.status.Degraded {
		if strings.Contains(d, "listen") && strings.Contains(d, "peer") {
			return fail(portHint+"--p2p-listen", "%s", d)
		}
	}
	var open, shut []string
	for _, a := range at {
		if connects(ctx, a) {
			open = append(open, a.String())
		} else {
			shut = append(shut, a.String())
		}
	}
	if len(open) == 0 {
		return fail("`journalctl -u nixp2p` says why; `ss -ltnp` shows which program has the port",
			"nothing listens on %s: no peer can reach this machine", strings.Join(shut, ", "))
	}
	return ok("listening for peers on %s", strings.Join(open, ", "))
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

// checkWifi warns on networks with unknown machines.
func checkWifi(_ context.Context, p *facts) []Finding {
	if !p.P2P || p.Closed {
		return ok("only machines with the swarm key can be peers")
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
	return warn("close the site with `nixp2p swarm-key` and --swarm-key-file, or share nothing with --p2p=false; docs/privacy.md lists what others see",
		"on Wi-Fi (%s) without a swarm key: any machine on the network can be a peer, and sees which public paths this machine has", strings.Join(up, ", "))
}
